"""Tuning records: reading, writing, selecting and applying them."""
