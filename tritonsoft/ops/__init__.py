"""The operators, registered with PyTorch: `images`, `labels` (and pairs), `warps`, `mixing`, `losses`; `_define` how.

Arguments arrive checked by the public functions, apart from their *values*: those are only known when an operator
runs, also inside a compiled graph, so they are checked here, or by the backend while it reads them.
"""
