"""What was measured, as tables, pictures and docs/BENCHMARKS.md."""
