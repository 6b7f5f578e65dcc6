"""What a GPU takes for each kernel, beside the floor and beside what the committed record says of this device.

    python -m bench.gpu_kernels                     all, into bench/results/<device>-kernels.csv and -rates.csv
    python -m bench.gpu_kernels --only "image"      those whose names hold this; writes nothing
    python -m bench.gpu_kernels --out DIR           the files into another folder

Needs torch, Triton and NumPy. A row is written as soon as it is measured, so a run that is cut keeps what it has.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import floor, measure, rates, report
from bench.gpu_calls import Call, Inputs, calls
from bench.report import KernelTime

COLUMNS = ("", "µs", "floor, µs", "of floor", "host µs", "before, µs", "now/before")
WIDTHS = (38, 9, 9, 8, 8, 10, 10)


def timed(call: Call, device: str) -> KernelTime:
    """One row."""
    function = call.make()
    times = [1e6 * each for each in measure.quartiles(measure.time_on_device(function))]
    least = 1e6 * floor.seconds(call.traffic, rates.rates(device))
    host = 1e6 * measure.quartiles(measure.time_on_host(function))[1]
    return KernelTime(device, call.name, *call.traffic, times[1], times[0], times[2], least, least / times[1], host)


def recorded(path: Path) -> dict[str, tuple[float, str]]:
    """Microseconds and commit of each kernel that a file holds."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {row["kernel"]: (float(row["device_microseconds"]), row["commit"]) for row in csv.DictReader(file)}


def line(row: KernelTime, before: tuple[float, str] | None) -> tuple[str, ...]:
    """Its text under `COLUMNS`."""
    numbers = (
        f"{row.device_microseconds:.1f}",
        f"{row.floor_microseconds:.1f}",
        f"{row.share_of_floor:.0%}",
        f"{row.host_microseconds:.0f}",
    )
    if before is None:
        return row.kernel, *numbers, "", ""
    return row.kernel, *numbers, f"{before[0]:.1f}", f"{row.device_microseconds / before[0]:.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="times the kernels whose names hold this, and writes nothing")
    parser.add_argument("--out", type=Path, default=floor.RESULTS, help="the folder of the files")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("gpu_kernels: torch sees no CUDA or ROCm device")
    machine = report.machine("cuda")
    kept = recorded(report.csv_path(floor.RESULTS, machine, "-kernels"))
    report.print_machine(machine)
    memory = report.memory_rates("cuda")
    report.print_rates(memory)
    rows, lines, failed = [], [], []
    for call in calls(Inputs("cuda")):
        if options.only not in call.name:
            continue
        try:
            rows.append(timed(call, "cuda"))
        except Exception as error:  # the other kernels are still to be measured
            failed.append(f"{call.name}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0][:160]}")
            continue
        lines.append(line(rows[-1], kept.get(call.name)))
        print(*lines[-1], sep="  ", flush=True)
        if not options.only:
            report.write_csv(report.csv_path(options.out, machine, "-kernels"), rows, machine)
            report.write_csv(report.csv_path(options.out, machine, "-rates"), memory, machine)
    print()
    report.print_lines(f"{machine.device_name}, commit {machine.commit}", COLUMNS, WIDTHS, lines)
    if commits := {commit for _, commit in kept.values()}:
        print(f"before: commit {', '.join(sorted(commits))}")
    if failed:
        raise SystemExit("\n".join(["not measured:", *failed]))


if __name__ == "__main__":
    main()
