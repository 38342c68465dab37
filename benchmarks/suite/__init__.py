"""Every number of docs/BENCHMARKS.md: ``python -m benchmarks.suite``."""
