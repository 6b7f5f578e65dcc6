"""How one row is checked, timed and weighed.

**Time.** CPU: pytest-benchmark, wall clock. GPU: `triton.testing.do_bench`, CUDA events, the L2 cache cleared before
each round. Both warm, medians with quartiles. A GPU's row has two more times: what the device does for a call, by
torch's profiler, with the caches cleared as well, and what the host does until the call returns. A call on few pixels
takes what the host takes, and only the device's time can be held against the floor. On a CPU a round makes its output
while that of the round before is still alive, and all write to memory that the process had before: tritonsoft keeps
its outputs', and for the rivals the allocator is told to (`recycle_memory`), as it would not outside of the benchmark,
where page faults are half of a large call.

**Beside ours**: a machine's pace changes within a minute, so a rival and ours take turns, round by round, and the ratio
is that of the medians of these rounds. What is said of ours is the median of all rounds of its case. On a GPU ours is
timed again right after the rival.

**Peak memory** is what one warm call adds to what was there before it, its output included. CPU: the process's resident
set, whose high-water mark Linux resets on request, after the allocator has handed its free pages back and tritonsoft
what it keeps. GPU: the caching allocator's count.
"""

import contextlib
import ctypes
import math
import re
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.cases import LOSSES, Case
from bench.rivals import Rival
from tritonsoft import memory

SECONDS_PER_ROW = 0.7
MOST_ROUNDS, FEWEST_ROUNDS = 30, 3
ONE_ROUND_ABOVE_SECONDS = 3.0
FEWEST_OF_OURS = 5  # rounds of ours beside a rival's
RULES = (
    f"Rounds: {SECONDS_PER_ROW:g} s worth of them, {FEWEST_ROUNDS} to {MOST_ROUNDS}; "
    f"a rival whose warm call takes more than {ONE_ROUND_ABOVE_SECONDS:g} s is timed once."
)


def tolerance(case: Case) -> float:
    """How far an exact answer may be from the reference.

    float32: a coordinate as the product of two float32, as `F.interpolate` has it. Others: four roundings, of two
    weights, the line between and the result.
    """
    if not case.dtype.is_floating_point:
        return 0.0
    if case.dtype == torch.float32:
        return max(case.source) * torch.finfo(torch.float32).eps
    # torch computes a loss of up to 8 in half precision as the difference of two such numbers.
    return (16 if case.task in LOSSES else 2) * torch.finfo(case.dtype).eps


def judge(
    rival: Rival, case: Case, result: Any, expected: Callable[[str], tuple[Tensor, ...]]
) -> tuple[str, float | None]:
    """What a result is worth, and its largest error; ``expected`` gives the reference's outputs with a filter."""
    if rival.computes == "fills":
        return "no answer", None
    if rival.computes == "draws":
        return "draws of its own", None
    filter = "triangle" if rival.computes == "triangle" else "area"
    error = largest_error(rival.decode(result, case.num_classes), expected(filter))
    if rival.computes in ("approximates", "hardens"):
        return "approximate" if rival.computes == "approximates" else "hard labels", error
    if not error <= tolerance(case):  # NaN is wrong too
        return "WRONG", error
    return ("exact" if filter == "area" else f"exact, {filter}"), error


@contextlib.contextmanager
def poisoned_outputs() -> Iterator[None]:
    """Our outputs start as NaN: an element that a kernel skips is then wrong, whatever was there before."""
    allocate = memory.empty

    def poisoned(*arguments: Any) -> Tensor:
        output = allocate(*arguments)
        return output.fill_(math.nan if output.is_floating_point() else 77)

    memory.empty = poisoned
    try:
        yield
    finally:
        memory.empty = allocate


def outputs(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def largest_error(result: Any, expected: tuple[Tensor, ...]) -> float:
    """The largest difference, relative for numbers above 1; NaN where an element was never written."""
    for got, want in zip(outputs(result), expected, strict=True):
        if got.shape != want.shape:
            return math.inf
    errors = [
        ((a.float() - b.float()).abs() / b.float().abs().clamp(min=1)).max()  # by sample: float copies are large
        for got, want in zip(outputs(result), expected, strict=True)
        for a, b in zip(got, want, strict=True)
    ]
    return float(torch.stack(errors).max())


def time_on_gpu(call: Callable[[], Any]) -> list[float]:
    """Seconds: lower quartile, median, upper quartile."""
    from triton.testing import do_bench

    return [milliseconds / 1e3 for milliseconds in do_bench(call, quantiles=[0.25, 0.5, 0.75])]


DEVICE_ROUNDS, HOST_ROUNDS = 10, 20


def time_on_device(call: Callable[[], Any], rounds: int = DEVICE_ROUNDS) -> list[float]:
    """Seconds that kernels, copies and fills of each call run on a GPU, one after the other."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    from bench import memory_kernels

    larger_than_caches = torch.empty(2**26, device="cuda")  # 256 MB
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for number in range(rounds):
            memory_kernels.clear_caches(larger_than_caches, float(number)).run(larger_than_caches.device)
            call()
        torch.cuda.synchronize()
    events = [
        (event.name, event.time_range.start, 1e-6 * event.time_range.elapsed_us())
        for event in profiler.events()
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    found = sums_after(events, memory_kernels.clear_caches_kernel.__name__)
    if len(found) != rounds:
        raise RuntimeError(f"the profiler saw {len(found)} of {rounds} calls")
    return found


def sums_after(events: Iterable[tuple[str, float, float]], mark: str) -> list[float]:
    """The durations of events (name, start, duration) after each one of the marked name, added up."""
    sums: list[float] = []
    for name, _, duration in sorted(events, key=lambda event: event[1]):
        if name == mark:
            sums.append(0.0)
        elif sums:
            sums[-1] += duration
    return sums


def time_on_host(call: Callable[[], Any], rounds: int = HOST_ROUNDS) -> list[float]:
    """Seconds until each call returns, on a GPU that has nothing to do before."""
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
        del result
    torch.cuda.synchronize()
    return times


def in_turns(calls: Sequence[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Seconds of each call, which take turns after one of each that is not counted."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 1):
        for call, of_call in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if number:
                of_call.append(time.perf_counter() - start)
    return times


def time_on_cpu(
    call: Callable[[], Any], benchmark: Any, seconds: float, ours: Callable[[], Any] | None = None
) -> tuple[list[float], list[float]]:
    """Seconds of every round, and of ``ours``, called before every round.

    ``seconds`` is what one warm call took.
    """
    rounds = min(max(int(SECONDS_PER_ROW / seconds), FEWEST_ROUNDS), MOST_ROUNDS)
    rounds = 1 if seconds > ONE_ROUND_ABOVE_SECONDS else rounds
    times_of_ours: list[float] = []

    def take_turns() -> None:
        for _ in range(-(-FEWEST_OF_OURS // rounds) if ours else 0):
            start = time.perf_counter()
            result = ours()
            times_of_ours.append(time.perf_counter() - start)
            del result

    benchmark.pedantic(call, setup=take_turns, rounds=rounds)
    return list(benchmark.stats.stats.data), times_of_ours


def quartiles(times: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3


def peak_bytes(call: Callable[[], Any], device: str) -> int | None:
    """Peak memory of a warm call above what was there before; None where the system does not tell."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        call()
        return None
    memory.empty_pool()
    ctypes.CDLL(None).malloc_trim(0)
    reset.write_text("5")
    before = _status_bytes("VmRSS")
    call()
    return max(_status_bytes("VmHWM") - before, 0)


def recycle_memory() -> None:
    """Keep the C library's allocator from giving memory back: rivals' outputs then cost no page faults, as ours."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # of malloc.h
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_max, 0)


def limit_memory() -> None:
    """Let a rival that needs more memory than there is fail by itself, instead of the machine killing the benchmark."""
    available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    if available is not None:
        limit = _status_bytes("VmSize") + int(available[1]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _status_bytes(field: str) -> int:
    line = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert line is not None
    return int(line[1]) * 1024
