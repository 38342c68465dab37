"""CUDA C++ on the CPU: runs what TVM generates for GPUs, and notices missing synchronisation."""
