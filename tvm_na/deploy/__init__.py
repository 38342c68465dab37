"""Models compiled into artifacts: folders that run with PyTorch or TVM's runtime alone, without this package.

Making one: :mod:`.compiler`, with :mod:`.export` (the exported model) and a folder for each format. Using one:
:mod:`.artifact`, which :mod:`.manifest` guards.
"""
