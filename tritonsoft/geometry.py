"""Geometry and filters: what every backend computes, said once; and the names of options.

**Box.** ``(x0, y0, x1, y1)`` in source pixel *edges*: pixel k covers the interval [k, k+1], the whole image
is ``(0, 0, W, H)``. ``x1 < x0`` mirrors left-right, ``y1 < y0`` top-bottom. The box may reach outside the image.

**One axis at a time.** All filters are separable. Along an axis let the box run from ``lo``, the smaller of its two
ends, to ``hi`` over ``m`` output pixels (a mirrored box counts its outputs backwards, so a flip is exact to the bit).
Then

    span   = hi - lo
    scale  = span / m                                    source pixels under one output pixel
    centre = lo + span * (2 j + 1) / (2 m)               of output j, half-pixel convention

and the weight of source pixel k in output j is a trapezoid in the distance of the two centres, cut off at ``plateau``:

    weight(k) = clamp(support - |k + 1/2 - centre|, 0, plateau)

    filter       support                    plateau
    "area"       (max(scale, 1) + 1) / 2    1          overlap of [k, k+1] with a window of width max(scale, 1)
    "triangle"   max(scale, 1)              support    a hat of half-width max(scale, 1)
    "bilinear"   1                          support    the same hat, whatever the scale
    "nearest"    1                          support    the same hat, with the one tap k = floor(centre)

The taps are those pixels that the box touches, ``floor(lo) <= k < ceil(hi)``, so a crop never sees past its own edge.
Their weights are divided by their sum. Only then do taps outside the image become ``fill`` (images) or lose their
mass (labels): padding weighs as much as the pixels it stands for.

**Logits at full size.** The losses and the decoding of small logits against a full-size label map go the other way:
each label pixel takes the logits' value at its centre, linearly between the two neighbours along each axis, and that of
the outermost ones beyond them (what ``F.interpolate(mode="bilinear", align_corners=False)`` does). Along an axis of n
logits that fill the box from ``lo`` to ``hi``, pixel k lies at

    position = clamp((k + 1/2 - lo) * n / (hi - lo) - 1/2, 0, n - 1)

of them, counted backwards in a mirrored box, and takes ``1 - f`` of logit floor(position) and ``f`` of the next, with f
the fraction. Where f is 0, or 1 when rounded to float32, it takes half of the one logit twice: no other is read, so
that infinity times 0 makes no NaN. Pixels whose centre lies in the box, ``lo <= k + 1/2 < hi``, are scored.

**Arithmetic.** Every backend evaluates ``centre`` and ``position`` in float64, in exactly the order written above. No
product feeds a sum there, so no compiler can fuse them, and all backends pick the same taps.
"""

from typing import Final, Literal

Filter = Literal["area", "triangle", "bilinear", "nearest"]

Reduction = Literal["mean", "sum", "none"]
Measure = Literal["dice", "jaccard"]
Classes = Literal["present", "all"]

FILTERS: Final[tuple[Filter, ...]] = ("area", "triangle", "bilinear", "nearest")

# Box coordinates beyond this are refused where values are checked (and clamped to it where they are not): beyond it a
# float32 cannot tell neighbouring pixels apart, and below it the number of taps stays far inside 32 bits.
MAX_COORDINATE: Final = float(2**24)

# Masses and probabilities may have been rounded before they came into their type: in bfloat16 each is off by 1/256 of
# itself at most, and so is what is left of 1 for a background, which may fall below 0 by as much as totals exceed 1.
MASS_TOLERANCE: Final = 1 / 64
