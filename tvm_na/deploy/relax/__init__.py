"""Artifacts that run without PyTorch."""
