"""What is timed: the inputs, the right answer and the rivals of each case, small on a CPU and large on a GPU."""

import dataclasses
import functools
import importlib.util
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import tritonsoft as ts
from bench import augmentation_rivals, rivals
from bench.floor import Traffic
from bench.rivals import IGNORED, Rival
from tritonsoft.backends import reference, reference_warping
from tritonsoft.cli.scenes import street_scene

Task = Literal[
    "shrink labels",
    "shrink image",
    "crop image",
    "crop pair",
    "warp image",
    "warp pair",
    "pipeline",
    "sparse pipeline",
    "sparse warp pipeline",
    "class crop",
    "cut mix",
    "mix up",
    "class mix",
    "image gradient",
    "top classes",
    "mode pooling",
    "remap labels",
    "class areas",
    "pyramid",
    "cross entropy",
    "sparse cross entropy",
    "smoothed cross entropy",
    "binary cross entropy",
    "area cross entropy",
    "dice",
    "jaccard",
    "upsampled cross entropy",
    "upsampled dice",
    "decode",
]
LOSSES = {
    "cross entropy": rivals.soft_cross_entropy,
    "sparse cross entropy": rivals.soft_cross_entropy,
    "smoothed cross entropy": rivals.smoothed_cross_entropy,
    "binary cross entropy": rivals.binary_cross_entropy,
    "area cross entropy": rivals.soft_cross_entropy,
    "dice": rivals.dice,
    "jaccard": rivals.jaccard,
    "upsampled cross entropy": rivals.enlarged_cross_entropy,
    "upsampled dice": rivals.enlarged_dice,
}


MIXES = ("cut mix", "mix up", "class mix")


@dataclass(frozen=True)
class Case:
    """One task on one kind of input."""

    task: Task
    device: str
    dtype: torch.dtype  # of the image, the soft label and the logits
    batch: int
    source: tuple[int, int]  # (H, W)
    factor: float  # a footprint of the whole image is factor x factor pixels
    num_classes: int = 19
    label_dtype: torch.dtype = torch.uint8
    content: Literal["street scenes", "noise"] = "street scenes"

    @property
    def size(self) -> tuple[int, int]:
        return round(self.source[0] / self.factor), round(self.source[1] / self.factor)

    @property
    def title(self) -> str:
        """One line that says all."""
        parts = [
            f"{self.task}: {self.batch} x {self.source[0]}x{self.source[1]} -> {self.size[0]}x{self.size[1]}",
            "ten boxes each"
            if self.task == "class areas"
            else "a chosen box each"
            if self.task == "class crop"
            else "random boxes"
            if self.has_boxes
            else "rotations"
            if self.is_warp
            else "pairs"
            if self.task in MIXES
            else f"k = {self.factor:g}",
            "" if self.only_image else f"C = {self.num_classes}",
            "" if self.only_image else f"{name_of(self.label_dtype)} labels",
            f"{name_of(self.dtype)} {'logits' if self.task in LOSSES or self.task == 'decode' else 'out'}",
            "random logits" if self.task == "decode" else self.content,
        ]
        return ", ".join(filter(None, parts))

    @property
    def has_boxes(self) -> bool:
        return self.task.startswith(("crop", "pipeline", "sparse pipeline", "class crop", "image gradient"))

    @property
    def is_warp(self) -> bool:
        return self.task.startswith(("warp", "sparse warp"))

    @property
    def only_image(self) -> bool:
        return "image" in self.task

    @property
    def rivals(self) -> list[Rival]:
        """Ours first."""
        by_task = {
            "shrink labels": rivals.ENLARGE_LABELS
            if self.factor < 1
            else rivals.SHRINK_LABELS_BY_INTEGER
            if self.factor == int(self.factor)
            else rivals.SHRINK_LABELS_BY_FRACTION,
            "shrink image": rivals.SHRINK_IMAGE,
            "crop image": rivals.CROP_IMAGE,
            "crop pair": rivals.CROP_PAIR,
            "warp image": rivals.WARP_IMAGE,
            "warp pair": rivals.WARP_PAIR,
            "pipeline": rivals.PIPELINE,
            "sparse pipeline": augmentation_rivals.SPARSE_PIPELINE,
            "sparse warp pipeline": augmentation_rivals.SPARSE_WARP_PIPELINE,
            "class crop": augmentation_rivals.CLASS_CROP,
            "cut mix": augmentation_rivals.CUT_MIX,
            "mix up": augmentation_rivals.MIX_UP,
            "class mix": augmentation_rivals.CLASS_MIX,
            "image gradient": rivals.IMAGE_GRADIENT,
            "top classes": rivals.TOP_CLASSES,
            "mode pooling": rivals.MODE_POOLING,
            "remap labels": rivals.REMAP,
            "class areas": rivals.CLASS_AREAS,
            "pyramid": rivals.PYRAMID,
            "cross entropy": rivals.CROSS_ENTROPY,
            "sparse cross entropy": rivals.SPARSE_CROSS_ENTROPY,
            "smoothed cross entropy": rivals.SMOOTHED_CROSS_ENTROPY,
            "binary cross entropy": rivals.BINARY_CROSS_ENTROPY,
            "area cross entropy": rivals.AREA_CROSS_ENTROPY,
            "dice": rivals.DICE,
            "jaccard": rivals.JACCARD,
            "upsampled cross entropy": rivals.UPSAMPLED_CROSS_ENTROPY,
            "upsampled dice": rivals.UPSAMPLED_DICE,
            "decode": rivals.DECODE,
        }
        return [rival for rival in by_task[self.task] if rival.only_on in (None, self.device)]

    def arguments(self) -> tuple[Any, ...]:
        """What each rival is called with."""
        if self.task in ("shrink labels", "top classes", "pyramid"):
            return self._labels(), self.size, self.num_classes, self.dtype
        if self.task in LOSSES:
            logits = self._logits().requires_grad_()
            if self.task == "area cross entropy" or self.task.startswith("upsampled"):
                return logits, self._labels()
            soft = self._soft(self.dtype)
            return logits, self._sparse(soft) if self.task == "sparse cross entropy" else soft
        if self.task == "mode pooling":
            return self._labels(), self.size
        if self.task in MIXES:
            return self._image(), self._labels(), self.num_classes
        if self.task == "class crop" or self.task.startswith("sparse"):
            return self._image(), self._labels(), self.size, self.num_classes
        if self.task == "decode":
            return self._logits(), self.source
        if self.task == "remap labels":
            return self._labels(), self._table()
        if self.task == "class areas":
            return self._labels(), self._many_boxes(), self.num_classes
        if self.task == "image gradient":
            return self._image().requires_grad_(), self._boxes(), self.size, self._slopes()
        if self.task == "shrink image":
            return self._image(), self.size
        if self.task == "warp image":
            return self._image(), self._rotations(), self.size
        if self.task == "warp pair":
            return self._image(), self._labels(), self._rotations(), self.size, self.num_classes
        if self.task == "crop image":
            return self._image(), self._boxes(), self.size
        if self.task == "pipeline":
            labels = self._labels()
            return self._image(), labels, labels.long()[:, None], self.size, self.num_classes
        return self._image(), self._labels(), self._boxes(), self.size, self.num_classes

    def expected(self, filter: str) -> tuple[Tensor, ...]:
        """The reference's outputs, sample by sample: its one-hot planes would not all fit."""
        if self.task in LOSSES:
            logits = self._logits().double().requires_grad_()
            if self.task.startswith("upsampled"):
                result = rivals.with_gradient(LOSSES[self.task], logits, self._labels())
                return rivals.decode_loss(result, self.num_classes)
            soft = self._soft(self.dtype if self.task != "area cross entropy" else torch.float64).double()
            if self.task == "sparse cross entropy":
                soft = self._sparse(soft.to(self.dtype)).to_dense().double()
            return rivals.decode_loss(rivals.with_gradient(LOSSES[self.task], logits, soft), self.num_classes)
        if self.task == "decode":
            winners = rivals.enlarged_argmax(self._logits().double(), self.source)
            return (rivals.decode_map(winners, self.num_classes),)
        if self.task == "top classes":
            return (rivals.decode_dense(self._soft(self.dtype), self.num_classes),)
        if self.task in MIXES:
            return augmentation_rivals.reference_mix(self.task, self._image(), self._labels(), self.num_classes)
        if self.task == "mode pooling":
            return rivals.decode_mode(rivals.sorted_mode(self._labels(), self.size), self.num_classes)
        if self.task == "remap labels":
            return (self._table()[self._labels().long()],)
        if self.task == "class areas":
            each = zip(self._labels(), self._many_boxes(), strict=True)
            areas = [reference.class_areas(one[None], boxes[None], self.num_classes, IGNORED) for one, boxes in each]
            return (torch.cat(areas)[..., None],)
        if self.task == "pyramid":
            return tuple(self._soft(self.dtype, size) for size in rivals.halved(self.size))
        if self.task == "image gradient":
            slopes, source = self._slopes(), self.source
            return (reference.crop_resize_adjoint(slopes, self._boxes(), source, filter, self.dtype),)
        if self.task.startswith("sparse"):
            dense = self._warped(filter) if self.is_warp else self._cropped(filter)
            return augmentation_rivals.decode_dense_chain(dense, self.num_classes)
        return self._warped(filter) if self.is_warp else self._cropped(filter)

    def _cropped(self, filter: str) -> tuple[Tensor, ...]:
        boxes = self._boxes() if self.has_boxes else None
        results = []
        if not self.task.endswith("labels"):
            results.append(
                torch.cat(
                    [
                        reference.crop_resize(image[None], box, self.size, filter, 0.0, self.dtype)
                        for image, box in zip(self._image(), _each(boxes, self.batch), strict=True)
                    ]
                )
            )
        if not self.task.endswith("image"):
            results.append(
                torch.cat(
                    [
                        reference.soft_crop_resize(
                            labels[None], box, self.size, self.num_classes, IGNORED, filter, self.dtype
                        )
                        for labels, box in zip(self._labels(), _each(boxes, self.batch), strict=True)
                    ]
                )
            )
        return tuple(results)

    def traffic(self) -> Traffic:
        """What must move: each source pixel of a box read once, each output written once."""
        pixels, cells = self.batch * self.source[0] * self.source[1], self.batch * self.size[0] * self.size[1]
        if self.task in LOSSES:  # logits and target, and the gradient
            planes = cells * self.num_classes * self.dtype.itemsize
            labels = pixels * self.label_dtype.itemsize
            target = {
                "area cross entropy": labels,
                "upsampled cross entropy": labels,
                "upsampled dice": labels,
                "sparse cross entropy": cells * rivals.TOP * (1 + self.dtype.itemsize),
            }
            return Traffic(planes + target.get(self.task, planes), planes)
        if self.task == "decode":
            return Traffic(cells * self.num_classes * self.dtype.itemsize, pixels)  # one byte each
        if self.task == "remap labels":
            return Traffic(pixels, pixels)  # one byte each
        if self.task == "class areas":
            boxes = self._many_boxes()
            areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
            return Traffic(int(areas.sum()) * self.label_dtype.itemsize, 4 * self.num_classes * areas.numel())
        if self.task == "mode pooling":
            return Traffic(pixels * self.label_dtype.itemsize, cells * self.label_dtype.itemsize)
        if self.task in MIXES:
            of_image, of_label = 3 * self.dtype.itemsize, self.label_dtype.itemsize
            written = self.num_classes * self.dtype.itemsize if self.task == "mix up" else of_label
            return Traffic(pixels * (of_image + of_label), pixels * (of_image + written))
        if self.task == "top classes":  # an index and a mass each, and what is left
            return Traffic(pixels * self.label_dtype.itemsize, cells * self._bytes_kept())
        if self.task == "pyramid":
            cells = self.batch * sum(height * width for height, width in rivals.halved(self.size))
        if self.task == "image gradient":  # zeros outside of the boxes too
            return Traffic(3 * cells * self.dtype.itemsize, 3 * pixels * self.dtype.itemsize)
        if self.has_boxes:
            boxes = self._boxes()
            pixels = int(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).abs().sum())
        if self.is_warp:  # what of a sample its rotation sees, each pixel once
            areas = self.size[0] * self.size[1] * torch.linalg.det(self._rotations()).abs()
            pixels = int(areas.clamp(max=self.source[0] * self.source[1]).sum())
        channels = 0 if self.task in ("shrink labels", "pyramid") else 3
        label_bytes, classes = (0, 0) if self.only_image else (self.label_dtype.itemsize, self.num_classes)
        of_a_pixel, of_a_cell = channels * self.dtype.itemsize + label_bytes, (channels + classes) * self.dtype.itemsize
        if self.task.startswith("sparse"):
            of_a_cell = channels * self.dtype.itemsize + self._bytes_kept()
        return Traffic(pixels * of_a_pixel, cells * of_a_cell)

    def _bytes_kept(self) -> int:
        """Of an output pixel: classes, masses, and what is left."""
        return rivals.TOP * (1 + self.dtype.itemsize) + self.dtype.itemsize

    def _warped(self, filter: str) -> tuple[Tensor, ...]:
        matrices, results = self._rotations()[:, None], []
        for image, matrix in zip(self._image(), matrices, strict=True):
            results.append(reference_warping.warp(image[None], matrix, self.size, filter, 0.0, self.dtype))
        if self.only_image:
            return (torch.cat(results),)
        soft = [
            reference_warping.soft_warp(labels[None], matrix, self.size, self.num_classes, IGNORED, filter, self.dtype)
            for labels, matrix in zip(self._labels(), matrices, strict=True)
        ]
        return torch.cat(results), torch.cat(soft)

    def _scenes(self) -> list[tuple[Tensor, Tensor]]:
        return [_scene(*self.source, seed) for seed in range(self.batch)]

    def _image(self) -> Tensor:  # (B, 3, H, W) in [0, 1]
        image = torch.stack([image for image, _ in self._scenes()])
        return image.to(self.device, self.dtype) / 255

    def _labels(self) -> Tensor:  # (B, H, W)
        if self.content == "noise":
            labels = torch.randint(self.num_classes, (self.batch, *self.source), generator=_generator())
        elif self.content == "CamVid":
            labels = _camvid(self.batch)
        else:
            labels = torch.stack([labels for _, labels in self._scenes()]).long()
            # The scene has 19 classes; among more they lie as far apart as they can, fewer are shared.
            spread = labels * (self.num_classes // 19) if self.num_classes >= 19 else labels % self.num_classes
            labels = torch.where(labels == IGNORED, IGNORED, spread)
        return labels.to(self.device, self.label_dtype)

    def _table(self) -> Tensor:  # (256,): 19 ids in another order
        table = torch.full((256,), IGNORED, dtype=torch.uint8)
        table[:19] = torch.arange(18, -1, -1)
        return table.to(self.device)

    def _logits(self) -> Tensor:  # (B, C, h, w)
        shape = (self.batch, self.num_classes, *self.size)
        return torch.randn(shape, generator=_generator()).to(self.device, self.dtype)

    def _soft(self, dtype: torch.dtype, size: tuple[int, int] | None = None) -> Tensor:  # (B, C, h, w)
        return torch.cat(
            [
                reference.soft_crop_resize(
                    labels[None], None, size or self.size, self.num_classes, IGNORED, "area", dtype
                )
                for labels in self._labels()
            ]
        )

    def _sparse(self, soft: Tensor) -> ts.SparseLabels:
        return ts.SparseLabels.from_dense(soft, rivals.TOP)

    def _slopes(self) -> Tensor:  # (B, 3, h, w): the gradient that comes back to a shrunk image
        return torch.randn(self.batch, 3, *self.size, generator=_generator()).to(self.device, self.dtype)

    def _boxes(self) -> Tensor:  # (B, 4): whole edges, between the size of the output and of the source
        if self.task.endswith("pipeline"):
            boxes = rivals.boxes_of_pipeline((self.batch, 3, *self.source), self.size).to(self.device)
            return boxes if self.task == "pipeline" else boxes[:, [2, 1, 0, 3]]  # flipped
        if self.task == "class crop":
            return augmentation_rivals.chosen_boxes(self._image(), self._labels(), self.size, self.num_classes)
        low, high = torch.tensor(self.size[::-1]), torch.tensor(self.source[::-1])
        spread, place = torch.rand(2, self.batch, 2, generator=_generator())
        extent = (low + spread * (high - low)).round()
        corner = (place * (high - extent)).round()
        return torch.cat((corner, corner + extent), 1).to(self.device)

    def _many_boxes(self) -> Tensor:  # (B, 10, 4): candidates of a crop, with whole edges
        boxes = [dataclasses.replace(self, batch=10 * self.batch)._boxes()]
        return torch.cat(boxes).view(self.batch, 10, 4)

    def _rotations(self) -> Tensor:  # (B, 3, 3): by up to 30 degrees, enlarged 0.5 to 2 times, about the centre
        if self.task == "sparse warp pipeline":
            return augmentation_rivals.matrices_of_chain(self._image(), self.size)
        spread = torch.rand(2, self.batch, generator=_generator(), dtype=torch.float64)
        angle, scale = (spread[0] * 2 - 1) * math.pi / 6, 0.5 * 4 ** spread[1]
        step = self.factor / scale
        cos, sin = step * angle.cos(), step * angle.sin()
        (height, width), (in_height, in_width) = self.size, self.source
        x = in_width / 2 - (cos * width - sin * height) / 2
        y = in_height / 2 - (sin * width + cos * height) / 2
        zero, one = torch.zeros_like(x), torch.ones_like(x)
        matrix = torch.stack([cos, -sin, x, sin, cos, y, zero, zero, one], 1).view(self.batch, 3, 3)
        return matrix.to(self.device)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _each(boxes: Tensor | None, batch: int) -> list[Tensor | None]:
    return [None] * batch if boxes is None else list(boxes[:, None])


@functools.cache
def _scene(height: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    scene = street_scene(height, width, seed)
    return scene.image, scene.labels


# Real road scenes with 11 classes, 360 x 480, in the folder layout of the SegNet tutorial.
CAMVID = Path(
    os.environ.get("TRITONSOFT_CAMVID", Path(__file__).resolve().parents[2] / "shared" / "camvid"), "labels", "val"
)
HAS_CAMVID = CAMVID.is_dir() and importlib.util.find_spec("PIL") is not None


def _camvid(count: int) -> Tensor:
    from PIL import Image

    maps = [torch.from_numpy(np.array(Image.open(file))) for file in sorted(CAMVID.glob("*.png"))[:count]]
    labels = torch.stack(maps).long()
    return torch.where(labels == 11, IGNORED, labels)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _whole(
    device: str,
    factor: float,
    num_classes: int = 19,
    *,
    dtype: torch.dtype,
    batch: int,
    source: tuple[int, int] = (1024, 2048),
    **others: Any,
) -> Case:
    return Case("shrink labels", device, dtype, batch, source, factor, num_classes, **others)


def _training(crop_shape: tuple[Any, ...], many: int) -> list[Case]:
    """What kornia's containers and modules do; samples are mixed before the first resample, or blended after it."""
    device, dtype, batch, (height, width), _ = crop_shape
    few = (device, dtype, batch // 4, *crop_shape[3:])
    return [
        Case("pipeline", *crop_shape),
        Case("sparse pipeline", *few, many),
        Case("sparse warp pipeline", *few, many),
        Case("class crop", *crop_shape),
        Case("cut mix", device, dtype, batch, (height, width), 1),
        Case("mix up", device, dtype, batch, (height // 2, width // 2), 1),
        Case("class mix", device, dtype, batch, (height, width), 1),
    ]


def cases(device: str) -> list[Case]:
    """All cases of a device type."""
    if device == "cpu":
        whole = functools.partial(_whole, device, dtype=torch.float32, batch=2)
        crop_shape = (device, torch.float32, 8, (512, 1024), 2)
    else:
        whole = functools.partial(_whole, device, dtype=torch.float16, batch=16)
        crop_shape = (device, torch.float16, 16, (1024, 2048), 2)
    factors, many = (2, 4, 8, 1.5, 2.7, 5.3), 150
    if device == "cpu":
        small_logits = (whole(4, source=(512, 1024)), whole(4, many, batch=1, source=(512, 512)))
    else:
        small_logits = (whole(4, source=(512, 1024)), whole(4, 171, batch=8, source=(512, 512)))
    return [
        *(whole(factor) for factor in factors),
        whole(0.6, source=(256, 512)),
        *(whole(factor, many) for factor in ((4,) if device == "cpu" else factors)),
        whole(4, label_dtype=torch.int64),
        whole(4, dtype=torch.float16 if device == "cpu" else torch.float32),
        whole(4, content="noise"),
        *([whole(4, 11, batch=16, source=(360, 480), content="CamVid")] if HAS_CAMVID else []),
        Case("remap labels", device, torch.uint8, 4 if device == "cpu" else 16, (1024, 2048), 1),
        Case("class areas", *crop_shape),
        Case("crop pair", *crop_shape),
        Case("crop pair", device, crop_shape[1], crop_shape[2] // 4, *crop_shape[3:], many),
        Case("crop image", *crop_shape),
        Case("warp pair", *crop_shape),
        Case("warp image", *crop_shape),
        *(_training(crop_shape, many) if importlib.util.find_spec("kornia") else []),
        dataclasses.replace(whole(8), task="mode pooling", label_dtype=torch.int64),
        Case("shrink image", *crop_shape),
        Case("image gradient", *crop_shape),
        *(
            dataclasses.replace(whole(factor, num_classes), task=task)
            for task, factor, num_classes in (
                ("top classes", 4, many),
                ("pyramid", 4, 19),
                ("cross entropy", 2, 19),
                ("cross entropy", 4, many),
                ("sparse cross entropy", 4, many),
                ("smoothed cross entropy", 2, 19),
                ("binary cross entropy", 2, 19),
                ("area cross entropy", 2, 19),
                ("area cross entropy", 4, 19),
                ("area cross entropy", 4, many),
                ("dice", 2, 19),
                ("dice", 4, many),
                ("jaccard", 2, 19),
            )
        ),
        *(
            dataclasses.replace(case, task=task)
            for task in ("upsampled cross entropy", "upsampled dice", "decode")
            for case in small_logits
        ),
    ]
