"""How long a GPU takes for a kernel, from its machine code: a model of the warps that one scheduler has at a time.

    python -m bench.cost_model      what the model says of the profiled kernels, and of each without having seen it

The warps of a scheduler take turns at what they share: its issue slots, the first cache, the device's memory. Between
turns a warp waits for results of its own. That is a closed queueing network; exact mean value analysis (Reiser and
Lavenberg, 1980) gives its throughput, from all of them waiting (occupancy decides) to one resource that is always busy.
How many warps there are, what they issue and how often they wait is read from the code (`machine_code`).

Two numbers are fitted to the profiles: the latencies of memory and of a cache. How many of the bytes that a kernel asks
for come from a cache is known: all but the first time that each is read. What the model does not see are conflicts of
banks in shared memory, stores of parts of sectors, and tiles that hold more than others.

``bench/results/h100-profiles.csv`` holds the profiles (Nsight Compute), and in the columns that begin with "compiled"
what `machine_code` reads from the kernels of the same commit.
"""

import csv
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from bench.floor import recorded_rates

PROFILES = Path(__file__).parent / "results" / "h100-profiles.csv"
SCHEDULERS = 4  # of a multiprocessor


class Latencies(NamedTuple):
    """Cycles."""

    memory: float
    cache: float


class Device(NamedTuple):
    """The rates as measured on the device that was profiled: of its memory, and its clock under these kernels."""

    multiprocessors: int
    clock: float  # Hz
    read_rate: float  # bytes per second
    fill_rate: float
    latencies: Latencies


_RATES = recorded_rates("nvidia-h100-80gb-hbm3")
H100 = Device(132, 1.97e9, _RATES.read, _RATES.fill, Latencies(450, 150))


class Profiled(NamedTuple):
    """A launch: what each warp does, how many there are, and what must move."""

    instructions: float  # of a warp, like the next five: see `machine_code.Work`
    half_rate: float
    cycles: float
    waits: float
    wavefronts: float
    requested: float
    warps: float  # all
    warps_per_scheduler: float  # at a time
    read: float  # bytes, once
    written: float


def warps_per_scheduler(registers: int, warps_per_program: int, shared: int, shared_of_device: int) -> float:
    """How many warps a scheduler holds at a time: the occupancy."""
    # A scheduler has 16384 registers and hands them out to warps by 256; a program takes 1 KB of shared memory besides.
    by_registers = SCHEDULERS * (16384 // (-(-registers // 8) * 256)) // warps_per_program
    programs = min(32, by_registers, 64 // warps_per_program, shared_of_device // (shared + 1024))
    return programs * warps_per_program / SCHEDULERS


def floor(read: float, written: float, device: Device) -> float:
    """Seconds that the memory needs at least."""
    return read / device.read_rate + written / device.fill_rate


def predict(launch: Profiled, device: Device, latencies: Latencies | None = None) -> float:
    """Seconds."""
    latencies = latencies or device.latencies
    per_scheduler = launch.warps / device.multiprocessors / SCHEDULERS
    first_time = min(1.0, launch.read / (launch.requested * launch.warps))
    latency = first_time * latencies.memory + (1 - first_time) * latencies.cache
    memory = floor(launch.read, launch.written, device) * device.clock / per_scheduler
    shared = [
        max(launch.instructions, 2 * launch.half_rate),  # the issue slots, or the slower pipe
        SCHEDULERS * launch.wavefronts,
        memory,
    ]
    alone = max(0.0, launch.cycles - launch.instructions) + launch.waits * latency
    at_once = max(1, math.floor(min(launch.warps_per_scheduler, math.ceil(per_scheduler))))
    return per_scheduler * _cycles_per_warp(at_once, alone, shared) / device.clock


def _cycles_per_warp(warps: int, alone: float, shared: Sequence[float]) -> float:
    """Mean value analysis: the cycles from one finished warp to the next, given each one's cycles on its own and at
    each shared resource."""
    waiting = [0.0] * len(shared)
    throughput = 0.0
    for present in range(1, warps + 1):
        stays = [cycles * (1 + others) for cycles, others in zip(shared, waiting, strict=True)]
        throughput = present / (alone + sum(stays))
        waiting = [throughput * stay for stay in stays]
    return 1 / throughput


# --- calibration -----------------------------------------------------------------------------------------------------

Profiles = Mapping[str, tuple[Profiled, float]]  # and the measured seconds


def read_profiles() -> Profiles:
    """The profiles of kernels whose code is known."""
    with PROFILES.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["compiled_instructions"]]
    return {
        row["kernel"]: (
            Profiled(*(float(row[f"compiled_{field}"]) for field in Profiled._fields)),
            1e-6 * float(row["microseconds"]),
        )
        for row in rows
    }


def fit(profiles: Sequence[tuple[Profiled, float]]) -> Latencies:
    """The latencies, in steps of 25, with the least sum of errors, as logarithms of ratios."""

    def error(latencies: Latencies) -> float:
        return sum(abs(math.log(predict(launch, H100, latencies) / seconds)) for launch, seconds in profiles)

    steps = itertools.product(range(300, 1000, 25), range(50, 500, 25))
    return min((Latencies(memory, cache) for memory, cache in steps if cache < memory), key=error)


def off_by(launch: Profiled, seconds: float, latencies: Latencies) -> float:
    return predict(launch, H100, latencies) / seconds - 1


def main() -> None:
    """What the model says of the profiled kernels."""
    profiles = read_profiles()
    fitted = fit(list(profiles.values()))
    table = Table(title=f"fitted latencies: memory {fitted.memory}, cache {fitted.cache} cycles")
    for column in ("kernel", "measured us", "predicted is off by", "without having seen it", "latencies then"):
        table.add_column(column, justify="left" if column == "kernel" else "right")
    for name, (launch, seconds) in profiles.items():
        others = fit([profile for other, profile in profiles.items() if other != name])
        errors = (f"{off_by(launch, seconds, latencies):+.0%}" for latencies in (fitted, others))
        table.add_row(name, f"{1e6 * seconds:.0f}", *errors, f"{others.memory}, {others.cache}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
