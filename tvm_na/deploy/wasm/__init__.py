"""Artifacts of the format ``wasm``: kernels as WebAssembly, a plan of their calls, and a page that runs them."""
