"""The parts of `benchmarks/norm_study.py`."""
