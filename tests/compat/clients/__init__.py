"""Code as users of NATTEN write it, of several releases: it imports natten and knows nothing of tvm_na."""
