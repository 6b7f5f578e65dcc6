"""The goals of calls beside others, and of single kernels on an H100, with what was measured.

`between` holds calls to others that were timed in turns with them (`bench.test_speed`): `bench.plot` writes what came
of these on each device into ``docs/benchmarks.md``.

Those of kernels stand beside what the model of costs says of this checkout. Each is a share of the floor
(`bench.floor`) by device time. All numbers come from the CSVs in ``bench/results``: measured ones from
``*-kernels.csv`` (`bench.gpu_kernels`), predicted ones from ``kernel-cost.csv`` (`bench.kernel_cost`), and the model's
error from the kernel of ``h100-profiles.csv`` that is most alike (`bench.cost_model`). `bench.plot` writes the table
into ``docs/gpu.md``.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from bench import cost_model
from bench.floor import RESULTS

DEVICE, TARGET = "nvidia-h100-80gb-hbm3", "sm_90"


class Goal(NamedTuple):
    """A line of the table."""

    call: str  # in ``*-kernels.csv``
    share: float  # of the floor
    cost: str  # its kernel in ``kernel-cost.csv``
    profile: str  # the profiled kernel that is most alike
    maps: float = 1.0  # of those that are predicted for, the share that was measured


class Between(NamedTuple):
    """How many times as long as another rival of its case ours may take."""

    task: str
    other: str
    most: float


_COPY = "a copy of the outputs"
BETWEEN = (
    Between("class crop", "tritonsoft's RandomScaleCrop, the same boxes", 1.3),
    Between("cut mix", _COPY, 1.2),
    Between("mix up", _COPY, 1.2),
    Between("class mix", _COPY, 1.2),
    Between("sparse pipeline", "tritonsoft, the dense chain", 0.5),
    Between("sparse warp pipeline", "tritonsoft, the dense chain", 0.5),
)


def between(rows: Sequence[Mapping[str, str]]) -> str:
    """Markdown: these goals, as far as the rows of a device tell; nothing where they tell of none."""
    lines = ["| call | beside | goal | measured |", "|---|---|---|---|"]
    for goal in BETWEEN:
        for row in rows:
            if row["case"].startswith(f"{goal.task}: ") and row["rival"] == goal.other and row["ratio"]:
                name = row["case"].partition(", ")[0]
                lines.append(f"| {name} | {goal.other} | {goal.most:g}x | {1 / float(row['ratio']):.2g}x |")
    return "\n".join(lines) if len(lines) > 2 else ""


def goals() -> Iterator[Goal]:
    """One for each kernel that has a goal."""
    dense = "soft C=19 k=2"
    for num_classes in (19, 150):
        for factor in (1, 2, 4, 8):
            name = f"soft C={num_classes} k={factor}"
            maps = 0.25 if (num_classes, factor) == (150, 1) else 1.0
            yield Goal(name, 0.9 if factor == 8 else 0.95, f"{name} street", dense, maps)
    yield Goal("soft C=19 boxes", 0.85, "soft C=19 boxes street", "soft C=19 boxes")
    yield Goal("soft C=150 boxes", 0.95, "soft C=150 boxes street", "soft C=19 boxes")
    yield Goal("pair C=19 boxes", 0.8, "pair C=19 boxes street", "soft C=19 boxes")
    yield Goal("image boxes", 0.75, "image boxes", "image boxes")
    for factor in (2, 4):
        yield Goal(f"image k={factor}", 0.9, f"image k={factor}", "image k=2")
    for num_classes in (19, 150):
        for factor, share in (("1.5", 0.8), ("2.7", 0.75)):
            name = f"soft C={num_classes} k={factor}"
            yield Goal(name, share, f"{name} odd width street", "soft C=19 k=2.7")
    for factor, share in (("5.3", 0.6), ("16", 0.5)):
        yield Goal(f"soft C=19 k={factor}", share, f"soft C=19 k={factor} street", "soft C=19 k=2.7")
    yield Goal("image adjoint boxes", 0.7, "image adjoint boxes s=1.5", "image adjoint boxes")
    yield Goal("area loss C=19 k=2", 0.85, "area loss C=19 k=2", "area loss")
    yield Goal("area gradient C=19 k=2", 0.85, "area gradient C=19 k=2", "area gradient")
    yield Goal("overlap C=19 k=2", 0.8, "overlap C=19 k=2", "overlap")
    yield Goal("overlap gradient C=19 k=2", 0.8, "overlap gradient C=19 k=2", "overlap gradient")
    yield Goal("top 4 of C=150 k=4", 0.75, "top 4 of C=150 k=4", dense)


def read(name: str, key: str) -> dict[str, dict[str, str]]:
    """The rows of a file by one of its columns."""
    with (RESULTS / name).open(newline="") as file:
        return {row[key]: row for row in csv.DictReader(file) if row.get("target", TARGET) == TARGET}


def model_errors() -> dict[str, float]:
    """Of each profiled kernel, what the model is off by."""
    profiles = cost_model.read_profiles()
    return {name: cost_model.off_by(*profile, cost_model.H100.latencies) for name, profile in profiles.items()}


def table() -> str:
    """Markdown."""
    measured, costs = read(f"{DEVICE}-kernels.csv", "kernel"), read("kernel-cost.csv", "kernel")
    errors = model_errors()
    commits = ", ".join(sorted({row["commit"] for row in measured.values()}))
    columns = ("call", "goal", "floor", f"measured, commit {commits}", "predicted for this checkout")
    headings = (*columns, "the model's error where one was profiled")
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for goal in goals():
        row = measured[goal.call]
        took, least = float(row["device_microseconds"]), float(row["floor_microseconds"])
        cells = (
            goal.call,
            f"{goal.share:.0%}",
            f"{digits(least)} µs",
            f"{digits(took)} µs: {least / took:.0%}",
            predicted(costs[goal.cost], least, goal.maps),
            f"{errors[goal.profile]:+.0%} ({goal.profile})",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def predicted(row: Mapping[str, str], least: float, maps: float) -> str:
    """Microseconds for the measured maps and the share of the floor, or why there are none."""
    if not row["predicted_us"]:
        return f"– ({row['blind_to']})"
    microseconds = maps * float(row["predicted_us"])
    return f"{digits(microseconds)} µs: {least / microseconds:.0%}"


def digits(microseconds: float) -> str:
    """Three, or all before the point."""
    return f"{microseconds:.3g}" if microseconds < 100 else f"{microseconds:.0f}"
