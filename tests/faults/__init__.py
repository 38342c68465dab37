"""Planted faults, and a script that shows that the tests find every one: ``python -m tests.faults``."""
