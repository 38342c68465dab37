"""Everything that is to be learnt on a machine with a GPU, in one command of nine minutes (docs/guide/benchmarks.md).

``prepare`` makes a folder without a GPU, ``python -m benchmarks.gpu`` runs it where there is one: without a compiler,
TVM or a network. Nothing here has run on a GPU yet.
"""
