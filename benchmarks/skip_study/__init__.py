"""The parts of `benchmarks/skips.py`."""
