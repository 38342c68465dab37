"""Linear layers, convolutions and layer norm."""
