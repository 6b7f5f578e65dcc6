"""All that waits for a GPU, in one command.

    make gpu                                     installs what it needs first
    PYTHONPATH=. python3 -m bench.gpu            a bare checkout with torch, Triton and pytest
    ... --steps kernels tests --out DIR          some of it, its files into another folder

The steps, each a process of its own, so that one that fails costs the others nothing:

* kernels: device and host time of every kernel beside the floor, and beside the committed record (`bench.gpu_kernels`)
* tests: the comparisons with the reference on this device, on eight processes where pytest-xdist is installed
* sanitizer: every kernel under compute-sanitizer's memory check, where there is one
* overhead: what the smallest calls cost the host, and how many kernels and waits they are
* rivals: the whole benchmark (many minutes; only where it is asked for)

What came of each, with the device's name and versions, is written to ``bench/results/<device>-checks.csv``, the steps'
whole output beside it as ``.txt`` files that git ignores.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from bench import floor, report
from bench.report import Check

PROCESSES = 8
PYTHON, ROOT = sys.executable, Path(__file__).parents[1]


class Step(NamedTuple):
    """A command; ``missing`` says why it cannot run."""

    command: Sequence[str]
    environment: Mapping[str, str] = {}
    missing: str = ""


def steps(out: Path) -> dict[str, Step]:
    """All of them, in the order in which they run."""
    parallel = ["-n", str(PROCESSES)] if importlib.util.find_spec("xdist") is not None else []
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    pytest = [PYTHON, "-m", "pytest", "-q"]
    return {
        "kernels": Step([PYTHON, "-m", "bench.gpu_kernels", "--out", str(out)]),
        "tests": Step([*pytest, *parallel, "-m", "gpu"]),
        "sanitizer": Step(
            [sanitizer or "", "--tool", "memcheck", "--error-exitcode", "1", PYTHON, "-m", "bench.sanitize"],
            {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            "" if sanitizer else "compute-sanitizer is not installed",
        ),
        "overhead": Step([*pytest, "bench/test_overhead.py", "-k", "cuda", f"--results={out}"]),
        "rivals": Step([*pytest, "bench/test_speed.py", "bench/test_scaling.py", "-k", "cuda", f"--results={out}"]),
    }


def run(name: str, step: Step, log: Path) -> Check:
    """One step; its output goes to the terminal and to a file."""
    if step.missing:
        return Check("cuda", name, "missing", 0.0, step.missing)
    print(f"\n--- {name}: {' '.join(step.command)}", flush=True)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, **step.environment, "PYTHONPATH": path}
    start, last = time.perf_counter(), ""
    with log.open("w") as file:
        process = subprocess.Popen(
            step.command, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for line in process.stdout or ():
            print(line, end="", flush=True)
            file.write(line)
            file.flush()
            last = line.strip() or last
    outcome = "passed" if process.wait() == 0 else f"failed with exit code {process.returncode}"
    return Check("cuda", name, outcome, time.perf_counter() - start, last)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the steps; fails where one of them does."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = list(steps(floor.RESULTS))
    usual = [name for name in names if name != "rivals"]
    parser.add_argument("--steps", nargs="+", choices=names, default=usual, help=f"default: {' '.join(usual)}")
    parser.add_argument("--out", type=Path, default=floor.RESULTS, help="the folder of the files")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("gpu: torch sees no CUDA or ROCm device")
    options.out.mkdir(parents=True, exist_ok=True)
    out = options.out.resolve()
    machine = report.machine("cuda")
    checks = []
    for name, step in steps(out).items():
        if name in options.steps:
            checks.append(run(name, step, report.csv_path(out, machine, f"-{name}").with_suffix(".txt")))
            report.write_csv(report.csv_path(out, machine, "-checks"), checks, machine)
    print()
    for check in checks:
        print(f"{check.check}: {check.outcome} ({check.seconds:.0f} s): {check.last_line}")
    if any(check.outcome.startswith("failed") for check in checks):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
