"""What several expressions are made of."""
