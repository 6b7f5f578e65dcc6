"""What the examples that train share: pictures and label maps in a folder, and the ways to shrink a label map."""

import argparse
import re
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchmetrics import MeanMetric, Metric

import tritonsoft as ts
from tritonsoft import metrics
from tritonsoft.data import DataError, LabelFormat, UnknownLabelError, label_format, pair_files, read_pair

CAMVID = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
THIN = [CAMVID.index(name) for name in ("pole", "sign", "pedestrian", "bicyclist")]

# --- pictures and label maps -----------------------------------------------------------------------------------------


class Folder(Dataset[tuple[Tensor, Tensor]]):
    """Images ``(3, H, W)`` uint8 and label maps ``(H, W)`` of one split, of classes and the format's ``ignore_index``.

    Args:
        root: the folder of ``images/`` and ``labels/``.
        split: the folder in each of those.
        cache: keep in memory what was read.
        format: what the values of the label files mean.
        image_pattern: which files are images (`tritonsoft.data.pair_files`).
        label_pattern: which files are label maps.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        cache: bool,
        format: LabelFormat,
        image_pattern: str = "*",
        label_pattern: str = "*",
    ) -> None:
        image_folder, label_folder = root / "images" / split, root / "labels" / split
        for folder in (image_folder, label_folder):
            if not folder.is_dir() or not any(folder.iterdir()):
                raise SystemExit(f"{folder}: there is no such folder, or nothing in it")
        self.pairs, problems = pair_files(image_folder, label_folder, image_pattern, label_pattern)
        if problems:
            named = "; ".join(map(str, problems[:5])) + (f"; and {len(problems) - 5} more" if problems[5:] else "")
            raise SystemExit(f"{root}: {split} needs images and label maps of the same names: {named}")
        if not self.pairs:
            raise SystemExit(f"{root}: no file of {split} matches {image_pattern} and {label_pattern}")
        self.format = format
        self.size: tuple[int, int] | None = None
        self.kept: dict[int, tuple[Tensor, Tensor]] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.kept is not None and index in self.kept:
            return self.kept[index]
        pair = self.pairs[index]
        try:
            image, labels = read_pair(pair, self.format)
        except UnknownLabelError as error:
            raise DataError(f"{error}: are --num-classes, --map, --palette and --ignore right?") from None
        self.size = self.size or (labels.shape[0], labels.shape[1])
        if labels.shape != self.size:
            raise DataError(
                f"{pair.labels}: {tuple(labels.shape)}, where others have {self.size}: batches need one size"
            )
        if self.kept is not None:
            self.kept[index] = image, labels
        return image, labels


# --- labels at low resolution ----------------------------------------------------------------------------------------

LABELS = ("soft", "nearest", "torch-nearest", "majority")


def low_resolution_label(
    labels: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    mode: str,
    num_classes: int,
    ignore_index: int,
    top_k: int | None = None,
) -> Tensor | ts.SparseLabels:
    """Label maps ``(B, H, W)`` and boxes ``(B, 4)`` -> soft label ``(B, C, h, w)``; a hard one has masses 0 and 1.

    With ``top_k`` it holds the largest classes of each pixel alone; "majority" has one.
    """
    if mode == "torch-nearest":  # it reads at the left upper edge of each low-resolution pixel, not at its centre
        (h, w), (x0, y0, x1, y1) = size, boxes.unbind(1)
        half = torch.stack([(x1 - x0).abs() / w, (y1 - y0).abs() / h], 1) / 2
        boxes = boxes - half.repeat(1, 2)  # also where the box is mirrored: labels are flipped after they are shrunk
    filter = "nearest" if mode in ("nearest", "torch-nearest") else "area"
    top_k = None if mode == "majority" else top_k
    soft = ts.soft_crop_resize(labels, boxes, size, num_classes, ignore_index=ignore_index, filter=filter, top_k=top_k)
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


def add_data_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument("--data", type=Path, required=required, help="images/ and labels/, each with train/ and val/")
    parser.add_argument("--num-classes", type=int, help="needed where neither --map nor --palette says it")
    parser.add_argument("--map", help="the class of each id: cityscapes, ade20k, voc, camvid, or a CSV or JSON file")
    parser.add_argument("--palette", help="the class of each colour: likewise")
    parser.add_argument("--ignore", type=ids, default=[], help="more ids without a class, separated by commas")
    parser.add_argument("--ignore-index", type=int, help="default: 255, unless that is a class")
    parser.add_argument("--image-pattern", default="*", help="such as '*_leftImg8bit.png'")
    parser.add_argument("--label-pattern", default="*", help="such as '*_gtFine_labelIds.png'")


def ids(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def check_data_arguments(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    try:
        format = format_of(arguments)
    except ValueError as error:
        parser.error(re.sub(r"\b(num|ignore)_(classes|index)\b", r"--\1-\2", str(error)))
    arguments.num_classes, arguments.ignore_index = format.num_classes, format.ignore_index


def format_of(arguments: argparse.Namespace) -> LabelFormat:
    """What the values of the label files mean."""
    return label_format(
        arguments.num_classes,
        map=arguments.map,
        palette=arguments.palette,
        ignore=arguments.ignore,
        ignore_index=arguments.ignore_index,
    )


def folder_of(arguments: argparse.Namespace, split: str, cache: bool = False) -> Folder:
    """The pictures of a split."""
    patterns = arguments.image_pattern, arguments.label_pattern
    return Folder(arguments.data, split, cache, format_of(arguments), *patterns)
