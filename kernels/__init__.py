"""The Triton backend: each file is a kernel, its launcher and its launch heuristic."""
