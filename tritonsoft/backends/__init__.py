"""Who computes the operators: the reference in eager PyTorch, Numba, and Triton (`tritonsoft.kernels`).

All have one face, `tritonsoft.backends.protocol.Backend`; `tritonsoft.backends.select` picks one.
"""
