"""What kernels compute: values that name workloads, with every check of their parts. TVM is not imported here."""
