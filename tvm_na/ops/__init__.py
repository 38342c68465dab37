"""The operators as PyTorch sees them, and how their kernels are launched."""
