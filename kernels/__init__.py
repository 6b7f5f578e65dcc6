"""The Triton backend: each file is a kernel, its launcher and its launch heuristic."""

from tritonsoft.kernels.adjoint import crop_resize_adjoint
from tritonsoft.kernels.forward import crop_resize, crop_resize_pair, soft_crop_resize

__all__ = ["crop_resize", "crop_resize_adjoint", "crop_resize_pair", "soft_crop_resize"]
