"""Packages: kernels that are built before anything is measured, for machines without TVM and without a compiler."""
