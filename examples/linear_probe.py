"""Fit a linear classifier of patches to frozen features, with soft or hard labels of the patches, until it converges.

    python examples/linear_probe.py --data DIR --num-classes 11 --ignore-index 11 --stride 16 --every 8 --runs runs

DIR is a data set as `train_segmentation.py` takes it. Features are those of an ImageNet network (`pretrained.py`), or
of ``--features MODULE:NAME``, a callable that makes one that takes images ``(B, 3, H, W)`` with values from 0 to 1 and
gives a map of features, or several of different strides. Each map goes through a 1x1 convolution; their outputs are
resampled to a grid of one logit per ``--stride`` pixels and added: logits that are linear in features of several
scales. ``--labels`` says what they are fitted to, and everything else is the same:

* ``soft``, ``nearest``, ``torch-nearest``, ``majority``: a label at the stride (`segmentation.low_resolution_label`);
* ``full``: the label map at its full size, by `tritonsoft.upsampled_cross_entropy`.

Features are scaled to mean 0 and variance 1 over the training pictures. The problem is convex (mean cross-entropy, and
``weight_decay / 2`` times the sum of the squared weights), so there are no seeds: L-BFGS goes on until no entry of the
gradient exceeds ``--tolerance``. What spreads is the choice of validation pictures, which a bootstrap draws again.
Pictures are padded below and to the right to multiples of 32, without labels.
"""

import argparse
import importlib
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from segmentation import (
    LABELS,
    Evaluation,
    Folder,
    add_data_arguments,
    check_data_arguments,
    folder_of,
    low_resolution_label,
)
from torch import Tensor, nn

import tritonsoft as ts

MULTIPLE = 32  # of pixels that pictures are padded to
CHUNK = 16  # pictures whose logits are in memory at once
DRAWS = 200  # of the bootstrap

Extractor = Callable[[Tensor], Tensor | list[Tensor]]
Numbers = dict[str, float | list[float]]


# --- features --------------------------------------------------------------------------------------------------------


class Split(NamedTuple):
    """Pictures' features, a tensor ``(N, K, H / stride, W / stride)`` for each scale, and label maps ``(N, H, W)``."""

    features: list[Tensor]
    labels: Tensor

    def every(self, step: int) -> "Split":
        return Split([scale[::step] for scale in self.features], self.labels[::step])

    def chunks(self) -> Iterator["Split"]:
        for start in range(0, len(self.labels), CHUNK):
            part = slice(start, start + CHUNK)
            yield Split([scale[part] for scale in self.features], self.labels[part])


@torch.no_grad()
def extract(extractor: Extractor, data: Folder, ignore_index: int) -> Split:
    features, label_maps = [], []
    for index in range(len(data)):
        image, labels = data[index]
        padding = (0, -image.shape[2] % MULTIPLE, 0, -image.shape[1] % MULTIPLE)
        maps = extractor(F.pad(image[None].float() / 255, padding, mode="replicate"))
        features.append([maps] if isinstance(maps, Tensor) else maps)
        label_maps.append(F.pad(labels, padding, value=ignore_index))
    return Split([torch.cat(scale) for scale in zip(*features, strict=True)], torch.stack(label_maps))


def load_extractor(name: str) -> Extractor:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)()


def splits(arguments: argparse.Namespace) -> tuple[Split, Split]:
    """Training and validation, from the file of ``--cache`` where it holds them."""
    folders = [folder_of(arguments, split) for split in ("train", "val")]
    files = [str(file) for folder in folders for pair in folder.pairs for file in (pair.image, pair.labels)]
    source = [arguments.features, str(folders[0].format), *files]
    if arguments.cache is not None and arguments.cache.exists():
        kept = torch.load(arguments.cache)
        if kept["source"] != source:
            raise SystemExit(f"--cache {arguments.cache}: of other pictures or features; give another file")
        return Split(*kept["train"]), Split(*kept["val"])
    extractor = load_extractor(arguments.features)
    train, val = (extract(extractor, folder, arguments.ignore_index) for folder in folders)
    if arguments.cache is not None:
        torch.save({"source": source, "train": tuple(train), "val": tuple(val)}, arguments.cache)
    return train, val


def standardise(train: Split, val: Split) -> tuple[Split, Split]:
    """Each feature with mean 0 and variance 1 over the training pictures, which is what L-BFGS likes."""
    statistics = [torch.var_mean(scale, (0, 2, 3), correction=0, keepdim=True) for scale in train.features]

    def standardised(split: Split) -> Split:
        scales = [
            ((scale - mean) * (variance + 1e-6).rsqrt()).contiguous(memory_format=torch.channels_last)
            for scale, (variance, mean) in zip(split.features, statistics, strict=True)
        ]
        return Split(scales, split.labels)

    return standardised(train), standardised(val)


# --- the fit ---------------------------------------------------------------------------------------------------------


class LinearHead(nn.Module):
    """Features of several scales -> logits ``(B, C, h, w)``; resampling commutes with what is linear, so it is last."""

    def __init__(self, channels: list[int], num_classes: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.scales = nn.ModuleList(nn.Conv2d(inputs, num_classes, 1, bias=False) for inputs in channels)
        self.bias = nn.Parameter(torch.zeros(num_classes, 1, 1))
        for scale in self.scales:
            nn.init.zeros_(scale.weight)

    def forward(self, features: list[Tensor]) -> Tensor:
        maps = [ts.resize(scale(x), self.size) for scale, x in zip(self.scales, features, strict=True)]
        return sum(maps, self.bias)


class Fit(NamedTuple):
    """A head, and how well it has converged."""

    head: LinearHead
    iterations: int
    gradient: float  # the largest entry
    seconds: float


def fit(train: Split, arguments: argparse.Namespace, labels: str, stride: int, weight_decay: float) -> Fit:
    """The head with the least mean cross-entropy over the training pictures plus ``weight_decay / 2 * sum w**2``."""
    num_classes, ignore_index = arguments.num_classes, arguments.ignore_index
    height, width = train.labels.shape[1:]
    size = (height // stride, width // stride)
    head = LinearHead([scale.shape[1] for scale in train.features], num_classes, size)
    weights = [scale.weight for scale in head.scales]
    if labels == "full":
        targets = [chunk.labels for chunk in train.chunks()]
        mass = float((train.labels != ignore_index).sum())
    else:
        whole = torch.tensor([0.0, 0.0, width, height])
        targets = [
            low_resolution_label(
                chunk.labels, whole.expand(len(chunk.labels), 4), size, labels, num_classes, ignore_index
            )
            for chunk in train.chunks()
        ]
        mass = float(sum(target.sum(dtype=torch.float64) for target in targets))

    def objective() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for chunk, target in zip(train.chunks(), targets, strict=True):
            logits = head(chunk.features)
            if labels == "full":
                loss = ts.upsampled_cross_entropy(logits, target, ignore_index=ignore_index, reduction="sum")
            else:
                loss = ts.soft_cross_entropy(logits, target, reduction="sum")
            (loss / mass).backward()
            total += loss.detach() / mass
        penalty = weight_decay / 2 * sum(weight.square().sum() for weight in weights)
        penalty.backward()
        return total + penalty.detach()

    optimizer = torch.optim.LBFGS(
        head.parameters(),
        max_iter=arguments.iterations,
        max_eval=2 * arguments.iterations,
        tolerance_grad=arguments.tolerance,
        tolerance_change=0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )
    started = time.perf_counter()
    optimizer.step(objective)
    seconds = time.perf_counter() - started
    objective()
    gradient = max(float(parameter.grad.abs().max()) for parameter in head.parameters())
    return Fit(head, optimizer.state[next(head.parameters())]["n_iter"], gradient, seconds)


# --- what is measured ------------------------------------------------------------------------------------------------


@torch.no_grad()
def measure(head: LinearHead, val: Split, arguments: argparse.Namespace) -> tuple[Numbers, list[Numbers]]:
    """The numbers of `segmentation.Evaluation`, and those of every draw of a bootstrap over the pictures.

    All that the metrics keep are sums, so those of each picture are kept, and added up as often as it is drawn.
    """
    evaluation = Evaluation(arguments.num_classes, arguments.ignore_index)
    sums: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
    for index in range(len(val.labels)):
        for metric in evaluation.metrics.values():
            metric.reset()
        evaluation.update(head([scale[index : index + 1] for scale in val.features]), val.labels[index : index + 1])
        for name, metric in evaluation.metrics.items():
            for state, value in metric.metric_state.items():
                sums[name, state].append(value.clone())

    def numbers(times: Tensor) -> Numbers:
        for (name, state), values in sums.items():
            setattr(evaluation.metrics[name], state, torch.tensordot(times.to(values[0].dtype), torch.stack(values), 1))
        return evaluation.compute()

    pictures = len(val.labels)
    generator = torch.Generator().manual_seed(0)  # the same draws for every fit: differences are of the same pictures
    draws = torch.randint(pictures, (DRAWS, pictures), generator=generator)
    return numbers(torch.ones(pictures)), [numbers(draw.bincount(minlength=pictures)) for draw in draws]


# --- the program -----------------------------------------------------------------------------------------------------


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    parser.add_argument("--labels", nargs="+", choices=[*LABELS, "full"], default=[*LABELS, "full"])
    parser.add_argument("--stride", type=int, nargs="+", default=[16], help="pixels of the image per logit")
    parser.add_argument("--every", type=int, nargs="+", default=[1], help="fit to every n-th training picture")
    parser.add_argument("--weight-decay", type=float, nargs="+", default=[1e-4])
    parser.add_argument("--iterations", type=int, default=500, help="of L-BFGS at most")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of the gradient's largest entry")
    parser.add_argument("--features", default="pretrained:Features", help="MODULE:NAME, called for an extractor")
    parser.add_argument("--cache", type=Path, help="file that keeps the features for the next call")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the results; those there are kept")
    arguments = parser.parse_args(argv)
    check_data_arguments(parser, arguments)
    for stride in arguments.stride:
        if stride < 1 or MULTIPLE % stride:
            parser.error(f"--stride must divide {MULTIPLE}, got {stride}")
    if min(arguments.every) < 1:
        parser.error(f"--every must be at least 1, got {min(arguments.every)}")
    if ":" not in arguments.features:
        parser.error(f"--features must be MODULE:NAME, got {arguments.features}")
    return arguments


def result_file(folder: Path, stride: int, every: int, labels: str, weight_decay: float) -> Path:
    return folder / f"probe-{stride}-{every}-{labels}-{weight_decay:g}.json"


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    everything, validation = splits(arguments)
    for every in arguments.every:
        train, val = standardise(everything.every(every), validation)
        for stride, weight_decay, labels in itertools.product(
            arguments.stride, arguments.weight_decay, arguments.labels
        ):
            file = result_file(arguments.runs, stride, every, labels, weight_decay)
            if file.exists():
                continue
            head, iterations, gradient, seconds = fit(train, arguments, labels, stride, weight_decay)
            numbers, draws = measure(head, val, arguments)
            result: dict[str, object] = {
                "stride": stride,
                "pictures": len(train.labels),
                "labels": labels,
                "weight_decay": weight_decay,
                "iterations": iterations,
                "gradient": gradient,
                "seconds": seconds,
                **numbers,
            }
            shown = [
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                for name, value in result.items()
                if not isinstance(value, list)
            ]
            print(", ".join(shown), flush=True)
            if gradient > arguments.tolerance:
                print(f"not converged: more than --iterations {arguments.iterations} or --tolerance too small")
            file.write_text(json.dumps({**result, "draws": draws}) + "\n")


if __name__ == "__main__":
    main()
