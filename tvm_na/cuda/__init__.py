"""NVIDIA's GPUs: architectures, compilers of their code, kernels as shared libraries, and launching them."""
