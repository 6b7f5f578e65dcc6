"""What people run instead of tritonsoft, each rival at its best.

A rival is a plain function of the arguments that its task gets, listed at the end of this file:

    shrink whole label maps        (labels, size, num_classes, dtype)              -> (B, C, h, w)
    shrink whole images            (image, size)                                   -> (B, K, h, w)
    crop and shrink images         (image, boxes, size)                            -> (B, K, h, w)
    crop and shrink the pair       (image, labels, boxes, size, num_classes)       -> (B, K, h, w), (B, C, h, w)
    warp images                    (image, matrices, size)                         -> (B, K, h, w)
    warp the pair                  (image, labels, matrices, size, num_classes)    -> (B, K, h, w), (B, C, h, w)
    a training pipeline            (image, labels, int64 mask, size, num_classes)  -> (B, K, h, w), (B, C, h, w)
    the gradient of a crop         (image, boxes, size, gradient of its output)    -> (B, K, H, W)
    the largest classes            (labels, size, num_classes, dtype)              -> (B, k, h, w) classes and masses
    classes of ids                 (labels, table), uint8                          -> (B, H, W)
    a pyramid of three sizes       (labels, size of the largest, num_classes, dtype)
    a loss of a soft label         (logits, soft), soft dense or a SparseLabels    -> a number
    a loss of a label map          (logits, labels)                                -> a number
    the most frequent id           (labels, size)                                  -> (B, 1, h, w) ids, and the labels

Those of crops that know classes, of mixing and of chains are in `bench.augmentation_rivals`.

Label maps are ``(B, H, W)``, of uint8 or int64, `IGNORED` where nothing is known; a cast that a rival needs is part
of its call. Boxes ``(B, 4)`` have whole edges inside the image and are never smaller than ``size``, which all rivals
can do. A pipeline draws its boxes itself, from one seed (`crop_parameters`). Logits are ``(B, C, h, w)``; losses are
timed with the gradient of the logits.
"""

import dataclasses
import functools
import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor

import tritonsoft as ts

IGNORED = 255

Size = tuple[int, int]
LabelRival = Callable[[Tensor, Size, int, torch.dtype], Tensor]
PairResult = tuple[Tensor, Tensor]
Computes = Literal["area", "triangle", "approximates", "hardens", "draws", "fills"]


@dataclass(frozen=True)
class Rival:
    """A function and what to hold it to.

    ``computes`` names the filter whose result it must give. "approximates" is near the area filter's, and its error is
    printed. "hardens" makes a hard label, which is less work and another answer. "draws" shows what it draws itself, so
    that there is nothing to compare it with. "fills" is no rival but the floor's companion: it writes the output and
    knows nothing of the input.
    """

    name: str
    call: Callable[..., Any]
    computes: Computes = "area"
    compiled: bool = False
    package: str | None = None  # the optional package it needs
    only_on: str | None = None  # the one device type it runs on
    decode: Callable[[Any, int], Any] = lambda result, num_classes: result  # to floats, soft: for the check, not timed
    is_loss: bool = False
    usual: bool = False  # what most people run today

    def missing(self, device: str) -> str | None:
        """Why it cannot run here, or None."""
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        if (
            self.compiled
            and device == "cpu"
            and not any(map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++")))
        ):
            return "no C++ compiler for torch.compile"
        return None

    def prepare(self) -> Callable[..., Any]:
        """The function as it is timed."""
        call = self.call
        if self.compiled:
            torch.compiler.reset()  # else the eighth shape of one function silently runs uncompiled
            call = torch.compile(call, dynamic=False)
        return functools.partial(with_gradient, call) if self.is_loss else call


# --- one-hot planes and what follows ---------------------------------------------------------------------------------


def class_ids(labels: Tensor, num_classes: int) -> Tensor:
    """int64 labels with ignored pixels as one more class, C, at the end."""
    return labels.clamp(max=num_classes).long()


def one_hot(labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """``(B, C, H, W)`` by comparison: no int64 planes, as `F.one_hot` makes them."""
    classes = torch.arange(num_classes, dtype=labels.dtype, device=labels.device)
    return (labels[:, None] == classes[:, None, None]).to(dtype)


def one_hot_interpolate_area(labels: Tensor, size: Size, num_classes: int, dtype: torch.dtype) -> Tensor:
    """What people write today."""
    planes = F.one_hot(class_ids(labels, num_classes), num_classes + 1).permute(0, 3, 1, 2)[:, :num_classes]
    return F.interpolate(planes.to(dtype), size, mode="area")


def compare_interpolate_area(labels: Tensor, size: Size, num_classes: int, dtype: torch.dtype) -> Tensor:
    return F.interpolate(one_hot(labels, num_classes, dtype), size, mode="area")


def compare_interpolate_antialias(labels: Tensor, size: Size, num_classes: int, dtype: torch.dtype) -> Tensor:
    return interpolate_antialias(one_hot(labels, num_classes, dtype), size)


def one_hot_interpolate_linear(labels: Tensor, size: Size, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Enlarging, the area filter is this."""
    planes = F.one_hot(class_ids(labels, num_classes), num_classes + 1).permute(0, 3, 1, 2)[:, :num_classes]
    return F.interpolate(planes.to(dtype), size, mode="bilinear")


def compare_interpolate_linear(labels: Tensor, size: Size, num_classes: int, dtype: torch.dtype) -> Tensor:
    return F.interpolate(one_hot(labels, num_classes, dtype), size, mode="bilinear")


def one_hot_avg_pool(labels: Tensor, size: Size, num_classes: int, dtype: torch.dtype) -> Tensor:
    planes = F.one_hot(class_ids(labels, num_classes), num_classes + 1).permute(0, 3, 1, 2).to(dtype)[:, :num_classes]
    return F.avg_pool2d(planes, labels.shape[1] // size[0])


def compare_and_count(labels: Tensor, size: Size, num_classes: int, dtype: torch.dtype) -> Tensor:
    """The sum over the k x k strided views of the label map: one kernel once compiled, no intermediate."""
    factor = labels.shape[1] // size[0]
    # int32, although bytes would hold the count: Inductor 2.13 on a CPU adds 255 for a bool cast to uint8.
    count = torch.zeros((), dtype=torch.int32, device=labels.device)
    for row in range(factor):
        for column in range(factor):
            count = count + one_hot(labels[:, row::factor, column::factor], num_classes, count.dtype)
    return count.to(dtype) * (1 / factor**2)


# --- scatter ---------------------------------------------------------------------------------------------------------


def scatter_blocks(labels: Tensor, size: Size, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Each pixel of a k x k block adds 1/k² to its class."""
    batch, (height, width), factor = labels.shape[0], size, labels.shape[1] // size[0]
    blocks = class_ids(labels, num_classes).view(batch, height, factor, width, factor).permute(0, 2, 4, 1, 3)
    ids = blocks.reshape(batch, factor**2, height, width)
    share = torch.full((1, 1, 1, 1), 1 / factor**2, dtype=dtype, device=labels.device).expand(ids.shape)
    soft = torch.zeros(batch, num_classes + 1, height, width, dtype=dtype, device=labels.device)
    return soft.scatter_add_(1, ids, share)[:, :num_classes]


def bincount(labels: Tensor, size: Size, num_classes: int, dtype: torch.dtype) -> Tensor:
    batch, (height, width), factor = labels.shape[0], size, labels.shape[1] // size[0]
    row = torch.arange(labels.shape[1], device=labels.device) // factor * width
    column = torch.arange(labels.shape[2], device=labels.device) // factor
    sample = torch.arange(batch, device=labels.device) * (num_classes + 1)
    plane = class_ids(labels, num_classes) + sample[:, None, None]
    index = plane * (height * width) + row[:, None] + column  # (B, H, W) into (B, C + 1, h, w)
    count = torch.bincount(index.view(-1), minlength=batch * (num_classes + 1) * height * width)
    return count.view(batch, num_classes + 1, height, width)[:, :num_classes].to(dtype) * (1 / factor**2)


def scatter_four_taps(labels: Tensor, size: Size, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Shrinking, a source pixel lies in at most 2 x 2 footprints: four weighted scatters, exact at any factor."""
    batch, (height, width) = labels.shape[0], size
    accumulator = torch.promote_types(dtype, torch.float32)

    def taps(in_size: int, out_size: int) -> tuple[Tensor, Tensor]:
        scale = in_size / out_size
        pixel = torch.arange(in_size, dtype=torch.float64, device=labels.device)
        first = (pixel / scale).floor()
        share = ((first + 1) * scale - pixel).clamp(max=1)
        footprint = torch.stack((first, (first + 1).clamp(max=out_size - 1))).long()  # (2, in)
        return footprint, (torch.stack((share, 1 - share)) / scale).to(accumulator)

    (rows, row_shares), (columns, column_shares) = taps(labels.shape[1], height), taps(labels.shape[2], width)
    plane = class_ids(labels, num_classes) * (height * width)
    soft = torch.zeros(batch, (num_classes + 1) * height * width, dtype=accumulator, device=labels.device)
    for row, row_share in zip(rows, row_shares, strict=True):
        for column, column_share in zip(columns, column_shares, strict=True):
            index = plane + (row * width)[:, None] + column
            share = (row_share[:, None] * column_share).expand(index.shape)
            soft.scatter_add_(1, index.flatten(1), share.flatten(1))
    return soft.view(batch, num_classes + 1, height, width)[:, :num_classes].to(dtype)


# --- matrix products -------------------------------------------------------------------------------------------------


def area_matrix(low: Tensor, high: Tensor, in_size: int, out_size: int, dtype: torch.dtype) -> Tensor:
    """``(B, out, in)``: the overlap of each source pixel with each footprint, over the footprint's width."""
    scale = ((high - low) / out_size)[:, None, None].double()  # (B, 1, 1)
    left = low[:, None, None] + scale * torch.arange(out_size, device=low.device)[:, None]
    pixel = torch.arange(in_size, device=low.device)
    return (((pixel + 1).minimum(left + scale) - pixel.maximum(left)).clamp(min=0) / scale).to(dtype)


def matrix_crop(planes: Tensor, boxes: Tensor, size: Size) -> Tensor:
    matrix_y = area_matrix(boxes[:, 1], boxes[:, 3], planes.shape[2], size[0], planes.dtype)
    matrix_x = area_matrix(boxes[:, 0], boxes[:, 2], planes.shape[3], size[1], planes.dtype)
    return torch.einsum("bih,bchw->bciw", matrix_y, planes) @ matrix_x.mT[:, None]


def matrix_crop_labels(labels: Tensor, boxes: Tensor, size: Size, num_classes: int, dtype: torch.dtype) -> Tensor:
    return matrix_crop(one_hot(labels, num_classes, dtype), boxes, size)


def matrix_resize(planes: Tensor, size: Size) -> Tensor:
    """One matrix for the whole batch: the first product folds into a single large one."""
    zero, ends = planes.new_zeros(1), planes.new_tensor(planes.shape[2:], dtype=torch.float64)
    matrix_y = area_matrix(zero, ends[:1], planes.shape[2], size[0], planes.dtype)[0]
    matrix_x = area_matrix(zero, ends[1:], planes.shape[3], size[1], planes.dtype)[0]
    return matrix_y @ (planes @ matrix_x.mT)


def matrix_resize_labels(labels: Tensor, size: Size, num_classes: int, dtype: torch.dtype) -> Tensor:
    return matrix_resize(one_hot(labels, num_classes, dtype), size)


# --- OpenCV: plane by plane, INTER_AREA ------------------------------------------------------------------------------


def opencv_labels(
    labels: Tensor, size: Size, num_classes: int, dtype: torch.dtype, boxes: Tensor | None = None
) -> Tensor:
    """A resize per class; with ``dtype=torch.uint8`` in bytes, 255 for all of the footprint."""
    import cv2

    soft = torch.empty(labels.shape[0], num_classes, *size, dtype=torch.float32 if dtype.itemsize == 2 else dtype)
    element = soft.numpy().dtype
    for index, (x0, y0, x1, y1) in enumerate(whole_boxes(labels, boxes)):
        label_map = labels[index, y0:y1, x0:x1].to(torch.uint8).numpy()
        for label in range(num_classes):
            plane = (label_map == label).astype(element)
            if dtype == torch.uint8:
                plane *= 255
            cv2.resize(plane, size[::-1], dst=soft[index, label].numpy(), interpolation=cv2.INTER_AREA)
    return soft.to(dtype)


def opencv_labels_in_bytes(labels: Tensor, size: Size, num_classes: int, dtype: torch.dtype) -> Tensor:
    return opencv_labels(labels, size, num_classes, torch.uint8)


def opencv_image(image: Tensor, size: Size, boxes: Tensor | None = None) -> Tensor:
    import cv2

    out = image.new_empty(*image.shape[:2], *size)
    for index, (x0, y0, x1, y1) in enumerate(whole_boxes(image, boxes)):
        for source, target in zip(image[index, :, y0:y1, x0:x1].numpy(), out[index].numpy(), strict=True):
            cv2.resize(source, size[::-1], dst=target, interpolation=cv2.INTER_AREA)
    return out


def opencv_pair(image: Tensor, labels: Tensor, boxes: Tensor, size: Size, num_classes: int) -> PairResult:
    return opencv_image(image, size, boxes), opencv_labels(labels, size, num_classes, image.dtype, boxes)


# --- image, and loops over boxes -------------------------------------------------------------------------------------


def interpolate_antialias(planes: Tensor, size: Size) -> Tensor:
    return F.interpolate(planes, size, mode="bilinear", antialias=True)


def whole_boxes(source: Tensor, boxes: Tensor | None) -> list[list[int]]:
    height, width = source.shape[-2:]
    return [[0, 0, width, height]] * source.shape[0] if boxes is None else boxes.int().tolist()


def sliced(resize: Callable[..., Tensor], source: Tensor, boxes: Tensor, size: Size, *arguments: Any) -> Tensor:
    """A resize of whole images or label maps, made a crop: a loop over the samples' slices."""
    return torch.cat(
        [
            resize(source[index : index + 1, ..., y0:y1, x0:x1], size, *arguments)
            for index, (x0, y0, x1, y1) in enumerate(whole_boxes(source, boxes))
        ]
    )


def sliced_pair(
    resize_image: Callable[[Tensor, Size], Tensor],
    resize_labels: LabelRival,
    image: Tensor,
    labels: Tensor,
    boxes: Tensor,
    size: Size,
    num_classes: int,
) -> PairResult:
    soft = sliced(resize_labels, labels, boxes, size, num_classes, image.dtype)
    return sliced(resize_image, image, boxes, size), soft


def matrix_pair(image: Tensor, labels: Tensor, boxes: Tensor, size: Size, num_classes: int) -> PairResult:
    return matrix_crop(image, boxes, size), matrix_crop_labels(labels, boxes, size, num_classes, image.dtype)


def nearest_labels(labels: Tensor, size: Size, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Hard labels ``(B, 1, h, w)``, less work than a soft label."""
    return F.interpolate(labels[:, None].float(), size, mode="nearest-exact").to(labels.dtype)


def decode_hard(result: PairResult, num_classes: int) -> PairResult:
    image, hard = result
    return image, one_hot(hard[:, 0], num_classes, image.dtype)


# --- kornia ----------------------------------------------------------------------------------------------------------


@torch.compiler.disable  # type: ignore[untyped-decorator]
@functools.cache
def kornia_crop(size: Size, resample: str) -> Callable[..., Tensor]:
    from kornia.augmentation import RandomResizedCrop

    crop: Callable[..., Tensor] = RandomResizedCrop(
        size, resample=resample, align_corners=False if resample == "bilinear" else None
    )
    return crop


def kornia_crops(planes: Tensor, boxes: Tensor, size: Size, resample: str) -> Tensor:
    """kornia's random crop with our boxes for its random numbers, which it need not draw."""
    x0, y0, x1, y1 = boxes.float().unbind(1)
    corners = torch.stack((x0, y0, x1 - 1, y0, x1 - 1, y1 - 1, x0, y1 - 1), 1).view(-1, 4, 2)
    ends = torch.tensor([[0, 0], [size[1] - 1, 0], [size[1] - 1, size[0] - 1], [0, size[0] - 1]]).to(corners)
    params = {"src": corners, "dst": ends.expand_as(corners), "batch_prob": torch.ones(len(boxes))}
    cropped: Tensor = kornia_crop(size, resample)(planes, params=params)
    return cropped


def kornia_image(image: Tensor, boxes: Tensor, size: Size) -> Tensor:
    return kornia_crops(image, boxes, size, "bilinear")


def kornia_pair(image: Tensor, labels: Tensor, boxes: Tensor, size: Size, num_classes: int) -> PairResult:
    return kornia_image(image, boxes, size), kornia_image(one_hot(labels, num_classes, image.dtype), boxes, size)


def kornia_nearest_pair(image: Tensor, labels: Tensor, boxes: Tensor, size: Size, num_classes: int) -> PairResult:
    """What people run today; hard labels are less work."""
    mask = kornia_crops(labels[:, None].to(image.dtype), boxes, size, "nearest")
    return kornia_image(image, boxes, size), mask


def kornia_resize(image: Tensor, size: Size) -> Tensor:
    """A Gaussian blur, then bilinear."""
    from kornia.augmentation import Resize

    resized: Tensor = Resize(size, antialias=True, align_corners=False)(image)
    return resized


# --- warps -----------------------------------------------------------------------------------------------------------


def grid_of(matrices: Tensor, source: tuple[int, ...], size: Size) -> Tensor:
    """The grid of `F.grid_sample` for matrices in pixel edges."""
    height, width = size
    out_scale = matrices.new_tensor([[width / 2, 0, width / 2], [0, height / 2, height / 2], [0, 0, 1]])
    in_scale = matrices.new_tensor([[2 / source[1], 0, -1], [0, 2 / source[0], -1], [0, 0, 1]])
    theta = (in_scale @ matrices @ out_scale)[:, :2]
    return F.affine_grid(theta.float(), [len(matrices), 1, height, width], align_corners=False)


def grid_sample(planes: Tensor, matrices: Tensor, size: Size) -> Tensor:
    grid = grid_of(matrices, tuple(planes.shape[2:]), size).to(planes.dtype)
    return F.grid_sample(planes, grid, align_corners=False)


def blurred_grid_sample(planes: Tensor, matrices: Tensor, size: Size) -> Tensor:
    """The usual antialiasing of a warp: a Gaussian before it, as wide as the stretch asks for."""
    from torchvision.transforms.v2.functional import gaussian_blur

    blurred = []
    for plane, matrix in zip(planes, matrices, strict=True):
        sigma = max((torch.linalg.det(matrix).sqrt().item() - 1) / 2, 0.1)
        blurred.append(gaussian_blur(plane, [2 * int(2 * sigma + 1) + 1] * 2, [sigma, sigma]))
    return grid_sample(torch.stack(blurred), matrices, size)


def kornia_warp(planes: Tensor, matrices: Tensor, size: Size, mode: str = "bilinear") -> Tensor:
    """kornia's warp, which its RandomAffine calls; its matrices lead from the source, between centres of pixels."""
    from kornia.geometry.transform import warp_affine

    to_centres = matrices.new_tensor([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
    forwards = torch.inverse(to_centres @ matrices @ torch.inverse(to_centres))[:, :2].to(planes.dtype)
    warped: Tensor = warp_affine(planes, forwards, size, mode=mode, align_corners=True)
    return warped


def opencv_warp(planes: Tensor, matrices: Tensor, size: Size) -> Tensor:
    """OpenCV's warpAffine, plane by plane; its matrices lead to the source, between centres of pixels."""
    import cv2

    to_centres = matrices.new_tensor([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
    backwards = (to_centres @ matrices @ torch.inverse(to_centres))[:, :2].cpu().numpy()
    out = planes.new_empty(*planes.shape[:2], *size)
    for sample, matrix, results in zip(planes.numpy(), backwards, out.numpy(), strict=True):
        for plane, result in zip(sample, results, strict=True):
            cv2.warpAffine(plane, matrix, size[::-1], dst=result, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return out


def warp_one_hot(
    warp: Callable[..., Tensor], image: Tensor, labels: Tensor, matrices: Tensor, size: Size, num_classes: int
) -> PairResult:
    """Image and one-hot mask by the same function of planes."""
    return warp(image, matrices, size), warp(one_hot(labels, num_classes, image.dtype), matrices, size)


def kornia_hard_warp(image: Tensor, labels: Tensor, matrices: Tensor, size: Size, num_classes: int) -> PairResult:
    mask = labels[:, None].to(image.dtype) - IGNORED  # kornia fills with 0: so what lies outside is ignored
    return kornia_warp(image, matrices, size), kornia_warp(mask, matrices, size, "nearest") + IGNORED


# --- kornia's containers, and ours in their place -------------------------------------------------------------------


def crop_parameters(shape: tuple[int, ...], size: Size) -> dict[str, Tensor]:
    """What a random crop draws at the head of a pipeline."""
    from kornia.augmentation import RandomResizedCrop

    torch.manual_seed(0)
    parameters: dict[str, Tensor] = RandomResizedCrop(size).forward_parameters(shape)
    return parameters


def boxes_of_pipeline(shape: tuple[int, ...], size: Size) -> Tensor:
    """The same as boxes ``(B, 4)``."""
    corners = crop_parameters(shape, size)["src"]
    return torch.cat((corners[:, 0], corners[:, 2] + 1), 1)


@torch.compiler.disable  # type: ignore[untyped-decorator]
@functools.cache
def pipeline(kind: str, size: Size, source: Size, num_classes: int) -> Callable[..., PairResult]:
    import kornia.augmentation as K
    from kornia.constants import DataKey

    import tritonsoft.augmentation as TA

    keys = ["image", "mask"]
    if kind == "ours":
        return TA.AugmentationSequential(TA.RandomResizedCrop(size, num_classes=num_classes), data_keys=keys)  # type: ignore[no-any-return]
    if kind == "ours, half":
        return TA.AugmentationSequential(  # type: ignore[no-any-return]
            TA.RandomResizedCrop(size, num_classes=num_classes), data_keys=keys, soft_dtype=torch.float16
        )
    if kind == "our chain":
        return TA.AugmentationSequential(  # type: ignore[no-any-return]
            TA.RandomResizedCrop(source),
            TA.RandomHorizontalFlip(1.0),
            TA.Resize(size, num_classes=num_classes),
            data_keys=keys,
        )
    crop = K.RandomResizedCrop(size, align_corners=False)
    if kind == "kornia, hard":
        return K.AugmentationSequential(crop, data_keys=keys)  # type: ignore[no-any-return]
    if kind == "kornia, one-hot":
        return K.AugmentationSequential(crop, data_keys=keys, extra_args={DataKey.MASK: {"resample": "bilinear"}})  # type: ignore[no-any-return]
    return K.AugmentationSequential(  # type: ignore[no-any-return]
        K.RandomResizedCrop(source, align_corners=False),
        K.RandomHorizontalFlip(1.0),
        K.Resize(size, align_corners=False),
        data_keys=keys,
    )


def run_pipeline(kind: str, image: Tensor, labels: Tensor, mask: Tensor, size: Size, num_classes: int) -> PairResult:
    torch.manual_seed(0)
    label = labels if kind.startswith("our") else mask
    if kind.endswith("one-hot"):
        label = one_hot(labels, num_classes, image.dtype)
    shown, soft = pipeline(kind, size, (image.shape[2], image.shape[3]), num_classes)(image, label)
    return shown, soft


def unflip(result: PairResult, num_classes: int) -> PairResult:
    return result[0].flip(3), result[1].flip(3)


# --- losses ----------------------------------------------------------------------------------------------------------


def with_gradient(loss: Callable[..., Tensor], logits: Tensor, *target: Tensor) -> PairResult:
    """The loss, and its gradient times the number of pixels.

    Means over millions of pixels have gradients below the range of half precision: training scales its loss.
    """
    value = loss(logits, *target)
    scale = logits.numel() / logits.shape[1]
    (gradient,) = torch.autograd.grad(value, logits, torch.full_like(value, scale))
    return value.detach(), gradient


def decode_loss(result: PairResult, num_classes: int) -> PairResult:
    """Tensors with an axis to go along."""
    value, gradient = result
    return value.view(1), gradient


def in_float(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Half precision as float32, as autocast does for a loss: its sums over the pixels would overflow."""
    return tuple(tensor.float() if tensor.itemsize == 2 else tensor for tensor in tensors)


def soft_cross_entropy(logits: Tensor, soft: Tensor) -> Tensor:
    logits, soft = in_float(logits, soft)
    mass = soft.sum(1)
    return ((logits.logsumexp(1) * mass).sum() - (logits * soft).sum()) / mass.sum()


def normalized_cross_entropy(logits: Tensor, soft: Tensor) -> Tensor:
    """torch's own for probabilities divides by the number of pixels, so it is given back what that takes."""
    logits, soft = in_float(logits, soft)
    return F.cross_entropy(logits, soft) * (soft[:, 0].numel() / soft.sum())


SMOOTHING = 0.1


def smoothed_cross_entropy(logits: Tensor, soft: Tensor) -> Tensor:
    """Of the known mass of each pixel all classes get a share alike."""
    logits, soft = in_float(logits, soft)
    mass = soft.sum(1)
    labelled = (1 - SMOOTHING) * (logits * soft).sum() + SMOOTHING / logits.shape[1] * (logits.sum(1) * mass).sum()
    return ((logits.logsumexp(1) * mass).sum() - labelled) / mass.sum()


def torchs_smoothed_cross_entropy(logits: Tensor, soft: Tensor) -> Tensor:
    """torch's own gives the classes of a pixel as much where less of it is known, or nothing."""
    logits, soft = in_float(logits, soft)
    return F.cross_entropy(logits, soft, label_smoothing=SMOOTHING) * (soft[:, 0].numel() / soft.sum())


def binary_cross_entropy(logits: Tensor, soft: Tensor) -> Tensor:
    """Each class for itself."""
    return F.binary_cross_entropy_with_logits(*in_float(logits, soft))


def gathered_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """No soft label: the logits of the k x k labels under each pixel."""
    (logits,) = in_float(logits)
    batch, num_classes, height, width = logits.shape
    factor = labels.shape[1] // height
    blocks = labels.view(batch, height, factor, width, factor).permute(0, 2, 4, 1, 3).reshape(batch, -1, height, width)
    known = blocks != IGNORED
    picked = logits.gather(1, blocks.long().clamp(max=num_classes - 1))
    return ((logits.logsumexp(1, keepdim=True) - picked) * known).sum() / known.sum()


def upsampled_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Hard labels at full resolution."""
    (logits,) = in_float(logits)
    shown = F.interpolate(logits, labels.shape[1:], mode="nearest")
    return F.cross_entropy(shown, labels.long(), ignore_index=IGNORED)


def shrunk_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """By way of the best eager soft label."""
    (logits,) = in_float(logits)
    size = (logits.shape[2], logits.shape[3])
    return soft_cross_entropy(logits, scatter_blocks(labels, size, logits.shape[1], logits.dtype))


def dice(logits: Tensor, soft: Tensor) -> Tensor:
    """The |p - q| form over the batch, a mean over the classes."""
    return dice_of_classes(logits, soft).mean()


def dice_of_classes(logits: Tensor, soft: Tensor) -> Tensor:
    logits, soft = in_float(logits, soft)
    predicted = logits.softmax(1) * soft.sum(1, keepdim=True)
    return (predicted - soft).abs().sum((0, 2, 3)) / (predicted + soft).sum((0, 2, 3))


def monai_dice(logits: Tensor, soft: Tensor) -> Tensor:
    """Knows no mass: where pixels are ignored its number is another."""
    from monai.losses.dice import DiceLoss

    logits, soft = in_float(logits, soft)
    loss: Tensor = DiceLoss(softmax=True, soft_label=True, batch=True, smooth_nr=0.0, smooth_dr=0.0)(logits, soft)
    return loss


def jaccard(logits: Tensor, soft: Tensor) -> Tensor:
    """The |p - q| form over the batch, a mean over the classes: 2 D / (1 + D) of the Dice loss."""
    loss = dice_of_classes(logits, soft)
    return (2 * loss / (1 + loss)).mean()


def monai_jaccard(logits: Tensor, soft: Tensor) -> Tensor:
    """As `monai_dice`; of soft targets another loss, which is not 0 where the two are equal."""
    from monai.losses.dice import DiceLoss

    logits, soft = in_float(logits, soft)
    options = {"smooth_nr": 0.0, "smooth_dr": 0.0}
    loss: Tensor = DiceLoss(softmax=True, jaccard=True, batch=True, **options)(logits, soft)
    return loss


def kept_cross_entropy(logits: Tensor, soft: ts.SparseLabels) -> Tensor:
    """The logits of the classes that were kept."""
    logits, mass = in_float(logits, soft.mass)
    picked = logits.gather(1, soft.index.long())
    return ((logits.logsumexp(1, keepdim=True) - picked) * mass).sum() / mass.sum()


def spread_cross_entropy(logits: Tensor, soft: ts.SparseLabels) -> Tensor:
    """By way of the dense label."""
    mass = in_float(soft.mass)[0]
    dense = torch.zeros(logits.shape, dtype=mass.dtype, device=mass.device)
    return soft_cross_entropy(logits, dense.scatter_add_(1, soft.index.long(), mass))


def _loss(name: str, call: Callable[..., Any], computes: Computes = "area", **options: Any) -> Rival:
    return Rival(name, call, computes, decode=decode_loss, is_loss=True, **options)


# --- logits against labels at full size ------------------------------------------------------------------------------


def enlarged_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """What everybody writes."""
    (logits,) = in_float(logits)
    enlarged = F.interpolate(logits, labels.shape[1:], mode="bilinear")
    return F.cross_entropy(enlarged, labels.long(), ignore_index=IGNORED)


def linear_matrix(in_size: int, out_size: int, like: Tensor) -> Tensor:
    """What enlarges one axis: ``(out_size, in_size)``."""
    return F.interpolate(torch.eye(in_size, device=like.device)[:, None], out_size, mode="linear")[:, 0].mT.to(like)


CHUNK_ROWS = 32


def chunked_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Some rows of the label map at a time, enlarged again for the gradient: little memory."""
    (logits,) = in_float(logits)
    height, width = labels.shape[1:]
    rows, columns = linear_matrix(logits.shape[2], height, logits), linear_matrix(logits.shape[3], width, logits)

    def chunk(logits: Tensor, first: int) -> Tensor:
        enlarged = rows[first : first + CHUNK_ROWS] @ logits @ columns.mT
        target = labels[:, first : first + CHUNK_ROWS].long()
        return F.cross_entropy(enlarged, target, ignore_index=IGNORED, reduction="sum")

    total = sum(
        torch.utils.checkpoint.checkpoint(chunk, logits, first, use_reentrant=False)
        for first in range(0, height, CHUNK_ROWS)
    )
    loss: Tensor = total / (labels != IGNORED).sum()
    return loss


def enlarged_dice(logits: Tensor, labels: Tensor) -> Tensor:
    """A mean over the classes."""
    (logits,) = in_float(logits)
    enlarged = F.interpolate(logits, labels.shape[1:], mode="bilinear")
    target = one_hot(labels, logits.shape[1], enlarged.dtype)
    predicted = enlarged.softmax(1) * (labels != IGNORED)[:, None]
    both = (predicted * target).sum((0, 2, 3))
    either = predicted.sum((0, 2, 3)) + target.sum((0, 2, 3))
    present = target.sum((0, 2, 3)) > 0
    return torch.where(present, 1 - 2 * both / either, 0).sum() / present.sum()


def enlarged_argmax(logits: Tensor, size: Size) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear").argmax(1)


def chunked_argmax(logits: Tensor, size: Size) -> Tensor:
    rows, columns = linear_matrix(logits.shape[2], size[0], logits), linear_matrix(logits.shape[3], size[1], logits)
    wide = logits @ columns.mT
    chunks = [(rows[first : first + CHUNK_ROWS] @ wide).argmax(1) for first in range(0, size[0], CHUNK_ROWS)]
    return torch.cat(chunks, 1)


def decode_map(labels: Tensor, num_classes: int) -> Tensor:
    """Of each sample and class the share of pixels, and their mean row and column: equal logits may go either way."""
    height, width = labels.shape[1:]
    planes = labels.long()[:, None] == torch.arange(num_classes, device=labels.device)[:, None, None]
    of_rows, of_columns = planes.double().mean(3), planes.double().mean(2)  # (B, C, H) and (B, C, W)
    down = torch.arange(height, device=labels.device) / height**2
    across = torch.arange(width, device=labels.device) / width**2
    return torch.stack([of_rows.mean(2), (of_rows * down).sum(2), (of_columns * across).sum(2)], 1)


# --- the largest classes ---------------------------------------------------------------------------------------------

TOP = 4


def our_top(labels: Tensor, size: Size, num_classes: int, dtype: torch.dtype) -> ts.SparseLabels:
    return ts.soft_resize(labels, size, num_classes, ignore_index=IGNORED, dtype=dtype, top_k=TOP)


def dense_top(
    shrink: LabelRival, labels: Tensor, size: Size, num_classes: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    mass, index = shrink(labels, size, num_classes, dtype).topk(TOP, dim=1)
    return index.to(torch.uint8), mass


def decode_top(result: tuple[Tensor, Tensor], num_classes: int) -> Tensor:
    """The kept masses in order, then the classes above the smallest of them: which of equal classes is kept is free."""
    index, mass = result
    dense = mass.new_zeros(mass.shape[0], num_classes, *mass.shape[2:]).scatter_add_(1, index.long(), mass)
    masses = mass.sort(1, descending=True).values
    return torch.cat([masses, dense.where(dense > masses[:, -1:], 0)], 1)


def decode_dense(soft: Tensor, num_classes: int) -> Tensor:
    mass, index = soft.topk(TOP, dim=1)
    return decode_top((index, mass), num_classes)


# --- the most frequent id --------------------------------------------------------------------------------------------


def our_mode(num_classes: int | None, labels: Tensor, size: Size) -> tuple[ts.SparseLabels, Tensor]:
    """Every id counts, 255 too: with classes the ids must be below their number."""
    ignored = None if num_classes is None else -1
    return ts.soft_resize(labels, size, num_classes, ignore_index=ignored, top_k=1), labels


def blocks_of(labels: Tensor, size: Size) -> Tensor:
    """``(B, h, w, k * k)``"""
    factor = labels.shape[1] // size[0]
    return labels.view(len(labels), size[0], factor, size[1], factor).transpose(2, 3).flatten(3)


def torch_mode(labels: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    return blocks_of(labels, size).mode(3).values[:, None], labels


def sorted_mode(labels: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """The ids of a block sorted, and how far each one's run reaches: any number of ids, and no loop."""
    ids = blocks_of(labels, size).sort(3).values
    place = torch.arange(ids.shape[3], device=ids.device)
    begins = torch.ones_like(ids, dtype=torch.bool)
    begins[..., 1:] = ids[..., 1:] != ids[..., :-1]
    length = place - torch.where(begins, place, 0).cummax(3).values
    return ids.gather(3, length.argmax(3, keepdim=True)).movedim(3, 1), labels


def counted_mode(num_classes: int, labels: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    soft = scatter_blocks(labels, size, num_classes, torch.float32)
    return soft.argmax(1, keepdim=True), labels


def tinybrain_mode(labels: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Halved again and again, as its pyramids are: the most frequent of four that were each of four."""
    import tinybrain

    times = (labels.shape[1] // size[0]).bit_length() - 1
    # Its axes are x, y and z, the first of them contiguous.
    halved = [
        tinybrain.downsample_segmentation(each.T[..., None], (2, 2, 1), num_mips=times) for each in labels.numpy()
    ]
    return torch.stack([torch.from_numpy(each[-1][..., 0].T) for each in halved])[:, None], labels


def striding_mode(labels: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """The k * k strided views of a label map side by side, of which NumPy counts each with each."""
    blocks = np.ascontiguousarray(blocks_of(labels, size).movedim(3, 0).numpy())
    best, most = blocks[0].copy(), np.zeros(blocks.shape[1:], np.int16)
    for candidate in blocks:
        count = (blocks == candidate).sum(0, dtype=np.int16)
        np.copyto(best, candidate, where=count > most)
        np.maximum(most, count, out=most)
    return torch.from_numpy(best)[:, None], labels


def decode_mode(result: tuple[Any, Tensor], num_classes: int) -> tuple[Tensor, Tensor]:
    """The share of each block that its id covers, and what is said of it: which of equal ones is kept is free."""
    kept, labels = result
    index, mass = (kept.index, kept.mass) if isinstance(kept, ts.SparseLabels) else (kept, None)
    blocks = blocks_of(labels, (index.shape[2], index.shape[3]))
    share = (blocks == index.movedim(1, 3)).float().mean(3)[:, None]
    return share, share if mass is None else mass


# --- classes of ids --------------------------------------------------------------------------------------------------


def our_remap(labels: Tensor, table: Tensor) -> Tensor:
    return ts.remap_labels(labels, table)


def indexed(labels: Tensor, table: Tensor) -> Tensor:
    return table[labels.long()]


def taken(labels: Tensor, table: Tensor) -> Tensor:
    return torch.from_numpy(table.numpy().take(labels.numpy()))


def opencv_lookup(labels: Tensor, table: Tensor) -> Tensor:
    import cv2

    out = torch.empty_like(labels)
    for source, target in zip(labels.numpy(), out.numpy(), strict=True):
        cv2.LUT(source, table.numpy(), dst=target)
    return out


def class_by_class(labels: Tensor, table: Tensor) -> Tensor:
    """As mmsegmentation and the scripts of Cityscapes do, for the 19 ids and the ignored one."""
    out = torch.full_like(labels, IGNORED)
    for label in range(19):
        out[labels == label] = table[label]
    return out


# --- a pyramid -------------------------------------------------------------------------------------------------------


def our_areas(labels: Tensor, boxes: Tensor, num_classes: int) -> Tensor:
    return ts.class_areas(labels, boxes, num_classes)


def of_each_box(count: Callable[[Tensor, int], Tensor], labels: Tensor, boxes: Tensor, num_classes: int) -> Tensor:
    """A count of the labels in slices: the boxes have whole edges, which the host reads."""
    rows = [
        count(sample[y0:y1, x0:x1], num_classes)
        for sample, those in zip(labels, boxes.long().tolist(), strict=True)
        for x0, y0, x1, y1 in those
    ]
    return torch.stack(rows).view(*boxes.shape[:2], num_classes)


def bins_of(labels: Tensor, num_classes: int) -> Tensor:
    return torch.bincount(labels.flatten().long(), minlength=IGNORED + 1)[:num_classes].float()


def summed_one_hot(labels: Tensor, num_classes: int) -> Tensor:
    return one_hot(labels[None], num_classes, torch.float32).sum((0, 2, 3))


def unique_counts(labels: Tensor, num_classes: int) -> Tensor:
    """As mmsegmentation's crop counts; its ``np.unique`` is this function of NumPy."""
    classes, counts = labels.unique(return_counts=True)
    areas = torch.zeros(IGNORED + 1, device=labels.device)
    areas[classes.long()] = counts.float()
    return areas[:num_classes]


def decode_areas(areas: Tensor, num_classes: int) -> Tensor:
    """With an axis more, as masses have."""
    return areas[..., None]


def halved(size: Size) -> list[Size]:
    """The sizes of a pyramid."""
    return [(size[0] // step, size[1] // step) for step in (1, 2, 4)]


def our_pyramid(labels: Tensor, size: Size, num_classes: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    factor = labels.shape[1] // size[0]
    factors = [factor, 2 * factor, 4 * factor]
    return tuple(ts.soft_pyramid(labels, num_classes, factors, ignore_index=IGNORED, dtype=dtype))


def one_by_one(
    shrink: LabelRival, labels: Tensor, size: Size, num_classes: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    return tuple(shrink(labels, smaller, num_classes, dtype) for smaller in halved(size))


def pooled(shrink: LabelRival, labels: Tensor, size: Size, num_classes: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Each size from the one before."""
    first = shrink(labels, size, num_classes, dtype)
    second = F.avg_pool2d(first, 2)
    return first, second, F.avg_pool2d(second, 2)


# --- the gradient of an image ----------------------------------------------------------------------------------------


def gradient_of(
    crop: Callable[[Tensor, Tensor, Size], Tensor], image: Tensor, boxes: Tensor, size: Size, slopes: Tensor
) -> Tensor:
    """There and back."""
    (gradient,) = torch.autograd.grad(crop(image, boxes, size), image, slopes)
    return gradient


# --- ours, and filling the output ------------------------------------------------------------------------------------


def our_labels(filter: ts.geometry.Filter, labels: Tensor, size: Size, num_classes: int, dtype: torch.dtype) -> Tensor:
    return ts.soft_resize(labels, size, num_classes, ignore_index=IGNORED, filter=filter, dtype=dtype)


def our_pair(
    filter: ts.geometry.Filter, image: Tensor, labels: Tensor, boxes: Tensor, size: Size, num_classes: int
) -> PairResult:
    return ts.crop_resize_pair(
        image, labels, boxes, size, num_classes, ignore_index=IGNORED, filter=filter, soft_dtype=image.dtype
    )


@functools.lru_cache(maxsize=1)
def ready_output(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.ones(shape, dtype=dtype, device=device)


def fill_ready(labels: Tensor, size: Size, num_classes: int, dtype: torch.dtype) -> Tensor:
    return ready_output((labels.shape[0], num_classes, *size), dtype, labels.device).fill_(0.5)


def fill_fresh(labels: Tensor, size: Size, num_classes: int, dtype: torch.dtype) -> Tensor:
    return torch.full((labels.shape[0], num_classes, *size), 0.5, dtype=dtype, device=labels.device)


# --- who runs where --------------------------------------------------------------------------------------------------

SHRINK_LABELS = [
    Rival("tritonsoft", functools.partial(our_labels, "area")),
    Rival("constant fill of a ready output", fill_ready, "fills"),
    Rival("allocate and fill", fill_fresh, "fills"),
]
_OPENCV_LABELS = [
    Rival("OpenCV INTER_AREA per class, float32", opencv_labels, package="cv2", only_on="cpu"),
    Rival(
        "OpenCV INTER_AREA per class, uint8 out",
        opencv_labels_in_bytes,
        "approximates",
        package="cv2",
        only_on="cpu",
        decode=lambda soft, num_classes: soft / 255,
    ),
]
SHRINK_LABELS_BY_INTEGER = [
    *SHRINK_LABELS,
    Rival("scatter_add of k x k blocks", scatter_blocks),
    Rival("scatter_add of k x k blocks, compiled", scatter_blocks, compiled=True),
    Rival("compare and count, compiled", compare_and_count, compiled=True),
    Rival("one_hot + avg_pool2d, compiled", one_hot_avg_pool, compiled=True),
    Rival("bincount", bincount),
    *_OPENCV_LABELS,
    Rival("compare + interpolate(area)", compare_interpolate_area),
    Rival("one_hot + interpolate(area)", one_hot_interpolate_area, usual=True),
]
SHRINK_LABELS_BY_FRACTION = [
    *SHRINK_LABELS,
    Rival("tritonsoft, triangle", functools.partial(our_labels, "triangle"), "triangle"),
    *_OPENCV_LABELS,
    Rival("scatter_add of four taps", scatter_four_taps),
    Rival("matrices: A_y @ one_hot @ A_x.T", matrix_resize_labels),
    Rival("compare + interpolate(antialias)", compare_interpolate_antialias, "triangle"),
    Rival("compare + interpolate(area)", compare_interpolate_area, "approximates"),
    Rival("one_hot + interpolate(area)", one_hot_interpolate_area, "approximates", usual=True),
]
ENLARGE_LABELS = [
    *SHRINK_LABELS,
    Rival("compare + interpolate(bilinear)", compare_interpolate_linear),
    Rival("compare + interpolate(bilinear), compiled", compare_interpolate_linear, compiled=True),
    Rival("one_hot + interpolate(bilinear)", one_hot_interpolate_linear, usual=True),
]
SHRINK_IMAGE = [
    Rival("tritonsoft", ts.resize),
    Rival("tritonsoft, triangle", functools.partial(ts.resize, filter="triangle"), "triangle"),
    Rival("interpolate(antialias)", interpolate_antialias, "triangle", usual=True),
    Rival("interpolate(area)", functools.partial(F.interpolate, mode="area")),
    Rival("OpenCV INTER_AREA per plane", opencv_image, package="cv2", only_on="cpu"),
    Rival("matrices: A_y @ image @ A_x.T", matrix_resize),
    Rival("kornia Resize(antialias)", kornia_resize, "approximates", package="kornia"),
]
CROP_IMAGE = [
    Rival("tritonsoft", ts.crop_resize),
    Rival("tritonsoft, triangle", functools.partial(ts.crop_resize, filter="triangle"), "triangle"),
    Rival("slices: interpolate(antialias)", functools.partial(sliced, interpolate_antialias), "triangle"),
    Rival(
        "slices: OpenCV INTER_AREA per plane",
        lambda image, boxes, size: opencv_image(image, size, boxes),
        package="cv2",
        only_on="cpu",
    ),
    Rival("einsum with a matrix per box", matrix_crop),
    Rival("kornia RandomResizedCrop", kornia_image, "approximates", package="kornia", usual=True),
]
WARP_IMAGE = [
    Rival("tritonsoft", ts.warp),
    Rival("tritonsoft, bilinear", functools.partial(ts.warp, filter="bilinear"), "approximates"),
    Rival("affine_grid + grid_sample", grid_sample, "approximates"),
    Rival("Gaussian blur, then grid_sample", blurred_grid_sample, "approximates", package="torchvision"),
    Rival("OpenCV warpAffine per plane", opencv_warp, "approximates", package="cv2", only_on="cpu"),
    Rival("kornia warp_affine", kornia_warp, "approximates", package="kornia", usual=True),
]
WARP_PAIR = [
    Rival("tritonsoft", ts.warp_pair),
    Rival("affine_grid + grid_sample, one-hot", functools.partial(warp_one_hot, grid_sample), "approximates"),
    Rival(
        "OpenCV warpAffine per plane and class",
        functools.partial(warp_one_hot, opencv_warp),
        "approximates",
        package="cv2",
        only_on="cpu",
    ),
    Rival("kornia warp_affine, hard labels", kornia_hard_warp, "hardens", decode=decode_hard, package="kornia"),
    Rival(
        "kornia warp_affine, one-hot",
        functools.partial(warp_one_hot, kornia_warp),
        "approximates",
        package="kornia",
        usual=True,
    ),
]
CROP_PAIR = [
    Rival("tritonsoft", functools.partial(our_pair, "area")),
    Rival("tritonsoft, triangle", functools.partial(our_pair, "triangle"), "triangle"),
    Rival("slices: OpenCV INTER_AREA per plane and class", opencv_pair, package="cv2", only_on="cpu"),
    Rival(
        "slices: matrices, scatter_add of four taps", functools.partial(sliced_pair, matrix_resize, scatter_four_taps)
    ),
    Rival("einsum with a matrix per box", matrix_pair),
    Rival(
        "slices: interpolate(antialias) of both",
        functools.partial(sliced_pair, interpolate_antialias, compare_interpolate_antialias),
        "triangle",
    ),
    Rival(
        "slices: interpolate(area) of both",
        functools.partial(sliced_pair, functools.partial(F.interpolate, mode="area"), compare_interpolate_area),
        "approximates",
    ),
    Rival(
        "slices: interpolate(antialias), hard labels",
        functools.partial(sliced_pair, interpolate_antialias, nearest_labels),
        "hardens",
        decode=decode_hard,
    ),
    Rival("kornia RandomResizedCrop of both", kornia_pair, "approximates", package="kornia"),
    Rival("kornia RandomResizedCrop of both, compiled", kornia_pair, "approximates", compiled=True, package="kornia"),
    Rival(
        "kornia RandomResizedCrop, hard labels",
        kornia_nearest_pair,
        "hardens",
        package="kornia",
        decode=decode_hard,
        usual=True,
    ),
]
PIPELINE = [
    Rival("tritonsoft", functools.partial(run_pipeline, "ours"), package="kornia"),
    Rival(
        "tritonsoft, float16 soft label",
        functools.partial(run_pipeline, "ours, half"),
        "approximates",
        package="kornia",
    ),
    Rival(
        "tritonsoft, crop + flip + resize folded",
        functools.partial(run_pipeline, "our chain"),
        package="kornia",
        decode=unflip,
    ),
    Rival(
        "kornia, hard int64 mask",
        functools.partial(run_pipeline, "kornia, hard"),
        "hardens",
        package="kornia",
        decode=decode_hard,
        usual=True,
    ),
    Rival(
        "kornia, crop + flip + resize, hard int64 mask",
        functools.partial(run_pipeline, "kornia chain"),
        "hardens",
        package="kornia",
        decode=lambda result, num_classes: unflip(decode_hard(result, num_classes), num_classes),
    ),
    Rival("kornia, one-hot mask", functools.partial(run_pipeline, "kornia, one-hot"), "approximates", package="kornia"),
]
IMAGE_GRADIENT = [
    dataclasses.replace(rival, call=functools.partial(gradient_of, rival.call))
    for rival in CROP_IMAGE
    if rival.package != "cv2"
]
REMAP = [
    Rival("tritonsoft", our_remap),
    Rival("table[labels.long()]", indexed, usual=True),
    Rival("table[labels.long()], compiled", indexed, compiled=True),
    Rival("numpy take", taken, only_on="cpu"),
    Rival("OpenCV LUT", opencv_lookup, package="cv2", only_on="cpu"),
    Rival("class by class", class_by_class),
    Rival("a copy", lambda labels, table: labels.clone(), computes="fills"),
]
CLASS_AREAS = [
    Rival("tritonsoft", our_areas, decode=decode_areas),
    Rival("bincount of each slice", functools.partial(of_each_box, bins_of), decode=decode_areas, usual=True),
    Rival("unique of each slice", functools.partial(of_each_box, unique_counts), decode=decode_areas),
    Rival("sum of each slice's one_hot", functools.partial(of_each_box, summed_one_hot), decode=decode_areas),
]
PYRAMID = [
    Rival("tritonsoft", our_pyramid),
    Rival("tritonsoft, one size after the other", functools.partial(one_by_one, functools.partial(our_labels, "area"))),
    Rival("tritonsoft, then avg_pool2d twice", functools.partial(pooled, functools.partial(our_labels, "area"))),
    Rival(
        "compare and count, then avg_pool2d twice, compiled",
        functools.partial(pooled, compare_and_count),
        compiled=True,
    ),
    Rival("scatter_add of k x k blocks, then avg_pool2d twice", functools.partial(pooled, scatter_blocks)),
    Rival(
        "one_hot + interpolate(area) three times", functools.partial(one_by_one, one_hot_interpolate_area), usual=True
    ),
]
TOP_CLASSES = [
    Rival(
        "tritonsoft", our_top, decode=lambda result, num_classes: decode_top((result.index, result.mass), num_classes)
    ),
    Rival("tritonsoft, the dense label", functools.partial(our_labels, "area"), decode=decode_dense),
    Rival(
        "tritonsoft's dense label + topk",
        functools.partial(dense_top, functools.partial(our_labels, "area")),
        decode=decode_top,
    ),
    Rival("scatter_add of k x k blocks + topk", functools.partial(dense_top, scatter_blocks), decode=decode_top),
]
MODE_POOLING = [
    Rival("tritonsoft", functools.partial(our_mode, None), decode=decode_mode),
    Rival("tritonsoft, num_classes=256", functools.partial(our_mode, 256), decode=decode_mode),
    Rival("scatter_add of k x k blocks + argmax, C = 256", functools.partial(counted_mode, 256), decode=decode_mode),
    Rival("torch.mode of k x k blocks", torch_mode, decode=decode_mode),
    Rival("sorted k x k blocks, longest runs", sorted_mode, decode=decode_mode),
    Rival("NumPy, each strided view with each", striding_mode, decode=decode_mode, only_on="cpu"),
    Rival(
        "tinybrain downsample_segmentation, halving",
        tinybrain_mode,
        "approximates",
        package="tinybrain",
        only_on="cpu",
        decode=decode_mode,
        usual=True,
    ),
]
CROSS_ENTROPY = [
    _loss("tritonsoft", ts.soft_cross_entropy),
    _loss("logsumexp and product", soft_cross_entropy),
    _loss("logsumexp and product, compiled", soft_cross_entropy, compiled=True),
    _loss("F.cross_entropy of probabilities", normalized_cross_entropy, usual=True),
    _loss("F.cross_entropy of probabilities, compiled", normalized_cross_entropy, compiled=True),
]
SPARSE_CROSS_ENTROPY = [
    _loss("tritonsoft", ts.soft_cross_entropy),
    _loss("tritonsoft, by way of the dense label", lambda logits, soft: ts.soft_cross_entropy(logits, soft.to_dense())),
    _loss("logsumexp and gather of the kept classes", kept_cross_entropy),
    _loss("logsumexp and gather of the kept classes, compiled", kept_cross_entropy, compiled=True),
    _loss("scatter_add, then logsumexp and product", spread_cross_entropy, usual=True),
    _loss("scatter_add, then logsumexp and product, compiled", spread_cross_entropy, compiled=True),
]
SMOOTHED_CROSS_ENTROPY = [
    _loss("tritonsoft", functools.partial(ts.soft_cross_entropy, label_smoothing=SMOOTHING)),
    _loss("logsumexp and product", smoothed_cross_entropy),
    _loss("logsumexp and product, compiled", smoothed_cross_entropy, compiled=True),
    _loss("F.cross_entropy(label_smoothing)", torchs_smoothed_cross_entropy, "approximates", usual=True),
    _loss("F.cross_entropy(label_smoothing), compiled", torchs_smoothed_cross_entropy, "approximates", compiled=True),
]
BINARY_CROSS_ENTROPY = [
    _loss("tritonsoft", ts.soft_binary_cross_entropy),
    _loss("F.binary_cross_entropy_with_logits", binary_cross_entropy, usual=True),
    _loss("F.binary_cross_entropy_with_logits, compiled", binary_cross_entropy, compiled=True),
]
AREA_CROSS_ENTROPY = [
    _loss("tritonsoft", ts.area_cross_entropy),
    _loss("logsumexp and gather", gathered_cross_entropy),
    _loss("logsumexp and gather, compiled", gathered_cross_entropy, compiled=True),
    _loss("scatter_add, then logsumexp and product", shrunk_cross_entropy),
    _loss("F.cross_entropy at full resolution", upsampled_cross_entropy, usual=True),
    _loss("F.cross_entropy at full resolution, compiled", upsampled_cross_entropy, compiled=True),
]
DICE = [
    _loss("tritonsoft", functools.partial(ts.soft_dice_loss, classes="all")),
    _loss("softmax and |p - q|", dice),
    _loss("softmax and |p - q|, compiled", dice, compiled=True),
    _loss("MONAI DiceLoss(softmax, soft_label)", monai_dice, "approximates", package="monai", usual=True),
]
JACCARD = [
    _loss("tritonsoft", functools.partial(ts.soft_jaccard_loss, classes="all")),
    _loss("softmax and |p - q|", jaccard),
    _loss("softmax and |p - q|, compiled", jaccard, compiled=True),
    _loss("MONAI DiceLoss(softmax, jaccard)", monai_jaccard, "approximates", package="monai", usual=True),
]
UPSAMPLED_CROSS_ENTROPY = [
    _loss("tritonsoft", ts.upsampled_cross_entropy),
    _loss("interpolate + F.cross_entropy", enlarged_cross_entropy, usual=True),
    _loss("interpolate + F.cross_entropy, compiled", enlarged_cross_entropy, compiled=True),
    _loss("the same in chunks of rows, recomputed", chunked_cross_entropy),
]
UPSAMPLED_DICE = [
    _loss("tritonsoft", ts.upsampled_dice_loss),
    _loss("interpolate + Dice of the softmax", enlarged_dice, usual=True),
    _loss("interpolate + Dice of the softmax, compiled", enlarged_dice, compiled=True),
]
DECODE = [
    Rival("tritonsoft", ts.decode, decode=decode_map),
    Rival("interpolate + argmax", enlarged_argmax, decode=decode_map, usual=True),
    Rival("interpolate + argmax, compiled", enlarged_argmax, compiled=True, decode=decode_map),
    Rival("the same in chunks of rows", chunked_argmax, decode=decode_map),
]
