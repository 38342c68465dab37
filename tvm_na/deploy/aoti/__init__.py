"""Artifacts that run with PyTorch."""
