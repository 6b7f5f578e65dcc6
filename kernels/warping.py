"""`warp`, `soft_warp` and both at once in one launch, and the gradient of an image.

A program computes one tile of one sample: all its channels, then all its classes. The gradient hands what each output
pixel received back to the source pixels, with atomic additions of integers: their order does not matter, so the same
inputs give the same bits. A gradient g goes in as ``round(g 2^62 / (largest h w))``, which no sum can overflow, as an
output pixel weighs 1 in all.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tritonsoft.backends.values import labels_in_range
from tritonsoft.geometry import Filter, Reduction
from tritonsoft.kernels.area_loss import area_cross_entropy, area_cross_entropy_backward
from tritonsoft.kernels.convert import downcast, upcast
from tritonsoft.kernels.launch import Launch, accumulator_type, launch, offset_type, tile_shape
from tritonsoft.kernels.top_k import soft_crop_resize_top
from tritonsoft.kernels.warp_points import pixels_of_program, point_taps, points_of_tile, warped_soft_tile


@triton.jit
def _image_tile(
    out,  # this sample
    out_strides,
    image,  # this sample
    image_strides,
    rows,  # of the output, (BLOCK_HW,)
    columns,
    inside,
    here,
    axes,
    in_height,
    in_width,
    channels,
    fill,
    CHANNELS: tl.constexpr,  # that share a loop over the points
    FILTER: tl.constexpr,
    BLOCK_HW: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    dtype = out.dtype.element_ty
    points_y, points_x, most_y, most_x = axes
    offsets = rows.to(OFFSET) * out_strides[2] + columns.to(OFFSET) * out_strides[3]
    unit = 1.0
    if image.dtype.element_ty == tl.uint8 and dtype != tl.uint8:
        unit = 255.0
    padding = (tl.zeros([], tl.float64) + fill).to(ACCUMULATOR)
    for first_channel in range(0, channels, CHANNELS):
        planes = ()
        totals = ()
        for step in tl.static_range(CHANNELS):
            channel = tl.minimum(first_channel + step, channels - 1)
            planes = planes + (image + tl.cast(channel, tl.int64) * image_strides[1],)  # noqa: RUF005 - no unpacking here
            totals = totals + (tl.zeros([BLOCK_HW], ACCUMULATOR),)  # noqa: RUF005
        beyond = tl.zeros([BLOCK_HW], ACCUMULATOR)
        for step_y in range(0, most_y):
            for step_x in range(0, most_x):
                taps_y, taps_x, outside = point_taps(
                    here, points_y, points_x, step_y, step_x, in_height, in_width, FILTER
                )
                beyond += outside
                for tap in tl.static_range(4):
                    weight = taps_y[2 + tap // 2] * taps_x[2 + tap % 2]
                    place = taps_y[tap // 2].to(OFFSET) * image_strides[2]
                    place += taps_x[tap % 2].to(OFFSET) * image_strides[3]
                    sums = ()
                    for step in tl.static_range(CHANNELS):
                        value = upcast(tl.load(planes[step] + place), ACCUMULATOR)
                        # Selected: a pixel without weight may be infinite.
                        sums = sums + (tl.where(weight > 0, totals[step] + value * weight, totals[step]),)  # noqa: RUF005
                    totals = sums
        for step in tl.static_range(CHANNELS):
            plane = out + tl.cast(first_channel + step, tl.int64) * out_strides[1]
            value = totals[step] / unit + tl.where(beyond > 0, beyond * padding, 0.0)
            tl.store(plane + offsets, downcast(value, dtype), mask=inside & (first_channel + step < channels))


@triton.jit(
    do_not_specialize=["in_height", "in_width", "out_height", "out_width", "channels", "num_classes", "ignored_class"]
)
def warp_kernel(
    out,  # (B, K, h, w), or None where there is no image
    out_strides,
    image,  # (B, K, H, W), or None
    image_strides,
    soft,  # (B, C, h, w), contiguous and zero, or None where there is no label map
    labels,  # (B, H, W), or None
    labels_strides,
    transform,  # (B, 3, 3) or (B, h, w, 2)
    transform_strides,
    in_height,
    in_width,
    out_height,
    out_width,
    channels,
    num_classes,
    ignored_class,
    fill: tl.float64,
    FILTER: tl.constexpr,
    CHANNELS: tl.constexpr,  # of the image that share a loop over the points
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,  # the integer that holds an offset inside one plane
):
    sample, rows, columns, inside = pixels_of_program(out_height, out_width, BLOCK_H, BLOCK_W)
    here, axes = points_of_tile(
        transform, transform_strides, sample, rows, columns, out_height, out_width, FILTER, ACCUMULATOR
    )
    if image is not None:
        _image_tile(
            out + sample * out_strides[0],
            out_strides,
            image + sample * image_strides[0],
            image_strides,
            rows,
            columns,
            inside,
            here,
            axes,
            in_height,
            in_width,
            channels,
            fill,
            CHANNELS,
            FILTER,
            BLOCK_H * BLOCK_W,
            ACCUMULATOR,
            OFFSET,
        )
    if labels is not None:
        plane_size = out_height.to(tl.int64) * out_width
        warped_soft_tile(
            (soft, sample * num_classes * plane_size, plane_size, ()),
            (),
            (rows, columns, rows.to(OFFSET) * out_width + columns, inside),
            labels + sample * labels_strides[0],
            labels_strides,
            here,
            axes,
            in_height,
            in_width,
            num_classes,
            ignored_class,
            "mass",
            FILTER,
            BLOCK_H * BLOCK_W,
            ACCUMULATOR,
            OFFSET,
        )


@triton.jit(do_not_specialize=["in_height", "in_width", "out_height", "out_width", "channels"])
def warp_adjoint_kernel(
    sums,  # (B, K, H, W), int64, contiguous and zero
    grad,  # (B, K, h, w)
    grad_strides,
    largest,  # a number, float64: no gradient is larger
    transform,  # (B, 3, 3) or (B, h, w, 2)
    transform_strides,
    in_height,
    in_width,
    out_height,
    out_width,
    channels,
    FILTER: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    sample, rows, columns, inside = pixels_of_program(out_height, out_width, BLOCK_H, BLOCK_W)
    here, axes = points_of_tile(
        transform, transform_strides, sample, rows, columns, out_height, out_width, FILTER, ACCUMULATOR
    )
    points_y, points_x, most_y, most_x = axes
    # 2^62 as a product: a literal of that size would be an integer.
    scale = 2147483648.0 * 2147483648.0 / (tl.load(largest) * (out_height.to(tl.float64) * out_width))
    offsets = rows.to(OFFSET) * grad_strides[2] + columns.to(OFFSET) * grad_strides[3]
    for channel in range(0, channels):
        plane = grad + sample * grad_strides[0] + tl.cast(channel, tl.int64) * grad_strides[1]
        value = upcast(tl.load(plane + offsets, mask=inside, other=0.0), tl.float64) * scale
        value = tl.where(tl.abs(value) < 4611686018427387904.0, value, 0.0)  # what is not finite: see the launcher
        target = sums + (sample * channels + channel) * (in_height.to(tl.int64) * in_width)
        for step_y in range(0, most_y):
            for step_x in range(0, most_x):
                taps_y, taps_x, _ = point_taps(here, points_y, points_x, step_y, step_x, in_height, in_width, FILTER)
                for tap in tl.static_range(4):
                    weight = taps_y[2 + tap // 2] * taps_x[2 + tap % 2]
                    amount = tl.floor(value * weight.to(tl.float64) + 0.5).to(tl.int64)
                    place = taps_y[tap // 2].to(tl.int64) * in_width + taps_x[tap % 2]
                    tl.atomic_add(target + place, amount, mask=inside & (weight > 0), sem="relaxed")


# --- launch ----------------------------------------------------------------------------------------------------------


def launch_configuration(
    out: Tensor | None,
    image: Tensor | None,
    soft: Tensor | None,
    labels: Tensor | None,
    transform: Tensor,
    ignore_index: int,
    filter: Filter,
    fill: float,
    platform: str,
) -> Launch:
    """What to launch for these tensors; only their shapes, strides and types matter."""
    result, source = (soft, labels) if soft is not None else (out, image)
    assert result is not None
    assert source is not None
    (height, width), (in_height, in_width) = result.shape[-2:], source.shape[-2:]
    num_classes, channels = soft.shape[1] if soft is not None else 0, image.shape[1] if image is not None else 0
    block_h, block_w, options, accumulator = _tile(height, width, platform, out, image, soft)
    return Launch(
        warp_kernel,
        (triton.cdiv(height, block_h) * triton.cdiv(width, block_w) * result.shape[0],),
        {
            "out": out,
            "out_strides": None if out is None else out.stride(),
            "image": image,
            "image_strides": None if image is None else image.stride(),
            "soft": soft,
            "labels": labels,
            "labels_strides": None if labels is None else labels.stride(),
            "transform": transform,
            "transform_strides": transform.stride(),
            "in_height": in_height,
            "in_width": in_width,
            "out_height": height,
            "out_width": width,
            "channels": channels,
            "num_classes": num_classes,
            "ignored_class": ignore_index if 0 <= ignore_index < num_classes else -1,
            "fill": float(fill),
            "FILTER": filter,
            "CHANNELS": min(max(channels, 1), 4),
            "BLOCK_H": block_h,
            "BLOCK_W": block_w,
            "ACCUMULATOR": accumulator,
            "OFFSET": offset_type(out, image, soft, labels),
        },
        options,
    )


def _tile(height: int, width: int, platform: str, *tensors: Tensor | None) -> tuple[int, int, dict[str, Any], Any]:
    """Height and width of a tile, compile options and the type of sums.

    What is known of a pixel takes some twenty registers beside the sums, so that a thread has two pixels. Tiles are
    near to square: under any rotation they look at a compact part of the source.
    """
    accumulator = accumulator_type(*tensors)
    block_h, block_w = tile_shape(height, min(width, 32), 256)
    limit = {"maxnreg": 255 if accumulator is tl.float64 else 168} if platform == "cuda" else {}
    return block_h, block_w, {"num_warps": 4, **limit}, accumulator


def adjoint_configuration(
    sums: Tensor, grad: Tensor, largest: Tensor, transform: Tensor, filter: Filter, platform: str
) -> Launch:
    """What `warp_adjoint` launches."""
    batch, channels, height, width = grad.shape
    block_h, block_w, options, accumulator = _tile(height, width, platform, grad)
    return Launch(
        warp_adjoint_kernel,
        (triton.cdiv(height, block_h) * triton.cdiv(width, block_w) * batch,),
        {
            "sums": sums,
            "grad": grad,
            "grad_strides": grad.stride(),
            "largest": largest,
            "transform": transform,
            "transform_strides": transform.stride(),
            "in_height": sums.shape[2],
            "in_width": sums.shape[3],
            "out_height": height,
            "out_width": width,
            "channels": channels,
            "FILTER": filter,
            "BLOCK_H": block_h,
            "BLOCK_W": block_w,
            "ACCUMULATOR": accumulator,
            "OFFSET": offset_type(grad),
        },
        options,
    )


def warp(out: Tensor, image: Tensor, transform: Tensor, filter: Filter, fill: float) -> None:
    """Image ``(B, K, H, W)`` -> ``out (B, K, h, w)``."""
    launch(launch_configuration, out.device, out, image, None, None, transform, -1, filter, fill)


def warp_adjoint(out: Tensor, grad: Tensor, transform: Tensor, filter: Filter) -> None:
    """The transpose of `warp`: ``grad (B, K, h, w)`` -> ``out (B, K, H, W)``."""
    largest = grad.abs().amax().double()
    largest = torch.where(largest == 0, 1.0, largest)
    sums = torch.zeros(out.shape, dtype=torch.int64, device=out.device)
    launch(adjoint_configuration, out.device, sums, grad, largest, transform, filter)
    # Where a gradient is not finite, neither is any result.
    out.copy_(sums * (largest * (grad.shape[2] * grad.shape[3]) / 2.0**62))


def soft_warp(
    out: Tensor, labels: Tensor, transform: Tensor, ignore_index: int, filter: Filter, validate: bool
) -> bool:
    """Label map ``(B, H, W)`` -> soft label ``out (B, C, h, w)``."""
    if validate and not labels_in_range(labels, out.shape[1], ignore_index):
        return False
    out.zero_()
    launch(launch_configuration, out.device, None, None, out, labels, transform, ignore_index, filter, 0.0)
    return True


def warp_pair(
    out: Tensor,
    out_soft: Tensor,
    image: Tensor,
    labels: Tensor,
    transform: Tensor,
    ignore_index: int,
    filter: Filter,
    fill: float,
    validate: bool,
) -> bool:
    """Image and label map under the same transform, in one launch."""
    if validate and not labels_in_range(labels, out_soft.shape[1], ignore_index):
        return False
    out_soft.zero_()
    launch(launch_configuration, out.device, out, image, out_soft, labels, transform, ignore_index, filter, fill)
    return True


def soft_warp_top(
    index: Tensor,
    mass: Tensor,
    rest: Tensor,
    labels: Tensor,
    transform: Tensor,
    num_classes: int,
    ignore_index: int,
    filter: Filter,
    validate: bool,
) -> bool:
    """`soft_crop_resize_top`, whose kernel takes a transform in the place of boxes."""
    return soft_crop_resize_top(index, mass, rest, labels, transform, num_classes, ignore_index, filter, validate)


def warp_cross_entropy(
    value: Tensor,
    total: Tensor,
    mass: Tensor,
    lse: Tensor,
    logits: Tensor,
    labels: Tensor,
    transform: Tensor,
    ignore_index: int,
    filter: Filter,
    weight: Tensor | None,
    label_smoothing: float,
    reduction: Reduction,
    validate: bool,
) -> bool:
    """`area_cross_entropy`, whose kernel takes a transform in the place of boxes."""
    return area_cross_entropy(
        value,
        total,
        mass,
        lse,
        logits,
        labels,
        transform,
        ignore_index,
        filter,
        weight,
        label_smoothing,
        reduction,
        validate,
    )


def warp_cross_entropy_backward(
    out: Tensor,
    grad: Tensor,
    total: Tensor | None,
    logits: Tensor,
    labels: Tensor,
    transform: Tensor,
    ignore_index: int,
    filter: Filter,
    weight: Tensor | None,
    label_smoothing: float,
    mass: Tensor,
    lse: Tensor,
) -> None:
    """`area_cross_entropy_backward` with a transform in the place of boxes."""
    area_cross_entropy_backward(
        out, grad, total, logits, labels, transform, ignore_index, filter, weight, label_smoothing, mass, lse
    )
