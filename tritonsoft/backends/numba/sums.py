"""Sums of the pixels' losses: one of each tile, added up in a fixed order."""

import numpy as np
from torch import Tensor

from tritonsoft.backends.numba.elements import LIKE, Array, array_at
from tritonsoft.backends.numba.planes import padded
from tritonsoft.backends.numba.softmax import SoftmaxState
from tritonsoft.backends.numba.threads import jit, unsigned
from tritonsoft.backends.numba.vectors import LANES, broadcast, load, sum_of
from tritonsoft.geometry import Reduction


@jit
def store_losses(loss: Array, sums: Array, index: int, state: SoftmaxState, start: int, count: int) -> None:
    """Writes the losses of pixels or, where there are ``sums (n, 2)``, adds losses and masses to one of these."""
    if sums.size == 0:
        for n in range(count):
            loss[start + n] = state.loss[n]
        return
    for n in range(count, padded(count)):
        state.loss[n] = 0
        state.mass[n] = 0
    total = total_mass = broadcast(state.mass.dtype.type(0), LANES)
    for n in range(unsigned(0), padded(count), unsigned(LANES)):
        total = total + load(state.loss, n, LANES)
        total_mass = total_mass + load(state.mass, n, LANES)
    sums[unsigned(2) * index] += sum_of(total)
    sums[unsigned(2) * index + unsigned(1)] += sum_of(total_mass)


@jit
def _finish_cross_entropy(value_address: int, total_address: int, sums: Array, is_mean: bool, like: Array) -> None:
    """Reduces the sums of losses and masses."""
    value, total = array_at(value_address, 1, like), array_at(total_address, 1, like)
    loss = mass = 0.0
    for n in range(unsigned(0), unsigned(sums.size), unsigned(2)):
        loss += sums[n]
        mass += sums[n + unsigned(1)]
    value[0] = loss / mass if is_mean and mass > 0 else loss
    total[0] = mass


def partial_sums(reduction: Reduction, number: int) -> Array:
    """Zeros for the losses and masses of so many tiles or rows; empty where each pixel's loss is wanted."""
    return np.zeros(0 if reduction == "none" else 2 * number)


def finish_cross_entropy(value: Tensor, total: Tensor, sums: Array, reduction: Reduction) -> None:
    if reduction != "none":
        _finish_cross_entropy(value.data_ptr(), total.data_ptr(), sums, reduction == "mean", LIKE[value.dtype])


def divisor_of(total: Tensor | None) -> float:
    number = 1.0 if total is None else total.item()
    return number if number > 0 else 1.0
