"""Time and memory of shrinking a label map, here and as it is done today."""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.table import Table
from rich.text import Text
from torch import Tensor

import tritonsoft as ts
from tritonsoft.cli.common import describe, name_of, seconds_of, table_of
from tritonsoft.cli.kept import shrunken
from tritonsoft.cli.pictures import Array

TIMED_RUNS, TIMED_SECONDS = 7, 3.0
RIVAL_BYTES = 2 << 30  # the most that the comparison with one_hot may take
LEAST_BYTES = 1 << 20  # resident memory grows by pages, and each thread counts some of its own before it tells


def soft_resize(labels: Tensor, size: tuple[int, int], num_classes: int, ignore_index: int) -> Tensor:
    return ts.soft_resize(labels, size, num_classes, ignore_index=ignore_index)


def one_hot_interpolate(labels: Tensor, size: tuple[int, int], num_classes: int, ignore_index: int) -> Tensor:
    """What people write today; ignored pixels go to a class of their own, which is dropped."""
    ids = labels.long()  # (B, H, W); a comparison of uint8 with -1 would find 255
    ids = torch.where(ids == ignore_index, num_classes, ids)
    planes = F.one_hot(ids, num_classes + 1)[..., :num_classes].permute(0, 3, 1, 2).float()
    return F.interpolate(planes, size, mode="area")


RIVALS = {"ts.soft_resize": soft_resize, "one_hot + interpolate(area)": one_hot_interpolate}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What each of `RIVALS` costs at one factor, ours first."""

    factor: float
    seconds: list[float]
    peak_bytes: list[int]
    largest_difference: float  # of their masses


def measure_costs(labels: Tensor, factors: Sequence[float], num_classes: int, ignore_index: int) -> list[Cost]:
    """On one label map ``(H, W)``, or on as much of it as `RIVAL_BYTES` allow."""
    labels = measurable(labels, num_classes)
    costs = []
    all_peaks = peak_memory(labels, factors, num_classes, ignore_index)
    for factor, peaks in zip(factors, all_peaks, strict=True):
        arguments = (labels[None], shrunken(labels.shape, factor), num_classes, ignore_index)
        ours, theirs = (rival(*arguments) for rival in RIVALS.values())
        difference = float((ours - theirs).abs().max())
        del ours, theirs
        seconds = median_times([functools.partial(rival, *arguments) for rival in RIVALS.values()], labels.device)
        costs.append(Cost(factor, seconds, peaks, difference))
    return costs


def measurable(labels: Tensor, num_classes: int) -> Tensor:
    return labels[: max(RIVAL_BYTES // (12 * (num_classes + 1) * labels.shape[1]), 1)]


def cost_table(costs: Sequence[Cost], labels: Tensor, num_classes: int) -> Table:
    """What `measure_costs` says of a label map."""
    labels = measurable(labels, num_classes)
    device, (height, width) = labels.device, labels.shape
    backend, _ = ts.backend_info()[str(device)]
    how = (
        "peak of the device's allocator above the inputs"
        if device.type != "cpu"
        else "highest resident memory of a fresh process above what it held with inputs loaded and code compiled"
    )
    table = table_of(
        f"One label map of {height}x{width}, {num_classes} classes, {name_of(labels.dtype)} to float32",
        caption=f"time: median of 3 to {TIMED_RUNS} runs, taking turns, after a warm-up. peak memory, result included: "
        f"{how}. {describe(device)}, backend {backend}, torch {torch.__version__}, tritonsoft {ts.__version__}.",
    )
    table.add_column("factor", justify="right")
    table.add_column()
    for heading in (*RIVALS, "ratio"):
        table.add_column(heading, justify="right")
    for cost in costs:
        times = (f"{1e3 * value:.2f} ms" for value in cost.seconds)
        table.add_row(f"{cost.factor:g}", "time", *times, ratio(*cost.seconds))
        measurable_peaks = all(peak >= LEAST_BYTES for peak in cost.peak_bytes)
        peaks = map(mebibytes, cost.peak_bytes)
        table.add_row("", "peak memory", *peaks, ratio(*cost.peak_bytes) if measurable_peaks else "")
        difference = f"{cost.largest_difference:.2g}"
        table.add_row("", "largest difference", "", difference, "", end_section=cost is not costs[-1])
    return table


def ratio(ours: float, theirs: float) -> Text:
    return Text(f"{theirs / ours:.1f}x", "bold")


def mebibytes(count: int) -> str:
    return "below 1 MiB" if count < LEAST_BYTES else f"{count / 2**20:.1f} MiB"


def median_times(calls: Sequence[Callable[[], object]], device: torch.device) -> list[float]:
    """Seconds of each call, taking turns; the first round warms up."""
    seconds: list[list[float]] = [[] for _ in calls]
    begin = time.perf_counter()
    while len(seconds[0]) < 4 or (len(seconds[0]) <= TIMED_RUNS and time.perf_counter() - begin < TIMED_SECONDS):
        for call, measured in zip(calls, seconds, strict=True):
            measured.append(seconds_of(call, device))
    return [statistics.median(measured[1:]) for measured in seconds]


def peak_memory(labels: Tensor, factors: Sequence[float], num_classes: int, ignore_index: int) -> list[list[int]]:
    """The most bytes that each of `RIVALS` held at once above its inputs, result included, for each factor."""
    classes = num_classes, ignore_index
    if labels.device.type != "cpu":
        return [
            [_peak_device_memory(rival, labels, factor, *classes) for rival in RIVALS.values()] for factor in factors
        ]
    forkserver = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if forkserver else "spawn")
    if forkserver:
        context.set_forkserver_preload(["tritonsoft"])
    # A process is fresh only once: what a first call frees, a second could take without asking the system for more.
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context, max_tasks_per_child=1) as pool:
        jobs = [
            [pool.submit(_peak_resident_memory, rival, labels.numpy(), factor, *classes) for rival in RIVALS.values()]
            for factor in factors
        ]
        return [[job.result() for job in row] for row in jobs]


def _peak_device_memory(rival: Callable[..., Tensor], labels: Tensor, factor: float, *classes: int) -> int:
    memory = torch.cuda if labels.device.type == "cuda" else torch.xpu
    memory.synchronize(labels.device)
    memory.reset_peak_memory_stats(labels.device)
    before = memory.memory_allocated(labels.device)
    rival(labels[None], shrunken(labels.shape, factor), *classes)
    memory.synchronize(labels.device)
    return int(memory.max_memory_allocated(labels.device) - before)


def _peak_resident_memory(rival: Callable[..., Tensor], ids: Array, factor: float, *classes: int) -> int:
    """Runs in a process of its own."""
    labels = torch.from_numpy(ids.copy())
    height, width = ids.shape
    # The warm-up loads and compiles what the call needs, on a corner that divides by the factor if the whole does.
    side = 16 * max(round(factor), 1)
    corner = labels[: side + (height % factor > 0), : side + (width % factor > 0)].contiguous()
    rival(corner[None], shrunken(corner.shape, factor), *classes)
    before = _resident_memory("VmRSS")
    result = rival(labels[None], shrunken(labels.shape, factor), *classes)
    after = _resident_memory("VmHWM")
    del result
    return after - before


def _resident_memory(field: str) -> int:
    """Bytes held now (``VmRSS``, which also starts a new record) or at most since then (``VmHWM``)."""
    status, record = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if record.exists():
        if field == "VmRSS":
            record.write_text("5")  # lowers the high-water mark to the present
        match = re.search(rf"{field}:\s+(\d+) kB", status.read_text())
        assert match is not None
        return int(match.group(1)) * 1024
    import resource  # without Linux's record: the process's maximum, which the small warm-up did not raise much

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
