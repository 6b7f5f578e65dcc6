"""What is done with the masses of a tile of output pixels, class by class, once they are counted: epilogues.

They are stored, or the largest of them kept, or they go straight into a loss that never has the soft label in memory.
Only the classes that occur under a tile are counted, 1 to 6 of 19 or 150 in a tile of a street scene; of the others an
epilogue receives that they are absent.

`epilogue` holds what belongs to the tile as a whole, pointers to planes of class 0 of this sample among it; `state`
holds what belongs to each pixel. `pixels` are rows, columns, offsets in a contiguous plane, and which of them exist.

    EPILOGUE     epilogue                                                        state
    "mass"       the soft label, where this sample starts in it, plane size,
                 and the pixels as stores of zeros want them: `zeros_of_tile`,
                 or () where it holds zeros                                      none
    "pyramid"    the soft labels, finest first, height and width of the finest,
                 first row and column of the tile                                none
    "top"        () or for each pixel a key: only what is below it is taken      mass that did not fit, k largest keys
    "loss"       logits, their strides, class weights                            loss, mass, logsumexp; perhaps the mass
                                                                                 without the weights
    "softmax"    the same                                                        that of `softmax.online_softmax_init`;
                                                                                 perhaps the two of `uniform` there and
                                                                                 the mass without the weights
    "gradient"   the same, the gradient, its strides but that of the samples     gradient of the pixel's loss (0 without
                                                                                 mass), that times mass, logsumexp;
                                                                                 perhaps what smoothing adds to a class

Integer factors count four classes at a time, and two epilogues receive these at once, so that their logits are on the
way together: "softmax", which reads each logit once where "loss" knows the logsumexp before, and "gradient".
"""

import triton
import triton.language as tl

from tritonsoft.kernels.convert import downcast, exponential, upcast
from tritonsoft.kernels.softmax import class_weight, online_softmax_update, uniform_loss_update

# A key orders masses, and equal masses by smaller class; it is negative where there is no mass. The bits of a positive
# float32 order like integers; the class, counted downwards, goes below them. Masses that are multiples of 1/64 leave
# their lowest 17 bits free, so that class and mass fit into 32 bits.
_FREE = tl.constexpr(0x1FFFF)


@triton.jit
def _key(mass, class_index, WIDE: tl.constexpr):
    bits = mass.to(tl.int32, bitcast=True)
    wide = (bits.to(tl.int64) << 32) | (0x7FFFFFFF - class_index)
    return tl.where(mass > 0, wide if WIDE else bits | (_FREE - class_index), -1)


@triton.jit
def mass_of_key(key):
    bits = key & ~_FREE if key.dtype == tl.int32 else (key >> 32).to(tl.int32)
    return tl.where(key < 0, 0, bits).to(tl.float32, bitcast=True)


@triton.jit
def class_of_key(key):
    label = _FREE - (key & _FREE) if key.dtype == tl.int32 else (0x7FFFFFFF - (key & 0x7FFFFFFF)).to(tl.int32)
    return tl.where(key < 0, 0, label)


@triton.jit
def _half_size(mass):
    """The means of 2 x 2 neighbours."""
    quarters = tl.reshape(mass, [mass.shape[0] // 2, 2, mass.shape[1] // 2, 2])
    return tl.sum(tl.sum(quarters, axis=3), axis=1) * 0.25


@triton.jit
def _store_pyramid(epilogue, class_index, mass, exists):
    levels, height, width, row, column = epilogue
    for level in tl.static_range(len(levels)):
        if level > 0:
            mass = _half_size(mass)
        rows = (row >> level) + tl.arange(0, mass.shape[0])[:, None]
        columns = (column >> level) + tl.arange(0, mass.shape[1])[None, :]
        level_height, level_width = height >> level, width >> level
        plane = levels[level] + class_index * (level_height.to(tl.int64) * level_width)
        mask = (rows < level_height) & (columns < level_width) & exists
        tl.store(plane + rows * level_width + columns, downcast(mass, levels[level].dtype.element_ty), mask=mask)


@triton.jit
def zeros_of_tile(
    row,
    column,
    out_height,
    out_width,
    VECTOR: tl.constexpr,  # elements of the widest store
    ALIGNED: tl.constexpr,  # whether every row starts at a multiple of that
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """The pixels of a tile as stores of zeros want them, in two dimensions whatever the order of the counting.

    Returns:
        Offsets of the pixels and which exist, if rows are aligned; else of the rows where each begins and ends, and the
        elements of a vector, of which only the number is used.
    """
    rows = row + tl.arange(0, BLOCK_H)[:, None]
    starts = rows.to(OFFSET) * out_width + column
    if ALIGNED:
        columns = tl.arange(0, BLOCK_W)[None, :]
        return starts + columns, (rows < out_height) & (column + columns < out_width)
    else:
        lengths = tl.where(rows < out_height, tl.minimum(out_width - column, BLOCK_W), 0)
        return starts, starts + lengths, tl.arange(0, BLOCK_W)[None, :], tl.arange(0, VECTOR)[None, :]


@triton.jit
def _store_zeros(epilogue, class_index, exists):
    soft, first, plane_size, pixels = epilogue
    plane = first + class_index * plane_size
    if len(pixels) == 2:
        tl.store(soft + plane + pixels[0], 0.0, mask=pixels[1] & exists)
    elif len(pixels) > 2:
        # What is between the first and the last boundary of vectors in a row is stored in whole ones. Sectors of memory
        # that are written in parts cost many times as much.
        starts, ends, columns, elements = pixels
        VECTOR: tl.constexpr = elements.shape[1]
        starts = plane + starts
        ends = tl.where(exists, plane + ends, starts)
        first_boundary = (starts + VECTOR - 1) // VECTOR * VECTOR
        last_boundary = ends // VECTOR * VECTOR
        tl.store(soft + (first_boundary + columns), 0.0, mask=first_boundary + columns < last_boundary)
        before = starts + elements
        tl.store(soft + before, 0.0, mask=before < tl.minimum(first_boundary, ends))
        after = tl.maximum(last_boundary, first_boundary) + elements
        tl.store(soft + after, 0.0, mask=after < ends)


@triton.jit
def plane_offsets(pixels, strides, OFFSET: tl.constexpr):
    """Where the pixels lie in a plane of a tensor ``(B, C, h, w)``."""
    return pixels[0].to(OFFSET) * strides[2] + pixels[1].to(OFFSET) * strides[3]


@triton.jit
def load_logits(logits, strides, pixels, class_index, mask, ACCUMULATOR: tl.constexpr, OFFSET: tl.constexpr):
    """The logits of a class; undefined where ``mask`` is not set."""
    plane = logits + tl.cast(class_index, tl.int64) * strides[1]
    return upcast(tl.load(plane + plane_offsets(pixels, strides, OFFSET), mask=mask), ACCUMULATOR)


@triton.jit
def _class_weight(epilogue, class_index, exists):
    weights, stride = epilogue[2]
    return tl.load(weights + tl.cast(class_index, tl.int64) * stride, mask=exists, other=0.0)


@triton.jit
def _store_gradient(epilogue, state, class_index, logit, mass, pixels, exists, OFFSET: tl.constexpr):
    # Written out: of two tuples of strides in one tuple Triton 3.6 loses the constants.
    grad_logits, strides = epilogue[3], (0, epilogue[4], epilogue[5], epilogue[6])
    grad_loss, grad_times_mass, lse = state[0], state[1], state[2]
    inside = pixels[3] & exists
    value = grad_times_mass * exponential(logit - lse)  # the share of the mass that the logits give to the class
    counts = grad_loss != 0
    if len(state) > 3:
        uniform = state[3]
        counts = grad_times_mass != 0
        if epilogue[2][0] is not None:
            uniform *= _class_weight(epilogue, class_index, exists)
        value -= uniform
    if mass is not None:
        mass = mass.to(grad_loss.dtype)
        if epilogue[2][0] is not None:
            mass *= _class_weight(epilogue, class_index, exists)
        value -= grad_loss * mass
    plane = grad_logits + tl.cast(class_index, tl.int64) * strides[1]
    value = tl.where(counts, value, 0.0)  # also where a logit is not a number
    tl.store(plane + plane_offsets(pixels, strides, OFFSET), downcast(value, grad_logits.dtype.element_ty), mask=inside)


@triton.jit
def apply_epilogue(
    epilogue,
    state,
    class_index,
    mass,
    pixels,
    exists,  # whether there is such a class
    EPILOGUE: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """Gives an epilogue the masses of one class in the pixels of a tile; returns its new state."""
    inside = pixels[3] & exists
    if EPILOGUE == "mass":
        soft, first, plane_size, _ = epilogue
        pointers = soft + (first + class_index * plane_size) + pixels[2]
        tl.store(pointers, downcast(mass, soft.dtype.element_ty), mask=inside)
    elif EPILOGUE == "pyramid":
        _store_pyramid(epilogue, class_index, mass, exists)
    elif EPILOGUE == "gradient":
        logit = load_logits(epilogue[0], epilogue[1], pixels, class_index, inside, state[2].dtype, OFFSET)
        _store_gradient(epilogue, state, class_index, logit, mass, pixels, exists, OFFSET)
    elif EPILOGUE == "top":
        rest, keys = state
        candidate = _key(tl.where(inside, mass, 0.0), class_index, keys[0].dtype == tl.int64)
        if len(epilogue) > 0:
            candidate = tl.where(candidate < epilogue[0], candidate, -1)
        largest = ()
        for place in tl.static_range(len(keys)):
            largest = largest + (tl.maximum(keys[place], candidate),)  # noqa: RUF005 - Triton unpacks nothing here
            candidate = tl.minimum(keys[place], candidate)
        state = (rest + mass_of_key(candidate), largest)
    else:
        logits, strides, weights = epilogue
        loss, total, lse = state[0], state[1], state[2]
        ACCUMULATOR: tl.constexpr = lse.dtype
        mass = tl.where(inside, mass, 0.0).to(ACCUMULATOR)
        known = ()
        if len(state) > 3:
            known = (state[3] + mass,)
        if weights[0] is not None:
            mass *= _class_weight(epilogue, class_index, exists)
        logit = load_logits(logits, strides, pixels, class_index, mass > 0, ACCUMULATOR, OFFSET)
        state = (tl.where(mass > 0, loss + mass * (lse - logit), loss), total + mass, lse) + known  # noqa: RUF005
    return state


@triton.jit
def epilogue_zero(epilogue, state, class_index, zeros, pixels, exists, EPILOGUE: tl.constexpr, OFFSET: tl.constexpr):
    """`apply_epilogue` of a class without mass, for epilogues that need to know of it."""
    inside = pixels[3] & exists
    if EPILOGUE == "mass":
        _store_zeros(epilogue, class_index, exists)
    elif EPILOGUE == "pyramid":
        _store_pyramid(epilogue, class_index, zeros, exists)
    elif EPILOGUE == "gradient":
        logit = load_logits(epilogue[0], epilogue[1], pixels, class_index, inside, state[2].dtype, OFFSET)
        _store_gradient(epilogue, state, class_index, logit, None, pixels, exists, OFFSET)


@triton.jit
def logits_of_group(epilogue, pixels, first_class, num_classes, ACCUMULATOR: tl.constexpr, OFFSET: tl.constexpr):
    """Of four classes; -infinity where there are fewer."""
    strides = epilogue[1]
    logits = ()
    for low in tl.static_range(4):
        class_index = tl.cast(first_class + low, tl.int64)
        pointers = epilogue[0] + class_index * strides[1] + plane_offsets(pixels, strides, OFFSET)
        logit = tl.load(pointers, mask=pixels[3] & (class_index < num_classes), other=float("-inf"))
        logits = logits + (upcast(logit, ACCUMULATOR),)  # noqa: RUF005
    return logits


@triton.jit
def weights_of_group(epilogue, first_class, num_classes, ACCUMULATOR: tl.constexpr):
    """Of four classes; 0 where there are fewer."""
    weights = ()
    for low in tl.static_range(4):
        class_index = tl.cast(first_class + low, tl.int64)
        weights = weights + (class_weight(epilogue[2], class_index, class_index < num_classes, ACCUMULATOR),)  # noqa: RUF005
    return weights


@triton.jit
def apply_epilogue_to_group(
    epilogue,
    state,
    first_class,
    logits,  # `logits_of_group`
    masses,  # of the same classes, or () where there are none
    pixels,
    num_classes,
    EPILOGUE: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """As `apply_epilogue` or `epilogue_zero`, of four classes."""
    if EPILOGUE == "gradient":
        for low in tl.static_range(4):
            class_index = first_class + low
            mass = masses[low] if len(masses) > 0 else None
            _store_gradient(epilogue, state, class_index, logits[low], mass, pixels, class_index < num_classes, OFFSET)
    else:
        SMOOTHED: tl.constexpr = len(state) > 4
        weighted = ()
        known = state[6] if SMOOTHED else None
        for low in tl.static_range(len(masses)):
            class_index = first_class + low
            mass = tl.where(pixels[3] & (class_index < num_classes), masses[low], 0.0).to(state[0].dtype)
            if SMOOTHED:
                known += mass
            if epilogue[2][0] is not None:
                mass *= _class_weight(epilogue, class_index, class_index < num_classes)
            weighted = weighted + (mass,)  # noqa: RUF005
        softmax = online_softmax_update((state[0], state[1], state[2], state[3]), logits, weighted, True)
        if SMOOTHED:
            weights = weights_of_group(epilogue, first_class, num_classes, state[0].dtype)
            uniform = uniform_loss_update((state[4], state[5]), state[0], softmax[0], logits, weights)
            softmax = softmax + uniform + (known,)
        state = softmax
    return state
