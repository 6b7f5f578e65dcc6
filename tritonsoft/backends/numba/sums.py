"""Sums over pixels: of their losses, to one loss of all."""

from typing import Any

import numpy as np
from torch import Tensor

from tritonsoft.backends.numba.elements import flat
from tritonsoft.backends.numba.planes import whole
from tritonsoft.backends.numba.threads import jit, unsigned
from tritonsoft.backends.numba.vectors import LANES, load, spread, sum_of
from tritonsoft.geometry import Reduction


@jit
def put_losses(loss: Any, sums: Any, place_of_sums: Any, online: Any, start: Any, count: Any) -> None:
    """Writes the losses of pixels, or adds them and their masses to a place of the sums."""
    if sums.size == 0:
        for n in range(count):
            loss[start + n] = online.distance[n]
        return
    for n in range(count, whole(count)):
        online.distance[n] = 0
        online.mass[n] = 0
    total = total_mass = spread(online.mass.dtype.type(0), LANES)
    for n in range(unsigned(0), whole(count), unsigned(LANES)):
        total = total + load(online.distance, n, LANES)
        total_mass = total_mass + load(online.mass, n, LANES)
    sums[unsigned(2) * place_of_sums] += sum_of(total)
    sums[unsigned(2) * place_of_sums + unsigned(1)] += sum_of(total_mass)


@jit
def add_up(value: Any, total: Any, sums: Any, is_mean: Any) -> None:
    """The loss of all pixels, and their mass."""
    loss = mass = 0.0
    for n in range(unsigned(0), unsigned(sums.size), unsigned(2)):
        loss += sums[n]
        mass += sums[n + unsigned(1)]
    value[0] = loss / mass if is_mean and mass > 0 else loss
    total[0] = mass


def sums_of(value: Tensor, reduction: Reduction, number: int) -> Any:
    """Losses and masses of so many tiles or rows, 0; nothing where every pixel's loss is wanted."""
    return np.zeros(0 if reduction == "none" else 2 * number)


def finish_sums(value: Tensor, total: Tensor, sums: Any, reduction: Reduction) -> None:
    if reduction != "none":
        add_up(flat(value), flat(total), sums, reduction == "mean")


def divisor_of(total: Tensor | None, dtype: Any) -> Any:
    number = 1.0 if total is None else total.item()
    return dtype.type(number if number > 0 else 1.0)
