"""Train a small U-Net at low resolution with soft or hard labels, and measure it at full resolution.

    python examples/train_segmentation.py --data DIR --num-classes 11 --ignore-index 11 --labels soft --factor 4
    torchrun --nproc-per-node 2 examples/train_segmentation.py --data DIR ...

DIR holds ``images/train``, ``images/val``, ``labels/train`` and ``labels/val``: pictures of one size, and label maps of
class ids with the same paths and stems; ``--map``, ``--palette`` and the patterns say otherwise (docs/label_files.md).
The network sees pictures shrunk by ``--factor``. ``--labels`` says how its labels are shrunk, and
everything else is the same:

* ``soft``: the distribution of classes under each low-resolution pixel;
* ``nearest``: the class of the pixel nearest to its centre (``nearest-exact``);
* ``torch-nearest``: PyTorch's ``mode="nearest"``, half a low-resolution pixel away from the image;
* ``majority``: the class with most area.

With ``--shrunk DIR`` the network learns from what ``tritonsoft shrink`` has made of images/ and labels/, or of any
other folders in which each path begins with ``train/`` or ``val/``: no full-size picture is read, only flips and
colours change. It is measured on DIR's own small validation pictures, and with ``--data`` beside it on those at full
resolution.

    tritonsoft shrink --images leftImg8bit --labels gtFine --map cityscapes --factor 4 --out cityscapes-4 \\
        --image-pattern "*_leftImg8bit.png" --label-pattern "*_gtFine_labelIds.png"
    python examples/train_segmentation.py --shrunk cityscapes-4

With ``--grid random`` every step sees another crop, scaled by ``--scale``, and so another sample of the label map. With
``--grid fixed`` pictures and labels are shrunk once, as data sets are that are stored small: only flips and colours
change. With ``--loss upsampled`` no label is shrunk: the logits are enlarged to the label map, without the memory of
that.

For rare classes and many: ``--class-crop`` crops around a class that is drawn by the inverse of its area,
``--top-k`` keeps the largest classes of each pixel of a soft label alone (docs/recipes).

At the end the validation pictures are shrunk the same way, the logits are enlarged bilinearly to full resolution,
and compared with the full-size label map. Same arguments, same number of processes: same result on the CPU.
"""

import argparse
import contextlib
import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import kornia.augmentation as K
import pretrained
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
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset
from torchmetrics import Metric

import tritonsoft as ts
import tritonsoft.augmentation as TA
from tritonsoft import metrics
from tritonsoft.data import DataError, ShrunkDataset

# --- the network -----------------------------------------------------------------------------------------------------


def block(inputs: int, outputs: int) -> nn.Sequential:
    convolutions = [nn.Conv2d(channels, outputs, 3, padding=1, bias=False) for channels in (inputs, outputs)]
    return nn.Sequential(*(part for each in convolutions for part in (each, nn.BatchNorm2d(outputs), nn.ReLU(True))))


class Encoder(nn.Module):
    """Image ``(B, 3, h, w)`` -> a map for each level, of half the size and twice the channels of the one before."""

    def __init__(self, channels: int, levels: int = 4) -> None:
        super().__init__()
        self.widths = [channels * 2**level for level in range(levels)]
        pairs = zip([3, *self.widths], self.widths, strict=False)
        self.down = nn.ModuleList(block(inputs, outputs) for inputs, outputs in pairs)

    def forward(self, image: Tensor) -> list[Tensor]:
        x, maps = image, []
        for level, down in enumerate(self.down):
            x = down(F.max_pool2d(x, 2) if level else x)
            maps.append(x)
        return maps


class PretrainedEncoder(nn.Module):
    """The same with ImageNet's weights, whose normalisation keeps ImageNet's statistics.

    Its first map has half the size of what it sees, so it sees the picture twice as large.
    """

    def __init__(self) -> None:
        super().__init__()
        self.widths = list(pretrained.CHANNELS)
        self.network = pretrained.Lite0()

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.network(F.interpolate(image, scale_factor=2, mode="bilinear"))

    def train(self, mode: bool = True) -> "PretrainedEncoder":
        return super().train(False)


class UNet(nn.Module):
    """Image ``(B, 3, h, w)`` -> logits ``(B, C, h, w)``, from an encoder's maps, the smallest first."""

    def __init__(self, num_classes: int, encoder: Encoder | PretrainedEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.up = nn.ModuleList(block(width + below, width) for width, below in pairwise(encoder.widths))
        self.head = nn.Conv2d(encoder.widths[0], num_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        *skips, x = self.encoder(image)
        for skip, up in zip(reversed(skips), reversed(self.up), strict=True):
            x = up(torch.cat([skip, F.interpolate(x, skip.shape[2:], mode="bilinear")], 1))
        return self.head(x)


# --- training --------------------------------------------------------------------------------------------------------


Sample = tuple[Tensor, Tensor | ts.SparseLabels]  # an image, and its label map or what it was shrunk to


def class_weights(data: Dataset[Sample], num_classes: int, ignore_index: int = 255) -> Tensor:
    """``(C,)``: 1 / sqrt(share of the labelled area), 1 on average over that area."""
    area = torch.zeros(num_classes, dtype=torch.float64)
    for index in range(len(data)):  # type: ignore[arg-type]
        labels = data[index][1]
        if isinstance(labels, ts.SparseLabels):
            area.index_add_(0, labels.index.flatten().long(), labels.mass.flatten().double())
            continue
        ids, counts = labels.long().unique(return_counts=True)
        known = (ids != ignore_index) & (ids >= 0) & (ids < num_classes)
        area[ids[known]] += counts[known]
    share = area / area.sum()
    weight = torch.where(share > 0, share.clamp(min=1e-4) ** -0.5, 0)
    return (weight / (weight * share).sum()).float()


def train(arguments: argparse.Namespace, model: nn.Module, data: Dataset[Sample], weight: Tensor) -> Iterator[float]:
    """Yields the mean loss of each epoch."""
    device = torch.device(arguments.device)
    size = low_resolution_size(arguments, *data[0][1].shape[-2:])
    low, high = (scale / arguments.factor for scale in arguments.scale)
    if arguments.grid == "fixed":
        shrink: nn.Module = TA.Resize(size)
    elif arguments.class_crop:  # which looks for the class in the label maps: they go along
        shrink = TA.RandomClassCrop(
            size, (low, high), arguments.num_classes, "inverse_area", ignore_index=arguments.ignore_index
        )
    else:
        shrink = TA.RandomScaleCrop(size, scale=(low, high))
    with_labels = bool(arguments.shrunk) or arguments.class_crop
    augment = TA.AugmentationSequential(
        *([] if arguments.shrunk else [shrink]),
        TA.RandomHorizontalFlip(),
        K.ColorJiggle(0.2, 0.2, 0.2, 0.05),
        data_keys=["image", "mask"] if with_labels else ["image"],
    )
    mix = mixing(arguments)
    loss_weight = weight.to(device) if arguments.class_weights else None
    sampler = DistributedSampler(data, seed=arguments.seed)  # one process is a world of one
    loader = DataLoader(
        data,
        arguments.batch,
        sampler=sampler,
        drop_last=len(sampler) > arguments.batch,
        num_workers=arguments.workers,
        pin_memory=device.type == "cuda",
    )
    encoder_lr = arguments.lr if arguments.encoder == "scratch" else arguments.lr / 10
    groups = [
        {"params": [p for name, p in model.named_parameters() if ("encoder." in name) == inside], "lr": lr}
        for inside, lr in ((True, encoder_lr), (False, arguments.lr))
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-2, fused=True)
    steps = arguments.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(  # a tenth of the steps up, and a cosine down to 0
        optimizer, lambda step: min(10 * (step + 1) / steps, (1 + math.cos(math.pi * step / steps)) / 2)
    )
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=arguments.bf16)
    for epoch in range(arguments.epochs):
        sampler.set_epoch(epoch)
        model.train()
        total = torch.zeros((), device=device)
        for image, labels in loader:
            image, labels = image.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            if arguments.mix in ("cutmix", "classmix"):  # whole pixels of the label maps, before anything is resampled
                image, labels = mix(image, labels[:, None])
            if arguments.shrunk:
                small, labels = augment(image.float() / 255, labels)
            elif with_labels:
                small, _ = augment(image.float() / 255, labels)
            else:
                small = augment(image.float() / 255)
            boxes, mix_soft = augment.boxes, None
            if arguments.mix == "mixup":  # small images, and the soft labels that are made of their boxes
                params = mix.forward_parameters(small.shape)
                small = mix(small, params=params, data_keys=["image"])
                mix_soft = functools.partial(mix, params=params, data_keys=["mask"])
            with autocast:
                logits = model(small.to(memory_format=torch.channels_last))
            loss = loss_of(arguments, logits, labels, boxes, loss_weight, mix_soft)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        distributed.all_reduce(total)
        yield float(total) / len(loader) / distributed.get_world_size()


def mixing(arguments: argparse.Namespace) -> nn.Module:
    """What mixes the samples of a batch."""
    if arguments.mix == "cutmix":
        return TA.RandomCutMix(p=0.5)
    if arguments.mix == "classmix":
        return TA.RandomClassMix(arguments.num_classes, p=0.5, ignore_index=arguments.ignore_index)
    return TA.RandomMixUp(alpha=0.4, p=0.5) if arguments.mix == "mixup" else nn.Identity()


def low_resolution_size(arguments: argparse.Namespace, height: int, width: int) -> tuple[int, int]:
    """The size of what the network sees of full-size pictures."""
    return round(height / arguments.factor), round(width / arguments.factor)


def loss_of(
    arguments: argparse.Namespace,
    logits: Tensor,
    labels: Tensor | ts.SparseLabels,
    boxes: Tensor | None,
    weight: Tensor | None,
    mix_soft: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The loss of a batch: its label maps are of full-size pictures, of which the network saw ``boxes``.

    ``mix_soft`` mixes soft labels as the images were.
    """
    ignore_index, smoothing = arguments.ignore_index, arguments.label_smoothing
    if arguments.loss == "area":  # straight from the label map, no soft label anywhere
        filter = "nearest" if arguments.labels == "nearest" else "area"
        return ts.area_cross_entropy(
            logits, labels, boxes, ignore_index=ignore_index, filter=filter, weight=weight, label_smoothing=smoothing
        )
    if arguments.loss == "upsampled":  # at the size of the label map, no enlarged logits anywhere
        return ts.upsampled_cross_entropy(
            logits, labels, boxes, ignore_index=ignore_index, weight=weight, label_smoothing=smoothing
        )
    if isinstance(labels, ts.SparseLabels):
        target: Tensor | ts.SparseLabels = labels
    else:
        size = logits.shape[2], logits.shape[3]
        target = low_resolution_label(
            labels, boxes, size, arguments.labels, arguments.num_classes, ignore_index, arguments.top_k
        )
    if mix_soft is not None:
        target = mix_soft(target)
    loss = ts.soft_cross_entropy(logits, target, weight=weight, label_smoothing=smoothing)
    return loss + ts.soft_dice_loss(logits, target) if arguments.loss == "cross-entropy+dice" else loss


# --- evaluation ------------------------------------------------------------------------------------------------------


def share_of(data: Dataset[Sample], model: nn.Module) -> Subset[Sample]:
    """This process's part of the pictures that all together evaluate a model on."""
    model.eval()
    for buffer in model.buffers():  # those of batch normalisation differ since the last step
        distributed.broadcast(buffer, 0)
    return Subset(data, range(distributed.get_rank(), len(data), distributed.get_world_size()))  # type: ignore[arg-type]


@torch.no_grad()
def evaluate_shrunk(
    arguments: argparse.Namespace, model: nn.Module, data: ShrunkDataset, weight: Tensor
) -> dict[str, object]:
    """The metrics of the small pictures alone, over all processes."""
    device = torch.device(arguments.device)
    adjustment = torch.where(weight > 0, weight, 1).log().to(device)[:, None, None]
    found: dict[str, Metric] = {
        "soft_nll": metrics.SoftNegativeLogLikelihood(),
        "soft_calibration_error": metrics.SoftCalibrationError(),
        "soft_iou": metrics.SoftIoU(arguments.num_classes),
    }
    for metric in found.values():
        metric.to(device)
    for image, labels in DataLoader(share_of(data, model), 1, num_workers=arguments.workers):
        small, soft = image.to(device).float() / 255, labels.to(device).to_dense()
        with torch.autocast(device.type, torch.bfloat16, enabled=arguments.bf16):
            logits = model(small.to(memory_format=torch.channels_last)).float()
        if arguments.class_weights:  # see `evaluate`
            logits = logits - adjustment
        for name, metric in found.items():
            metric.update(logits if name == "soft_nll" else logits.softmax(1), soft)
    return {name: float(metric.compute()) for name, metric in found.items()}


@torch.no_grad()
def evaluate(
    arguments: argparse.Namespace,
    model: nn.Module,
    data: Folder,
    weight: Tensor,
    size_of: Callable[[int, int], tuple[int, int]] | None = None,
) -> dict[str, object]:
    """The metrics at full resolution, over all processes; ``size_of`` says in which size the network sees a picture.

    Class weights w make a network predict ``w q`` in place of a distribution q: a network that was trained with them
    has them taken out again. Then two ways to decode are measured: the likeliest class, the largest q, which leaves out
    a pole that is nowhere likelier than what stands behind it; and the largest ``w q``, which gives rare classes more.
    """
    device, num_classes, ignore_index = torch.device(arguments.device), arguments.num_classes, arguments.ignore_index
    size_of = size_of or functools.partial(low_resolution_size, arguments)
    own = share_of(data, model)
    adjustment = torch.where(weight > 0, weight, 1).log()
    evaluation = Evaluation(num_classes, ignore_index, adjustment, device)
    adjustment = adjustment.to(device)[:, None, None]
    area_error = metrics.AreaError(num_classes).to(device)
    for image, labels in DataLoader(own, 1, num_workers=arguments.workers):
        image, labels = image.to(device), labels.to(device)
        small = ts.resize(image, size_of(*labels.shape[1:]), dtype=torch.float32)
        with torch.autocast(device.type, torch.bfloat16, enabled=arguments.bf16):
            logits = model(small.to(memory_format=torch.channels_last)).float()
        if arguments.class_weights:
            logits = logits - adjustment
        evaluation.update(logits, labels)
        truth = ts.to_soft(labels, num_classes, ignore_index=ignore_index)
        known = truth.sum(1, keepdim=True)
        probabilities = known * F.interpolate(logits, labels.shape[1:], mode="bilinear").softmax(1)
        # Areas are the same where one pixel stands for all of them.
        predicted, area, share = (x.mean((2, 3), keepdim=True) for x in (probabilities, truth, known))
        area_error.update(predicted / share.clamp(min=1e-9), area)
    return {**evaluation.compute(), "area_error": float(area_error.compute())}


# --- the program -----------------------------------------------------------------------------------------------------


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser, required=False)
    parser.add_argument("--shrunk", type=Path, help="a data set of `tritonsoft shrink`, with names in train/ and val/")
    parser.add_argument("--labels", choices=LABELS, default="soft")
    parser.add_argument("--factor", type=float, default=4, help="how much smaller the network's pictures are")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=8, help="pictures per step and process")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument(
        "--grid", choices=["random", "fixed"], default="random", help="random crops, or the whole picture shrunk once"
    )
    parser.add_argument("--scale", type=float, nargs=2, default=(0.75, 1.5), help="range of random crops")
    parser.add_argument("--encoder", choices=["scratch", "pretrained"], default="scratch")
    parser.add_argument("--channels", type=int, default=16, help="of the first level of an encoder from scratch")
    parser.add_argument(
        "--loss", choices=["cross-entropy", "area", "cross-entropy+dice", "upsampled"], default="cross-entropy"
    )
    parser.add_argument("--class-weights", action="store_true", help="weigh classes by 1 / sqrt(area)")
    parser.add_argument("--class-crop", action="store_true", help="crop where a class is that is drawn by 1 / area")
    parser.add_argument("--mix", choices=["cutmix", "classmix", "mixup"], help="mix each second sample with another")
    parser.add_argument("--label-smoothing", type=float, default=0.0, help="share of known mass for all classes alike")
    parser.add_argument("--top-k", type=int, help="keep the k largest classes of each pixel of a soft label alone")
    parser.add_argument("--every", type=int, default=1, help="train on every n-th picture")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, help="autocast; default: on a GPU")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="torch.compile; default: on a GPU")
    parser.add_argument("--workers", type=int, default=0, help="processes that read pictures")
    parser.add_argument("--cache", action="store_true", help="keep all pictures in memory")
    parser.add_argument("--out", type=Path, help="write the result to this JSON file")
    arguments = parser.parse_args(argv)
    if arguments.loss == "area" and arguments.labels not in ("soft", "nearest"):
        parser.error(f"--loss area takes the label map itself: --labels soft or nearest, not {arguments.labels}")
    if arguments.loss == "upsampled" and arguments.labels != "soft":
        parser.error(f"--loss upsampled shrinks no label, so --labels {arguments.labels} has nothing to say")
    if arguments.shrunk is None and arguments.data is None:
        parser.error("give --data, --shrunk, or both")
    if arguments.shrunk is not None:
        if arguments.labels != "soft":
            parser.error(f"--shrunk holds soft labels: --labels {arguments.labels} has nothing to say")
        if arguments.loss in ("area", "upsampled"):
            parser.error(f"--loss {arguments.loss} takes the label map itself, which --shrunk does not hold")
        if arguments.class_crop or arguments.mix or arguments.top_k is not None:
            parser.error("--shrunk holds pictures and soft labels as they are: no --class-crop, --mix or --top-k")
    if arguments.mix == "mixup" and (arguments.loss in ("area", "upsampled") or arguments.top_k is not None):
        parser.error("--mix mixup blends dense soft labels: no --loss area or upsampled, no --top-k")
    if not 0 <= arguments.label_smoothing <= 1:
        parser.error(f"--label-smoothing: must lie in 0..1, got {arguments.label_smoothing}")
    if arguments.class_crop and arguments.grid == "fixed":
        parser.error("--grid fixed crops nothing: no --class-crop")
    if arguments.top_k is not None and (arguments.loss in ("area", "upsampled") or arguments.labels == "majority"):
        parser.error(f"--labels {arguments.labels} --loss {arguments.loss} makes no soft label: no --top-k")
    if arguments.data is not None:
        check_data_arguments(parser, arguments)
        if arguments.top_k is not None and not 1 <= arguments.top_k <= arguments.num_classes:
            parser.error(f"--top-k: must lie in 1..{arguments.num_classes} (--num-classes), got {arguments.top_k}")
    if arguments.out is not None:  # before the training, whose result it is to hold
        try:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"--out: {arguments.out.parent} cannot be made a folder ({error.strerror})")
        if arguments.out.is_dir():
            parser.error(f"--out: {arguments.out} is a folder")
    on_gpu = arguments.device.startswith("cuda")
    arguments.bf16 = on_gpu if arguments.bf16 is None else arguments.bf16
    arguments.compile = on_gpu if arguments.compile is None else arguments.compile
    return arguments


@contextlib.contextmanager
def process_group(arguments: argparse.Namespace) -> Iterator[int]:
    """This process's rank in the world that torchrun made, or in a world of one."""
    if arguments.device.startswith("cuda"):
        if "LOCAL_RANK" in os.environ:
            arguments.device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(torch.device(arguments.device))
    backend = "nccl" if arguments.device.startswith("cuda") else "gloo"
    if "RANK" in os.environ:
        distributed.init_process_group(backend)
    else:
        distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield distributed.get_rank()
        if distributed.get_world_size() > 1:
            # Who ends a group joins its threads and holds Python's lock meanwhile. A thread that still has to let go of
            # the tensors of the last collective needs that lock, and would wait for ever: it gets half a second.
            time.sleep(0.5)
    finally:
        distributed.destroy_process_group()


def main(argv: list[str] | None = None) -> dict[str, object]:
    arguments = parse(argv)
    small_validation, size_of = None, None
    if arguments.shrunk is None:
        training: Dataset[Sample] = folder_of(arguments, "train", arguments.cache)
    else:
        training = small = ShrunkDataset(arguments.shrunk, split="train")
        if arguments.data is None:
            small_validation = ShrunkDataset(arguments.shrunk, split="val")
        elif small.num_classes != arguments.num_classes:
            raise SystemExit(f"{arguments.shrunk}: has {small.num_classes} classes, --data {arguments.num_classes}")
        arguments.num_classes, arguments.ignore_index = small.num_classes, small.settings.ignore_index
        size_of = small.settings.size_of
    full_size = None if arguments.data is None else folder_of(arguments, "val")
    started = time.perf_counter()
    with process_group(arguments) as rank:
        torch.manual_seed(arguments.seed)  # the same weights everywhere ...
        encoder = Encoder(arguments.channels) if arguments.encoder == "scratch" else PretrainedEncoder()
        network = UNet(arguments.num_classes, encoder)
        network = network.to(arguments.device, memory_format=torch.channels_last)
        torch.manual_seed(arguments.seed + 1_000_003 * (rank + 1))  # ... and other crops in every process
        model: nn.Module = torch.compile(network) if arguments.compile else network
        if distributed.get_world_size() > 1:
            model = DistributedDataParallel(model)
        some = Subset(training, range(0, len(training), arguments.every))
        weight = class_weights(some, arguments.num_classes, arguments.ignore_index)
        for epoch, loss in enumerate(train(arguments, model, some, weight), 1):
            if rank == 0:
                seconds = time.perf_counter() - started
                print(f"epoch {epoch}/{arguments.epochs}: loss {loss:.4f}, {seconds:.0f} s", flush=True)
        trained = time.perf_counter()
        if small_validation is not None:
            result = evaluate_shrunk(arguments, network, small_validation, weight)
        else:
            result = evaluate(arguments, network, full_size, weight, size_of)
    result |= {
        "seconds_training": trained - started,
        "seconds_evaluation": time.perf_counter() - trained,
        "arguments": vars(arguments),
    }
    if rank == 0:
        print(", ".join(f"{name} {value:.4f}" for name, value in result.items() if isinstance(value, float)))
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(result, indent=1, default=str) + "\n")
    return result


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        raise SystemExit(str(error)) from None
    if "RANK" in os.environ:
        # gloo's threads outlive their group wherever something still refers to it, and free tensors of the last
        # metrics. One that waits for the interpreter to do so while that is ending aborts the process.
        sys.stdout.flush()
        os._exit(0)
