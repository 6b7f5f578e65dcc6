"""What the examples that train share: pictures and label maps in a folder, and the ways to shrink a label map."""

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchmetrics import MeanMetric, Metric

import tritonsoft as ts
from tritonsoft import metrics

CAMVID = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
THIN = [CAMVID.index(name) for name in ("pole", "sign", "pedestrian", "bicyclist")]

# --- pictures and label maps -----------------------------------------------------------------------------------------


class DataError(ValueError):
    """A picture or label map that cannot be used; the message names its file."""


def files_by_stem(folder: Path) -> dict[Path, Path]:
    """The files in a folder and below, through symbolic links too, by their paths without suffix."""
    found = (Path(inside, name) for inside, _, names in os.walk(folder, followlinks=True) for name in names)
    return {file.relative_to(folder).with_suffix(""): file for file in sorted(found)}


def pixels_of(file: Path, mode: str | None = None) -> Tensor:
    """A picture, upright as viewers show it, in its own mode or another."""
    try:
        with file.open("rb") as stream, Image.open(stream) as picture:  # by name Pillow misreads turned TIFF files
            ImageOps.exif_transpose(picture, in_place=True)
            return torch.from_numpy(np.array(picture.convert(mode) if mode else picture))
    except Exception as error:  # of a broken file Pillow's decoders may raise anything
        raise DataError(f"{file}: cannot be read ({error})") from None


class Folder(Dataset[tuple[Tensor, Tensor]]):
    """Images ``(3, H, W)`` uint8 and label maps ``(H, W)`` of one split, with ids that are classes or ignored."""

    def __init__(
        self, root: Path, split: str, cache: bool, num_classes: int | None = None, ignore_index: int = 255
    ) -> None:
        image_folder, label_folder = root / "images" / split, root / "labels" / split
        images, labels = files_by_stem(image_folder), files_by_stem(label_folder)
        if not images or not labels:
            raise SystemExit(f"{label_folder if images else image_folder}: there is no such folder, or nothing in it")
        if odd := sorted(str(stem) for stem in images.keys() ^ labels.keys()):
            more = f" and {len(odd) - 5} more" if len(odd) > 5 else ""
            raise SystemExit(
                f"{root}: {split} needs images and label maps of the same names; without partner: "
                f"{', '.join(odd[:5])}{more}"
            )
        self.files = [(images[stem], labels[stem]) for stem in images]
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.size: tuple[int, int] | None = None
        self.kept: dict[int, tuple[Tensor, Tensor]] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.kept is not None and index in self.kept:
            return self.kept[index]
        image_file, label_file = self.files[index]
        image, labels = pixels_of(image_file, "RGB").permute(2, 0, 1).contiguous(), pixels_of(label_file)
        labels = labels if labels.dtype == torch.uint8 else labels.int()
        if labels.shape != image.shape[1:]:
            raise DataError(f"{label_file}: {tuple(labels.shape)}, where its image has {tuple(image.shape[1:])}")
        self.size = self.size or (labels.shape[0], labels.shape[1])
        if labels.shape != self.size:
            raise DataError(
                f"{label_file}: {tuple(labels.shape)}, where others have {self.size}: batches need one size"
            )
        if self.num_classes is not None:
            ids = labels.unique().tolist()  # numbers of Python, since a comparison of uint8 with -1 would find 255
            if wrong := [value for value in ids if value != self.ignore_index and not 0 <= value < self.num_classes]:
                raise DataError(
                    f"{label_file}: ids from {min(wrong)} to {max(wrong)} are neither in 0..{self.num_classes - 1} nor "
                    f"{self.ignore_index}: are --num-classes and --ignore-index right?"
                )
        if self.kept is not None:
            self.kept[index] = image, labels
        return image, labels


# --- labels at low resolution ----------------------------------------------------------------------------------------

LABELS = ("soft", "nearest", "torch-nearest", "majority")


def low_resolution_label(
    labels: Tensor, boxes: Tensor, size: tuple[int, int], mode: str, num_classes: int, ignore_index: int
) -> Tensor:
    """Label maps ``(B, H, W)`` and boxes ``(B, 4)`` -> soft label ``(B, C, h, w)``; a hard one has masses 0 and 1."""
    if mode == "torch-nearest":  # it reads at the left upper edge of each low-resolution pixel, not at its centre
        (h, w), (x0, y0, x1, y1) = size, boxes.unbind(1)
        half = torch.stack([(x1 - x0).abs() / w, (y1 - y0).abs() / h], 1) / 2
        boxes = boxes - half.repeat(1, 2)  # also where the box is mirrored: labels are flipped after they are shrunk
    filter = "nearest" if mode in ("nearest", "torch-nearest") else "area"
    soft = ts.soft_crop_resize(labels, boxes, size, num_classes, ignore_index=ignore_index, filter=filter)
    if mode == "majority":
        largest, winner = soft.max(1)
        return ts.to_soft(winner.masked_fill(largest == 0, ignore_index), num_classes, ignore_index=ignore_index)
    return soft


# --- what is measured ------------------------------------------------------------------------------------------------


class Evaluation:
    """Logits ``(B, C, h, w)`` against their label maps, at low resolution (``soft_``) and at full.

    Every number is made of sums over the pixels (`tritonsoft.metrics`), so batches and processes add up.

    Args:
        num_classes: C.
        ignore_index: the label of pixels that count nothing.
        bias: ``(C,)``, added to the logits for a second way to decode, "weighted".
        device: where the sums are kept.
    """

    def __init__(
        self, num_classes: int, ignore_index: int, bias: Tensor | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.metrics: dict[str, Metric] = {
            "soft_nll": metrics.SoftNegativeLogLikelihood(),
            "soft_calibration_error": metrics.SoftCalibrationError(),
            "soft_iou": metrics.SoftIoU(num_classes),
            "nll": MeanMetric(),
            "calibration_error": metrics.SoftCalibrationError(),
            "confusion": metrics.ConfusionMatrix(num_classes, ignore_index),
            "iou_likeliest": metrics.MeanIoU(num_classes, ignore_index, average="none"),
        }
        if bias is not None:
            self.metrics["iou_weighted"] = metrics.MeanIoU(num_classes, ignore_index, average="none", bias=bias)
        for metric in self.metrics.values():
            metric.to(device)
            metric.compute_with_cache = False  # sums may be put in by hand

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch."""
        size = (logits.shape[2], logits.shape[3])
        soft = ts.soft_resize(labels, size, self.num_classes, ignore_index=self.ignore_index)
        probabilities = logits.softmax(1)
        self.metrics["soft_nll"].update(logits, soft)
        self.metrics["soft_calibration_error"].update(probabilities, soft)
        self.metrics["soft_iou"].update(probabilities, soft)
        known = labels != self.ignore_index
        likelihood = ts.upsampled_cross_entropy(logits, labels, ignore_index=self.ignore_index)
        self.metrics["nll"].update(likelihood, known.sum())
        predicted, confidence = ts.decode(logits, labels.shape[1:], scores=True, dtype=torch.int16)
        right, wrong = known & (predicted == labels), known & (predicted != labels)
        # Calibration asks for the largest probability alone: a plane for its class, and one for all others.
        planes = torch.stack([confidence, torch.zeros_like(confidence)], 1)
        self.metrics["calibration_error"].update(planes, torch.stack([right, wrong], 1).to(planes.dtype))
        for name, metric in self.metrics.items():
            if name.startswith(("confusion", "iou_")):
                metric.update(logits, labels)

    def compute(self) -> dict[str, float | list[float]]:
        """Numbers by name; of each IoU ``iou_`` that of every class, NaN where no label holds it, and their mean."""
        values = {name: metric.compute() for name, metric in self.metrics.items()}
        confusion = values.pop("confusion").double()
        labelled, predicted = confusion.sum(1), confusion.sum(0)
        result: dict[str, float | list[float]] = {}
        for name, value in values.items():
            if name.startswith("iou_"):
                of_labelled = value.where(labelled > 0, torch.nan)
                result[name] = of_labelled.tolist()
                result[f"m{name}"] = float(of_labelled.nanmean())
            else:
                result[name] = float(value)
        result["area_error_decoded"] = float(((predicted - labelled).abs() / labelled)[labelled > 0].mean())
        return result


# --- arguments -------------------------------------------------------------------------------------------------------


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="images/ and labels/, each with train/ and val/")
    parser.add_argument("--num-classes", type=int, required=True)
    parser.add_argument("--ignore-index", type=int, help="default: 255, unless that is a class")


def check_data_arguments(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if arguments.ignore_index is None:
        if arguments.num_classes > 255:
            parser.error(f"--num-classes {arguments.num_classes} makes 255 a class: give --ignore-index, -1 for none")
        arguments.ignore_index = 255
