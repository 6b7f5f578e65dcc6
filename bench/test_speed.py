"""The benchmark: every case of `bench.cases` against every rival of `bench.rivals`, checked, then timed.

    make bench                                        the CPU, and the GPU where there is one
    PYTHONPATH=. python -m pytest bench               the same; a GPU needs torch, Triton and pytest alone
    PYTHONPATH=. python -m pytest bench -k "pair"     some cases: prints their table, writes no CSV
    ... bench/test_speed.py -k "class mix" --add      some cases: puts them into the CSV, where others stay

One test is one row. Its speed is only measured once its answer is right, or marked as approximate.
"""

import collections
import functools
import importlib.util
import time
from typing import Any

import pytest
import torch

from bench import floor, measure, rates
from bench.cases import Case, cases
from bench.floor import Traffic
from bench.report import Row
from bench.rivals import Rival

DEVICES = {
    "cpu": importlib.util.find_spec("pytest_benchmark") is not None,  # its clock; `conftest` says when it is missing
    "cuda": torch.cuda.is_available(),
}
ROWS = [(case, rival) for device, ready in DEVICES.items() if ready for case in cases(device) for rival in case.rivals]


rounds_of_ours: dict[Case, list[float]] = collections.defaultdict(list)  # seconds; a CPU's cases


@functools.lru_cache(maxsize=1)
def arguments_of(case: Case) -> tuple[Any, ...]:
    return case.arguments()


@functools.lru_cache(maxsize=2)
def expected_of(case: Case, filter: str) -> tuple[torch.Tensor, ...]:
    return case.expected(filter)


@pytest.mark.parametrize(
    ("case", "rival"), ROWS, ids=[f"{case.device}: {case.title}: {rival.name}" for case, rival in ROWS]
)
def test_speed(case: Case, rival: Rival, request: pytest.FixtureRequest, rows: list[Row]) -> None:
    row = Row(case.device, case.title, rival.name, *case.traffic(), usual=rival.usual)
    rows.append(row)
    if reason := rival.missing(case.device):
        row.answer, row.note = "missing", reason
        pytest.skip(reason)

    is_ours = rival.name.startswith("tritonsoft")
    arguments, function = arguments_of(case), rival.prepare()
    call = functools.partial(function, *arguments)
    ours = None if rival is case.rivals[0] else functools.partial(case.rivals[0].prepare(), *arguments)
    if ours is not None:
        ours()  # an error of ours is no rival's
    try:
        # The first call: a compiled rival is compiled here.
        with measure.poisoned_outputs():
            result = call()
        row.answer, row.error = measure.judge(rival, case, result, functools.partial(expected_of, case))
        del result
        if row.answer == "WRONG":  # the row says so, without a time
            report_wrong = pytest.fail if is_ours else pytest.skip
            report_wrong(f"the answer is off by {row.error}")
        start = time.perf_counter()
        row.peak_bytes = measure.peak_bytes(call, case.device)
        seconds = time.perf_counter() - start
        if case.device == "cuda":
            times = measure.time_on_gpu(call)
            row.device_milliseconds = 1e3 * measure.quartiles(measure.time_on_device(call))[1]
            row.host_milliseconds = 1e3 * measure.quartiles(measure.time_on_host(call))[1]
            row.ratio = times[1] / measure.time_on_gpu(ours)[1] if ours else 1.0
        else:
            rounds, beside = measure.time_on_cpu(call, request.getfixturevalue("benchmark"), seconds, ours)
            times = measure.quartiles(rounds)
            row.ratio = times[1] / measure.quartiles(beside)[1] if ours else 1.0
            rounds_of_ours[case] += beside if ours else rounds
    except Exception as error:
        row.answer, row.note = "failed", f"{type(error).__name__}: {str(error).strip().splitlines()[0][:80]}"
        if is_ours:
            raise
        pytest.skip(row.note)
    if is_ours:
        with measure.poisoned_outputs():  # in the memory of the timed calls
            answer, error = measure.judge(rival, case, call(), functools.partial(expected_of, case))
        if answer != row.answer:
            row.answer, row.error = answer, error
            pytest.fail(f"the answer is off by {error} after it was timed")
    record(row, times)
    ours_row = next((each for each in rows if each.case == row.case and each.rival == case.rivals[0].name), None)
    if ours is not None and ours_row is not None and rounds_of_ours[case]:
        record(ours_row, measure.quartiles(rounds_of_ours[case]))


def record(row: Row, times: list[float]) -> None:
    """Quartiles in seconds."""
    row.lower_quartile, row.milliseconds, row.upper_quartile = (1e3 * quartile for quartile in times)
    row.floor_milliseconds = 1e3 * floor.seconds(Traffic(row.bytes_read, row.bytes_written), rates.rates(row.device))
    row.share_of_floor = row.floor_milliseconds / (row.device_milliseconds or row.milliseconds)
