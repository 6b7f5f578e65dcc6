"""Every run of RESULTS.md: trains what is missing, and writes results.csv and the tables.

    python examples/results.py --data DIR --runs runs [--jobs 2] [--seeds 0 1 2] [--tables-only]

DIR is CamVid as ``train_segmentation.py`` takes it: 11 classes, unlabelled pixels 11.
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
from typing import NamedTuple

HERE = Path(__file__).parent
LABELS = ("soft", "nearest", "torch-nearest", "majority")
CLASSES = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
THIN = [CLASSES.index(name) for name in ("pole", "sign", "pedestrian", "bicyclist")]
COMMON = ["--num-classes", "11", "--ignore-index", "11", "--cache", "--device", "cpu", "--batch", "4", "--bf16"]
SETTINGS = {  # factor, every n-th picture, epochs
    "f8-tenth": (8, 10, 120),
    "f8-full": (8, 1, 20),
    "f4-tenth": (4, 10, 60),
    "f4-full": (4, 1, 6),
}
PORTIONS = {1: "the whole training set", 10: "a tenth of the training set"}
RECIPES = {"plain": "", "weights+dice": "--class-weights --loss cross-entropy+dice"}
TRIED = {"f8-tenth": ("plain", "weights+dice"), "f8-full": ("plain", "weights+dice")}
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
    "seconds_training": ("training, s, fastest", 1, 0),
}
MARKERS = ("<!-- written by results.py -->", "<!-- end -->")


class Run(NamedTuple):
    """One row of results.csv."""

    setting: str
    labels: str
    recipe: str
    seed: int

    def file(self, folder: Path) -> Path:
        return folder / f"{self.setting}-{self.labels}-{self.recipe}-{self.seed}.json"

    @property
    def arguments(self) -> list[str]:
        factor, every, epochs = SETTINGS[self.setting]
        setting = f"--factor {factor} --every {every} --epochs {epochs}"
        return f"--labels {self.labels} --seed {self.seed} {setting} {RECIPES[self.recipe]}".split()


def runs(seeds: Iterable[int]) -> Iterator[Run]:
    """Seed by seed."""
    for seed in seeds:
        for setting in SETTINGS:
            for recipe in TRIED.get(setting, ("plain",)):
                for labels in LABELS:
                    yield Run(setting, labels, recipe, seed)


def train(data: Path, folder: Path, run: Run, threads: int) -> None:
    program = [sys.executable, str(HERE / "train_segmentation.py"), "--data", str(data), "--out", str(run.file(folder))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run([*program, *COMMON, *run.arguments], check=True, env=environment, stdout=subprocess.DEVNULL)
    print(*run, flush=True)


def gather(folder: Path) -> list[dict[str, str | float]]:
    rows = []
    for run in runs(range(100)):
        if run.file(folder).exists():
            result = json.loads(run.file(folder).read_text())
            for way in ("likeliest", "weighted"):
                result[f"thin_{way}"] = statistics.fmean(result[f"iou_{way}"][index] for index in THIN)
            values = {metric: round(result[metric], 5) for metric in METRICS}
            ious = {f"iou_{each}": round(iou, 5) for each, iou in zip(CLASSES, result["iou_weighted"], strict=True)}
            rows.append({**run._asdict(), **values, **ious})
    return rows


def tables(rows: list[dict[str, str | float]]) -> str:
    """Mean ± standard deviation over the seeds."""
    parts = []
    for setting, (factor_of_setting, every, epochs) in SETTINGS.items():
        groups = defaultdict(list)
        for row in rows:
            if row["setting"] == setting:
                groups[row["labels"], row["recipe"]].append(row)
        parts += [f"### Factor {factor_of_setting}, {PORTIONS[every]}, {epochs} epochs", ""]
        parts += ["| labels | seeds | " + " | ".join(heading for heading, *_ in METRICS.values()) + " |"]
        parts += ["|---" * (len(METRICS) + 2) + "|"]
        for (labels, recipe), group in groups.items():
            cells = []
            for metric, (_, factor, digits) in METRICS.items():
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="CamVid")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs' results; those there are kept")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tables-only", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    if not arguments.tables_only:
        if arguments.data is None:
            parser.error("--data is needed to train")
        threads = max((os.cpu_count() or 1) // arguments.jobs, 1)
        missing = [run for run in runs(arguments.seeds) if not run.file(arguments.runs).exists()]
        with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
            waiting = [pool.submit(train, arguments.data, arguments.runs, run, threads) for run in missing]
            for each in concurrent.futures.as_completed(waiting):
                try:
                    each.result()
                except subprocess.CalledProcessError as error:  # it has said why
                    pool.shutdown(cancel_futures=True)
                    raise SystemExit(f"a training ended with exit code {error.returncode}") from None
    rows = gather(arguments.runs)
    if not rows:
        parser.error(f"--runs: no results in {arguments.runs}")
    with (HERE / "results.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    page = HERE / "RESULTS.md"
    before, rest = page.read_text("utf-8").split(MARKERS[0])
    page.write_text(f"{before}{MARKERS[0]}\n{tables(rows)}{MARKERS[1]}{rest.split(MARKERS[1], 1)[1]}", "utf-8")


if __name__ == "__main__":
    main()
