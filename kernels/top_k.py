"""`soft_crop_resize_top`: the largest classes of each pixel of a soft label that is never in memory.

A kernel keeps up to `MAX_TOP_K` candidates of each pixel in registers. For more it is launched again: each launch
counts anew, and takes only what comes after the last entry of the launch before. No two keys of a pixel are equal, so
that nothing is taken twice, and what the last launch leaves over is the rest.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tritonsoft.backends.values import labels_in_range
from tritonsoft.geometry import Filter
from tritonsoft.kernels.convert import downcast
from tritonsoft.kernels.epilogues import class_of_key, mass_of_key
from tritonsoft.kernels.label_tile import count_step, launch_of_label_map, pixels_of_step, tile_of_program
from tritonsoft.kernels.launch import Launch, launch

# A sorted list of that many candidates for each pixel is what a kernel keeps in registers.
MAX_TOP_K = 16
_LARGEST_KEY = 2**63 - 1


@triton.jit(
    do_not_specialize=[
        "in_height",
        "in_width_units",
        "out_height",
        "out_width_units",
        "num_classes",
        "ignored_class",
        "first_place",
        "num_places",
    ]
)
def top_k_kernel(
    labels,  # (B, H, W)
    labels_strides,
    boxes,  # (B, 4), or None for the whole image
    boxes_strides,
    index,  # (B, k, h, w), contiguous
    mass,  # (B, k, h, w), contiguous
    rest,  # the mass of all other classes, (B, h, w), contiguous
    last_key,  # of the entries before `first_place`, then of these too, (B, h, w), int64, contiguous; or None
    in_height,
    in_width_units,
    out_height,
    out_width_units,
    num_classes,
    ignored_class,
    first_place,  # of the entries that this launch makes
    num_places,  # of all entries, k
    TOP_K: tl.constexpr,  # of those that this launch makes
    FILTER: tl.constexpr,
    INTEGER_FACTOR: tl.constexpr,  # 0: count in general
    IN_WIDTH_UNIT: tl.constexpr,
    OUT_WIDTH_UNIT: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    MANY_CLASSES: tl.constexpr,  # like the next two for counting in general, see `counting_rows`
    GROUP: tl.constexpr,
    BLOCK_SOURCE: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,  # the integer that holds an offset inside one plane
):
    in_width = in_width_units * IN_WIDTH_UNIT  # written as products, for wide accesses: see `forward`
    out_width = out_width_units * OUT_WIDTH_UNIT
    tile = tile_of_program(
        boxes,
        boxes_strides,
        in_height,
        in_width,
        out_height,
        out_width,
        FILTER,
        INTEGER_FACTOR,
        BLOCK_H,
        BLOCK_W,
        GROUP,
        BLOCK_SOURCE,
        ACCUMULATOR,
    )
    sample = tile[0]
    plane_size = out_height.to(tl.int64) * out_width
    KEY: tl.constexpr = tl.int32 if INTEGER_FACTOR > 0 else tl.int64
    for step in range(0, tile[3]):
        pixels = pixels_of_step(tile, step, out_height, out_width, INTEGER_FACTOR, BLOCK_H, BLOCK_W, OFFSET)
        inside = pixels[3]
        keys = ()
        for _place in tl.static_range(TOP_K):
            keys = keys + (tl.full(pixels[2].shape, -1, KEY),)  # noqa: RUF005
        plane = sample * plane_size + pixels[2]
        epilogue = ()
        if last_key is not None:
            epilogue = (tl.load(last_key + plane, mask=inside, other=-1),)
        state = count_step(
            epilogue,
            (tl.zeros(pixels[2].shape, tl.float32), keys),
            tile,
            step,
            pixels,
            labels,
            labels_strides,
            out_height,
            out_width,
            num_classes,
            ignored_class,
            "top",
            FILTER,
            INTEGER_FACTOR,
            MANY_CLASSES,
            BLOCK_H,
            BLOCK_W,
            GROUP,
            BLOCK_SOURCE,
            ACCUMULATOR,
            OFFSET,
        )
        tl.store(rest + plane, downcast(state[0], rest.dtype.element_ty), mask=inside)
        for place in tl.static_range(TOP_K):
            offsets = (sample * num_places + first_place + place) * plane_size + pixels[2]
            key = state[1][place]
            tl.store(index + offsets, class_of_key(key).to(index.dtype.element_ty), mask=inside)
            tl.store(mass + offsets, downcast(mass_of_key(key), mass.dtype.element_ty), mask=inside)
        if last_key is not None:
            tl.store(last_key + plane, state[1][TOP_K - 1].to(tl.int64), mask=inside)


# --- launch ----------------------------------------------------------------------------------------------------------


def launch_configuration(
    index: Tensor,
    mass: Tensor,
    rest: Tensor,
    last_key: Tensor | None,
    first_place: int,
    labels: Tensor,
    boxes: Tensor | None,
    num_classes: int,
    ignore_index: int,
    filter: Filter,
    platform: str,
) -> Launch:
    """What to launch for these tensors; only their shapes, strides and types matter."""
    _, num_places, height, width = index.shape
    return launch_of_label_map(
        top_k_kernel,
        labels,
        boxes,
        (height, width),
        num_classes,
        ignore_index,
        filter,
        4,
        tl.float32,
        platform,
        {
            "index": index,
            "mass": mass,
            "rest": rest,
            "last_key": last_key,
            "first_place": first_place,
            "num_places": num_places,
            "TOP_K": min(num_places - first_place, MAX_TOP_K),
        },
        [index, rest],
    )


def soft_crop_resize_top(
    index: Tensor,
    mass: Tensor,
    rest: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    num_classes: int,
    ignore_index: int,
    filter: Filter,
    validate: bool,
) -> bool:
    """The k largest classes of a soft label, ``(B, k, h, w)``, and the mass of the others, ``rest (B, h, w)``."""
    if validate and not labels_in_range(labels, num_classes, ignore_index):
        return False
    last_key = None
    if index.shape[1] > MAX_TOP_K:
        last_key = torch.full(rest.shape, _LARGEST_KEY, dtype=torch.int64, device=rest.device)
    inputs = labels, boxes, num_classes, ignore_index, filter
    for first_place in range(0, index.shape[1], MAX_TOP_K):
        launch(launch_configuration, index.device, index, mass, rest, last_key, first_place, *inputs)
    return True
