"""The softmax of pixels, sixteen side by side, while their classes go by a few at a time.

The logsumexp and the loss are found while the classes go by, relative to the largest logit so far: all that is summed
is positive, so that nothing cancels whatever the size of the logits.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from tritonsoft.backends.numba.elements import prefetch, reinterpret
from tritonsoft.backends.numba.planes import STREAMED
from tritonsoft.backends.numba.threads import jit, unsigned
from tritonsoft.backends.numba.vectors import LANES, convert, exp, load, spread, store, stream, where


def log(value: Any) -> Any:
    """The logarithm of a positive number, no subnormal."""


def _log_single(value: Any) -> Any:
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


def _log_double(value: Any) -> Any:
    return math.log(value)


@overload(log, jit_options={"fastmath": {"contract"}})
def _(value: Any) -> Any:
    return _log_single if value == types.float32 else _log_double


class Online(NamedTuple):
    """Lines with a number for each pixel."""

    largest: Any  # logit so far
    total: Any  # of exponentials relative to it
    distance: Any  # of the logits from it, times their masses
    mass: Any


@jit
def begin(online: Any) -> None:
    """Before the first class."""
    largest, total, distance, mass = online
    largest[:] = np.finfo(largest.dtype).min  # finite: infinity less infinity is not a number
    total[:] = 0
    distance[:] = 0
    mass[:] = 0


@jit
def meet(
    online: Any, logits: Any, masses: Any, weights: Any, first: Any, number: Any, known: Any, num_known: Any, count: Any
) -> Any:
    """Some classes from ``first`` on, of which ``known[:num_known]`` have masses: the least of these, 0 at most."""
    largest, total, distance, mass = online
    lowest = np.finfo(largest.dtype).min
    least = spread(largest.dtype.type(0), LANES)
    for n in range(unsigned(0), count, unsigned(LANES)):
        before = load(largest, n, LANES)
        larger = before
        for k in range(number):
            start = logits.first + k * logits.pitch + n
            logit = load(logits.numbers, start, LANES)
            larger = where(logit > larger, logit, larger)
            prefetch(logits.numbers, start + logits.ahead)
        fall = before - larger
        fall = where(fall > lowest, fall, lowest)  # times a mass of 0 it is 0
        exponentials = load(total, n, LANES) * exp(fall)
        for k in range(number):
            logit = load(logits.numbers, logits.first + k * logits.pitch + n, LANES)
            exponentials = exponentials + exp(logit - larger)
        labelled = load(mass, n, LANES)
        apart = load(distance, n, LANES) - labelled * fall
        for j in range(num_known):
            k = known[j]
            start = masses.first + k * masses.pitch + n
            share = weights[first + k] * convert(load(masses.numbers, start, LANES), mass)
            prefetch(masses.numbers, start + masses.ahead)
            logit = load(logits.numbers, logits.first + k * logits.pitch + n, LANES)
            apart = apart + where(share > 0.0, share * (larger - logit), 0.0)
            least = where(share < least, share, least)
            labelled = labelled + not_negative(share)
        store(largest, n, larger)
        store(total, n, exponentials)
        store(distance, n, apart)
        store(mass, n, labelled)
    return least


@jit
def not_negative(share: Any) -> Any:
    """A mass below 0 has been rounded, and is none; NaN stays."""
    return where(share < 0.0, 0.0, share)


@jit
def finish(online: Any, count: Any) -> None:
    """After the last class: turns ``largest`` into the logsumexp, ``distance`` into the loss."""
    largest, total, distance, mass = online
    zero = largest.dtype.type(0)
    for n in range(count):
        logarithm = log(total[n]) if total[n] > zero else total[n] - np.inf
        largest[n] += logarithm
        distance[n] = distance[n] + mass[n] * logarithm if mass[n] > zero else zero


class Pixels(NamedTuple):
    """Lines of what a gradient knows of each pixel."""

    scale: Any  # the gradient of its loss
    pull: Any  # that, times the pixel's mass
    mass: Any
    lse: Any


@jit
def write_gradient(
    out: Any, start: Any, way: Any, pixels: Any, logits: Any, masses: Any, is_known: Any, weight: Any, count: Any
) -> None:
    """The gradient of one class: its probability times the pull, less what is labelled if that ``is_known``."""
    scale, pull, mass, lse = pixels
    for n in range(unsigned(0), count, unsigned(LANES)):
        logit = load(logits.numbers, logits.first + n, LANES)
        prefetch(logits.numbers, logits.first + n + logits.ahead)
        value = load(pull, n, LANES) * exp(logit - load(lse, n, LANES))
        value = where(load(mass, n, LANES) > 0.0, value, 0.0)
        if is_known:
            share = weight * convert(load(masses.numbers, masses.first + n, LANES), mass)
            prefetch(masses.numbers, masses.first + n + masses.ahead)
            # Where nothing is known, the scale may be NaN.
            value = value - where(share > 0.0, load(scale, n, LANES) * share, 0.0)
        leave(out, start + n, value, way)


@jit
def leave(out: Any, place: Any, value: Any, way: Any) -> None:
    if way == STREAMED:
        stream(out, place, value)
    else:
        store(out, place, value)


@jit
def know(pixels: Any, divisor: Any, mass: Any, lse: Any, start: Any, count: Any) -> None:
    """What is known of some pixels; their ``scale`` is there already, but for the divisor.

    Up to whole vectors, older pixels follow: a line with such an end is copied out without it.
    """
    for n in range(count):
        pixels.mass[n], pixels.lse[n] = mass[start + n], lse[start + n]
        pixels.scale[n] /= divisor
        pixels.pull[n] = pixels.scale[n] * pixels.mass[n]
