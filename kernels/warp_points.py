"""`tritonsoft.geometry`, "Warps", as Triton functions: where output pixels look, and the classes that they see there.

A centre is found in float64; what lies around it is relative to the source pixel that holds it, in the accumulator's
type. Whatever the transform holds, places are clamped to the source before they are read.
"""

import triton
import triton.language as tl

from tritonsoft.geometry import MAX_POINTS, MIN_STEP, MIN_WINDOW, STRETCH_TOLERANCE
from tritonsoft.kernels.convert import upcast
from tritonsoft.kernels.counting_rows import bitwise_or, int32_labels, take_class
from tritonsoft.kernels.epilogues import apply_epilogue, epilogue_zero

_MAX_DISTANCE = tl.constexpr(2.0**23)
_FAR = tl.constexpr(-(2.0**24))
_MAX_POINTS = tl.constexpr(float(MAX_POINTS))
_MIN_STEP = tl.constexpr(MIN_STEP)
_MIN_WINDOW = tl.constexpr(MIN_WINDOW)
_STRETCH_TOLERANCE = tl.constexpr(STRETCH_TOLERANCE)


# --- centres ---------------------------------------------------------------------------------------------------------


@triton.jit
def _entry(matrix, strides, ROW: tl.constexpr, COLUMN: tl.constexpr):
    return upcast(tl.load(matrix + ROW * strides[1] + COLUMN * strides[2]), tl.float64)


@triton.jit
def _map_of_matrix(matrix, strides, rows, columns):
    """Centres, steps and bends, float64; the centre is NaN where there is no positive depth."""
    u = columns.to(tl.float64) + 0.5
    v = rows.to(tl.float64) + 0.5
    m20, m21 = _entry(matrix, strides, 2, 0), _entry(matrix, strides, 2, 1)
    depth = m20 * u + m21 * v + _entry(matrix, strides, 2, 2)
    depth = tl.where(depth > 0, depth, float("nan"))
    m00, m01 = _entry(matrix, strides, 0, 0), _entry(matrix, strides, 0, 1)
    m10, m11 = _entry(matrix, strides, 1, 0), _entry(matrix, strides, 1, 1)
    x = (m00 * u + m01 * v + _entry(matrix, strides, 0, 2)) / depth
    y = (m10 * u + m11 * v + _entry(matrix, strides, 1, 2)) / depth
    right = ((m00 - x * m20) / depth, (m10 - y * m20) / depth)
    down = ((m01 - x * m21) / depth, (m11 - y * m21) / depth)
    return x, y, right, down, m20 / depth, m21 / depth


@triton.jit
def _position(field, strides, rows, columns):
    pointer = field + rows.to(tl.int64) * strides[1] + columns.to(tl.int64) * strides[2]
    return upcast(tl.load(pointer), tl.float64), upcast(tl.load(pointer + strides[3]), tl.float64)


@triton.jit
def _difference(field, strides, rows, columns, last_rows, last_columns, distance):
    x, y = _position(field, strides, rows, columns)
    last_x, last_y = _position(field, strides, last_rows, last_columns)
    distance = tl.maximum(distance, 1).to(tl.float64)
    return (x - last_x) / distance, (y - last_y) / distance


@triton.jit
def _map_of_field(field, strides, rows, columns, out_height, out_width):
    rows = tl.minimum(rows, out_height - 1)
    columns = tl.minimum(columns, out_width - 1)
    x, y = _position(field, strides, rows, columns)
    after = tl.minimum(columns + 1, out_width - 1)
    before = tl.maximum(columns - 1, 0)
    right = _difference(field, strides, rows, after, rows, before, after - before)
    after = tl.minimum(rows + 1, out_height - 1)
    before = tl.maximum(rows - 1, 0)
    down = _difference(field, strides, after, columns, before, columns, after - before)
    return x, y, right, down, x * 0, x * 0


@triton.jit
def _within(extent):
    return tl.minimum(tl.maximum(extent, _MIN_WINDOW), 1.0)


@triton.jit
def _length(x, y):
    return tl.sqrt(x * x + y * y)


@triton.jit
def _step(step, known):
    """A step of a pixel, its length, and what of it is no number put to 0."""
    length = _length(step[0], step[1])
    known = known & (length < float("inf"))
    return (tl.where(known, step[0], 0.0), tl.where(known, step[1], 0.0)), tl.where(known, length, 0.0)


@triton.jit
def _number(stretch, FILTER: tl.constexpr):
    if FILTER == "area" or FILTER == "triangle":
        number = tl.minimum(tl.maximum(tl.ceil(stretch - _STRETCH_TOLERANCE), 1.0), _MAX_POINTS)
    else:
        number = stretch * 0 + 1
    return number


@triton.jit
def _cell(step, stretch, number, X: tl.constexpr, Y: tl.constexpr):
    """What a point along this axis is read with; ``(X, Y)`` where the step has no direction."""
    longer = tl.where(stretch < 1, 1 / tl.maximum(stretch, _MIN_STEP), 1.0) / number
    without = stretch < _MIN_STEP
    return tl.where(without, X, step[0] * longer), tl.where(without, Y, step[1] * longer)


@triton.jit
def local_map(
    transform,  # (B, 3, 3) or (B, h, w, 2)
    strides,
    sample,
    rows,  # of the output
    columns,
    out_height,
    out_width,
    FILTER: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    """What is known of output pixels.

    Returns:
        centre: the source pixel that holds it (int32), x and y, and where in that it lies.
        steps: right and down, x and y of each, and the two bends.
        reads: the inverse windows and the extents along x and y.
        numbers: of points along x and y, int32.
        plateaus: of the triangle filter along x and y.
    """
    transform += sample.to(tl.int64) * strides[0]
    if len(strides) == 3:
        x, y, right, down, bend_right, bend_down = _map_of_matrix(transform, strides, rows, columns)
    else:
        x, y, right, down, bend_right, bend_down = _map_of_field(
            transform, strides, rows, columns, out_height, out_width
        )
    known = (tl.abs(x) < _MAX_DISTANCE) & (tl.abs(y) < _MAX_DISTANCE)
    x = tl.where(known, x, _FAR)
    y = tl.where(known, y, _FAR)
    right, stretch_x = _step(right, known)
    down, stretch_y = _step(down, known)
    number_x = _number(stretch_x, FILTER)
    number_y = _number(stretch_y, FILTER)
    extent_x = _within(_length(right[0] / number_x, down[0] / number_y))
    extent_y = _within(_length(right[1] / number_x, down[1] / number_y))
    window_x = extent_x * 0 + 1
    window_y = window_x
    if FILTER == "area" or FILTER == "triangle":
        across = _cell(right, stretch_x, number_x, 1.0, 0.0)
        along = _cell(down, stretch_y, number_y, 0.0, 1.0)
        window_x = _within(_length(across[0], along[0]))
        window_y = _within(_length(across[1], along[1]))
    base_x = tl.floor(x)
    base_y = tl.floor(y)
    plateau_x = tl.sqrt(tl.maximum(1 - 1 / tl.maximum(stretch_x * stretch_x, 1.0), 0.0))
    plateau_y = tl.sqrt(tl.maximum(1 - 1 / tl.maximum(stretch_y * stretch_y, 1.0), 0.0))
    centre = (base_x.to(tl.int32), base_y.to(tl.int32), (x - base_x).to(ACCUMULATOR), (y - base_y).to(ACCUMULATOR))
    steps = (
        right[0].to(ACCUMULATOR),
        right[1].to(ACCUMULATOR),
        down[0].to(ACCUMULATOR),
        down[1].to(ACCUMULATOR),
        tl.where(known, bend_right, 0.0).to(ACCUMULATOR),
        tl.where(known, bend_down, 0.0).to(ACCUMULATOR),
    )
    reads = (
        (1 / window_x).to(ACCUMULATOR),
        (1 / window_y).to(ACCUMULATOR),
        extent_x.to(ACCUMULATOR),
        extent_y.to(ACCUMULATOR),
    )
    numbers = (number_x.to(tl.int32), number_y.to(tl.int32))
    return centre, steps, reads, numbers, (plateau_x.to(ACCUMULATOR), plateau_y.to(ACCUMULATOR))


# --- points ----------------------------------------------------------------------------------------------------------


@triton.jit
def _trapezoid(offset, plateau, place, size):
    position = place + 0.5 + offset
    weight = tl.minimum(tl.maximum((1 + plateau) / 2 - tl.abs(offset), 0.0), plateau)
    return tl.where((position > 0) & (position < size), weight, 0.0)


@triton.jit
def axis_points(number, plateau, place, size, FILTER: tl.constexpr):
    """The points along an axis of the output: what `_point` takes, and the most that any pixel has.

    ``place`` is of each pixel along the axis, in an output of that ``size``.
    """
    most = tl.max(number, 0)
    total = plateau * 0 + 1
    if FILTER == "triangle":
        if most > 1:
            most = 2 * most
        total = total - 1
        divisor = number.to(plateau.dtype)
        for step in range(0, most):
            total += _trapezoid((step + 0.5) / divisor - 1, plateau, place, size)
    return (number, plateau, place, size, 1 / tl.maximum(total, 1e-30)), most


@triton.jit
def _point(step, points, FILTER: tl.constexpr):
    """Offset and weight of the step-th point of each pixel; weight 0 where there are fewer."""
    number, plateau, place, size, inverse_total = points
    divisor = number.to(plateau.dtype)
    offset = (step + 0.5) / divisor - 0.5
    weight = tl.where(step < number, 1 / divisor, 0.0)
    if FILTER == "triangle":
        offset = tl.where(number > 1, offset - 0.5, offset)
        weight = tl.where(number > 1, _trapezoid(offset, plateau, place, size) * inverse_total, weight)
    return offset, weight


@triton.jit
def _taps_of_axis(position, base, inverse_window, extent, size, FILTER: tl.constexpr):
    """Two neighbours, the weight of the second (of the first the rest), and the share that lies in the source."""
    low = position + base.to(position.dtype)
    high = (size - base).to(position.dtype) - position
    if FILTER == "nearest":
        inside = tl.where((low >= 0) & (high > 0), 1.0, 0.0).to(position.dtype)
        second = base + tl.floor(position).to(tl.int32)
        share = position * 0 + 1
    else:
        beyond = tl.maximum(extent / 2 - low, 0.0) + tl.maximum(extent / 2 - high, 0.0)
        inside = 1 - tl.minimum(beyond / extent, 1.0)
        edge = tl.floor(position + 0.5)
        second = base + edge.to(tl.int32)
        share = tl.minimum(tl.maximum((position - edge) * inverse_window + 0.5, 0.0), 1.0)
    first = tl.minimum(tl.maximum(second - 1, 0), size - 1)
    return first, tl.minimum(tl.maximum(second, 0), size - 1), share, inside


@triton.jit
def point_taps(here, points_y, points_x, step_y, step_x, in_height, in_width, FILTER: tl.constexpr):
    """What one point of each pixel reads: rows, columns and weights of two each, and the weight of what lies outside.

    Multiplied with each other, the weights of rows and columns are those of the four pixels.
    """
    centre, steps, reads, _, _ = here
    offset_x, weight_x = _point(step_x, points_x, FILTER)
    offset_y, weight_y = _point(step_y, points_y, FILTER)
    depth = 1 + (offset_x * steps[4] + offset_y * steps[5])
    inverse = 1 / tl.where(depth > 0, depth, 1.0)
    x = centre[2] + (offset_x * steps[0] + offset_y * steps[2]) * inverse
    y = centre[3] + (offset_x * steps[1] + offset_y * steps[3]) * inverse
    known = (depth > 0) & (tl.abs(x) < _MAX_DISTANCE / 2) & (tl.abs(y) < _MAX_DISTANCE / 2)
    x = tl.where(known, x, -_MAX_DISTANCE / 2)
    y = tl.where(known, y, -_MAX_DISTANCE / 2)
    left, right, of_right, inside_x = _taps_of_axis(x, centre[0], reads[0], reads[2], in_width, FILTER)
    top, bottom, of_bottom, inside_y = _taps_of_axis(y, centre[1], reads[1], reads[3], in_height, FILTER)
    inside = inside_x * inside_y
    whole = weight_x * weight_y
    weight = whole * inside
    taps_y = (top, bottom, weight * (1 - of_bottom), weight * of_bottom)
    return taps_y, (left, right, 1 - of_right, of_right), whole * (1 - inside)


# --- labels ----------------------------------------------------------------------------------------------------------


@triton.jit
def _load_label(labels, strides, row, column, OFFSET: tl.constexpr):
    return int32_labels(tl.load(labels + (row.to(OFFSET) * strides[1] + column.to(OFFSET) * strides[2])))


@triton.jit
def _classes_seen(
    labels,
    labels_strides,
    here,
    axes,
    in_height,
    in_width,
    num_classes,
    chunk,
    ALL_CHUNKS: tl.constexpr,
    FILTER: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """A bit set of the classes ``32 * chunk .. 32 * chunk + 31`` that points read; with ALL_CHUNKS of the chunks."""
    points_y, points_x, most_y, most_x = axes
    seen = (here[0][0] * 0).to(tl.uint32)
    for step_y in range(0, most_y):
        for step_x in range(0, most_x):
            taps_y, taps_x, _ = point_taps(here, points_y, points_x, step_y, step_x, in_height, in_width, FILTER)
            for tap in tl.static_range(4):
                label = _load_label(labels, labels_strides, taps_y[tap // 2], taps_x[tap % 2], OFFSET)
                if ALL_CHUNKS:
                    bit = label >> 5
                    counts = (label >= 0) & (label < num_classes)
                else:
                    bit = label
                    counts = (label >> 5) == chunk
                seen |= tl.where(counts, tl.full([], 1, tl.uint32) << (bit & 31).to(tl.uint32), 0)
    return tl.reduce(seen, 0, bitwise_or)


@triton.jit
def warped_soft_tile(
    epilogue,
    state,
    pixels,  # (BLOCK_HW,), see `epilogues`
    labels,  # plane of this sample
    labels_strides,
    here,  # `local_map` of the pixels
    axes,  # `axis_points` along y and x, and the most of them along y and x
    in_height,
    in_width,
    num_classes,
    ignored_class,
    EPILOGUE: tl.constexpr,
    FILTER: tl.constexpr,
    BLOCK_HW: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """Hands the epilogue all classes; returns its last state. Only those that points read are counted."""
    points_y, points_x, most_y, most_x = axes
    chunks = tl.full([], 1, tl.uint32)
    if num_classes > 32:
        chunks = _classes_seen(
            labels, labels_strides, here, axes, in_height, in_width, num_classes, 0, True, FILTER, OFFSET
        )
    for chunk in range(0, tl.cdiv(num_classes, 32)):
        first_class = chunk * 32
        end_class = tl.minimum(first_class + 32, num_classes)
        present = tl.full([], 0, tl.uint32)
        if ((chunks >> (chunk & 31)) & 1) != 0:
            present = _classes_seen(
                labels, labels_strides, here, axes, in_height, in_width, num_classes, chunk, False, FILTER, OFFSET
            )
            present = present & (tl.full([], 0xFFFFFFFF, tl.uint32) >> (first_class + 32 - end_class).to(tl.uint32))
            if ignored_class >> 5 == chunk:
                ignored = tl.full([], 1, tl.uint32) << (ignored_class & 31).to(tl.uint32)
                present = (present | ignored) ^ ignored
        for class_index in range(first_class, end_class):
            if ((present >> (class_index & 31)) & 1) == 0:
                zeros = tl.zeros([BLOCK_HW], ACCUMULATOR)
                epilogue_zero(epilogue, state, class_index, zeros, pixels, True, EPILOGUE, OFFSET)

        while present != 0:
            class0, present = take_class(present, first_class)
            class1, present = take_class(present, first_class)
            class2, present = take_class(present, first_class)
            class3, present = take_class(present, first_class)
            mass0 = tl.zeros([BLOCK_HW], ACCUMULATOR)
            mass1 = tl.zeros([BLOCK_HW], ACCUMULATOR)
            mass2 = tl.zeros([BLOCK_HW], ACCUMULATOR)
            mass3 = tl.zeros([BLOCK_HW], ACCUMULATOR)
            for step_y in range(0, most_y):
                for step_x in range(0, most_x):
                    taps_y, taps_x, _ = point_taps(
                        here, points_y, points_x, step_y, step_x, in_height, in_width, FILTER
                    )
                    for tap in tl.static_range(4):
                        label = _load_label(labels, labels_strides, taps_y[tap // 2], taps_x[tap % 2], OFFSET)
                        weight = taps_y[2 + tap // 2] * taps_x[2 + tap % 2]
                        mass0 = tl.where(label == class0, mass0 + weight, mass0)
                        mass1 = tl.where(label == class1, mass1 + weight, mass1)
                        mass2 = tl.where(label == class2, mass2 + weight, mass2)
                        mass3 = tl.where(label == class3, mass3 + weight, mass3)
            state = apply_epilogue(epilogue, state, class0, mass0, pixels, True, EPILOGUE, OFFSET)
            state = apply_epilogue(epilogue, state, class1, mass1, pixels, class1 >= 0, EPILOGUE, OFFSET)
            state = apply_epilogue(epilogue, state, class2, mass2, pixels, class2 >= 0, EPILOGUE, OFFSET)
            state = apply_epilogue(epilogue, state, class3, mass3, pixels, class3 >= 0, EPILOGUE, OFFSET)
    return state


@triton.jit
def pixels_of_program(out_height, out_width, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr):
    """Sample, rows and columns of this program's output pixels, and which of them exist."""
    tiles_x = tl.cdiv(out_width, BLOCK_W)
    tiles_y = tl.cdiv(out_height, BLOCK_H)
    tile = tl.program_id(0)
    pixel = tl.arange(0, BLOCK_H * BLOCK_W)
    rows = tile // tiles_x % tiles_y * BLOCK_H + pixel // BLOCK_W
    columns = tl.max_contiguous(tile % tiles_x * BLOCK_W + pixel % BLOCK_W, 1)
    return (tile // tiles_x // tiles_y).to(tl.int64), rows, columns, (rows < out_height) & (columns < out_width)


@triton.jit
def points_of_tile(
    transform, strides, sample, rows, columns, out_height, out_width, FILTER: tl.constexpr, ACCUMULATOR: tl.constexpr
):
    """What is known of the pixels of a tile, and their points."""
    here = local_map(transform, strides, sample, rows, columns, out_height, out_width, FILTER, ACCUMULATOR)
    points_y, most_y = axis_points(here[3][1], here[4][1], rows, out_height, FILTER)
    points_x, most_x = axis_points(here[3][0], here[4][0], columns, out_width, FILTER)
    return here, (points_y, points_x, most_y, most_x)
