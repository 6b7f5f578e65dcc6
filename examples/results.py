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
from pathlib import Path

HERE = Path(__file__).parent
LABELS = ("soft", "nearest", "torch-nearest", "majority")
CLASSES = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
THIN = [CLASSES.index(name) for name in ("pole", "sign", "pedestrian", "bicyclist")]
COMMON = ["--num-classes", "11", "--ignore-index", "11", "--cache", "--device", "cpu", "--batch", "4", "--bf16"]
SETTINGS = {
    "f8-tenth": "--factor 8 --every 10 --epochs 60",
    "f8-full": "--factor 8 --epochs 15",
    "f4-tenth": "--factor 4 --every 10 --epochs 40",
    "f4-full": "--factor 4 --epochs 5",
}
TITLES = {
    "f8-tenth": "Factor 8, a tenth of the training set, 60 epochs",
    "f8-full": "Factor 8, the whole training set, 15 epochs",
    "f4-tenth": "Factor 4, a tenth of the training set, 40 epochs",
    "f4-full": "Factor 4, the whole training set, 5 epochs",
}
RECIPES = {
    "plain": "",
    "weights": "--class-weights",
    "dice": "--loss cross-entropy+dice",
    "weights+dice": "--class-weights --loss cross-entropy+dice",
}
TRIED = {"f8-tenth": ("plain", "weights", "dice"), "f8-full": ("plain", "weights+dice")}
METRICS = {  # name in the file: heading, factor, digits
    "miou_argmax": ("mIoU, %", 100, 1),
    "iou_thin": ("thin classes' IoU, %", 100, 1),
    "miou_area_matched": ("mIoU, areas matched, %", 100, 1),
    "nll": ("NLL, nats", 1, 3),
    "calibration_error": ("ECE, %", 100, 1),
    "area_error": ("area error, %", 100, 0),
    "area_error_argmax": ("area error decoded, %", 100, 0),
    "soft_iou": ("soft IoU, %", 100, 1),
    "seconds_training": ("training, s, fastest", 1, 0),
}
MARKERS = ("<!-- written by results.py -->", "<!-- end -->")


def runs(seeds: list[int]) -> dict[str, list[str]]:
    """Arguments by name, seed by seed."""
    every = {}
    for seed in seeds:
        for setting, options in SETTINGS.items():
            for recipe in TRIED.get(setting, ("plain",)):
                for labels in LABELS if recipe == "plain" else ("soft", "nearest"):
                    arguments = f"--labels {labels} --seed {seed} {options} {RECIPES[recipe]}".split()
                    every[f"{setting}-{labels}-{recipe}-{seed}"] = arguments
    return every


def train(data: Path, file: Path, arguments: list[str], threads: int) -> None:
    program = [sys.executable, str(HERE / "train_segmentation.py"), "--data", str(data), "--out", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run([*program, *COMMON, *arguments], check=True, env=environment, stdout=subprocess.DEVNULL)
    print(file.stem, flush=True)


def gather(folder: Path) -> list[dict[str, str | float]]:
    rows = []
    for name in runs(list(range(100))):
        file = folder / f"{name}.json"
        if file.exists():
            result = json.loads(file.read_text())
            setting = next(setting for setting in SETTINGS if name.startswith(setting))
            labels, recipe, seed = name.removeprefix(f"{setting}-").rsplit("-", 2)
            result["iou_thin"] = statistics.fmean(result["iou_argmax"][index] for index in THIN)
            values = {metric: round(result[metric], 5) for metric in METRICS}
            ious = {f"iou_{each}": round(iou, 5) for each, iou in zip(CLASSES, result["iou_argmax"], strict=True)}
            rows.append({"setting": setting, "labels": labels, "recipe": recipe, "seed": int(seed), **values, **ious})
    return rows


def tables(rows: list[dict[str, str | float]]) -> str:
    """Mean ± standard deviation over the seeds."""
    parts = []
    for setting, title in TITLES.items():
        groups = defaultdict(list)
        for row in rows:
            if row["setting"] == setting:
                groups[row["labels"], row["recipe"]].append(row)
        parts += [f"### {title}", ""]
        parts += ["| labels | seeds | " + " | ".join(heading for heading, *_ in METRICS.values()) + " |"]
        parts += ["|---" * (len(METRICS) + 2) + "|"]
        for (labels, recipe), group in groups.items():
            cells = []
            for metric, (_, factor, digits) in METRICS.items():
                values = [factor * float(row[metric]) for row in group]
                if metric == "seconds_training":  # the others shared their machine
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
        missing = {
            arguments.runs / f"{name}.json": options
            for name, options in runs(arguments.seeds).items()
            if not (arguments.runs / f"{name}.json").exists()
        }
        with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
            waiting = [pool.submit(train, arguments.data, *run, threads) for run in missing.items()]
            for each in concurrent.futures.as_completed(waiting):
                each.result()
    rows = gather(arguments.runs)
    with (HERE / "results.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    page = HERE / "RESULTS.md"
    before, rest = page.read_text().split(MARKERS[0])
    page.write_text(f"{before}{MARKERS[0]}\n{tables(rows)}{MARKERS[1]}{rest.split(MARKERS[1], 1)[1]}")


if __name__ == "__main__":
    main()
