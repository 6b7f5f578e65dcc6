"""Arithmetic of a few numbers, written once for NumPy's arrays and PyTorch's tensors.

On the CPU a hundred small steps are NumPy's, whose functions cost less than PyTorch's operators and stay on the calling
thread. Everywhere else, on devices, in compiled graphs and under `torch.func`, they are PyTorch's. Code for both uses
operators, indices and the functions that the two have under one name, with their axis in the same place:

    xp = namespace(areas)
    largest = xp.amax(areas, 1)
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tritonsoft.augmentation.sampling import can_be_read, is_untransformed

Array = Any  # NumPy's or a tensor: no type says what the two have in common


def computes_by_numpy(tensor: Tensor) -> bool:
    """Whether there are values on the CPU to read, along which nobody differentiates."""
    return tensor.device.type == "cpu" and can_be_read(tensor) and is_untransformed(tensor)


def to_numpy(tensor: Tensor) -> Array:
    """The same numbers as an array, in memory that the two share; NumPy has no bfloat16."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()


def namespace(array: Array) -> Any:
    """Whose functions take this array."""
    return np if isinstance(array, np.ndarray) else torch


def arange(length: int, like: Array) -> Array:
    """0, 1, ..., where another array is."""
    return np.arange(length) if isinstance(like, np.ndarray) else torch.arange(length, device=like.device)
