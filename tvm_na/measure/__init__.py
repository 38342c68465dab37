"""Checking and timing kernels, here or on devices behind RPC."""
