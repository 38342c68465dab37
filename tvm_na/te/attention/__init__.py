"""Neighborhood attention as tensor expressions."""
