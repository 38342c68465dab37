"""Search spaces of NVIDIA GPUs."""
