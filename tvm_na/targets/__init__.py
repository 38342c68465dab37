"""The machines that kernels are built for."""
