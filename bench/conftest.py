"""Collects the rows of `test_speed`, and at the end prints their table and writes them to ``bench/results/``."""

import importlib.util
from pathlib import Path

import pytest
import torch

from bench import measure, report
from bench.cases import cases
from bench.report import Row

ROWS = pytest.StashKey[list[Row]]()
RESULTS = Path(__file__).parent / "results"


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning:torch")
    config.option.reportchars = "fE"  # the table lists what is missing
    if importlib.util.find_spec("pytest_benchmark") is not None:
        config.option.benchmark_quiet = True  # our own table says it all
    if importlib.util.find_spec("cv2") is not None:
        import cv2

        cv2.setNumThreads(torch.get_num_threads())
    if not torch.cuda.is_available() and Path("/proc/meminfo").exists():
        measure.limit_memory()


@pytest.fixture
def rows(request: pytest.FixtureRequest) -> list[Row]:
    return request.config.stash[ROWS]


def pytest_terminal_summary(exitstatus: int, config: pytest.Config) -> None:
    for device in ("cpu", "cuda"):
        rows = [row for row in config.stash[ROWS] if row.device == device]
        if not rows:
            continue
        report.add_ratios(rows)
        report.print_table(rows, report.machine(device))
        if exitstatus != 0:
            print("not written: the run has failed")
        elif len(rows) != sum(len(case.rivals) for case in cases(device)):
            print("not written: some rows were not selected")
        else:
            path = report.csv_path(RESULTS, report.machine(device))
            report.write_csv(path, rows, report.machine(device))
            print(f"written to {path}")
    if importlib.util.find_spec("pytest_benchmark") is None:
        print("cpu: not timed, pytest-benchmark is not installed")
    if not torch.cuda.is_available():
        print("cuda: not timed, torch sees no device")
