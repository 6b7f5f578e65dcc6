"""Every fit of RESULTS.md: fits what is missing, and writes linear_probe.csv, its tables and the learning curve.

    python examples/probe_results.py --data DIR --runs runs

DIR is CamVid as ``train_segmentation.py`` takes it: 11 classes, unlabelled pixels 11. ``--tables-only`` fits nothing.
Rows of the CSV stay where the folder of runs has nothing newer, so a part can be measured again alone.
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import linear_probe
from results import Row, read_csv, write_csv, write_section
from segmentation import CAMVID as CLASSES
from segmentation import LABELS, THIN

HERE = Path(__file__).parent
MARKERS = ("<!-- written by probe_results.py -->", "<!-- end -->")
ALL_LABELS = (*LABELS, "full")
THREE = LABELS[:3]
FITS = (  # strides, every n-th picture, weight decays, labels
    ((8, 16, 32), 8, (3e-3, 1e-2), LABELS),
    ((16,), 8, (3e-3, 1e-2), ("full",)),
    ((16,), 8, (1e-3,), LABELS),
    ((16,), 8, (1e-4,), THREE),
    ((16,), 4, (3e-3,), THREE),
    ((16,), 2, (1e-3,), THREE),
    ((16,), 1, (1e-3,), THREE),
)
METRICS = {
    "miou": ("mIoU, %", 100, 1),
    "thin": ("thin, %", 100, 1),
    "nll": ("NLL, nats", 1, 3),
    "calibration_error": ("ECE, %", 100, 1),
    "soft_nll": ("soft NLL, nats", 1, 3),
    "soft_iou": ("soft IoU, %", 100, 1),
    "soft_calibration_error": ("soft ECE, %", 100, 1),
}
DIFFERENCES = ("miou", "nll", "soft_nll")
STRIDE, PICTURES = 16, 46  # where the figure's three cuts meet
LOOKS = {
    labels: {"color": colour, "linestyle": line, "marker": "o", "markersize": 3, "capsize": 2, "linewidth": 1.3}
    for labels, colour, line in (
        ("soft", "tab:green", "-"),
        ("nearest", "tab:orange", "-"),
        ("torch-nearest", "tab:red", "-"),
        ("majority", "tab:purple", ":"),
        ("full", "black", "--"),
    )
}


def fit_all(data: Path, folder: Path) -> None:
    common = ["--data", str(data), "--runs", str(folder), "--cache", str(folder / "features.pt")]
    common += ["--num-classes", str(len(CLASSES)), "--ignore-index", str(len(CLASSES))]
    for strides, every, weight_decays, labels in FITS:
        lists = {"--stride": strides, "--every": (every,), "--weight-decay": weight_decays, "--labels": labels}
        linear_probe.main(common + [word for name, values in lists.items() for word in (name, *map(str, values))])


def numbers_of(result: Row) -> Row:
    ious = result["iou_likeliest"]
    return {**result, "miou": result["miou_likeliest"], "thin": statistics.fmean(ious[index] for index in THIN)}


def best(rows: Iterable[Row]) -> Row:
    """The weight decay with the largest likelihood at full resolution."""
    return min(rows, key=lambda row: float(row["nll"]))


def gather(folder: Path, kept: Iterable[Row]) -> list[Row]:
    """A row for each fit: values, their standard errors, and differences from the soft label's best fit with theirs."""
    results = [json.loads(file.read_text()) for file in sorted(folder.glob("probe-*.json"))]
    groups = defaultdict(list)
    for result in results:
        groups[result["stride"], result["pictures"]].append(result)
    rows = {key_of(row): row for row in kept}
    for group in groups.values():
        soft = best(each for each in group if each["labels"] == "soft")
        soft_draws = [numbers_of(draw) for draw in soft["draws"]]
        for result in group:
            values, draws = numbers_of(result), [numbers_of(draw) for draw in result["draws"]]
            row = {name: result[name] for name in ("stride", "pictures", "labels", "weight_decay", "iterations")}
            row |= {name: f"{result[name]:.3g}" for name in ("gradient", "seconds")}
            for name in METRICS:
                row[name] = round(values[name], 5)
                row[f"{name}_error"] = round(statistics.stdev(draw[name] for draw in draws), 5)
            for name in DIFFERENCES:
                apart = [draw[name] - other[name] for draw, other in zip(draws, soft_draws, strict=True)]
                row[f"{name}_less_soft"] = round(values[name] - numbers_of(soft)[name], 5)
                row[f"{name}_less_soft_error"] = round(statistics.stdev(apart), 5)
            ious = zip(CLASSES, result["iou_likeliest"], strict=True)
            rows[key_of(row)] = row | {f"iou_{each}": round(iou, 5) for each, iou in ious}
    return [rows[key] for key in sorted(rows)]


def key_of(row: Row) -> tuple[int, int, int, float]:
    labels = ALL_LABELS.index(row["labels"])
    return int(row["stride"]), int(row["pictures"]), labels, float(row["weight_decay"])


def with_error(row: Row, name: str, factor: float, digits: int, sign: str = "") -> str:
    return f"{factor * float(row[name]):{sign}.{digits}f} ± {factor * float(row[name + '_error']):.{digits}f}"


def tables(rows: list[Row]) -> str:
    """For each stride and number of pictures, every label at its best weight decay; then, for one, all of them."""
    parts = []
    for (stride, pictures), group in by_setting(rows).items():
        tried = decays_of(rows, stride, pictures)
        choice = "each label at the best weight decay of" if len(tried) > 1 else "weight decay"
        parts += [f"### Stride {stride}, {pictures} pictures, {choice} {', '.join(map(str, tried))}", ""]
        headings = [f"{METRICS[name][0].partition(',')[0]}, less soft" for name in DIFFERENCES]
        headings = ["labels", "weight decay", *(heading for heading, *_ in METRICS.values()), *headings]
        parts += [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
        for row in group:
            cells = [row["labels"], f"{float(row['weight_decay']):g}"]
            cells += [with_error(row, name, factor, digits) for name, (_, factor, digits) in METRICS.items()]
            for name in DIFFERENCES:
                factor, digits = METRICS[name][1:]
                is_soft = row["labels"] == "soft"
                cells.append("" if is_soft else with_error(row, f"{name}_less_soft", factor, digits, "+"))
            parts.append(f"| {' | '.join(cells)} |")
        parts.append("")
    swept = [row for row in rows if (int(row["stride"]), int(row["pictures"])) == (STRIDE, PICTURES)]
    decays = decays_of(rows, STRIDE, PICTURES)
    parts += [f"### Stride {STRIDE}, {PICTURES} pictures, by weight decay: mIoU, % / NLL / soft NLL, nats", ""]
    parts += [f"| labels | {' | '.join(f'{decay:g}' for decay in decays)} |", "|---" * (len(decays) + 1) + "|"]
    for labels in ALL_LABELS:
        cells = {
            float(row["weight_decay"]): f"{100 * float(row['miou']):.1f} / {float(row['nll']):.3f} / "
            f"{float(row['soft_nll']):.3f}"
            for row in swept
            if row["labels"] == labels
        }
        if cells:
            parts.append(f"| {labels} | {' | '.join(cells.get(decay, '') for decay in decays)} |")
    return "\n".join([*parts, ""])


def decays_of(rows: Iterable[Row], stride: int, pictures: int) -> list[float]:
    chosen = (row for row in rows if (int(row["stride"]), int(row["pictures"])) == (stride, pictures))
    return sorted({float(row["weight_decay"]) for row in chosen})


def by_setting(rows: Iterable[Row]) -> dict[tuple[int, int], list[Row]]:
    """Of each stride and number of pictures, every label at its best weight decay."""
    found: dict[tuple[int, int], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[int(row["stride"]), int(row["pictures"])][row["labels"]].append(row)
    return {setting: [best(of_label) for of_label in labels.values()] for setting, labels in found.items()}


def draw_learning_curve(rows: list[Row], path: Path) -> None:
    """Likelihood and mIoU at full size over the stride, the number of pictures and the weight decay."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    best_rows = [row for group in by_setting(rows).values() for row in group]
    columns = {
        "stride": (f"{PICTURES} training pictures", "pixels per label, each way", best_rows),
        "pictures": (f"{STRIDE} x {STRIDE} pixels per label", "training pictures", best_rows),
        "weight_decay": (f"{STRIDE} x {STRIDE} pixels, {PICTURES} pictures", "weight decay", rows),
    }
    figure, panels = plt.subplots(2, 3, figsize=(9.6, 5.2), sharex="col", sharey="row", layout="constrained")
    for column, (axis, (title, heading, shown)) in zip(panels.T, columns.items(), strict=True):
        fixed = {"stride": STRIDE, "pictures": PICTURES} | {axis: None}
        shown = [row for row in shown if all(int(row[name]) == fixed[name] for name in fixed if fixed[name])]
        for panel, name in zip(column, ("nll", "miou"), strict=True):
            for labels, looks in LOOKS.items():
                points = sorted((float(row[axis]), row) for row in shown if row["labels"] == labels)
                factor = METRICS[name][1]
                values, errors = ([factor * float(row[key]) for _, row in points] for key in (name, f"{name}_error"))
                panel.errorbar([x for x, _ in points], values, errors, label=labels, **looks)
            panel.set_xscale("log")
            panel.grid(alpha=0.3)
        column[0].set_title(title, fontsize=10)
        column[1].set_xlabel(heading)
        if axis != "weight_decay":
            ticks = sorted({int(row[axis]) for row in shown})
            column[1].set_xticks(ticks, map(str, ticks))
            column[1].minorticks_off()
    panels[0, 0].set_ylabel("negative log-likelihood, nats")
    panels[1, 0].set_ylabel("mIoU, %")
    panels[0, 2].legend(fontsize=8)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="CamVid")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the fits' results; those there are kept")
    parser.add_argument("--tables-only", action="store_true", help="fit nothing")
    arguments = parser.parse_args()
    if not arguments.tables_only:
        if arguments.data is None:
            parser.error("--data is needed to fit")
        fit_all(arguments.data, arguments.runs)
    rows = gather(arguments.runs, read_csv(HERE / "linear_probe.csv"))
    if not rows:
        parser.error(f"--runs: no results in {arguments.runs}")
    write_csv(HERE / "linear_probe.csv", rows)
    rows = read_csv(HERE / "linear_probe.csv")
    write_section(HERE / "RESULTS.md", tables(rows), MARKERS)
    draw_learning_curve(rows, HERE / "learning_curve.png")


if __name__ == "__main__":
    main()
