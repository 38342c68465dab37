"""Tuning records: reading, writing, choosing and applying them."""
