"""Samples mixed with each other: a program writes a part of one line, and reads of both samples what it needs.

An image has a line for each row and channel, or one for all channels of a row where these are neighbours in memory.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from tritonsoft.backends.values import as_bits, labels_in_range
from tritonsoft.kernels.convert import downcast, upcast
from tritonsoft.kernels.enlarging import load_labels
from tritonsoft.kernels.launch import Launch, accumulator_type, launch, offset_type
from tritonsoft.memory import is_channels_last

_INT32_LIMIT = 2**31
_WARPS = 4
_PASTING_WARPS = 1  # whose elements are often all of one sample


@triton.jit
def _partner_of(partners, sample, batch):
    """That of a sample; what is none of the batch is the sample itself."""
    partner = tl.load(partners + sample)
    return tl.where((partner >= 0) & (partner < batch), partner, sample)


@triton.jit
def _part_of_line(strides, lines, height, width, INNER: tl.constexpr, BLOCK: tl.constexpr, OFFSET: tl.constexpr):
    """This program's elements: their sample, row and pixels, which of them exist, where they lie inside of a sample of
    the images, and where in the output."""
    blocks = tl.cdiv(width * INNER, BLOCK)
    number = tl.program_id(0) // blocks
    elements = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    row, line, sample = number % height, number // height % lines, (number // height // lines).to(tl.int64)
    pixels = elements // INNER
    start = line.to(tl.int64) * strides[1] + row.to(tl.int64) * strides[2]
    source = start + (pixels.to(OFFSET) * strides[3] + elements % INNER)
    return sample, row, pixels, elements < width * INNER, source, number.to(tl.int64) * width * INNER + elements


@triton.jit
def _edge(boxes, place, length):
    """That of a box inside of the image, as an int32."""
    return tl.minimum(tl.maximum(tl.load(boxes + place), 0), length).to(tl.int32)


@triton.jit
def _is_chosen(labels, labels_strides, chosen, sample, partner, row, pixels, exists, num_classes, OFFSET: tl.constexpr):
    """Whether the partner's label is a class that was chosen."""
    start = partner * labels_strides[0] + row.to(tl.int64) * labels_strides[1]
    label = tl.load(labels + start + pixels.to(OFFSET) * labels_strides[2], mask=exists, other=0)
    is_class = exists & (label < num_classes)
    if label.dtype.is_int_signed():
        is_class &= label >= 0
    return tl.load(chosen + sample * num_classes + label.to(tl.int32), mask=is_class, other=0) != 0


@triton.jit(do_not_specialize=["batch", "lines", "height", "num_classes"])
def paste_kernel(
    out,  # (B, K, H, W) dense
    images,  # (B, K, H, W)
    strides,  # of samples, lines, rows and pixels
    partners,  # (B,)
    boxes,  # (B, 4), or None
    labels,  # (B, H, W), or None
    labels_strides,
    chosen,  # (B, C), or None
    batch,
    lines,  # of a row
    height,
    width,
    num_classes,
    INNER: tl.constexpr,  # channels of a line
    BLOCK: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """A program writes BLOCK elements of a line."""
    sample, row, pixels, exists, source, target = _part_of_line(strides, lines, height, width, INNER, BLOCK, OFFSET)
    partner = _partner_of(partners, sample, batch)
    if boxes is not None:
        x0, x1 = _edge(boxes, 4 * sample, width), _edge(boxes, 4 * sample + 2, width)
        y0, y1 = _edge(boxes, 4 * sample + 1, height), _edge(boxes, 4 * sample + 3, height)
        pasted = (row >= y0) & (row < y1) & (pixels >= x0) & (pixels < x1)
    else:
        pasted = _is_chosen(labels, labels_strides, chosen, sample, partner, row, pixels, exists, num_classes, OFFSET)
    # Who has no pixel here is not read. A mask of each pixel would take its loads apart.
    some, every = tl.max(pasted.to(tl.int32)) > 0, tl.min((pasted | (exists == 0)).to(tl.int32)) > 0
    own = tl.load(images + sample * strides[0] + source, mask=exists & (every == 0), other=0)
    theirs = tl.load(images + partner * strides[0] + source, mask=exists & some, other=0)
    tl.store(out + target, tl.where(pasted, theirs, own), mask=exists)


@triton.jit
def _blended(own, theirs, share, is_alone):
    difference = theirs - own
    mixed = tl.where(share < 0.5, own + share * difference, theirs - (1 - share) * difference)
    # Nothing times an infinity is no number.
    return tl.where(is_alone | (share == 0), own, tl.where(share == 1, theirs, mixed))


@triton.jit(do_not_specialize=["batch", "lines", "height"])
def blend_kernel(
    out,  # (B, K, H, W) dense
    images,  # (B, K, H, W)
    strides,  # of samples, lines, rows and pixels
    partners,  # (B,)
    weight,  # (B,)
    batch,
    lines,  # of a row
    height,
    width,
    INNER: tl.constexpr,  # channels of a line
    BLOCK: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """A program writes BLOCK elements of a line."""
    sample, _row, _pixels, exists, source, target = _part_of_line(strides, lines, height, width, INNER, BLOCK, OFFSET)
    partner = _partner_of(partners, sample, batch)
    share = upcast(tl.load(weight + sample), ACCUMULATOR)
    own = upcast(tl.load(images + sample * strides[0] + source, mask=exists, other=0), ACCUMULATOR)
    theirs = upcast(tl.load(images + partner * strides[0] + source, mask=exists, other=0), ACCUMULATOR)
    value = _blended(own, theirs, share, partner == sample)
    tl.store(out + target, downcast(value, out.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=["batch", "height", "num_classes", "ignored_class"])
def blend_labels_kernel(
    out,  # (B, C, H, W), contiguous
    labels,  # (B, H, W)
    labels_strides,
    partners,  # (B,)
    weight,  # (B,)
    batch,
    height,
    width,
    num_classes,
    ignored_class,
    BLOCK: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """A program writes all classes of BLOCK pixels of a row."""
    blocks = tl.cdiv(width, BLOCK)
    number = tl.program_id(0) // blocks
    columns = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    exists = columns < width
    row, sample = number % height, (number // height).to(tl.int64)
    partner = _partner_of(partners, sample, batch)
    share = upcast(tl.load(weight + sample), ACCUMULATOR)
    own, theirs = labels + sample * labels_strides[0], labels + partner * labels_strides[0]
    own = load_labels(own, labels_strides, row, columns, exists, num_classes, ignored_class, OFFSET)
    theirs = load_labels(theirs, labels_strides, row, columns, exists, num_classes, ignored_class, OFFSET)
    plane = tl.cast(height, tl.int64) * width
    places = out + sample * num_classes * plane + row.to(tl.int64) * width + columns
    is_alone = partner == sample
    for index in range(num_classes):
        mass = _blended((own == index).to(ACCUMULATOR), (theirs == index).to(ACCUMULATOR), share, is_alone)
        tl.store(places, downcast(mass, out.dtype.element_ty), mask=exists)
        places += plane


# --- launch ----------------------------------------------------------------------------------------------------------


def _lines(images: Tensor) -> dict[str, Any]:
    """What kernels know of the lines of images."""
    batch, channels, height, width = images.shape
    batch_stride, channel_stride, row_stride, pixel_stride = images.stride()
    inner, is_last = 1, is_channels_last(images)
    if is_last:
        inner, channels, channel_stride = channels, 1, 0
    return {
        "strides": (batch_stride, channel_stride, row_stride, pixel_stride),
        "batch": batch,
        "lines": channels,
        "height": height,
        "width": width,
        "INNER": inner,
        "OFFSET": tl.int64 if width * pixel_stride >= _INT32_LIMIT else tl.int32,
    }


def _block(lines: dict[str, Any], images: Tensor, num_warps: int) -> int:
    """Elements of a program: 32 bytes for each of its threads, and no more than a line has."""
    length: int = triton.next_power_of_2(lines["width"] * lines["INNER"])
    return min(length, num_warps * 32 * 32 // images.element_size())


def _grid(lines: dict[str, Any], block: int) -> tuple[int]:
    length = lines["width"] * lines["INNER"]
    return (lines["batch"] * lines["lines"] * lines["height"] * triton.cdiv(length, block),)


def paste_configuration(
    out: Tensor,
    images: Tensor,
    partners: Tensor,
    boxes: Tensor | None,
    labels: Tensor | None,
    chosen: Tensor | None,
    platform: str,
) -> Launch:
    """What `paste` launches."""
    lines = _lines(images)
    block = _block(lines, images, _PASTING_WARPS)
    if labels is not None and labels.shape[2] * labels.stride(2) >= _INT32_LIMIT:
        lines["OFFSET"] = tl.int64
    return Launch(
        paste_kernel,
        _grid(lines, block),
        {
            "out": out,
            "images": images,
            "partners": partners,
            "boxes": boxes,
            "labels": labels,
            "labels_strides": (0, 0, 0) if labels is None else labels.stride(),
            "chosen": chosen,
            "num_classes": 0 if chosen is None else chosen.shape[1],
            "BLOCK": block,
            **lines,
        },
        {"num_warps": _PASTING_WARPS},
    )


def paste(
    out: Tensor,
    images: Tensor,
    partners: Tensor,
    boxes: Tensor | None,
    labels: Tensor | None,
    chosen: Tensor | None,
) -> None:
    """Images ``(B, K, H, W)`` of any type with pixels of their partners: in boxes, or of chosen classes."""
    chosen = None if chosen is None else as_bits(chosen)
    launch(paste_configuration, out.device, as_bits(out), as_bits(images), partners, boxes, labels, chosen)


def blend_configuration(out: Tensor, images: Tensor, partners: Tensor, weight: Tensor, platform: str) -> Launch:
    """What `blend` launches."""
    lines = _lines(images)
    block = _block(lines, images, _WARPS)
    return Launch(
        blend_kernel,
        _grid(lines, block),
        {
            "out": out,
            "images": images,
            "partners": partners,
            "weight": weight,
            "BLOCK": block,
            "ACCUMULATOR": accumulator_type(images),
            **lines,
        },
        {"num_warps": _WARPS},
    )


def blend(out: Tensor, images: Tensor, partners: Tensor, weight: Tensor) -> None:
    """Floating images ``(B, K, H, W)`` and their partners, these by ``weight (B,)``."""
    launch(blend_configuration, out.device, out, images, partners, weight)


def blend_labels_configuration(
    out: Tensor, labels: Tensor, partners: Tensor, weight: Tensor, ignore_index: int, platform: str
) -> Launch:
    """What `blend_labels` launches."""
    batch, num_classes, height, width = out.shape
    strides = labels.stride()
    if strides[1] == width * strides[2]:  # rows that follow each other are one
        height, width = 1, height * width
    block = min(triton.next_power_of_2(width), 32 * _WARPS * 16 // out.element_size())
    return Launch(
        blend_labels_kernel,
        (batch * height * triton.cdiv(width, block),),
        {
            "out": out,
            "labels": labels,
            "labels_strides": strides,
            "partners": partners,
            "weight": weight,
            "batch": batch,
            "height": height,
            "width": width,
            "num_classes": num_classes,
            "ignored_class": ignore_index if 0 <= ignore_index < num_classes else -1,
            "BLOCK": block,
            "ACCUMULATOR": accumulator_type(out),
            "OFFSET": offset_type(labels),
        },
        {"num_warps": _WARPS},
    )


def blend_labels(
    out: Tensor, labels: Tensor, partners: Tensor, weight: Tensor, ignore_index: int, validate: bool
) -> bool:
    """`blend` of the one-hot masses of label maps: ``out (B, C, H, W)``."""
    if validate and not labels_in_range(labels, out.shape[1], ignore_index):
        return False
    launch(blend_labels_configuration, out.device, out, labels, partners, weight, ignore_index)
    return True
