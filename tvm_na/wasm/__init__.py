"""Kernels as WebAssembly: linked into a module that needs nothing but a memory, and run in wasmtime.

A kernel of TVM's wants four things of a runtime: where to report an error, run a loop, get memory, give it back.
``runtime.c`` has them. Hosts (wasmtime here, JavaScript in ``tvm_na/deploy/wasm/web``) put tensors into the memory, and
call.
"""
