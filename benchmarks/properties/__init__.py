"""The three properties of neighborhood attention, as numbers and pictures."""
