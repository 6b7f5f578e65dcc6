"""The least time that memory needs for a call: bytes read / read rate + bytes written / fill rate.

Read once is what a call must look at (each source pixel of a box, each logit), written once is what it gives. Writing
alone is faster than copying, so a copy's rate would flatter a kernel that writes more than it reads.

The rates are those of a device, measured by kernels of the same kind as ours (`bench.rates`). Each run of the benchmark
writes them into ``bench/results/<device>-rates.csv``, with what they hold for.
"""

import csv
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).parent / "results"


class Traffic(NamedTuple):
    """Bytes."""

    read: int
    written: int


class Rates(NamedTuple):
    """Bytes per second; a copy's are those that it reads and those that it writes."""

    read: float
    fill: float
    copy: float


def seconds(traffic: Traffic, rates: Rates) -> float:
    """The floor."""
    return traffic.read / rates.read + traffic.written / rates.fill


def recorded_rates(device: str, results: Path = RESULTS) -> Rates:
    """What a file holds; ``device`` is how the names of the device's files begin."""
    with (results / f"{device}-rates.csv").open(newline="") as file:
        rates = {row["access"]: 1e9 * float(row["gigabytes_per_second"]) for row in csv.DictReader(file)}
    return Rates(**rates)
