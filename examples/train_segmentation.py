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

With ``--grid random`` every step sees another crop, scaled by ``--scale``, and so another sample of the label map. With
``--grid fixed`` pictures and labels are shrunk once, as data sets are that are stored small: only flips and colours
change. With ``--loss upsampled`` no label is shrunk: the logits are enlarged to the label map, without the memory of
that. At the end the validation pictures are shrunk the same way, the logits are enlarged bilinearly to full resolution,
and compared with the full-size label map. Same arguments, same number of processes: same result on the CPU.
"""

import argparse
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
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

import tritonsoft as ts
import tritonsoft.augmentation as TA
from tritonsoft import metrics
from tritonsoft.data import DataError

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


def class_weights(data: Dataset[tuple[Tensor, Tensor]], num_classes: int, ignore_index: int = 255) -> Tensor:
    """``(C,)``: 1 / sqrt(share of the labelled area), 1 on average over that area."""
    area = torch.zeros(num_classes, dtype=torch.float64)
    for index in range(len(data)):  # type: ignore[arg-type]
        ids, counts = data[index][1].long().unique(return_counts=True)
        known = (ids != ignore_index) & (ids >= 0) & (ids < num_classes)
        area[ids[known]] += counts[known]
    share = area / area.sum()
    weight = torch.where(share > 0, share.clamp(min=1e-4) ** -0.5, 0)
    return (weight / (weight * share).sum()).float()


def train(
    arguments: argparse.Namespace, model: nn.Module, data: Dataset[tuple[Tensor, Tensor]], weight: Tensor
) -> Iterator[float]:
    """Yields the mean loss of each epoch."""
    device, num_classes = torch.device(arguments.device), arguments.num_classes
    height, width = data[0][1].shape
    h, w = round(height / arguments.factor), round(width / arguments.factor)
    low, high = (scale / arguments.factor for scale in arguments.scale)
    augment = TA.AugmentationSequential(
        TA.Resize((h, w)) if arguments.grid == "fixed" else TA.RandomScaleCrop((h, w), scale=(low, high)),
        TA.RandomHorizontalFlip(),
        K.ColorJiggle(0.2, 0.2, 0.2, 0.05),
        data_keys=["image"],
    )
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
            small = augment(image.float() / 255)
            with autocast:
                logits = model(small.to(memory_format=torch.channels_last))
            if arguments.loss == "area":  # straight from the label map, no soft label anywhere
                filter = "nearest" if arguments.labels == "nearest" else "area"
                loss = ts.area_cross_entropy(
                    logits,
                    labels,
                    augment.boxes,
                    ignore_index=arguments.ignore_index,
                    filter=filter,
                    weight=loss_weight,
                )
            elif arguments.loss == "upsampled":  # at the size of the label map, no enlarged logits anywhere
                loss = ts.upsampled_cross_entropy(
                    logits, labels, augment.boxes, ignore_index=arguments.ignore_index, weight=loss_weight
                )
            else:
                target = low_resolution_label(
                    labels, augment.boxes, (h, w), arguments.labels, num_classes, arguments.ignore_index
                )
                loss = ts.soft_cross_entropy(logits, target, weight=loss_weight)
                if arguments.loss == "cross-entropy+dice":
                    loss = loss + ts.soft_dice_loss(logits, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        distributed.all_reduce(total)
        yield float(total) / len(loader) / distributed.get_world_size()


# --- evaluation ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate(arguments: argparse.Namespace, model: nn.Module, data: Folder, weight: Tensor) -> dict[str, object]:
    """The metrics at full resolution, over all processes.

    Class weights w make a network predict ``w q`` in place of a distribution q: a network that was trained with them
    has them taken out again. Then two ways to decode are measured: the likeliest class, the largest q, which leaves out
    a pole that is nowhere likelier than what stands behind it; and the largest ``w q``, which gives rare classes more.
    """
    device, num_classes, ignore_index = torch.device(arguments.device), arguments.num_classes, arguments.ignore_index
    rank, world = distributed.get_rank(), distributed.get_world_size()
    own = Subset(data, range(rank, len(data), world))  # type: ignore[arg-type]
    model.eval()
    for buffer in model.buffers():  # those of batch normalisation differ since the last step
        distributed.broadcast(buffer, 0)
    adjustment = torch.where(weight > 0, weight, 1).log()
    evaluation = Evaluation(num_classes, ignore_index, adjustment, device)
    adjustment = adjustment.to(device)[:, None, None]
    area_error = metrics.AreaError(num_classes).to(device)
    for image, labels in DataLoader(own, 1, num_workers=arguments.workers):
        image, labels = image.to(device), labels.to(device)
        size = round(labels.shape[1] / arguments.factor), round(labels.shape[2] / arguments.factor)
        small = ts.resize(image, size, dtype=torch.float32)
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
    add_data_arguments(parser)
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
    check_data_arguments(parser, arguments)
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
    finally:
        distributed.destroy_process_group()


def main(argv: list[str] | None = None) -> dict[str, object]:
    arguments = parse(argv)
    training, validation = folder_of(arguments, "train", arguments.cache), folder_of(arguments, "val")
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
        result = evaluate(arguments, network, validation, weight)
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
