"""What README, docs/benchmarks.md and docs/gpu.md show of the results: figures and tables, from the CSVs alone.

    python -m bench.plot            writes the figures beside the CSVs, and the tables into the pages
    python -m bench.plot --tables   the tables alone
    python -m bench.plot --check    fails where the pages' tables are not those of the CSVs

Needs matplotlib, rich and typer, and neither torch nor tritonsoft.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench import goals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
RESULTS, BENCHMARKS, GPU = HERE / "results", DOCS / "benchmarks.md", DOCS / "gpu.md"
README = HERE.parent / "README.md"
SPEED, COSTS = "<!-- written by bench/plot.py -->\n", "<!-- costs written by bench/plot.py -->\n"
GOALS = "<!-- goals written by bench/plot.py -->\n"
SUFFIXES = ("-scaling", "-overhead", "-busy", "-data-sets", "-profiles", "-rates", "-kernels", "-checks", "-cost")
END = "<!-- end -->"
OURS = "tritonsoft"

# The rows that the README shows, by the name of their CSV.
CHOSEN = {
    "nvidia-h100-80gb-hbm3": (
        "shrink labels: 16 x 1024x2048 -> 512x1024, k = 2, C = 19, uint8 labels, float16 out, street scenes",
        "shrink labels: 16 x 1024x2048 -> 256x512, k = 4, C = 19, uint8 labels, float16 out, street scenes",
        "shrink labels: 16 x 1024x2048 -> 379x759, k = 2.7, C = 19, uint8 labels, float16 out, street scenes",
        "shrink labels: 16 x 1024x2048 -> 256x512, k = 4, C = 150, uint8 labels, float16 out, street scenes",
        "crop pair: 16 x 1024x2048 -> 512x1024, random boxes, C = 19, uint8 labels, float16 out, street scenes",
    ),
    "amd-epyc-2-cores": (
        "shrink labels: 2 x 1024x2048 -> 512x1024, k = 2, C = 19, uint8 labels, float32 out, street scenes",
        "shrink labels: 2 x 1024x2048 -> 379x759, k = 2.7, C = 19, uint8 labels, float32 out, street scenes",
        "shrink labels: 2 x 1024x2048 -> 256x512, k = 4, C = 150, uint8 labels, float32 out, street scenes",
        "crop pair: 8 x 512x1024 -> 256x512, random boxes, C = 19, uint8 labels, float32 out, street scenes",
        "area cross entropy: 2 x 1024x2048 -> 256x512, k = 4, C = 19, uint8 labels, float32 logits, street scenes",
    ),
}

Row = dict[str, str]


def read(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def results(suffix: str = "") -> Iterator[tuple[Path, list[Row]]]:
    """The CSVs of all devices whose names end like this, with their rows, GPUs first."""
    for path in sorted(RESULTS.glob("*.csv"), key=lambda path: (not path.stem.startswith("nvidia"), path)):
        if next((end for end in SUFFIXES if path.stem.endswith(end)), "") == suffix:
            yield path, read(path)


def by_case(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Task and title of each case, with its rows."""
    for case, group in groupby(rows, key=lambda row: row["case"]):
        yield case, list(group)


def is_rival(row: Row) -> bool:
    return not row["rival"].startswith(OURS) and row["answer"] != "no answer" and bool(row["milliseconds"])


def is_exact(row: Row) -> bool:
    return row["answer"].startswith("exact")


def is_right(row: Row) -> bool:
    """Exact, or as near as eight bits can be."""
    return is_exact(row) or (row["answer"] == "approximate" and float(row["error"]) <= 1 / 255)


# --- tables ----------------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Two digits, or all before the point."""
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def versus(row: Row | None, ours: Row) -> str:
    """How a rival did beside us."""
    if row is None:
        return ""
    name = row["rival"].replace("|", "\\|")
    text = f"{name}: {number(float(row['ratio']))}x the time"
    if row["peak_bytes"] and float(ours["peak_bytes"] or 0) > 0:
        text += f", {number(float(row['peak_bytes']) / float(ours['peak_bytes']))}x the memory"
    if row["answer"] in ("approximate", "hard labels"):
        text += ", hard labels" if row["answer"] == "hard labels" else ""
        text += f", off by up to {float(row['error']):.2g}"
    if row["answer"] == "draws of its own":
        text += ", other crops"
    return text


def compared(members: Sequence[Row]) -> tuple[Row, Row | None, Row | None]:
    """Of one case: ours, the fastest right rival, and what most people run."""
    ours = next(row for row in members if row["rival"] == OURS)
    right = [row for row in members if is_rival(row) and is_right(row)]
    best = min(right, key=lambda row: float(row["ratio"]), default=None)
    return ours, best, next((row for row in members if row["usual"] == "True" and row["milliseconds"]), None)


def table(rows: Sequence[Row]) -> str:
    """Markdown: ours beside the fastest right rival and beside what most people run, case by case."""
    lines = []
    for task, group in groupby(by_case(rows), key=lambda item: item[0].partition(": ")[0]):
        cases = list(group)
        has_parts = any(row["device_milliseconds"] for _, members in cases for row in members)
        parts = ("on the device", "on the host") if has_parts else ()
        headings = (
            task,
            "tritonsoft",
            *parts,
            "of the floor",
            "peak memory",
            "the fastest right rival",
            "the usual way",
        )
        lines += ["", f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
        for case, members in cases:
            ours, best, usual = compared(members)
            times = [ours[name] for name in ("device_milliseconds", "host_milliseconds")] if has_parts else []
            cells = (
                case.partition(": ")[2],
                f"{float(ours['milliseconds']):.3g} ms",
                *(f"{float(time):.3g} ms" if time else "" for time in times),
                f"{float(ours['share_of_floor']):.0%}",
                f"{float(ours['peak_bytes'] or 0) / 1e6:.0f} MB",
                versus(best, ours),
                versus(usual, ours),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines[1:])


def setting(rows: Sequence[Row], memory: Sequence[Row]) -> str:
    """What the numbers hold for; ``memory`` are the device's rates."""
    row = rows[0]
    versions = ", ".join(
        f"{name} {row[name.lower()]}"
        for name in ("torch", "Triton", "Numba", "OpenCV", "kornia", "MONAI")
        if row.get(name.lower())
    )
    threads = f", {row['threads']} threads" if row["threads"] else ""
    rates = ", ".join(f"{each['access']} {float(each['gigabytes_per_second']):.4g}" for each in memory)
    note = f" ({memory[0]['note']})" if memory[0]["note"] else ""
    tasks: dict[tuple[str, str], list[str]] = {}
    for each in rows:
        tasks.setdefault((each["commit"], each["date"]), []).append(each["case"].partition(": ")[0])
    of_tasks = [", ".join(dict.fromkeys(names)) + ": " for names in tasks.values()]
    of_tasks[0] = ""  # of all others
    recorded = "; ".join(f"{names}commit {commit}, {day}" for names, (commit, day) in zip(of_tasks, tasks, strict=True))
    return f"{row['device_name']}{threads}; memory, GB/s: {rates}{note}; {versions}; {recorded}."


def speed_section() -> str:
    """What was timed, device by device."""
    parts = []
    for path, rows in results():
        figure = f"![Time of every rival over ours]({relative(path.with_suffix('.png'))})"
        memory = read(path.with_name(f"{path.stem}-rates.csv"))
        parts += [f"## {rows[0]['device_name']}", setting(rows, memory), figure, table(rows)]
        parts += [text for text in [goals.between(rows)] if text]
    for path, _ in results("-scaling"):
        parts.append(f"![Time over number of classes, factor, batch and size]({relative(path.with_suffix('.png'))})")
    for _, rows in results("-overhead"):
        counts = ["operators", *(name for name in ("kernel_launches", "copies", "synchronizations") if rows[0][name])]
        headings = [
            "smallest call",
            "time",
            "baseline",
            "its time",
            "ratio",
            *(f"{name.replace('_', ' ')}" for name in counts),
        ]
        lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
        for row in rows:
            times = [f"{float(row[name]):.0f} µs" for name in ("microseconds", "baseline_microseconds")]
            ratio = f"{float(row['ratio']):.2f}"
            cells = [row["call"], times[0], row["baseline"], times[1], ratio, *(row[name] for name in counts)]
            lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def chosen_section() -> str:
    """The rows of the README, a table for each device."""
    tables = []
    for name, cases in CHOSEN.items():
        found = dict(by_case(read(RESULTS / f"{name}.csv")))
        first = found[cases[0]][0]
        device = f"{first['device_name']}, torch {first['torch']}, commit {first['commit']}"
        lines = [f"| {device} | tritonsoft | the fastest right rival | the usual way |", "|---|---|---|---|"]
        for case in cases:
            ours, best, usual = compared(found[case])
            title = case.replace(", uint8 labels", "").replace(", street scenes", "")
            cells = title, f"{float(ours['milliseconds']):.3g} ms", versus(best, ours), versus(usual, ours)
            lines.append(f"| {' | '.join(cells)} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables) + "\n"


def cost_section() -> str:
    """What the compiled kernels cost on one target."""
    columns = ["kernel", "registers", "warps", "instructions", "stores", "floor_us"]
    headings = ["kernel", "registers", "warps per scheduler", "instructions per element", "bits per store", "floor, µs"]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    rows = [row for row in read(RESULTS / "kernel-cost.csv") if row["target"] == "sm_90"]
    lines += [f"| {' | '.join(row[column] for column in columns)} |" for row in rows]
    return "\n".join(lines) + "\n"


def relative(path: Path) -> str:
    return f"../{path.relative_to(HERE.parent).as_posix()}"


def with_sections(text: str) -> str:
    """docs/benchmarks.md with what stands between its marks."""
    return filled(text, {SPEED: speed_section()})


def with_chosen_rows(text: str) -> str:
    """The README with what stands between its marks."""
    return filled(text, {SPEED: chosen_section()})


def with_goals(text: str) -> str:
    """docs/gpu.md with what stands between its marks."""
    return filled(text, {GOALS: goals.table(), COSTS: cost_section()})


def filled(text: str, sections: Mapping[str, str]) -> str:
    """A page with new sections, each between its mark and the next `END`."""
    for begin, section in sections.items():
        before, mark, rest = text.partition(begin)
        _, end, after = rest.partition(END)
        if not (mark and end):
            raise SystemExit(f"a page lacks the line {begin.strip()} or {END} after it")
        text = before + begin + section + END + after
    return text


# --- figures ---------------------------------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "exact, eager": {"color": "C0"},
    "exact, compiled": {"color": "C1"},
    "approximate": {"edgecolors": "C7", "facecolors": "none"},
    "hard labels": {"color": "C7", "marker": "x"},
    "draws of its own": {"color": "C7", "marker": "+"},
}


def kind_of(row: Row) -> str:
    if not is_exact(row):
        return row["answer"]
    return "exact, compiled" if row["rival"].endswith("compiled") else "exact, eager"


def draw_rivals(rows: Sequence[Row], path: Path) -> None:
    """A line for each case, a dot for each rival: its time over ours."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    cases = list(by_case(rows))
    figure, axes = plt.subplots(figsize=(10, 0.28 * len(cases) + 1.4), layout="constrained")
    for line, (_, members) in enumerate(cases):
        for row in filter(is_rival, members):
            axes.scatter(float(row["ratio"]), line, s=26, zorder=3, **KINDS[kind_of(row)])
    axes.axvline(1, color="black", linewidth=1)
    for kind, looks in KINDS.items():
        axes.scatter([], [], s=26, label=kind, **looks)
    axes.set_xscale("log")
    axes.set_yticks(range(len(cases)), [case for case, _ in cases], fontsize=7)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("time over tritonsoft's (right of the line: slower)")
    axes.set_title(f"Every rival on {rows[0]['device_name']}", fontsize=10)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_scaling(rows: Sequence[Row], path: Path) -> None:
    """Time over each axis, and the floor."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    axes_of = [(name, list(group)) for name, group in groupby(rows, key=lambda row: row["axis"])]
    figure, panels = plt.subplots(1, len(axes_of), figsize=(3.2 * len(axes_of), 3.4), layout="constrained", sharey=True)
    for panel, (name, points) in zip(panels, axes_of, strict=True):
        for colour, (operation, group) in enumerate(groupby(points, key=lambda row: row["operation"])):
            line(panel, list(group), operation, f"C{colour}")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xlabel(name)
        panel.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("milliseconds")
    panels[0].legend(fontsize=7)
    figure.suptitle(f"{rows[0]['device_name']}: {rows[0]['base']}; dashed: the floor", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def line(panel: "Axes", rows: Sequence[Row], label: str, colour: str) -> None:
    values = [float(row["value"]) for row in rows]
    panel.plot(values, [float(row["milliseconds"]) for row in rows], "o-", color=colour, markersize=3, label=label)
    panel.plot(values, [float(row["floor_milliseconds"]) for row in rows], "--", color=colour, linewidth=0.8)


def main(
    check: Annotated[bool, typer.Option(help="Only compare the pages' tables with the CSVs.")] = False,
    tables: Annotated[bool, typer.Option(help="Draw no figures.")] = False,
) -> None:
    """Draw the figures and write the tables of the README and the documentation."""
    pages = {page: (page.read_text(), write(page.read_text())) for page, write in PAGES.items()}
    if check:
        if any(old != new for old, new in pages.values()):
            raise SystemExit("the pages' tables are not those of bench/results: run python -m bench.plot")
        return
    for page, (_, text) in pages.items():
        page.write_text(text)
    if tables:
        return
    for path, rows in results():
        draw_rivals(rows, path.with_suffix(".png"))
    for path, rows in results("-scaling"):
        draw_scaling(rows, path.with_suffix(".png"))


PAGES = {README: with_chosen_rows, BENCHMARKS: with_sections, GPU: with_goals}

if __name__ == "__main__":
    typer.run(main)
