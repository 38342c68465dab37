"""Benchmarks against peers; run each as a module, such as ``python -m benchmarks.suite``."""
