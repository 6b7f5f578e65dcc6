"""Collects what the tests measured, and at the end prints the tables and writes them to ``bench/results/``."""

import importlib.util
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import floor, measure, report
from bench.cases import cases
from bench.report import Busy, DataSetTime, Overhead, Point, Row
from bench.test_busy import ROWS as BUSY_ROWS
from bench.test_data_sets import ROWS as DATA_SET_ROWS
from bench.test_overhead import CALLS
from bench.test_scaling import POINTS

ROWS = pytest.StashKey[list[Row]]()
SCALING = pytest.StashKey[list[Point]]()
OVERHEADS = pytest.StashKey[list[Overhead]]()
BUSY = pytest.StashKey[list[Busy]]()
DATA_SETS = pytest.StashKey[list[DataSetTime]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", type=Path, default=floor.RESULTS, help="the folder of the benchmark's CSVs")
    parser.addoption("--add", action="store_true", help="put the selected cases of test_speed into their CSV")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS], config.stash[SCALING], config.stash[OVERHEADS], config.stash[BUSY] = [], [], [], []
    config.stash[DATA_SETS] = []
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning:torch")
    config.option.reportchars = "fE"  # the table lists what is missing
    if importlib.util.find_spec("pytest_benchmark") is not None:
        config.option.benchmark_quiet = True  # our own table says it all
    if importlib.util.find_spec("cv2") is not None:
        import cv2

        cv2.setNumThreads(torch.get_num_threads())
    if not torch.cuda.is_available() and Path("/proc/meminfo").exists():
        measure.limit_memory()
    measure.recycle_memory()


@pytest.fixture
def rows(request: pytest.FixtureRequest) -> list[Row]:
    return request.config.stash[ROWS]


@pytest.fixture
def points(request: pytest.FixtureRequest) -> list[Point]:
    return request.config.stash[SCALING]


@pytest.fixture
def overheads(request: pytest.FixtureRequest) -> list[Overhead]:
    return request.config.stash[OVERHEADS]


@pytest.fixture
def busy(request: pytest.FixtureRequest) -> list[Busy]:
    return request.config.stash[BUSY]


@pytest.fixture
def data_sets(request: pytest.FixtureRequest) -> list[DataSetTime]:
    return request.config.stash[DATA_SETS]


def pytest_terminal_summary(exitstatus: int, config: pytest.Config) -> None:
    results = config.getoption("--results")
    for device in ("cpu", "cuda"):
        rows, points, overheads, busy, data_sets = (
            [row for row in config.stash[key] if row.device == device]
            for key in (ROWS, SCALING, OVERHEADS, BUSY, DATA_SETS)
        )
        if rows or points or overheads or busy or data_sets:
            report.print_machine(report.machine(device))
        if rows or points:
            memory = report.memory_rates(device)
            report.print_rates(memory)
        if rows:
            report.print_table(rows)
            selectable = sum(len(case.rivals) for case in cases(device))
            if config.getoption("--add"):
                add(rows, exitstatus, results)
            elif write(rows, "", selectable, exitstatus, results):
                write(memory, "-rates", len(memory), exitstatus, results)
        if points:
            report.print_points(points)
            write(points, "-scaling", sum(point[0] == device for point in POINTS), exitstatus, results)
        if overheads:
            report.print_overheads(overheads)
            write(overheads, "-overhead", sum(call[0] == device for call in CALLS), exitstatus, results)
        if busy:
            report.print_busy(busy)
            write(busy, "-busy", len(BUSY_ROWS), exitstatus, results)
        if data_sets:
            report.print_data_sets(data_sets)
            write(data_sets, "-data-sets", len(DATA_SET_ROWS), exitstatus, results)
    if importlib.util.find_spec("pytest_benchmark") is None:
        print("cpu: not timed, pytest-benchmark is not installed")
    if not torch.cuda.is_available():
        print("cuda: not timed, torch sees no device")


def add(rows: Sequence[Row], exitstatus: int, results: Path) -> None:
    """The cases of which all rows were selected into the CSV, where others stay as they are."""
    selected = Counter(row.case for row in rows)
    whole = {case.title for case in cases(rows[0].device) if selected[case.title] == len(case.rivals)}
    if exitstatus != 0 or not whole:
        print("not added: the run has failed, or no case was selected with all of its rivals\n")
        return
    machine = report.machine(rows[0].device)
    path = report.csv_path(results, machine)
    report.add_to_csv(path, [row for row in rows if row.case in whole], machine)
    print(f"added to {path}: {', '.join(sorted(whole))}\n")


def write(rows: Sequence[Any], suffix: str, selectable: int, exitstatus: int, results: Path) -> bool:
    """One CSV, unless it would be a part of one or hold a wrong answer; returns whether."""
    if exitstatus != 0:
        print("not written: the run has failed\n")
    elif len(rows) != selectable:
        print("not written: some rows were not selected\n")
    else:
        machine = report.machine(rows[0].device)
        path = report.csv_path(results, machine, suffix)
        report.write_csv(path, rows, machine)
        print(f"written to {path}\n")
        return True
    return False
