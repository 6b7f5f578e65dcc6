"""The class of each id of a label map, looked up in a table."""

import triton
import triton.language as tl
from torch import Tensor

from tritonsoft.backends.values import ids_are_known
from tritonsoft.geometry import NO_CLASS
from tritonsoft.kernels.launch import Launch, launch

_INT32_LIMIT = 2**31
_NO_CLASS = tl.constexpr(NO_CLASS)


@triton.jit
def _place_in_ids(label, exists, ids, num_classes, largest_step):
    """Where among the ids, ascending, that of each label is, and whether it is there."""
    label = label.to(tl.int64)
    place = tl.zeros(label.shape, tl.int32)
    step = largest_step
    while step > 0:
        further = place + step
        steps = exists & (further < num_classes)
        steps &= tl.load(ids + further, mask=steps, other=0) <= label
        place = tl.where(steps, further, place)
        step = step // 2
    return place, tl.load(ids + place, mask=exists, other=0) == label


@triton.jit(do_not_specialize=["height", "num_classes", "largest_step", "first_id", "ignore_index"])
def remap_labels_kernel(
    out,  # (B, H, W), contiguous
    labels,  # (B, H, W)
    labels_strides,
    ids,  # (N,), contiguous, ascending, or None
    classes,  # (N,), contiguous: of the ids, or of those from `first_id` on
    height,
    width,
    num_classes,
    largest_step,  # of the search: a power of two, at least N / 2
    first_id,
    ignore_index,
    BLOCK: tl.constexpr,
    PLACE: tl.constexpr,  # the type that holds the difference of a label and `first_id`
    WIDE: tl.constexpr,  # the type that holds every class and `ignore_index`
    OFFSET: tl.constexpr,
):
    """A program remaps BLOCK pixels of a row."""
    blocks = tl.cdiv(width, BLOCK)
    row = tl.program_id(0) // blocks
    columns = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    exists = columns < width
    start = (row // height).to(tl.int64) * labels_strides[0] + (row % height).to(tl.int64) * labels_strides[1]
    label = tl.load(labels + start + columns.to(OFFSET) * labels_strides[2], mask=exists, other=0)
    if ids is not None:
        place, known = _place_in_ids(label, exists, ids, num_classes, largest_step)
    else:
        # A difference that is negative or overflows wraps to what is no place either.
        place = (label.to(PLACE) - tl.cast(first_id, PLACE)).to(tl.uint32 if tl.int32 == PLACE else tl.uint64)
        known = place < num_classes
    value = tl.load(classes + place, mask=exists & known, other=0).to(WIDE)
    if classes.dtype.element_ty.primitive_bitwidth >= 32:
        known &= value != _NO_CLASS
    value = tl.where(known, value, tl.cast(ignore_index, WIDE))
    tl.store(out + row.to(tl.int64) * width + columns, value.to(out.dtype.element_ty), mask=exists)


# --- launch ----------------------------------------------------------------------------------------------------------


def remap_configuration(
    out: Tensor,
    labels: Tensor,
    ids: Tensor | None,
    classes: Tensor,
    first_id: int,
    ignore_index: int,
    platform: str,
) -> Launch:
    """What `remap_labels` launches."""
    batch, height, width = labels.shape
    strides = labels.stride()
    if labels.is_contiguous() and labels.numel() < _INT32_LIMIT // 2:  # one long row
        batch, height, width, strides = 1, 1, labels.numel(), (0, 0, 1)
    sizes = (labels.element_size(), out.element_size())
    # What a thread loads at once, or stores: 16 bytes of the wider type, and no less than 8 pixels of the narrower.
    block = 128 * max(16 // max(sizes), min(8, 16 // min(sizes)))
    is_near = labels.element_size() <= 2 and abs(first_id) < _INT32_LIMIT // 2
    is_wide = any(str(tensor.dtype) in ("torch.int64", "torch.uint32") for tensor in (out, classes))
    return Launch(
        remap_labels_kernel,
        (batch * height * triton.cdiv(width, block),),
        {
            "out": out,
            "labels": labels,
            "labels_strides": strides,
            "ids": ids,
            "classes": classes,
            "height": height,
            "width": width,
            "num_classes": len(classes),
            "largest_step": triton.next_power_of_2(len(classes)) // 2,
            "first_id": first_id,
            "ignore_index": ignore_index,
            "BLOCK": block,
            "PLACE": tl.int32 if is_near else tl.int64,
            "WIDE": tl.int64 if is_wide else tl.int32,
            "OFFSET": tl.int64 if (width + block) * strides[2] >= _INT32_LIMIT else tl.int32,
        },
        {"num_warps": 4},
    )


def remap_labels(
    out: Tensor,
    labels: Tensor,
    ids: Tensor | None,
    classes: Tensor,
    first_id: int,
    ignore_index: int,
    validate: bool,
) -> bool:
    """The class of each pixel of a label map ``(B, H, W)``."""
    if validate and not ids_are_known(labels, ids, classes, first_id):
        return False
    ids = None if ids is None else ids.contiguous()
    launch(remap_configuration, out.device, out, labels, ids, classes.contiguous(), first_id, ignore_index)
    return True
