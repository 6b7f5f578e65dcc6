"""Geometry and filters: what every backend computes, said once; and the names of options.

**Box.** ``(x0, y0, x1, y1)`` in source pixel *edges*: pixel k covers the interval [k, k+1], the whole image
is ``(0, 0, W, H)``. ``x1 < x0`` mirrors left-right, ``y1 < y0`` top-bottom. The box may reach outside the image.

**One axis at a time.** All filters are separable. Along an axis let the box run from ``lo``, the smaller of its two
ends, to ``hi`` over ``m`` output pixels (a mirrored box counts its outputs backwards, so a flip is exact to the bit).
Then ::

    span   = hi - lo
    scale  = span / m                                    source pixels under one output pixel
    centre = lo + span * (2 j + 1) / (2 m)               of output j, half-pixel convention

and the weight of source pixel k in output j is a trapezoid in the distance of the two centres, cut off at ``plateau``::

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
logits that fill the box from ``lo`` to ``hi``, pixel k lies at ::

    position = clamp((k + 1/2 - lo) * n / (hi - lo) - 1/2, 0, n - 1)

of them, counted backwards in a mirrored box, and takes ``1 - f`` of logit floor(position) and ``f`` of the next, with f
the fraction. Where f is 0, or 1 when rounded to float32, it takes half of the one logit twice: no other is read, so
that infinity times 0 makes no NaN. Pixels whose centre lies in the box, ``lo <= k + 1/2 < hi``, are scored.

**Warps.** A *matrix* maps output positions ``(u, v)`` to source positions ``(x, y)``, both in pixel edges::

    depth = m20 u + m21 v + m22
    x     = (m00 u + m01 v + m02) / depth
    y     = (m10 u + m11 v + m12) / depth

and what has no positive depth lies behind the camera. A *field* gives the source position of the centre of each output
pixel. Around its centre an output pixel is known by eight numbers: where the centre lies, ``(x, y)``; the *steps*, how
far one output pixel to the right and one down go there, ``right = (m00 - x m20, m10 - y m20) / depth`` and ``down``
likewise of m01, m11 and m21; and the *bends*, ``(m20, m21) / depth``. For a field the steps are half the differences of
the two neighbours (at an end the difference to the one), and the bends are 0. The position at ``(i, j)`` output pixels
from the centre is then exactly that of the matrix::

    (x, y) + (i right + j down) / (1 + i bend_right + j bend_down)

A pixel is averaged over points. Along each of its two axes the *stretch* is the length of the step, and there are ::

    n = ceil(stretch - 2^-16), from 1 to 16

points at the offsets ``(k + 1/2) / n - 1/2``, all weighing the same ("area"); the triangle filter, where n > 1, has 2 n
at ``(k + 1/2) / n - 1``, of which those in the output weigh ``clamp((1 + g) / 2 - |offset|, 0, g)`` over their sum,
with ``g = sqrt(1 - 1 / stretch^2)``; the others have one. A point stands for a *cell*, the n-th part of the pixel's
footprint along each axis, and is read with a window of the cell's extent, of which each pixel weighs as much as it
overlaps::

    window_x = sqrt(c_x^2 + d_x^2), from 2^-10 to 1, with c = right max(1, 1 / stretch) / n, and d likewise of down
    edge     = floor(x + 1/2)
    t        = clamp((x - edge) / window_x + 1/2, 0, 1)    of pixel edge, and 1 - t of pixel edge - 1

and the same along y. Where nothing shrinks the window is one pixel wide, which is linear interpolation ("bilinear"
always reads so, "nearest" takes the pixel that holds the point). For an upright box the cells are the very pieces that
its footprint is made of: the area filter's average is exact.

The image ends at its edges. There the nearest pixel is read, and what part of the cell lies beyond, along x ::

    outside_x = clamp((max(e/2 - x, 0) + max(x + e/2 - W, 0)) / e, 0, 1),  e = |(right_x / n, down_x / n')|, as limited

is ``fill`` or no mass. A position that is not finite lies outside; a step that is not counts as 0. A step shorter than
2^-20 has no direction: the window takes one source pixel along x for ``right`` and along y for ``down``.

**Arithmetic.** Every backend evaluates ``centre`` and ``position`` in float64, in exactly the order written above. No
product feeds a sum there, so no compiler can fuse them, and all backends pick the same taps. In a warp products do feed
sums: positions may differ by roundings of float64, which matter to the linear reading no more than that. Where all
products are exact, as in flips and quarter turns, none differ.
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

# Along an axis of an output pixel a warp takes at most so many points, one for each source pixel.
MAX_POINTS: Final = 16
# A stretch may exceed a whole number by this before it takes another point: rotations are rounded to float32.
STRETCH_TOLERANCE: Final = 2.0**-16
MIN_STEP: Final = 2.0**-20
MIN_WINDOW: Final = 2.0**-10

# In a table of classes, an id that has none.
NO_CLASS: Final = -(2**31)
