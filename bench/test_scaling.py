"""How time grows, and what the smallest call costs.

**Scaling**: from one base case, one of classes, factor, batch and size changes at a time; beside the time stand the
bytes of the floor (see `bench.cases`), whose slope ours should have.

**Overhead**: calls on a few pixels, whose time is what the host does. For each, how many of our operators one call
runs; on a GPU also how many kernels it launches, copies it makes and synchronisations the host waits for, as torch's
profiler counts them.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.utils.benchmark import Timer

import tritonsoft as ts
from bench import measure, rivals
from bench.cases import Case
from bench.report import Overhead, Point
from bench.test_speed import DEVICES

AXES: dict[str, Sequence[float]] = {
    "classes": (2, 4, 9, 19, 38, 76, 152, 247),
    "factor": (1, 2, 2.7, 4, 5.3, 8, 16),
    "batch": (1, 2, 4, 8, 16),
    "height of the label map": (128, 256, 512, 1024, 2048),
}
OPERATIONS: dict[str, tuple[Any, Callable[..., Any]]] = {
    "soft_resize": ("shrink labels", functools.partial(rivals.our_labels, "area")),
    "area_cross_entropy, forward + backward": (
        "area cross entropy",
        functools.partial(rivals.with_gradient, ts.area_cross_entropy),
    ),
}


def base(device: str, task: Any) -> Case:
    if device == "cpu":
        return Case(task, device, torch.float32, 2, (1024, 2048), 4)
    return Case(task, device, torch.float16, 16, (1024, 2048), 4)


def varied(case: Case, axis: str, value: float) -> Case:
    if axis == "classes":
        return dataclasses.replace(case, num_classes=int(value))
    if axis == "factor":
        return dataclasses.replace(case, factor=value)
    if axis == "batch":
        return dataclasses.replace(case, batch=int(value))
    return dataclasses.replace(case, source=(int(value), 2 * int(value)))


POINTS = [
    (device, axis, operation, value)
    for device, ready in DEVICES.items()
    if ready
    for axis, values in AXES.items()
    for operation in OPERATIONS
    for value in values
]


@pytest.mark.parametrize(
    ("device", "axis", "operation", "value"), POINTS, ids=[", ".join(map(str, point)) for point in POINTS]
)
def test_scaling(
    device: str, axis: str, operation: str, value: float, request: pytest.FixtureRequest, points: list[Point]
) -> None:
    task, function = OPERATIONS[operation]
    start = base(device, task)
    case = varied(start, axis, value)
    call = functools.partial(function, *case.arguments())
    call()
    if device == "cuda":
        times = measure.time_on_gpu(call)
    else:
        rounds, _ = measure.time_on_cpu(call, request.getfixturevalue("benchmark"), measure.SECONDS_PER_ROW / 10)
        times = measure.quartiles(rounds)
    title = start.title.partition(": ")[2]
    points.append(Point(device, operation, title, axis, value, case.floor_bytes(), 1e3 * times[1]))


WITH_KORNIA = {
    "TA.RandomResizedCrop in a container": "ours",
    "TA crop + flip + resize in a container, folded": "our chain",
    "kornia RandomResizedCrop in a container, hard mask": "kornia, hard",
    "kornia crop + flip + resize in a container, hard mask": "kornia chain",
}
NAMES = [
    "resize",
    "soft_resize",
    "soft_crop_resize, top_k=4",
    "crop_resize_pair",
    "soft_cross_entropy, forward + backward",
    "area_cross_entropy, forward + backward",
    *(WITH_KORNIA if importlib.util.find_spec("kornia") is not None else ()),
]
CALLS = [(device, name) for device, ready in DEVICES.items() if ready for name in NAMES]


def overhead_call(device: str, name: str) -> Callable[[], Any]:
    """A call on so few pixels that nothing else takes time."""
    image = torch.rand(2, 3, 16, 16, device=device)
    labels = torch.randint(19, (2, 16, 16), device=device, dtype=torch.uint8)
    if name in WITH_KORNIA:
        augment = rivals.pipeline(WITH_KORNIA[name], (8, 8), (16, 16), 19)
        return functools.partial(augment, image, labels if name.startswith("TA") else labels[:, None].float())
    boxes = torch.tensor([[1.0, 2.0, 9.0, 10.0]] * 2, device=device)
    logits = torch.randn(2, 19, 8, 8, device=device, requires_grad=True)
    soft = ts.soft_resize(labels, (8, 8), 19)
    calls: dict[str, Callable[[], Any]] = {
        "resize": lambda: ts.resize(image, (8, 8)),
        "soft_resize": lambda: ts.soft_resize(labels, (8, 8), 19),
        "soft_crop_resize, top_k=4": lambda: ts.soft_crop_resize(labels, boxes, (8, 8), 19, top_k=4),
        "crop_resize_pair": lambda: ts.crop_resize_pair(image, labels, boxes, (8, 8), 19),
        "soft_cross_entropy, forward + backward": lambda: rivals.with_gradient(ts.soft_cross_entropy, logits, soft),
        "area_cross_entropy, forward + backward": lambda: rivals.with_gradient(
            ts.area_cross_entropy, logits, labels, boxes
        ),
    }
    return calls[name]


@pytest.mark.parametrize(("device", "name"), CALLS, ids=[f"overhead, {device}: {name}" for device, name in CALLS])
def test_overhead(device: str, name: str, overheads: list[Overhead]) -> None:
    call = overhead_call(device, name)
    for _ in range(3):
        call()
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    seconds = timer.blocked_autorange(min_run_time=0.3).median  # on a GPU: with what the queue makes the host wait
    events = events_of(call, device)
    counts = [sum(key.startswith(prefixes) for key in events) for prefixes in (OPERATORS, LAUNCHES, COPIES, WAITS)]
    overheads.append(Overhead(device, name, 1e6 * seconds, counts[0], *(counts[1:] if device == "cuda" else ())))
    if "folded" in name:
        assert counts[0] == 1


OPERATORS = "tritonsoft::"
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "hipLaunchKernel", "hipModuleLaunchKernel")
COPIES = ("cudaMemcpy", "hipMemcpy")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "hipStreamSynchronize")


def events_of(call: Callable[[], Any], device: str) -> list[str]:
    """The names of what torch's profiler sees in one call; it waits for the device itself, before and after."""
    from torch.profiler import ProfilerActivity, profile, record_function

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiler, record_function("the call"):
        call()
    events = profiler.events()
    whole = next(event.time_range for event in events if event.name == "the call")
    return [event.name for event in events if whole.start <= event.time_range.start <= whole.end]
