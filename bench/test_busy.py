"""What a call takes where other processes keep the cores busy, as data loaders do in every training run.

As many threads as torch has beside one (``torch.set_num_threads(1)``), and beside what was not chosen: always torch's
OpenMP threads, or always our own. All take turns of some calls each, since a machine's pace changes within a minute. A
process that spins asks for nothing but its core.
"""

import contextlib
import functools
import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import tritonsoft as ts
from bench import rivals
from bench.cases import Case
from bench.report import Busy
from bench.test_speed import DEVICES

SECONDS_PER_ROW = 3.0
SECONDS_PER_TURN = 0.06
SPIN = """
import os
parent = os.getppid()
while os.getppid() == parent:  # not beyond the benchmark
    for _ in range(100_000):
        pass
"""
NAMES = [
    "soft_resize by 2",
    "soft_resize by 4",
    "soft_resize by 8",
    "crop_resize",
    "soft_cross_entropy, forward + backward",
    "F.interpolate by 2, then soft_resize by 2",
    "F.interpolate by 2",
]
READY = DEVICES["cpu"] and importlib.util.find_spec("numba") is not None
ROWS = [(name, spinning) for spinning in range(4) for name in NAMES] if READY else []


@functools.cache
def busy_call(name: str) -> Callable[[], Any]:
    """A call on two street scenes of 1024 x 2048 and 19 classes."""
    factor = 2 if "by 2" in name else 8 if "by 8" in name else 4
    (labels,) = Case("shrink labels", "cpu", torch.float32, 2, (1024, 2048), factor).arguments()[:1]
    image, size = torch.rand(2, 3, 1024, 2048), (1024 // factor, 2048 // factor)
    boxes = torch.tensor([[100.5, 50.25, 1600.5, 900.75], [300.0, 10.0, 2000.0, 1000.0]])
    soft = ts.soft_resize(labels, size, 19)
    logits = torch.randn(soft.shape, requires_grad=True)
    resize_labels = functools.partial(ts.soft_resize, labels, size, 19)
    interpolate = functools.partial(F.interpolate, image, size, mode="bilinear", antialias=True)
    if name.startswith("F.interpolate"):
        return (lambda: (interpolate(), resize_labels())) if "then" in name else interpolate
    if name.startswith("soft_resize"):
        return resize_labels
    if name == "crop_resize":
        return functools.partial(ts.crop_resize, image, boxes, (512, 1024))
    return functools.partial(rivals.with_gradient, ts.soft_cross_entropy, logits, soft)


@contextlib.contextmanager
def processes(number: int) -> Iterator[None]:
    """That many processes beside, each of which spins."""
    started = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(number)]
    try:
        time.sleep(0.3 if started else 0)
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


@contextlib.contextmanager
def way(name: str) -> Iterator[None]:
    """One of the ways to run a call."""
    from tritonsoft.backends.numba.threads import pool

    num_threads = torch.get_num_threads()
    patch = pytest.MonkeyPatch()
    if name != "chosen":
        patch.setattr(pool, "_team_is_running", lambda num_threads: name == "openmp")
    torch.set_num_threads(1 if name == "one_thread" else num_threads)
    try:
        yield
    finally:
        patch.undo()
        torch.set_num_threads(num_threads)


@pytest.mark.parametrize(("name", "spinning"), ROWS, ids=[f"busy, {spinning}: {name}" for name, spinning in ROWS])
def test_busy(name: str, spinning: int, busy: list[Busy]) -> None:
    call = busy_call(name)
    names = ["chosen", "one_thread", *([] if name == "F.interpolate by 2" else ["openmp", "own_threads"])]
    times: dict[str, list[float]] = {each: [] for each in names}
    with processes(spinning):
        end = time.perf_counter() + SECONDS_PER_ROW
        while time.perf_counter() < end or len(times[names[0]]) < 10:
            for each in names:
                with way(each):
                    call()
                    end_of_turn = time.perf_counter() + SECONDS_PER_TURN
                    while True:
                        start = time.perf_counter()
                        result = call()
                        times[each].append(time.perf_counter() - start)
                        del result
                        if time.perf_counter() > end_of_turn:
                            break
    medians = {each: 1e3 * statistics.median(of_each) for each, of_each in times.items()}
    means = {each: 1e3 * statistics.fmean(of_each) for each, of_each in times.items()}
    busy.append(
        Busy(
            "cpu",
            name,
            spinning,
            medians["chosen"],
            medians["one_thread"],
            medians.get("openmp"),
            medians.get("own_threads"),
            means["chosen"],
            means["one_thread"],
            medians["chosen"] / medians["one_thread"],
        )
    )
