"""`tritonsoft bench`: this device, the user's shapes, and what is written today beside what this library does."""

import dataclasses
import functools
import importlib.util
import itertools
import re
import statistics
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from rich.text import Text
from torch import Tensor

import tritonsoft as ts
from tritonsoft.cli import scenes
from tritonsoft.cli.common import (
    AsJson,
    Device,
    describe,
    fail,
    free_bytes,
    parse_device,
    print_json,
    seconds_of,
    show,
    table_of,
    working,
)
from tritonsoft.cli.costs import one_hot_interpolate, soft_resize
from tritonsoft.cli.kept import shrunken

SECONDS_PER_ROW, FEWEST_RUNS, MOST_RUNS = 1.5, 3, 50
SLOW_SECONDS = 3.0  # what takes longer than this is timed once

CROPPING = "random crop of image and label map"


@dataclasses.dataclass(frozen=True)
class Inputs:
    """One batch on the device."""

    image: Tensor  # (B, 3, H, W) float32
    labels: Tensor  # (B, H, W) uint8 or int16
    size: tuple[int, int]
    num_classes: int
    ignore_index: int

    @property
    def cells(self) -> int:
        return self.labels.shape[0] * self.size[0] * self.size[1]


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to do a task; ``planes`` is how many full-size float32 label maps it holds at once, at least."""

    name: str
    call: Callable[[], Any]
    remark: str = ""
    planes: float = 0


@dataclasses.dataclass(frozen=True)
class Timing:
    """What came of a way to do a task."""

    task: str
    way: str
    seconds: float | None = None  # median, where it ran
    runs: int = 0
    beside_ours: float | None = None  # the ratio to ours, where it is another's
    remark: str = ""

    def cells(self) -> list[str]:
        """Of its row in the table."""
        remarks = [self.remark, "one run" if self.runs == 1 else ""]
        ratio = "" if self.beside_ours is None else f"{self.beside_ours:.3g}x"
        time = "" if self.seconds is None else f"{1e3 * self.seconds:.2f} ms"
        return [f"  {self.way}", time, ratio, ", ".join(filter(None, remarks))]


def street_batch(
    batch: int, height: int, width: int, num_classes: int, ignore_index: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Street scenes; among more than their 19 classes the ids lie as far apart as they can, fewer are shared."""
    drawn = [scenes.street_scene(height, width, seed) for seed in range(min(batch, 2))]
    image = torch.stack([drawn[n % len(drawn)].image for n in range(batch)]).float() / 255
    ids = torch.stack([drawn[n % len(drawn)].labels for n in range(batch)]).to(torch.int16)
    count = len(scenes.CLASSES)
    spread = ids * (num_classes // count) if num_classes >= count else ids % num_classes
    ids = torch.where(ids == scenes.IGNORE_INDEX, ignore_index, spread)
    return image.to(device), ids.to(device, torch.uint8 if num_classes < 255 else torch.int16)


# --- the tasks -------------------------------------------------------------------------------------------------------


def tasks(inputs: Inputs) -> Iterator[tuple[str, list[Way]]]:
    """Each with our way first."""
    yield "label map to soft label", list(shrinking(inputs))
    if importlib.util.find_spec("kornia") is not None:
        yield CROPPING, list(cropping(inputs))
    yield "loss of the soft label and its gradient", list(soft_losses(inputs))
    yield "loss of the label map and its gradient", list(label_losses(inputs))


def shrinking(inputs: Inputs) -> Iterator[Way]:
    arguments = (inputs.labels, inputs.size, inputs.num_classes, inputs.ignore_index)
    yield Way("ts.soft_resize", functools.partial(soft_resize, *arguments))
    planes = 3 * (inputs.num_classes + 1)  # int64 and float32
    yield Way("one_hot + interpolate(area)", functools.partial(one_hot_interpolate, *arguments), planes=planes)
    nearest = functools.partial(F.interpolate, inputs.labels[:, None].float(), inputs.size)
    yield Way("interpolate(nearest)", nearest, "hard")


def cropping(inputs: Inputs) -> Iterator[Way]:
    import kornia.augmentation as K

    import tritonsoft.augmentation as TA

    keys = ["image", "mask"]
    soft = TA.AugmentationSequential(
        TA.RandomResizedCrop(inputs.size, num_classes=inputs.num_classes, ignore_index=inputs.ignore_index),
        data_keys=keys,
    )
    hard = K.AugmentationSequential(K.RandomResizedCrop(inputs.size), data_keys=keys)
    mask = inputs.labels[:, None].float()
    yield Way("TA.RandomResizedCrop", lambda: soft(inputs.image, inputs.labels))
    yield Way("kornia RandomResizedCrop", lambda: hard(inputs.image, mask), "hard, not antialiased")


def soft_losses(inputs: Inputs) -> Iterator[Way]:
    soft = soft_resize(inputs.labels, inputs.size, inputs.num_classes, inputs.ignore_index)
    logits = logits_of(inputs)
    planes = 3 * logits.numel() / inputs.labels.numel()
    yield Way("ts.soft_cross_entropy", with_gradient(lambda: ts.soft_cross_entropy(logits, soft), logits))
    yield Way(
        "F.cross_entropy(probabilities)",
        with_gradient(lambda: F.cross_entropy(logits, soft), logits),
        "divides by all pixels",
        planes,
    )


def label_losses(inputs: Inputs) -> Iterator[Way]:
    logits = logits_of(inputs)
    ours = with_gradient(lambda: ts.area_cross_entropy(logits, inputs.labels, ignore_index=inputs.ignore_index), logits)
    yield Way("ts.area_cross_entropy", ours)

    def at_full_size() -> Tensor:
        shown = F.interpolate(logits, tuple(inputs.labels.shape[1:]), mode="nearest")
        return F.cross_entropy(shown, inputs.labels.long(), ignore_index=inputs.ignore_index)

    planes = 3 * inputs.num_classes
    yield Way("F.cross_entropy of enlarged logits", with_gradient(at_full_size, logits), planes=planes)


def logits_of(inputs: Inputs) -> Tensor:
    shape = (inputs.labels.shape[0], inputs.num_classes, *inputs.size)
    return torch.randn(shape, device=inputs.labels.device, requires_grad=True)


def with_gradient(loss: Callable[[], Tensor], logits: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    def call() -> tuple[Tensor, Tensor]:
        value = loss()
        return value.detach(), torch.autograd.grad(value, logits)[0]

    return call


# --- timing ----------------------------------------------------------------------------------------------------------


def median_seconds(
    call: Callable[[], Any], device: torch.device, ours: Callable[[], Any] | None = None
) -> tuple[float, int, float | None]:
    """The median of some runs after a warm-up, how many there were, and the median of ours, which takes turns."""
    call()
    times: list[float] = []
    times_of_ours: list[float] = []
    while not times or (times[0] < SLOW_SECONDS and len(times) < FEWEST_RUNS) or sum(times) < SECONDS_PER_ROW:
        if ours is not None:
            times_of_ours.append(seconds_of(ours, device))
        times.append(seconds_of(call, device))
        if len(times) == MOST_RUNS:
            break
    while ours is not None and len(times_of_ours) < FEWEST_RUNS:
        times_of_ours.append(seconds_of(ours, device))
    return statistics.median(times), len(times), statistics.median(times_of_ours) if times_of_ours else None


def bench(
    batch: Annotated[int, typer.Option(help="Images in a batch.")] = 8,
    size: Annotated[str, typer.Option(help="Height x width of images and label maps.")] = "1024x2048",
    classes: Annotated[int, typer.Option(help="Number of classes.")] = 19,
    factor: Annotated[float, typer.Option(help="How much to shrink by; at least 1.")] = 4,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Time this library beside what is written today, on your device and at your shapes, in about a minute."""
    match = re.fullmatch(r"(\d+)x(\d+)", size)
    if match is None or min(map(int, match.groups())) < 8:
        raise typer.BadParameter(f"--size must be HEIGHTxWIDTH, at least 8x8, got {size!r}")
    if batch < 1 or not 1 <= classes <= 2**15 or not 1 <= factor < 2**15:
        raise typer.BadParameter(
            f"--batch must be at least 1, --classes 1 to 32768, --factor at least 1, got {batch}, {classes}, {factor:g}"
        )
    height, width = map(int, match.groups())
    chosen = parse_device(device)
    small = shrunken((height, width), factor)
    needed = 4 * batch * (3 * height * width + 4 * classes * small[0] * small[1])
    needed = max(needed, scenes.BYTES_PER_PIXEL * height * width)
    if needed > free_bytes(chosen):
        fail(
            f"this needs {needed / 1e9:.1f} GB, {free_bytes(chosen) / 1e9:.1f} GB are free: a smaller --batch or --size"
        )
    with working("drawing street scenes"):
        ignore_index = scenes.IGNORE_INDEX if classes <= scenes.IGNORE_INDEX else -1  # where 255 is a class
        image, labels = street_batch(batch, height, width, classes, ignore_index, chosen)
    inputs = Inputs(image, labels, small, classes, ignore_index)
    timings = []
    for task, ways in tasks(inputs):
        for way in ways:
            with working(f"{task}: {way.name}"):
                timings.append(timed(task, way, inputs, None if way is ways[0] else ways[0].call, chosen))
    if importlib.util.find_spec("kornia") is None:
        timings.append(Timing(CROPPING, "", remark="kornia is not installed"))
    backend, _ = ts.backend_info()[str(chosen)]
    if as_json:
        print_json(
            "bench",
            batch=batch,
            size=[height, width],
            small_size=list(small),
            classes=classes,
            device=str(chosen),
            what=describe(chosen),
            backend=backend,
            rows=[dataclasses.asdict(timing) for timing in timings],
        )
        return
    table = table_of(
        f"{batch} x {height}x{width} to {small[0]}x{small[1]}, {classes} classes, float32",
        caption=f"median of {FEWEST_RUNS} to {MOST_RUNS} runs after a warm-up; one run where it takes over "
        f"{SLOW_SECONDS:g} s. Beside ours: over the median of runs of ours in between. "
        f"{describe(chosen)}, backend {backend}, torch {torch.__version__}, tritonsoft "
        f"{ts.__version__}.",
    )
    table.add_column("", no_wrap=True)
    table.add_column("time", justify="right")
    table.add_column("beside ours", justify="right")
    table.add_column("")
    for task, of_task in itertools.groupby(timings, lambda timing: timing.task):
        table.add_row(Text(task, "bold"))
        for timing in of_task:
            table.add_row(*timing.cells())
        table.add_section()
    show(table)


def timed(task: str, way: Way, inputs: Inputs, ours: Callable[[], Any] | None, device: torch.device) -> Timing:
    needed, free = 4 * way.planes * inputs.labels.numel(), free_bytes(device)
    if needed > 0.8 * free:
        return Timing(task, way.name, remark=f"not run: needs over {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
    try:
        seconds, runs, seconds_of_ours = median_seconds(way.call, device, ours)
    except torch.OutOfMemoryError:
        return Timing(task, way.name, remark="out of memory")
    ratio = None if seconds_of_ours is None else seconds / seconds_of_ours
    return Timing(task, way.name, seconds, runs, ratio, way.remark)
