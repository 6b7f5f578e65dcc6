"""Every training of RESULTS.md: trains what is missing, and writes results.csv and the tables.

    python examples/results.py --data DIR --runs runs [--jobs 2] [--seeds 0 1 2] [--settings f8-tenth ...]

DIR is CamVid as ``train_segmentation.py`` takes it: 11 classes, unlabelled pixels 11. ``--tables-only`` trains nothing.
Rows of the CSV stay where the folder of runs has nothing newer, so a part can be measured again alone.
"""

import argparse
import concurrent.futures
import csv
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from segmentation import CAMVID as CLASSES
from segmentation import LABELS, THIN

HERE = Path(__file__).parent
MARKERS = ("<!-- written by results.py -->", "<!-- end -->")

Row = dict[str, Any]

COMMON = ["--num-classes", "11", "--ignore-index", "11", "--cache", "--batch", "4", "--bf16"]
SETTINGS = {  # factor, every n-th picture, epochs
    "f16-tenth": (16, 10, 120),
    "f16-full": (16, 1, 20),
    "f8-tenth": (8, 10, 120),
    "f8-full": (8, 1, 20),
    "f4-tenth": (4, 10, 60),
    "f4-full": (4, 1, 6),
    "f16-tenth-pretrained": (16, 10, 60),
    "f8-tenth-pretrained": (8, 10, 300),
    "f8-full-pretrained": (8, 1, 60),
}
UNRECORDED = ("f8-tenth-pretrained", "f8-full-pretrained")  # they want a GPU
PORTIONS = {1: "the whole training set", 10: "a tenth of the training set"}
RECIPES = {
    "plain": "",
    "weights+dice": "--class-weights --loss cross-entropy+dice",
    "fixed grid": "--grid fixed",
    "pretrained": "--encoder pretrained",
    "pretrained, fixed grid": "--encoder pretrained --grid fixed",
}
THREE = LABELS[:3]
TRIED = {  # the labels of each recipe
    "f16-tenth": {"plain": THREE, "fixed grid": THREE},
    "f16-full": {"plain": THREE, "fixed grid": THREE},
    "f8-tenth": {"plain": LABELS, "weights+dice": LABELS, "fixed grid": THREE},
    "f8-full": {"plain": LABELS, "weights+dice": LABELS, "fixed grid": THREE},
    "f4-tenth": {"plain": LABELS},
    "f4-full": {"plain": LABELS},
    "f16-tenth-pretrained": {"pretrained": THREE, "pretrained, fixed grid": THREE},
    **dict.fromkeys(UNRECORDED, dict.fromkeys(("pretrained", "pretrained, fixed grid"), (*THREE, "full"))),
}
METRICS = {  # name in the file: heading, factor, digits
    "miou_likeliest": ("mIoU, %", 100, 1),
    "thin_likeliest": ("thin, %", 100, 1),
    "miou_weighted": ("mIoU, weighted, %", 100, 1),
    "thin_weighted": ("thin, weighted, %", 100, 1),
    "nll": ("NLL, nats", 1, 3),
    "calibration_error": ("ECE, %", 100, 1),
    "area_error": ("area error, %", 100, 0),
    "area_error_decoded": ("area error decoded, %", 100, 0),
    "soft_iou": ("soft IoU, %", 100, 1),
    "soft_nll": ("soft NLL, nats", 1, 3),
    "seconds_training": ("training, s, fastest", 1, 0),
}


class Run(NamedTuple):
    """One row of results.csv."""

    setting: str
    labels: str
    recipe: str
    seed: int

    def file(self, folder: Path) -> Path:
        recipe = self.recipe.replace(", ", "-").replace(" ", "-")
        return folder / f"{self.setting}-{self.labels}-{recipe}-{self.seed}.json"

    @property
    def arguments(self) -> list[str]:
        factor, every, epochs = SETTINGS[self.setting]
        setting = f"--factor {factor} --every {every} --epochs {epochs}"
        labels = "--loss upsampled" if self.labels == "full" else f"--labels {self.labels}"
        return f"{labels} --seed {self.seed} {setting} {RECIPES[self.recipe]}".split()


def runs(seeds: Iterable[int], settings: Iterable[str] = tuple(SETTINGS)) -> Iterator[Run]:
    """Seed by seed."""
    for seed in seeds:
        for setting in settings:
            for recipe, tried in TRIED[setting].items():
                for labels in tried:
                    yield Run(setting, labels, recipe, seed)


def train(data: Path, folder: Path, run: Run, threads: int, device: str = "cpu") -> None:
    program = [sys.executable, str(HERE / "train_segmentation.py"), "--data", str(data), "--out", str(run.file(folder))]
    program += ["--device", device]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run([*program, *COMMON, *run.arguments], check=True, env=environment, stdout=subprocess.DEVNULL)
    print(*run, flush=True)


def train_all(data: Path, folder: Path, missing: Iterable[Run], jobs: int, device: str) -> None:
    threads = max((os.cpu_count() or 1) // jobs, 1)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(train, data, folder, run, threads, device) for run in missing]
        for each in concurrent.futures.as_completed(waiting):
            try:
                each.result()
            except subprocess.CalledProcessError as error:  # it has said why
                pool.shutdown(cancel_futures=True)
                raise SystemExit(f"a training ended with exit code {error.returncode}") from None


def gather(folder: Path, kept: Iterable[Row]) -> list[Row]:
    """A row for each run, of those in the folder and of the kept rows."""
    found = {Run(row["setting"], row["labels"], row["recipe"], int(row["seed"])): row for row in kept}
    rows = []
    for run in runs(range(100)):
        if run.file(folder).exists():
            result = json.loads(run.file(folder).read_text())
            for way in ("likeliest", "weighted"):
                result[f"thin_{way}"] = statistics.fmean(result[f"iou_{way}"][index] for index in THIN)
            values = {metric: round(result[metric], 5) for metric in METRICS}
            ious = {f"iou_{each}": round(iou, 5) for each, iou in zip(CLASSES, result["iou_weighted"], strict=True)}
            rows.append({**run._asdict(), **values, **ious})
        elif run in found:
            rows.append(found[run])
    return rows


def tables(rows: list[Row]) -> str:
    """Mean ± standard deviation over the seeds; a metric that a setting's rows lack has no column there."""
    parts = []
    for setting, (factor_of_setting, every, epochs) in SETTINGS.items():
        groups = defaultdict(list)
        for row in rows:
            if row["setting"] == setting:
                groups[row["labels"], row["recipe"]].append(row)
        if not groups:
            continue
        metrics = {
            name: kind
            for name, kind in METRICS.items()
            if all(row.get(name, "") != "" for group in groups.values() for row in group)
        }
        parts += [f"### Factor {factor_of_setting}, {PORTIONS[every]}, {epochs} epochs", ""]
        parts += ["| labels | seeds | " + " | ".join(heading for heading, *_ in metrics.values()) + " |"]
        parts += ["|---" * (len(metrics) + 2) + "|"]
        for (labels, recipe), group in groups.items():
            cells = []
            for metric, (_, factor, digits) in metrics.items():
                values = [factor * float(row[metric]) for row in group]
                if metric == "seconds_training":  # of the run that shared its machine least
                    cells.append(f"{min(values):.0f}")
                    continue
                spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
                cells.append(f"{statistics.fmean(values):.{digits}f}{spread}")
            name = labels if recipe == "plain" else f"{labels}, {recipe}"
            parts.append(f"| {name} | {len(group)} | " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)


def read_csv(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def write_csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)


def write_section(page: Path, section: str, markers: tuple[str, str]) -> None:
    """What stands between the first marker and the next second one."""
    before, rest = page.read_text("utf-8").split(markers[0])
    page.write_text(f"{before}{markers[0]}\n{section}{markers[1]}{rest.split(markers[1], 1)[1]}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="CamVid")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs' results; those there are kept")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    recorded = [setting for setting in SETTINGS if setting not in UNRECORDED]
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=recorded)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tables-only", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    if not arguments.tables_only:
        if arguments.data is None:
            parser.error("--data is needed to train")
        wanted = runs(arguments.seeds, arguments.settings)
        missing = [run for run in wanted if not run.file(arguments.runs).exists()]
        train_all(arguments.data, arguments.runs, missing, arguments.jobs, arguments.device)
    rows = gather(arguments.runs, read_csv(HERE / "results.csv"))
    if not rows:
        parser.error(f"--runs: no results in {arguments.runs}")
    write_csv(HERE / "results.csv", rows)
    write_section(HERE / "RESULTS.md", tables(read_csv(HERE / "results.csv")), MARKERS)


if __name__ == "__main__":
    main()
