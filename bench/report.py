"""The results: one CSV per device, and a table to read."""

import csv
import functools
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

import tritonsoft as ts
from bench import measure, rates


@dataclass
class Row:
    """One rival in one case. ``milliseconds`` are None where there is no right answer to time."""

    device: str
    case: str
    rival: str
    bytes_read: int  # at least, for the floor
    bytes_written: int
    # exact, exact for the triangle filter, approximate, hard labels, draws of its own, no answer, WRONG, missing or
    # failed
    answer: str = ""
    error: float | None = None  # largest absolute difference to the reference
    milliseconds: float | None = None  # median
    lower_quartile: float | None = None
    upper_quartile: float | None = None
    ratio: float | None = None  # to ours, which took turns with it: above 1 is slower
    device_milliseconds: float | None = None  # what a GPU does in a call, median
    host_milliseconds: float | None = None  # until a GPU's call returns, median
    peak_bytes: int | None = None  # above the inputs, output included
    floor_milliseconds: float | None = None
    share_of_floor: float | None = None  # the floor over the device's time, on a CPU over all of it
    usual: bool = False  # what most people run today
    note: str = ""  # why missing or failed


@dataclass
class Point:
    """One time on one axis of `test_scaling`."""

    device: str
    operation: str
    base: str  # the case in which the axis is not varied
    axis: str
    value: float
    bytes_read: int
    bytes_written: int
    floor_milliseconds: float
    milliseconds: float  # median


@dataclass
class MemoryRate:
    """How fast memory is read, filled or copied (`bench.rates`)."""

    device: str
    access: str  # read, fill or copy
    bytes_read: int
    bytes_written: int
    milliseconds: float | None  # median
    lower_quartile: float | None
    upper_quartile: float | None
    gigabytes_per_second: float  # a copy's: read and written
    note: str = ""  # where the number is from, if not from this run


@dataclass
class KernelTime:
    """What a GPU does in one call of `bench.gpu_calls`; microseconds."""

    device: str
    kernel: str
    bytes_read: int  # at least, for the floor
    bytes_written: int
    device_microseconds: float  # median
    lower_quartile: float | None
    upper_quartile: float | None
    floor_microseconds: float
    share_of_floor: float
    host_microseconds: float | None  # until the call returns, median
    note: str = ""  # how it was measured, if not by `bench.gpu_kernels`


@dataclass
class Check:
    """What came of a step of `bench.gpu`."""

    device: str
    check: str
    outcome: str  # passed, missing, or failed with an exit code
    seconds: float
    last_line: str  # of its output, or why it is missing


@dataclass
class Overhead:
    """What a call on a few pixels costs on one thread; the counts of one call, the last three on a GPU only."""

    device: str
    call: str
    microseconds: float  # median
    baseline: str
    baseline_microseconds: float  # median
    ratio: float  # median over rounds that time both
    operators: int  # of ours
    kernel_launches: int | None = None
    copies: int | None = None
    synchronizations: int | None = None


@dataclass
class Busy:
    """A call beside processes that keep cores busy; milliseconds are medians where nothing else is said."""

    device: str
    call: str
    spinning_processes: int
    milliseconds: float  # as it is, on as many threads as torch has
    one_thread: float
    openmp: float | None  # always on torch's threads
    own_threads: float | None  # never
    mean: float
    mean_one_thread: float
    ratio: float  # to one thread


@dataclass
class DataSetTime:
    """A way to shrink a data set, on as many threads as torch has, or to read a sample, on one; for each picture."""

    device: str
    data_set: str
    task: str  # shrink or read
    way: str
    pictures: int = 0
    milliseconds: float | None = None  # median
    ratio: float | None = None  # to ours, which took turns with it: above 1 is slower
    image_bytes: float | None = None  # written, on average
    label_bytes: float | None = None
    source_label_bytes: float | None = None  # of the full-size label file
    note: str = ""  # why it is missing


@dataclass(frozen=True)
class Machine:
    """What the numbers hold for: written beside each of them."""

    device_name: str
    threads: int
    backend: str
    copy_gigabytes_per_second: float
    python: str
    torch: str
    triton: str
    numba: str
    numpy: str
    opencv: str
    kornia: str
    monai: str
    commit: str
    date: str


@functools.cache
def machine(device: str) -> Machine:
    """This machine; measures its memory rates at the first call."""
    return Machine(
        device_name=torch.cuda.get_device_name() if device == "cuda" else processor_name(),
        threads=torch.get_num_threads(),
        backend=next(backend for name, (backend, _) in ts.backend_info().items() if name.startswith(device)),
        copy_gigabytes_per_second=round(rates.rates(device).copy / 1e9, 2),
        python=platform.python_version(),
        torch=torch.__version__,
        triton=version_of("triton"),
        numba=version_of("numba"),
        numpy=version_of("numpy"),
        opencv=version_of("opencv-python-headless"),
        kornia=version_of("kornia"),
        monai=version_of("monai"),
        commit=commit(),
        date=date.today().isoformat(),
    )


def version_of(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def processor_name() -> str:
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return f"{model[1] if model else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def commit() -> str:
    """The checkout's commit, with a + where files differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_csv(path: Path, rows: Sequence[Any], machine: Machine) -> None:
    """``rows`` are of one of the dataclasses above."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for kind in (type(rows[0]), Machine) for field in fields(kind)])
        writer.writeheader()
        for row in rows:
            values = {**asdict(row), **asdict(machine)}
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in values.items()})


def add_to_csv(path: Path, rows: Sequence[Row], machine: Machine) -> None:
    """Put the rows of some cases into a file, in the place of those that it has of them; all others stay as they are.

    Every row has the commit and the versions that it holds for.
    """
    with path.open(newline="") as file:
        kept = list(csv.DictReader(file))
    write_csv(path, rows, machine)
    with path.open(newline="") as file:
        added = list(csv.DictReader(file))
    names = list(dict.fromkeys(row["case"] for row in [*kept, *added]))
    replaced = {row["case"] for row in added}
    of_case = [row for row in kept if row["case"] not in replaced] + added
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(added[0]))
        writer.writeheader()
        writer.writerows(sorted(of_case, key=lambda row: names.index(row["case"])))


def csv_path(directory: Path, machine: Machine, suffix: str = "") -> Path:
    return directory / (re.sub(r"[^a-z0-9]+", "-", machine.device_name.lower()).strip("-") + suffix + ".csv")


# --- the table -------------------------------------------------------------------------------------------------------

COLUMNS = ("", "answer", "ms", "spread", "device ms", "host ms", "x ours", "peak MB", "of floor")
WIDTHS = (45, 32, 8, 6, 9, 7, 6, 7, 8)
LEGEND = f"""\
ms: median of warm calls; spread: between the quartiles, over the median. x ours: over the median of rounds of ours
that took turns with this rival's; above 1 is slower. tritonsoft's own line is of all its rounds in the case.
On a GPU, device ms: what its kernels, copies and fills take, by torch's profiler; host ms: until the call returns.
peak MB: above the inputs, the output included. of floor: the least time that memory needs (each source pixel read once
at the read rate, each output written once at the fill rate) over the device's time, on a CPU over ms. An approximate
answer, or hard labels in place of soft ones, are off by up to that much from the area filter. Not timed: DALI and
CV-CUDA, which resize label maps by nearest neighbour alone, on a GPU; torchvision, whose resize is F.interpolate.
{measure.RULES}"""


def cells(row: Row) -> tuple[str, ...]:
    """A row's text under `COLUMNS`."""
    answer = row.answer
    if answer in ("approximate", "hard labels", "WRONG") and row.error is not None:
        answer += f": off by {row.error:.2g}"
    if row.milliseconds is None or row.lower_quartile is None or row.upper_quartile is None:
        return row.rival, f"{answer}: {row.note}" if row.note else answer, *[""] * (len(COLUMNS) - 2)
    return (
        row.rival,
        answer,
        f"{row.milliseconds:.2f}",
        f"{(row.upper_quartile - row.lower_quartile) / row.milliseconds:.0%}",
        "" if row.device_milliseconds is None else f"{row.device_milliseconds:.3f}",
        "" if row.host_milliseconds is None else f"{row.host_milliseconds:.3f}",
        "" if row.ratio is None else f"{row.ratio:.{0 if row.ratio >= 100 else 1 if row.ratio >= 10 else 2}f}",
        "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}",
        "" if row.share_of_floor is None else f"{row.share_of_floor:.0%}",
    )


def print_machine(machine: Machine) -> None:
    """What the tables that follow hold for."""
    print(
        f"\n{machine.device_name}: {machine.threads} threads, backend {machine.backend}, "
        f"copies {machine.copy_gigabytes_per_second:.4g} GB/s (read + written)\n"
        f"Python {machine.python}, torch {machine.torch}, Triton {machine.triton}, Numba {machine.numba}, "
        f"NumPy {machine.numpy}, OpenCV {machine.opencv}, kornia {machine.kornia}, MONAI {machine.monai}; "
        f"commit {machine.commit}, {machine.date}\n"
    )


def print_table(rows: Sequence[Row]) -> None:
    """Grouped by case, ours first; plain text where rich is not installed."""
    for title, group in groupby(rows, key=lambda row: row.case):
        print_lines(title, COLUMNS, WIDTHS, [cells(row) for row in group])
    print(LEGEND)


def memory_rates(device: str) -> list[MemoryRate]:
    """This machine's, as rows."""
    return [
        MemoryRate(
            device,
            rate.access,
            *rate.traffic,
            *(1e3 * rate.seconds[n] for n in (1, 0, 2)),
            gigabytes_per_second=rate.bytes_per_second / 1e9,
        )
        for rate in rates.measured(device)
    ]


def print_rates(rows: Sequence[MemoryRate]) -> None:
    """What the floors of the tables that follow are made of."""
    lines = [
        (
            row.access,
            f"{row.gigabytes_per_second:.4g}",
            f"{max(row.bytes_read, row.bytes_written) / 2**20:.0f}",
            *(
                "" if time is None else f"{time:.3f}"
                for time in (row.milliseconds, row.lower_quartile, row.upper_quartile)
            ),
        )
        for row in rows
    ]
    columns = ("", "GB/s", "MiB", "ms", "lower quartile", "upper quartile")
    print_lines("memory (a copy's rate: read + written)", columns, (6, 8, 6, 8, 14, 14), lines)


def print_points(points: Sequence[Point]) -> None:
    """Scaling: a line for each operation and axis."""
    for (axis, operation), group in groupby(points, key=lambda point: (point.axis, point.operation)):
        lines = [
            (f"{point.value:g}", f"{point.milliseconds:.3f}", f"{point.floor_milliseconds:.3f}") for point in group
        ]
        print_lines(f"{operation} over {axis}", ("", "ms", "floor, ms"), (8, 10, 10), lines)


def print_overheads(overheads: Sequence[Overhead]) -> None:
    """One line for each call."""
    columns = ("", "µs", "baseline", "its µs", "ratio", "operators", "launches", "copies", "waits")
    lines = []
    for row in overheads:
        counts = (row.operators, row.kernel_launches, row.copies, row.synchronizations)
        text = ("" if count is None else str(count) for count in counts)
        times = (f"{row.microseconds:.0f}", row.baseline, f"{row.baseline_microseconds:.0f}", f"{row.ratio:.2f}")
        lines.append((row.call, *times, *text))
    print_lines("calls on a few pixels, one thread", columns, (47, 6, 54, 7, 6, 9, 8, 6, 5), lines)


def print_busy(rows: Sequence[Busy]) -> None:
    """A table for each number of processes."""
    columns = ("", "ms", "one thread", "ratio", "OpenMP", "own", "mean", "of one")
    for spinning, group in groupby(rows, key=lambda row: row.spinning_processes):
        lines = []
        for row in group:
            first = (f"{row.milliseconds:.2f}", f"{row.one_thread:.2f}", f"{row.ratio:.2f}")
            ways = ("" if time is None else f"{time:.2f}" for time in (row.openmp, row.own_threads))
            lines.append((row.call, *first, *ways, f"{row.mean:.2f}", f"{row.mean_one_thread:.2f}"))
        print_lines(f"beside {spinning} spinning processes", columns, (42, 7, 10, 6, 7, 7, 7, 7), lines)


def print_data_sets(rows: Sequence[DataSetTime]) -> None:
    """A table for each data set and task."""
    columns = ("", "ms", "x ours", "image kB", "label kB", "label kB before")
    for (data_set, task), group in groupby(rows, key=lambda row: (row.data_set, row.task)):
        lines = []
        for row in group:
            numbers = (row.milliseconds, row.ratio, *(row.image_bytes, row.label_bytes, row.source_label_bytes))
            scales = (1, 1, 1e3, 1e3, 1e3)
            cells = ("" if x is None else f"{x / scale:.2f}" for x, scale in zip(numbers, scales, strict=True))
            lines.append((f"{row.way}: {row.note}" if row.note else row.way, *cells))
        print_lines(f"{data_set}, {task}, for each picture", columns, (42, 7, 7, 9, 9, 16), lines)


def print_lines(title: str, columns: Sequence[str], widths: Sequence[int], lines: Sequence[tuple[str, ...]]) -> None:
    """A table."""
    try:
        print_rich(title, columns, widths, lines)
    except ModuleNotFoundError:
        print_plain(title, columns, widths, lines)


def print_plain(title: str, columns: Sequence[str], widths: Sequence[int], lines: Sequence[tuple[str, ...]]) -> None:
    print(title)
    for line in (columns, *lines):
        cells = (f"{cell:{'<' if cell == line[0] else '>'}{width}}" for cell, width in zip(line, widths, strict=True))
        print(("  " + "  ".join(cells)).rstrip())
    print()


def print_rich(title: str, columns: Sequence[str], widths: Sequence[int], lines: Sequence[tuple[str, ...]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column, width in zip(columns, widths, strict=True):
        table.add_column(column, justify="left" if column in ("", "answer") else "right", width=width)
    for line in lines:
        style = "green" if line[0] == "tritonsoft" else "red" if line[1].startswith(("WRONG", "failed")) else None
        table.add_row(*line, style=style if style or line[2] else "dim")
    Console(width=sum(widths) + 3 * len(widths)).print(table)
