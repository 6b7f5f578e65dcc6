"""How fast a device reads, fills and copies memory, measured by kernels of the same kind as ours.

    python -m bench.rates       what this machine does, without writing it down

On a GPU these are Triton kernels, on a CPU loops of the Numba backend's (where Numba is missing, torch's operations).
Buffers are several times as large as the last cache, and what is filled in is a number that comes at run time.
"""

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench import measure
from bench.floor import Rates, Traffic

LEAST_BYTES = {"cuda": 2**30, "cpu": 2**28}
CACHES = 4  # so many times the last cache at least
ROUNDS = 15  # of a CPU


class Rate(NamedTuple):
    """One kind of access; seconds: lower quartile, median, upper quartile."""

    access: str
    traffic: Traffic
    seconds: tuple[float, float, float]

    @property
    def bytes_per_second(self) -> float:
        return sum(self.traffic) / self.seconds[1]


def last_cache_bytes(device: str) -> int:
    """The size of the largest cache; 0 where the system does not tell."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size)
    files = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    sizes = [re.fullmatch(r"(\d+)([KM])", file.read_text().strip()) for file in files]
    return max((int(size[1]) * {"K": 2**10, "M": 2**20}[size[2]] for size in sizes if size), default=0)


def accesses(device: str, num_bytes: int, value: float = 0.25) -> Iterator[tuple[str, Traffic, Callable[[], Any]]]:
    """What is timed, on two buffers of that many bytes; ``value`` is what they are filled with."""
    source = torch.ones(num_bytes // 4, device=device)
    out = torch.empty_like(source).fill_(2.0)
    reads, writes = Traffic(source.nbytes, 0), Traffic(0, out.nbytes)
    calls: tuple[Callable[[], Any], ...]
    if device == "cuda":
        from bench import memory_kernels as kernels

        sums = torch.empty(kernels.num_blocks(source), device=device)
        launches = (kernels.read(source, sums), kernels.fill(out, value), kernels.copy(source, out))
        calls = tuple(functools.partial(launch.run, source.device) for launch in launches)
    else:
        calls = _on_a_cpu(source, out, value)
    kinds = (("read", reads), ("fill", writes), ("copy", Traffic(source.nbytes, out.nbytes)))
    for (access, traffic), call in zip(kinds, calls, strict=True):
        yield access, traffic, call


def _on_a_cpu(source: Tensor, out: Tensor, value: float) -> tuple[Callable[[], Any], ...]:
    integers = source.view(torch.int64)
    try:
        from bench import memory_loops as loops
    except ModuleNotFoundError:
        return (
            integers.sum,
            functools.partial(out.fill_, value),
            functools.partial(out.copy_, source),
        )
    return (
        functools.partial(loops.read, integers),
        functools.partial(loops.fill, out, value),
        functools.partial(loops.copy, source, out),
    )


@functools.cache
def measured(device: str) -> tuple[Rate, ...]:
    """Read, fill and copy, in turns on a CPU, whose pace changes; once in a process."""
    num_bytes = max(LEAST_BYTES[device], CACHES * last_cache_bytes(device))
    found = list(accesses(device, num_bytes))
    calls = [call for _, _, call in found]
    times = [measure.time_on_device(call) for call in calls] if device == "cuda" else measure.in_turns(calls, ROUNDS)
    quartiles = [measure.quartiles(each) for each in times]
    measured_rates = tuple(
        Rate(access, traffic, (low, median, high))
        for (access, traffic, _), (low, median, high) in zip(found, quartiles, strict=True)
    )
    if device == "cuda":
        del found, calls
        torch.cuda.empty_cache()  # what follows may need it, in other processes too
    return measured_rates


def rates(device: str) -> Rates:
    """Those of this machine."""
    return Rates(**{rate.access: rate.bytes_per_second for rate in measured(device)})


def main() -> None:
    """Print them."""
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        for rate in measured(device):
            low, median, high = (1e3 * each for each in rate.seconds)
            size = max(rate.traffic) / 2**20
            print(
                f"{device} {rate.access}: {rate.bytes_per_second / 1e9:.4g} GB/s, "
                f"{median:.4g} ms ({low:.4g} to {high:.4g}) for {size:.0f} MiB"
            )


if __name__ == "__main__":
    main()
