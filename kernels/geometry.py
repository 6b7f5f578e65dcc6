"""`tritonsoft.geometry` as Triton functions, one axis at a time: shared by every kernel, forward and adjoint.

Scalars describe the axis of one sample (`axis_of_box`), vectors its outputs (`footprint`). Positions are float64 until
the taps are chosen; a weight then needs only the small distance between a tap and the centre, which float32 holds well.
"""

import triton
import triton.language as tl

from tritonsoft.geometry import MAX_COORDINATE
from tritonsoft.kernels.convert import INTERPRETED, upcast

_LIMIT = tl.constexpr(MAX_COORDINATE)


@triton.jit
def _coordinate(pointer):
    value = upcast(tl.load(pointer), tl.float64)
    value = tl.where(value == value, value, 0.0)  # the values of boxes on a GPU may be unchecked
    return tl.minimum(tl.maximum(value, -_LIMIT), _LIMIT)


@triton.jit
def axis_of_box(boxes, boxes_strides, sample, COORDINATE: tl.constexpr, in_size):
    """The box of a sample along x (COORDINATE 0) or y (1): its lower and upper end, and whether it is mirrored."""
    if boxes is None:
        hi = in_size.to(tl.float64)
        return hi * 0, hi, in_size < 0
    else:
        pointer = boxes + sample.to(tl.int64) * boxes_strides[0] + COORDINATE * boxes_strides[1]
        start = _coordinate(pointer)
        end = _coordinate(pointer + 2 * boxes_strides[1])
        return tl.minimum(start, end), tl.maximum(start, end), end < start


@triton.jit
def filter_support(box, out_size, FILTER: tl.constexpr):
    """Half the width, in source pixels, of the stretch that a filter weighs; float64."""
    scale = tl.maximum((box[1] - box[0]) / out_size.to(tl.float64), 1.0)
    if FILTER == "area":
        return (scale + 1) / 2
    elif FILTER == "triangle":
        return scale
    else:
        return scale * 0 + 1


@triton.jit
def quotient(numerators, denominator):
    """Correctly rounded quotients by one denominator, for the price of five operations each instead of a division.

    Two Newton steps on the product with the rounded reciprocal; the remainders are exact (Markstein, IA-64 and
    Elementary Functions, 2000). The interpreter's fma rounds twice, so there it is a division, with the same result.
    """
    if INTERPRETED:
        return numerators / denominator
    else:
        reciprocal = 1 / denominator
        quotient = numerators * reciprocal
        quotient = tl.fma(tl.fma(-quotient, denominator, numerators), reciprocal, quotient)
        return tl.fma(tl.fma(-quotient, denominator, numerators), reciprocal, quotient)


@triton.jit
def output_centre(j, box, out_size):
    """The centre of output pixels ``j`` in source coordinates; float64, in the order of `tritonsoft.geometry`."""
    lo, hi, mirrored = box
    count = tl.where(mirrored, out_size - 1 - j, j)
    return lo + quotient((hi - lo) * (2 * count + 1).to(tl.float64), (2 * out_size).to(tl.float64))


@triton.jit
def tap_weight(distance, support, FILTER: tl.constexpr):
    """The weight of a tap whose centre lies ``distance`` from that of the output, before division by the sum."""
    if FILTER == "nearest":
        return distance * 0 + 1
    else:
        weight = tl.maximum(support - tl.abs(distance), 0.0)
        return tl.minimum(weight, 1.0) if FILTER == "area" else weight


@triton.jit
def _sum_of_weights(first, last, position, support, FILTER: tl.constexpr):
    """The sum of the weights of the taps ``first .. last``, in closed form; 0 where there are none.

    All positions are relative to one pixel, to be small: the taps' left edges, and the ``position`` of the centre.
    """
    if FILTER == "nearest":
        total = position * 0 + 1
    elif FILTER == "area":
        half = support - 0.5
        total = tl.minimum(position + half, last + 1) - tl.maximum(position - half, first)
    else:
        # Up to `split` the hat rises, after it falls: two arithmetic series.
        split = tl.minimum(tl.maximum(tl.floor(position - 0.5), first - 1), last)
        rising = (split - first + 1) * (support - position + 0.5 + (first + split) / 2)
        falling = (last - split) * (support + position - 0.5 - (split + 1 + last) / 2)
        total = rising + falling
    return tl.where(first <= last, total, 0.0)


@triton.jit
def footprint(j, box, out_size, in_size, FILTER: tl.constexpr, ACCUMULATOR: tl.constexpr):
    """What output pixels ``j`` see of the source along an axis.

    Returns:
        first, last: the taps with a positive weight that lie in the image (int32); none where ``first > last``.
        distance: of the first tap's centre from the footprint's.
        inverse_weight_sum: one over the sum of all weights, those outside the image included.
        share: the part of that sum which lies in the image.
    """
    centre = output_centre(j, box, out_size)
    pixel = tl.floor(centre)
    position = (centre - pixel).to(ACCUMULATOR)
    pixel = pixel.to(tl.int32)
    support = filter_support(box, out_size, FILTER).to(ACCUMULATOR)
    touched_first = tl.floor(box[0]).to(tl.int32)
    touched_last = tl.maximum(tl.ceil(box[1]).to(tl.int32) - 1, touched_first)  # an empty box still touches one pixel
    if FILTER == "nearest":
        first = pixel
        last = pixel
    else:
        first = pixel + tl.floor(position - support + 0.5).to(tl.int32)
        last = pixel + tl.ceil(position + support - 0.5).to(tl.int32) - 1
    first = tl.minimum(tl.maximum(first, touched_first), touched_last)
    last = tl.minimum(tl.maximum(last, first), touched_last)
    total = _sum_of_weights((first - pixel).to(ACCUMULATOR), (last - pixel).to(ACCUMULATOR), position, support, FILTER)
    inverse_weight_sum = 1 / tl.maximum(total, 1e-30)
    first = tl.maximum(first, 0)
    last = tl.minimum(last, in_size - 1)
    first_position = (first - pixel).to(ACCUMULATOR)
    inside = _sum_of_weights(first_position, (last - pixel).to(ACCUMULATOR), position, support, FILTER)
    share = tl.where(inside == total, 1.0, inside * inverse_weight_sum)
    return first, last, first_position + (0.5 - position), inverse_weight_sum, share


@triton.jit
def axis_of_outputs(outputs, box, out_size, in_size, FILTER: tl.constexpr, ACCUMULATOR: tl.constexpr):
    """What outputs see of the source along an axis, those beyond the last one as the last: `footprint`, and half the
    width of the filter."""
    outputs = tl.minimum(outputs, out_size - 1)
    first, last, distance, inverse_weight_sum, share = footprint(outputs, box, out_size, in_size, FILTER, ACCUMULATOR)
    support = filter_support(box, out_size, FILTER).to(ACCUMULATOR)
    return first, last, distance, inverse_weight_sum, share, support
