"""The online softmax of pixels and its gradient: `LANES` pixels in a vector, a few classes in a step.

The logsumexp is computed online (Milakov and Gimelshein, arXiv 1805.02867), relative to the largest logit so far, and
so is the loss: one pass, and all that is summed is positive, which avoids cancellation whatever the size of the logits.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from tritonsoft.backends.numba.elements import Array, prefetch, reinterpret
from tritonsoft.backends.numba.planes import NON_TEMPORAL, Lines
from tritonsoft.backends.numba.threads import jit, unsigned
from tritonsoft.backends.numba.vectors import LANES, broadcast, convert, exp, load, multiply_add, store, stream, where


def log(value: Array) -> Any:
    """The logarithm of a positive, normal number."""


def _log_single(value: Array) -> Any:
    # x = 2^n m with m from sqrt(1/2) to sqrt(2), and ln(m) = 2 artanh(s) with s = (m - 1) / (m + 1), |s| < 0.172.
    bits = np.uint32(reinterpret(value) - np.uint32(0x3F3504F3))
    exponent = np.float32(np.int32(bits) >> 23)
    mantissa = reinterpret(np.uint32(np.uint32(bits & np.uint32(0x007FFFFF)) + np.uint32(0x3F3504F3)))
    ratio = np.float32((mantissa - np.float32(1.0)) / (mantissa + np.float32(1.0)))
    square = np.float32(ratio * ratio)
    series = np.float32(0.11111111) * square + np.float32(0.14285715)
    series = series * square + np.float32(0.2)
    series = series * square + np.float32(0.33333334)
    series = np.float32(2.0) * ratio * (series * square + np.float32(1.0))
    return np.float32(series + exponent * np.float32(0.6931472))


def _log_double(value: Array) -> Any:
    return math.log(value)


@overload(log, jit_options={"fastmath": {"contract"}})
def _(value: Array) -> Any:
    return _log_single if value == types.float32 else _log_double


@jit
def log_of_sum(sum_exp: Any) -> Any:
    """The logarithm of a sum of exponentials; -infinity of 0, and NaN stays."""
    return log(sum_exp) if sum_exp > 0 else sum_exp - np.inf


class SoftmaxState(NamedTuple):
    """Running sums of each pixel, over the classes so far."""

    max_logit: Array  # in the end the logsumexp
    sum_exp: Array  # of ``logit - max_logit``
    loss: Array  # the sum of ``mass * (max_logit - logit)``; in the end the cross-entropy
    mass: Array  # the sum of the weighted masses


class UniformState(NamedTuple):
    """Running sums of what smoothing adds to a loss: a share of that of uniform labels, a mass of 1 in every class."""

    label_smoothing: Any  # 0 for none: then nothing else is used
    loss: Array  # the weighted sum of ``max_logit - logit``; in the end the cross-entropy
    weight_sum: Array  # (1,): of the classes so far
    known: Array  # the sum of the masses, without weights


@jit
def new_uniform_state(tile: int, label_smoothing: float, like: Array) -> Any:
    dtype = like.dtype
    size = tile if label_smoothing > 0 else 0
    return UniformState(dtype.type(label_smoothing), np.zeros(size, dtype), np.zeros(1, dtype), np.zeros(size, dtype))


@jit
def online_softmax_init(state: SoftmaxState, uniform: UniformState) -> None:
    """Before the first class."""
    uniform.loss[:] = 0
    uniform.weight_sum[:] = 0
    uniform.known[:] = 0
    max_logit, sum_exp, loss, mass = state
    max_logit[:] = np.finfo(max_logit.dtype).min  # finite, because inf - inf is NaN
    sum_exp[:] = 0
    loss[:] = 0
    mass[:] = 0


@jit
def _uniform_update(
    uniform: UniformState,
    max_delta: Any,
    new_max: Any,
    logits: Lines,
    masses: Lines,
    weights: Array,
    first: int,
    number: int,
    present: Array,
    num_present: int,
    n: int,
) -> None:
    """What `online_softmax_update` does for one vector of pixels."""
    cost = load(uniform.loss, n, LANES) - max_delta * uniform.weight_sum[0]
    for k in range(number):
        weight = weights[first + k]
        if weight > 0:  # else the logit may be infinite
            logit = load(logits.values, logits.first + k * logits.pitch + n, LANES)
            cost = multiply_add(new_max - logit, weight, cost)
    known = load(uniform.known, n, LANES)
    for j in range(num_present):
        start = masses.first + present[j] * masses.pitch + n
        known = known + not_negative(convert(load(masses.values, start, LANES), uniform.known))
    store(uniform.loss, n, cost)
    store(uniform.known, n, known)


@jit
def online_softmax_update(
    state: SoftmaxState,
    uniform: UniformState,
    logits: Lines,
    masses: Lines,
    weights: Array,
    first: int,
    number: int,
    present: Array,
    num_present: int,
    count: int,
) -> Any:
    """Adds ``number`` classes from ``first`` on, of which ``present[:num_present]`` have mass.

    Returns the smallest of these masses, or 0, for each lane.
    """
    max_logit, sum_exp, loss, mass = state
    lowest = np.finfo(max_logit.dtype).min
    min_mass = broadcast(max_logit.dtype.type(0), LANES)
    for n in range(unsigned(0), count, unsigned(LANES)):
        old_max = load(max_logit, n, LANES)
        new_max = old_max
        for k in range(number):
            start = logits.first + k * logits.pitch + n
            logit = load(logits.values, start, LANES)
            new_max = where(logit > new_max, logit, new_max)
            prefetch(logits.values, start + logits.prefetch_distance)
        max_delta = old_max - new_max
        max_delta = where(max_delta > lowest, max_delta, lowest)  # finite, so that it is 0 times a mass of 0
        new_sum = load(sum_exp, n, LANES) * exp(max_delta)
        for k in range(number):
            logit = load(logits.values, logits.first + k * logits.pitch + n, LANES)
            new_sum = new_sum + exp(logit - new_max)
        if uniform.label_smoothing > 0:
            _uniform_update(
                uniform, max_delta, new_max, logits, masses, weights, first, number, present, num_present, n
            )
        new_mass = load(mass, n, LANES)
        new_loss = load(loss, n, LANES) - new_mass * max_delta
        for j in range(num_present):
            k = present[j]
            start = masses.first + k * masses.pitch + n
            class_mass = weights[first + k] * convert(load(masses.values, start, LANES), mass)
            prefetch(masses.values, start + masses.prefetch_distance)
            logit = load(logits.values, logits.first + k * logits.pitch + n, LANES)
            new_loss = new_loss + where(class_mass > 0.0, class_mass * (new_max - logit), 0.0)
            min_mass = where(class_mass < min_mass, class_mass, min_mass)
            new_mass = new_mass + not_negative(class_mass)
        store(max_logit, n, new_max)
        store(sum_exp, n, new_sum)
        store(loss, n, new_loss)
        store(mass, n, new_mass)
    for k in range(number):
        uniform.weight_sum[0] += weights[first + k]
    return min_mass


@jit
def not_negative(class_mass: Any) -> Any:
    """A mass below 0 comes from rounding and counts as 0; NaN stays."""
    return where(class_mass < 0.0, 0.0, class_mass)


@jit
def online_softmax_finalize(state: SoftmaxState, uniform: UniformState, num_classes: int, count: int) -> None:
    """After the last class: turns ``max_logit`` into the logsumexp and ``loss`` into the smoothed cross-entropy."""
    max_logit, sum_exp, loss, mass = state
    zero = max_logit.dtype.type(0)
    for n in range(count):
        logarithm = log_of_sum(sum_exp[n])
        max_logit[n] += logarithm
        loss[n] = loss[n] + mass[n] * logarithm if mass[n] > zero else zero
        if uniform.label_smoothing > zero:
            _smooth(loss, uniform, num_classes, logarithm, n)


@jit
def _smooth(loss: Array, uniform: UniformState, num_classes: int, logarithm: Any, n: int) -> None:
    zero, one = loss.dtype.type(0), loss.dtype.type(1)
    smoothing, all_weights = uniform.label_smoothing, uniform.weight_sum[0]
    loss[n] = (one - smoothing) * loss[n] if smoothing < one else zero
    if uniform.known[n] > zero and all_weights > zero:
        share = uniform.known[n] * (smoothing / loss.dtype.type(num_classes))
        loss[n] += share * (uniform.loss[n] + all_weights * logarithm)


@jit
def save_statistics(
    state: SoftmaxState,
    uniform: UniformState,
    mass: Array,
    known_offset: int,
    lse: Array,
    num_classes: int,
    start: int,
    count: int,
) -> None:
    """Writes the pixels' logsumexp and smoothed mass, and their mass without weights that far behind, if not 0."""
    for n in range(count):
        mass[start + n], lse[start + n] = state.mass[n], state.max_logit[n]
    if known_offset > unsigned(0):
        smoothing, one = uniform.label_smoothing, mass.dtype.type(1)
        of_known = uniform.weight_sum[0] * (smoothing / mass.dtype.type(num_classes))
        for n in range(count):
            mass[start + n] = (one - smoothing) * state.mass[n] + of_known * uniform.known[n]
            mass[known_offset + start + n] = uniform.known[n]


class PixelStatistics(NamedTuple):
    """What the gradient of each pixel's logits is made of."""

    grad_loss: Array  # gradient of the pixel's loss, times what smoothing leaves of each mass
    grad_times_mass: Array  # that of the loss times ``mass``
    grad_times_uniform: Array  # that of the loss times what smoothing gives to each class
    mass: Array  # the sum of the weighted masses
    lse: Array


@jit
def write_gradient(
    out: Array,
    start: int,
    how: Any,
    statistics: PixelStatistics,
    logits: Lines,
    masses: Lines,
    has_mass: Any,
    is_smoothed: Any,
    weight: Any,
    count: int,
) -> None:
    """The gradient of one class: ``grad_loss * (mass * probability - class_mass)``, the latter if it ``has_mass``.

    Where labels are smoothed, less what that gives to the class.
    """
    grad_loss, grad_times_mass, grad_times_uniform, mass, lse = statistics
    for n in range(unsigned(0), count, unsigned(LANES)):
        logit = load(logits.values, logits.first + n, LANES)
        prefetch(logits.values, logits.first + n + logits.prefetch_distance)
        value = load(grad_times_mass, n, LANES) * exp(logit - load(lse, n, LANES))
        if is_smoothed:
            value = value - weight * load(grad_times_uniform, n, LANES)
        value = where(load(mass, n, LANES) > 0.0, value, 0.0)
        if has_mass:
            class_mass = weight * convert(load(masses.values, masses.first + n, LANES), mass)
            prefetch(masses.values, masses.first + n + masses.prefetch_distance)
            # Without mass, the gradient of the loss may be NaN.
            value = value - where(class_mass > 0.0, load(grad_loss, n, LANES) * class_mass, 0.0)
        store_or_stream(out, start + n, value, how)


@jit
def store_or_stream(out: Array, index: int, value: Array, how: Any) -> None:
    """Stores a vector with the store that `select_store` selected."""
    if how == NON_TEMPORAL:
        stream(out, index, value)
    else:
        store(out, index, value)


@jit
def load_saved_statistics(
    statistics: PixelStatistics,
    divisor: Any,
    mass: Array,
    known_offset: int,
    lse: Array,
    smoothing: Any,
    num_classes: int,
    start: int,
    count: int,
) -> None:
    """Completes the statistics by what `save_statistics` wrote; ``grad_loss`` has been loaded but not divided.

    The padding up to whole vectors is left over from earlier tiles; a padded line is staged and copied without it.
    """
    for n in range(count):
        statistics.mass[n], statistics.lse[n] = mass[start + n], lse[start + n]
        statistics.grad_loss[n] /= divisor
        statistics.grad_times_mass[n] = statistics.grad_loss[n] * statistics.mass[n]
    if smoothing > 0:
        one, share = mass.dtype.type(1), smoothing / mass.dtype.type(num_classes)
        for n in range(count):
            statistics.grad_times_uniform[n] = statistics.grad_loss[n] * share * mass[known_offset + start + n]
            statistics.grad_loss[n] *= one - smoothing
