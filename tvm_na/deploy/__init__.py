"""Models compiled into artifacts: folders that run with PyTorch alone, without TVM and without this package.

Making one: :mod:`.compiler`, with :mod:`.program` (the exported model), :mod:`.kernels` (its attention as a library of
operators) and :mod:`.aoti` (the rest). Using one: :mod:`.artifact`, which :mod:`.manifest` guards.
"""
