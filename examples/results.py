"""Every run of RESULTS.md: does what is missing, and writes the CSVs, the tables and the figure.

    python examples/results.py probe --data DIR --runs runs
    python examples/results.py training --data DIR --runs runs [--jobs 2] [--seeds 0 1 2] [--settings f8-eighth ...]

DIR is CamVid as ``train_segmentation.py`` takes it: 11 classes, unlabelled pixels 11. ``--tables-only`` trains nothing.
Rows of the CSVs stay where the folder of runs has nothing newer, so a part can be measured again alone.
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

import linear_probe
from segmentation import CAMVID as CLASSES
from segmentation import LABELS, THIN

HERE = Path(__file__).parent
MARKERS = ("<!-- written by results.py -->", "<!-- end -->")
PROBE_MARKER = "<!-- the probe's, written by results.py -->"

Row = dict[str, Any]


# --- training --------------------------------------------------------------------------------------------------------

COMMON = ["--num-classes", "11", "--ignore-index", "11", "--cache", "--device", "cpu", "--batch", "4", "--bf16"]
SETTINGS = {  # factor, every n-th picture, epochs
    "f16-eighth": (16, 8, 40),
    "f16-all": (16, 1, 10),
    "f8-eighth": (8, 8, 30),
    "f8-all": (8, 1, 6),
    "f8-tenth": (8, 10, 120),
    "f8-full": (8, 1, 20),
    "f4-tenth": (4, 10, 60),
    "f4-full": (4, 1, 6),
}
PORTIONS = {1: "the whole training set", 8: "46 pictures", 10: "a tenth of the training set"}
GRID = "--encoder pretrained --batch 8 --lr 1e-3 --grid"
RECIPES = {
    "plain": "",
    "weights+dice": "--class-weights --loss cross-entropy+dice",
    "fixed grid": f"{GRID} fixed",
    "random crops": f"{GRID} random",
}
PLAIN, TUNED, GRIDS = ("plain",), ("plain", "weights+dice"), ("fixed grid", "random crops")
TRIED = {
    **dict.fromkeys(("f16-eighth", "f16-all", "f8-eighth", "f8-all"), GRIDS),
    **dict.fromkeys(("f8-tenth", "f8-full"), TUNED),
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
        return folder / f"{self.setting}-{self.labels}-{self.recipe.replace(' ', '-')}-{self.seed}.json"

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
            for recipe in TRIED.get(setting, PLAIN):
                for labels in (*LABELS[:3], "full") if recipe in GRIDS else LABELS:
                    yield Run(setting, labels, recipe, seed)


def train(data: Path, folder: Path, run: Run, threads: int) -> None:
    program = [sys.executable, str(HERE / "train_segmentation.py"), "--data", str(data), "--out", str(run.file(folder))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run([*program, *COMMON, *run.arguments], check=True, env=environment, stdout=subprocess.DEVNULL)
    print(*run, flush=True)


def train_all(data: Path, folder: Path, missing: Iterable[Run], jobs: int) -> None:
    threads = max((os.cpu_count() or 1) // jobs, 1)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(train, data, folder, run, threads) for run in missing]
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


# --- the probe -------------------------------------------------------------------------------------------------------

PROBE = {  # stride: every n-th picture
    16: (8, 4, 2, 1),
    8: (8, 4, 2, 1),
    32: (8, 4, 2, 1),
}
WEIGHT_DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)
PROBE_LABELS = (*LABELS, "full")
PROBE_METRICS = {
    "miou": ("mIoU, %", 100, 1),
    "thin": ("thin, %", 100, 1),
    "nll": ("NLL, nats", 1, 3),
    "calibration_error": ("ECE, %", 100, 1),
    "soft_nll": ("soft NLL, nats", 1, 3),
    "soft_iou": ("soft IoU, %", 100, 1),
    "soft_calibration_error": ("soft ECE, %", 100, 1),
}
DIFFERENCES = ("miou", "nll", "soft_nll")
LOOKS = {
    "soft": {"color": "tab:green"},
    "nearest": {"color": "tab:orange"},
    "torch-nearest": {"color": "tab:red"},
    "majority": {"color": "tab:purple", "linestyle": ":"},
    "full": {"color": "black", "linestyle": "--"},
}


def probe(data: Path, folder: Path) -> None:
    common = ["--data", str(data), "--runs", str(folder), "--cache", str(folder / "features.pt")]
    common += ["--num-classes", str(len(CLASSES)), "--ignore-index", str(len(CLASSES))]
    for stride, parts in PROBE.items():
        for every in parts:
            setting = ["--stride", str(stride), "--every", str(every), "--labels", *PROBE_LABELS]
            linear_probe.main([*common, *setting, "--weight-decay", *map(str, WEIGHT_DECAYS)])


def probe_numbers(result: Row) -> Row:
    ious = result["iou_likeliest"]
    return {**result, "miou": result["miou_likeliest"], "thin": statistics.fmean(ious[index] for index in THIN)}


def best(rows: Iterable[Row]) -> Row:
    """The weight decay with the largest likelihood at full resolution."""
    return min(rows, key=lambda row: float(row["nll"]))


def gather_probe(folder: Path, kept: Iterable[Row]) -> list[Row]:
    """A row for each fit: values, their standard errors, and differences from the soft label's best fit with theirs."""
    results = [json.loads(file.read_text()) for file in sorted(folder.glob("probe-*.json"))]
    groups = defaultdict(list)
    for result in results:
        groups[result["stride"], result["pictures"]].append(result)
    rows = {probe_key(row): row for row in kept}
    for group in groups.values():
        soft = best(each for each in group if each["labels"] == "soft")
        soft_draws = [probe_numbers(draw) for draw in soft["draws"]]
        for result in group:
            values, draws = probe_numbers(result), [probe_numbers(draw) for draw in result["draws"]]
            row = {name: result[name] for name in ("stride", "pictures", "labels", "weight_decay", "iterations")}
            row |= {name: f"{result[name]:.3g}" for name in ("gradient", "seconds")}
            for name in PROBE_METRICS:
                row[name] = round(values[name], 5)
                row[f"{name}_error"] = round(statistics.stdev(draw[name] for draw in draws), 5)
            for name in DIFFERENCES:
                apart = [draw[name] - other[name] for draw, other in zip(draws, soft_draws, strict=True)]
                row[f"{name}_less_soft"] = round(values[name] - probe_numbers(soft)[name], 5)
                row[f"{name}_less_soft_error"] = round(statistics.stdev(apart), 5)
            ious = zip(CLASSES, result["iou_likeliest"], strict=True)
            rows[probe_key(row)] = row | {f"iou_{each}": round(iou, 5) for each, iou in ious}
    return [rows[key] for key in sorted(rows)]


def probe_key(row: Row) -> tuple[int, int, int, float]:
    labels = PROBE_LABELS.index(row["labels"])
    return int(row["stride"]), int(row["pictures"]), labels, float(row["weight_decay"])


def with_error(row: Row, name: str, factor: float, digits: int, sign: str = "") -> str:
    return f"{factor * float(row[name]):{sign}.{digits}f} ± {factor * float(row[name + '_error']):.{digits}f}"


def probe_tables(rows: list[Row]) -> str:
    """For each stride and number of pictures, every label at its best weight decay; then all weight decays of one."""
    parts = []
    for (stride, pictures), group in by_setting(rows).items():
        parts += [f"### Stride {stride}, {pictures} pictures, each label at its best weight decay", ""]
        headings = [f"{PROBE_METRICS[name][0].partition(',')[0]}, less soft" for name in DIFFERENCES]
        headings = ["labels", "weight decay", *(heading for heading, *_ in PROBE_METRICS.values()), *headings]
        parts += [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
        for row in group:
            cells = [row["labels"], f"{float(row['weight_decay']):g}"]
            cells += [with_error(row, name, factor, digits) for name, (_, factor, digits) in PROBE_METRICS.items()]
            for name in DIFFERENCES:
                factor, digits = PROBE_METRICS[name][1:]
                is_soft = row["labels"] == "soft"
                cells.append("" if is_soft else with_error(row, f"{name}_less_soft", factor, digits, "+"))
            parts.append(f"| {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts)


def by_setting(rows: Iterable[Row]) -> dict[tuple[int, int], list[Row]]:
    """Of each stride and number of pictures, every label at its best weight decay."""
    found: dict[tuple[int, int], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[int(row["stride"]), int(row["pictures"])][row["labels"]].append(row)
    return {setting: [best(of_label) for of_label in labels.values()] for setting, labels in found.items()}


def draw_learning_curve(rows: list[Row], path: Path) -> None:
    """Likelihood and mIoU over the number of pictures, a column for each stride."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    settings = by_setting(rows)
    strides = sorted({stride for stride, _ in settings})
    shown = {"soft_nll": "NLL at the stride", "nll": "NLL at full size", "miou": "mIoU at full size, %"}
    figure, panels = plt.subplots(
        len(shown),
        len(strides),
        figsize=(3.4 * len(strides), 7.5),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for column, stride in enumerate(strides):
        for line, (name, heading) in enumerate(shown.items()):
            panel, factor = panels[line, column], PROBE_METRICS[name][1]
            for labels, looks in LOOKS.items():
                points = [
                    row
                    for (of_stride, _), group in sorted(settings.items())
                    for row in group
                    if of_stride == stride and row["labels"] == labels
                ]
                pictures = [int(row["pictures"]) for row in points]
                values, errors = ([factor * float(row[key]) for row in points] for key in (name, f"{name}_error"))
                panel.errorbar(pictures, values, errors, marker="o", markersize=3, capsize=2, label=labels, **looks)
            panel.set_xscale("log", base=2)
            panel.grid(alpha=0.3)
            if not column:
                panel.set_ylabel(heading)
        panels[0, column].set_title(f"one label per {stride} x {stride} pixels", fontsize=10)
        ticks = sorted({pictures for of_stride, pictures in settings if of_stride == stride})
        panels[-1, column].set_xticks(ticks, map(str, ticks))
        panels[-1, column].set_xlabel("training pictures")
    panels[0, -1].legend(fontsize=8)
    figure.savefig(path, dpi=90)
    plt.close(figure)


# --- the program -----------------------------------------------------------------------------------------------------


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


def write_section(marker: str, section: str) -> None:
    """What stands in RESULTS.md between this mark and the next end."""
    page = HERE / "RESULTS.md"
    before, rest = page.read_text("utf-8").split(marker)
    page.write_text(f"{before}{marker}\n{section}{MARKERS[1]}{rest.split(MARKERS[1], 1)[1]}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["training", "probe"], nargs="?", default="training")
    parser.add_argument("--data", type=Path, help="CamVid")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs' results; those there are kept")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="of trainings")
    parser.add_argument("--tables-only", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    if not arguments.tables_only and arguments.data is None:
        parser.error("--data is needed to train")
    file = HERE / ("results.csv" if arguments.what == "training" else "linear_probe.csv")
    if arguments.what == "training":
        if not arguments.tables_only:
            wanted = runs(arguments.seeds, arguments.settings)
            missing = [run for run in wanted if not run.file(arguments.runs).exists()]
            train_all(arguments.data, arguments.runs, missing, arguments.jobs)
        rows = gather(arguments.runs, read_csv(file))
    else:
        if not arguments.tables_only:
            probe(arguments.data, arguments.runs)
        rows = gather_probe(arguments.runs, read_csv(file))
    if not rows:
        parser.error(f"--runs: no results in {arguments.runs}")
    write_csv(file, rows)
    rows = read_csv(file)  # as the tables' test does
    if arguments.what == "training":
        write_section(MARKERS[0], tables(rows))
    else:
        write_section(PROBE_MARKER, probe_tables(rows))
        draw_learning_curve(rows, HERE / "learning_curve.png")


if __name__ == "__main__":
    main()
