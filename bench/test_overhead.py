"""What the smallest calls cost: on so few pixels that the time is what the host does, on one thread.

Each stands beside the call that a user would make without this library, on as many pixels, timed in turns with it. For
each, how many of our operators one call runs; on a GPU also how many kernels it launches, copies it makes and
synchronisations the host waits for, as torch's profiler counts them.
"""

import functools
import importlib.util
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.benchmark import Timer

import tritonsoft as ts
from bench import rivals
from bench.report import Overhead
from bench.test_speed import DEVICES

ROUNDS = 7
INTERPOLATE = "F.interpolate(antialias=True)"
ENTROPY = "F.cross_entropy of probabilities, forward + backward"
CROP = "kornia RandomResizedCrop in a container, hard mask"
CHAIN = "kornia crop + flip + resize in a container, hard mask"
OF_PIPELINE = {
    "TA.RandomResizedCrop in a container": "ours",
    CROP: "kornia, hard",
    "TA crop + flip + resize in a container, folded": "our chain",
    CHAIN: "kornia chain",
}
BASELINES = {
    "resize": INTERPOLATE,
    "soft_resize": INTERPOLATE,
    "soft_crop_resize, top_k=4": INTERPOLATE,
    "crop_resize_pair": INTERPOLATE,
    "soft_cross_entropy, forward + backward": ENTROPY,
    "area_cross_entropy, forward + backward": ENTROPY,
    "soft_dice_loss, forward + backward": ENTROPY,
}
if importlib.util.find_spec("kornia") is not None:
    BASELINES |= {
        "TA.RandomResizedCrop in a container": CROP,
        "TA crop + flip + resize in a container, folded": CHAIN,
    }
CALLS = [(device, name) for device, ready in DEVICES.items() if ready for name in BASELINES]


def small_call(device: str, name: str) -> Callable[[], Any]:
    """A call of ours or a baseline: 2 images of 16x16 pixels to 8x8, logits 2 x 19 x 8x8."""
    image = torch.rand(2, 3, 16, 16, device=device)
    labels = torch.randint(19, (2, 16, 16), device=device, dtype=torch.uint8)
    if name in OF_PIPELINE:
        augment = rivals.pipeline(OF_PIPELINE[name], (8, 8), (16, 16), 19)
        return functools.partial(augment, image, labels if name.startswith("TA") else labels[:, None].float())
    boxes = torch.tensor([[1.0, 2.0, 9.0, 10.0]] * 2, device=device)
    logits = torch.randn(2, 19, 8, 8, device=device, requires_grad=True)
    soft = ts.soft_resize(labels, (8, 8), 19)
    calls: dict[str, Callable[[], Any]] = {
        INTERPOLATE: lambda: F.interpolate(image, (8, 8), mode="bilinear", antialias=True),
        ENTROPY: lambda: rivals.with_gradient(F.cross_entropy, logits, soft),
        "resize": lambda: ts.resize(image, (8, 8)),
        "soft_resize": lambda: ts.soft_resize(labels, (8, 8), 19),
        "soft_crop_resize, top_k=4": lambda: ts.soft_crop_resize(labels, boxes, (8, 8), 19, top_k=4),
        "crop_resize_pair": lambda: ts.crop_resize_pair(image, labels, boxes, (8, 8), 19),
        "soft_cross_entropy, forward + backward": lambda: rivals.with_gradient(ts.soft_cross_entropy, logits, soft),
        "area_cross_entropy, forward + backward": lambda: rivals.with_gradient(
            ts.area_cross_entropy, logits, labels, boxes
        ),
        "soft_dice_loss, forward + backward": lambda: rivals.with_gradient(ts.soft_dice_loss, logits, soft),
    }
    return calls[name]


@pytest.mark.parametrize(("device", "name"), CALLS, ids=[f"overhead, {device}: {name}" for device, name in CALLS])
def test_overhead(device: str, name: str, overheads: list[Overhead]) -> None:
    call, baseline = small_call(device, name), small_call(device, BASELINES[name])
    pairs = []
    for _ in range(ROUNDS):  # on a GPU: with what the queue makes the host wait
        timers = [Timer("call()", globals={"call": each}) for each in (call, baseline)]  # on one thread
        pairs.append([1e6 * timer.blocked_autorange(min_run_time=0.05).median for timer in timers])
    ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(mine / other for mine, other in pairs)
    events = events_of(call, device)
    counts = [sum(key.startswith(prefixes) for key in events) for prefixes in (OPERATORS, LAUNCHES, COPIES, WAITS)]
    on_gpu = counts[1:] if device == "cuda" else ()
    overheads.append(Overhead(device, name, ours, BASELINES[name], theirs, ratio, counts[0], *on_gpu))
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
