"""Speed and memory beside what a user would pick instead: the parts of `benchmarks/bench.py`."""
