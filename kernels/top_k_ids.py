"""`top_ids` and `warp_top_ids`: the largest ids of each pixel of label maps whose ids are any numbers.

Classes are found by their bits in sets (`counting_rows`), which ids have none of. Here each pixel goes through the ids
under it by itself, in ascending order: one walk over its taps sums the mass of an id and finds the next larger one. So
it takes one walk more than there are ids under the pixel, two or three of objects in a scene. What it looks at comes
from the first cache, but for the first walk.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tritonsoft.geometry import Filter
from tritonsoft.kernels.convert import downcast
from tritonsoft.kernels.geometry import axis_of_box, axis_of_outputs, tap_weight
from tritonsoft.kernels.launch import Launch, launch, offset_type, tile_shape
from tritonsoft.kernels.top_k import MAX_TOP_K
from tritonsoft.kernels.warp_points import pixels_of_program, point_taps, points_of_tile


@triton.jit
def _tap(sums, current, labels, offsets, weight, FIRST: tl.constexpr, LARGEST: tl.constexpr):
    """Adds what one tap of each pixel says: to the mass of its id, or to what comes after that.

    Args:
        sums: of each pixel the mass, the smallest id above ``current`` so far, and whether there is one.
        current: the id that is counted, and whether there is one. In the FIRST walk there is none yet.
    """
    mass, following, found = sums
    id, is_id = current
    here = tl.load(labels + offsets, mask=weight > 0, other=0).to(id.dtype)
    above = weight > 0
    if not FIRST:
        mass += tl.where(is_id & (here == id), weight, 0.0)
        above &= is_id & (here > id)
    return mass, tl.minimum(following, tl.where(above, here, LARGEST)), found | above


@triton.jit
def _walk(
    current,
    labels,  # of this sample
    labels_strides,
    source,  # in boxes `axis_of_outputs` down and across, under a transform `points_of_tile` and the size of the source
    FIRST: tl.constexpr,
    LARGEST: tl.constexpr,  # of the type of ids
    FILTER: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """The mass of the current id of each pixel, the next one, and whether there is one."""
    id = current[0]
    sums = (tl.zeros(id.shape, tl.float32), tl.full(id.shape, LARGEST, id.dtype), tl.full(id.shape, False, tl.int1))
    if len(source) == 4:
        here, axes, in_height, in_width = source
        points_y, points_x, most_y, most_x = axes
        for step_y in range(0, most_y):
            for step_x in range(0, most_x):
                taps_y, taps_x, _ = point_taps(here, points_y, points_x, step_y, step_x, in_height, in_width, FILTER)
                for tap in tl.static_range(4):
                    offsets = taps_y[tap // 2].to(OFFSET) * labels_strides[1]
                    offsets += taps_x[tap % 2].to(OFFSET) * labels_strides[2]
                    sums = _tap(
                        sums, current, labels, offsets, taps_y[2 + tap // 2] * taps_x[2 + tap % 2], FIRST, LARGEST
                    )
    else:
        rows, columns = source
        most_y, most_x = tl.max(rows[1] - rows[0] + 1, 0), tl.max(columns[1] - columns[0] + 1, 0)
        for step_y in range(0, most_y):
            weight_y = tap_weight(rows[2] + step_y, rows[5], FILTER)
            weight_y = tl.where(step_y <= rows[1] - rows[0], weight_y, 0.0)
            line = (rows[0] + step_y).to(OFFSET) * labels_strides[1]
            for step_x in range(0, most_x):
                weight = weight_y * tap_weight(columns[2] + step_x, columns[5], FILTER)
                weight = tl.where(step_x <= columns[1] - columns[0], weight, 0.0)
                offsets = line + (columns[0] + step_x).to(OFFSET) * labels_strides[2]
                sums = _tap(sums, current, labels, offsets, weight, FIRST, LARGEST)
    return sums


@triton.jit
def _inserted(kept, rest, mass, id):
    """Puts an id into the sorted list of a pixel, behind equal masses; what falls out goes to the rest."""
    masses, ids = kept
    sorted_masses = ()
    sorted_ids = ()
    moves = tl.full(mass.shape, False, tl.int1)  # all behind the place that it takes move by one
    for place in tl.static_range(len(masses)):
        moves |= mass > masses[place]
        sorted_masses = sorted_masses + (tl.where(moves, mass, masses[place]),)  # noqa: RUF005 - Triton unpacks nothing here
        sorted_ids = sorted_ids + (tl.where(moves, id, ids[place]),)  # noqa: RUF005
        mass, id = tl.where(moves, masses[place], mass), tl.where(moves, ids[place], id)
    return (sorted_masses, sorted_ids), rest + mass


@triton.jit(
    do_not_specialize=["in_height", "in_width", "out_height", "out_width", "ignored_id", "first_place", "num_places"]
)
def top_ids_kernel(
    labels,  # (B, H, W)
    labels_strides,
    boxes,  # (B, 4), None for the whole image, or a transform (B, 3, 3) or (B, h, w, 2)
    boxes_strides,
    index,  # (B, k, h, w), contiguous, the labels' type
    mass,  # (B, k, h, w), contiguous
    rest,  # the mass of all other ids, (B, h, w), contiguous
    last_mass,  # of the entries before `first_place`, then of these too, (B, h, w), float32, contiguous; or None
    in_height,
    in_width,
    out_height,
    out_width,
    ignored_id: tl.int64,
    first_place,  # of the entries that this launch makes
    num_places,  # of all entries, k
    TOP_K: tl.constexpr,  # of those that this launch makes
    HAS_IGNORED: tl.constexpr,
    LARGEST: tl.constexpr,  # of the type that holds all ids
    FILTER: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    OFFSET: tl.constexpr,  # the integer that holds an offset inside one plane
):
    ID: tl.constexpr = tl.int64 if LARGEST > 2147483647 else tl.int32
    sample, rows, columns, inside = pixels_of_program(out_height, out_width, BLOCK_H, BLOCK_W)
    plane_size = out_height.to(tl.int64) * out_width
    place_in_plane = rows.to(tl.int64) * out_width + columns
    factor = 1.0
    if boxes is not None and len(boxes_strides) > 2:
        here, axes = points_of_tile(
            boxes, boxes_strides, sample, rows, columns, out_height, out_width, FILTER, tl.float32
        )
        source = (here, axes, in_height, in_width)
    else:
        box_y = axis_of_box(boxes, boxes_strides, sample, 1, in_height)
        box_x = axis_of_box(boxes, boxes_strides, sample, 0, in_width)
        of_rows = axis_of_outputs(rows, box_y, out_height, in_height, FILTER, tl.float32)
        of_columns = axis_of_outputs(columns, box_x, out_width, in_width, FILTER, tl.float32)
        source = (of_rows, of_columns)
        factor = of_rows[3] * of_columns[3]
    labels += sample * labels_strides[0]
    masses = ()
    ids = ()
    for _place in tl.static_range(TOP_K):
        masses = masses + (tl.zeros(rows.shape, tl.float32),)  # noqa: RUF005
        ids = ids + (tl.zeros(rows.shape, ID),)  # noqa: RUF005
    kept = (masses, ids)
    left = tl.zeros(rows.shape, tl.float32)
    if last_mass is not None:
        # Of this sample and pixel: an id of the launches before has more mass, or as much and no larger number.
        limit = tl.load(last_mass + sample * plane_size + place_in_plane, mask=inside, other=0.0)
        last_place = index + (sample * num_places + tl.maximum(first_place - 1, 0)) * plane_size + place_in_plane
        last_id = tl.load(last_place, mask=inside & (first_place > 0), other=0).to(ID)
    id = tl.zeros(rows.shape, ID)
    is_id = tl.full(rows.shape, False, tl.int1)
    _, id, is_id = _walk((id, is_id), labels, labels_strides, source, True, LARGEST, FILTER, OFFSET)
    while tl.max(is_id.to(tl.int32), 0) > 0:
        sum_of_weights, following, found = _walk(
            (id, is_id), labels, labels_strides, source, False, LARGEST, FILTER, OFFSET
        )
        candidate = sum_of_weights * factor
        if HAS_IGNORED:
            candidate = tl.where(id.to(tl.int64) == ignored_id, 0.0, candidate)
        if last_mass is not None:
            candidate = tl.where((candidate < limit) | ((candidate == limit) & (id > last_id)), candidate, 0.0)
        kept, left = _inserted(kept, left, candidate, id)
        id, is_id = following, found
    tl.store(rest + sample * plane_size + place_in_plane, downcast(left, rest.dtype.element_ty), mask=inside)
    for place in tl.static_range(TOP_K):
        offsets = (sample * num_places + first_place + place) * plane_size + place_in_plane
        tl.store(index + offsets, kept[1][place].to(index.dtype.element_ty), mask=inside)
        tl.store(mass + offsets, downcast(kept[0][place], mass.dtype.element_ty), mask=inside)
    if last_mass is not None:
        tl.store(last_mass + sample * plane_size + place_in_plane, kept[0][TOP_K - 1], mask=inside)


# --- launch ----------------------------------------------------------------------------------------------------------


def launch_configuration(
    index: Tensor,
    mass: Tensor,
    rest: Tensor,
    last_mass: Tensor | None,
    first_place: int,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int | None,
    filter: Filter,
    platform: str,
) -> Launch:
    """What to launch for these tensors; only their shapes, strides and types matter."""
    (_, num_places, height, width), (in_height, in_width) = index.shape, labels.shape[1:]
    # A list of 16 ids of eight bytes takes 48 registers of each pixel: a thread has one.
    block_h, block_w = tile_shape(height, min(width, 32), 128)
    wide = labels.dtype in (torch.int64, torch.uint32)
    return Launch(
        top_ids_kernel,
        (triton.cdiv(height, block_h) * triton.cdiv(width, block_w) * labels.shape[0],),
        {
            "labels": labels,
            "labels_strides": labels.stride(),
            "boxes": boxes,
            "boxes_strides": None if boxes is None else boxes.stride(),
            "index": index,
            "mass": mass,
            "rest": rest,
            "last_mass": last_mass,
            "in_height": in_height,
            "in_width": in_width,
            "out_height": height,
            "out_width": width,
            "ignored_id": 0 if ignore_index is None else ignore_index,
            "first_place": first_place,
            "num_places": num_places,
            "TOP_K": min(num_places - first_place, MAX_TOP_K),
            "HAS_IGNORED": ignore_index is not None,
            "LARGEST": 2**63 - 1 if wide else 2**31 - 1,
            "FILTER": filter,
            "BLOCK_H": block_h,
            "BLOCK_W": block_w,
            "OFFSET": offset_type(labels),
        },
        {"num_warps": 4, **({"maxnreg": 168} if platform == "cuda" else {})},
    )


def top_ids(
    index: Tensor,
    mass: Tensor,
    rest: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int | None,
    filter: Filter,
) -> None:
    """The k largest ids of each pixel and their masses, ``(B, k, h, w)``, and the mass of the others ``(B, h, w)``."""
    last_mass = None
    if index.shape[1] > MAX_TOP_K:  # several launches, as in `top_k`
        last_mass = torch.full(rest.shape, float("inf"), dtype=torch.float32, device=rest.device)
    for first_place in range(0, index.shape[1], MAX_TOP_K):
        launch(
            launch_configuration,
            index.device,
            index,
            mass,
            rest,
            last_mass,
            first_place,
            labels,
            boxes,
            ignore_index,
            filter,
        )


def warp_top_ids(
    index: Tensor,
    mass: Tensor,
    rest: Tensor,
    labels: Tensor,
    transform: Tensor,
    ignore_index: int | None,
    filter: Filter,
) -> None:
    """`top_ids`, whose kernel takes a transform in the place of boxes."""
    top_ids(index, mass, rest, labels, transform, ignore_index, filter)
