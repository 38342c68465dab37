"""A page with pictures of what was tuned."""
