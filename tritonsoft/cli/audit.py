"""`tritonsoft audit`."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from torch import Tensor

from tritonsoft.cli.common import (
    IMAGE_PATTERN_HELP,
    LABEL_PATTERN_HELP,
    AsJson,
    ClassNames,
    Device,
    Factors,
    Ignore,
    IgnoreIndex,
    LabelMap,
    Limit,
    NumClasses,
    Palette,
    console,
    fail,
    format_options,
    need,
    need_sources,
    need_writable,
    parse_device,
    parse_factors,
    parse_format,
    percent,
    print_json,
    saving,
    show,
    table_of,
)
from tritonsoft.cli.figure import pyplot, save_figure
from tritonsoft.cli.kept import ALL_METHODS, Kept, coloured, kept_rows, measure, report, short
from tritonsoft.data import DataError, LabelFormat, atomic_write, find_files, pair_files, read_pair

CAPTION = (
    "in place: the share of the class's true area that it is given in the very low-resolution pixels where it lies, "
    "sum min(given, true) / sum true. gone: label maps that hold the class and lose all of it. nearest: PyTorch's "
    "default, which shifts; exact: nearest-exact; major: the class with most area; linear: one-hot planes interpolated "
    "without antialiasing; soft: ts.soft_resize. True areas: float64 running totals over the full-size label map."
)
MOST_CLASSES_DRAWN = 30


def audit(
    labels: Annotated[
        Path,
        typer.Option(help="Folder of label maps, searched recursively: ids of 1 to 16 bits, colours, or .npy files."),
    ],
    num_classes: NumClasses = None,
    map: LabelMap = None,
    palette: Palette = None,
    ignore: Ignore = None,
    ignore_index: IgnoreIndex = None,
    class_names: ClassNames = None,
    label_pattern: Annotated[str, typer.Option("--label-pattern", "--pattern", help=LABEL_PATTERN_HELP)] = "*",
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of their images: each must have the name and size of its labels.", show_default=False
        ),
    ] = None,
    image_pattern: Annotated[str, typer.Option(help=IMAGE_PATTERN_HELP)] = "*",
    limit: Limit = None,
    factors: Factors = "2,4,8",
    device: Device = None,
    out: Annotated[Path, typer.Option(help="Folder for audit.csv and audit.png.")] = Path("audit"),
    as_json: AsJson = False,
) -> None:
    """Measure what a dataset loses when its label maps are shrunk, for each class, factor and usual method.

    Files that cannot be used are named and left out, and the exit code is then 1.
    """
    shrink_by, chosen_device = parse_factors(factors), parse_device(device)
    format = parse_format(num_classes, map, palette, ignore, ignore_index, class_names)
    need("demo", "PIL", "matplotlib")
    need_sources(labels, label_pattern, images, image_pattern, limit, "--label-pattern or --pattern")
    if images is None and image_pattern != "*":
        raise typer.BadParameter("--image-pattern needs --images")
    table, figure = out / "audit.csv", out / "audit.png"
    need_writable("--out", out, table.name, figure.name)
    try:
        files, problems, load = find_label_maps(labels, label_pattern, images, image_pattern, limit, format)
        kept, usable = measure(
            [str(file) for file in files],
            load,
            format.num_classes,
            format.ignore_index,
            shrink_by,
            chosen_device,
            problems,
            ALL_METHODS,
            format_options(map, palette),
        )
    except DataError as error:
        fail(str(error))
    if not kept[0].area.any():
        report(problems, out)
        fail(f"nothing to measure: {len(files)} label maps found, none usable with a labelled pixel")
    names = format.class_names
    with saving(out):
        write_csv(table, shrink_by, kept, names)
        draw(figure, shrink_by, kept, names, f"{len(usable)} label maps")
    if as_json:
        print_json(
            "audit",
            label_maps=len(usable),
            left_out=[str(problem) for problem in problems],
            rows=list(kept_rows(shrink_by, kept, names)),
            files=[str(table), str(figure)],
        )
    else:
        for factor, each in zip(shrink_by, kept, strict=True):
            show(audit_table(factor, each, names))
        console.print(CAPTION, style="dim")
        console.print(f"{len(usable)} label maps; every number is in {table}, drawn in {figure}.", soft_wrap=True)
    if problems:
        report(problems, out)
        raise typer.Exit(1)


def find_label_maps(
    labels: Path, label_pattern: str, images: Path | None, image_pattern: str, limit: int | None, format: LabelFormat
) -> tuple[list[Path], list[DataError], Callable[[int], Tensor]]:
    """Label files, what is wrong with others, and how one is read; where there are images, those with an image only."""
    if images is None:
        files = find_files(labels, label_pattern, labels=True)[:limit]
        return files, [], lambda index: format.read(files[index])
    pairs, problems = pair_files(images, labels, image_pattern, label_pattern)
    return [pair.labels for pair in pairs][:limit], problems, lambda index: read_pair(pairs[index], format)[1]


def audit_table(factor: float, kept: Kept, class_names: Sequence[str]) -> Table:
    table = table_of(f"In place of each class, shrunk by {factor:g}", show_footer=True)
    total = kept.area.sum()
    table.add_column("class", "all", no_wrap=True)
    table.add_column("area", justify="right")
    for method, placed in zip(kept.methods, kept.placed, strict=True):
        table.add_column(short(method), percent(placed.sum() / total), justify="right")
    counted = [kept.methods.index(method) for method in ("nearest-exact", "majority")]
    for index in counted:
        gone = f"{kept.lost[index].sum():.0f}/{kept.maps.sum():.0f}"
        table.add_column(f"gone\n{short(kept.methods[index])}", gone, justify="right")
    for class_id in kept.area.nonzero().flatten().tolist():
        table.add_row(
            class_names[class_id],
            percent(kept.area[class_id] / total, digits=2),
            *(coloured(float(placed / kept.area[class_id])) for placed in kept.placed[:, class_id]),
            *(f"{kept.lost[index, class_id]:.0f}/{kept.maps[class_id]:.0f}" for index in counted),
        )
    return table


def write_csv(file: Path, factors: Sequence[float], kept: Sequence[Kept], class_names: Sequence[str]) -> None:
    """The rows of `kept_rows`."""
    digits = {"factor": "g", "area": ".0f", "kept": ".6f", "in_place": ".6f", "distance": ".6f"}
    rows = list(kept_rows(factors, kept, class_names))
    with atomic_write(file) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(rows[0])
        writer.writerows([f"{value:{digits.get(name, '')}}" for name, value in row.items()] for row in rows)


def draw(file: Path, factors: Sequence[float], kept: Sequence[Kept], class_names: Sequence[str], title: str) -> None:
    """One panel per factor; in each, one line per class and one mark per method at the share that is in place."""
    plt = pyplot()
    looks = {
        "nearest": ("o", "#d55e00"),
        "nearest-exact": ("s", "#e69f00"),
        "majority": ("^", "#0072b2"),
        "bilinear": ("v", "#999999"),
        "soft": ("D", "#009e73"),
    }
    hardest = kept[-1]
    in_place = hardest.placed[hardest.methods.index("nearest-exact")] / hardest.area
    present = hardest.area.nonzero().flatten().tolist()
    shown = sorted(present, key=lambda class_id: float(in_place[class_id]))[:MOST_CLASSES_DRAWN]
    size = (1.5 + 2.9 * len(factors), 1.5 + 0.27 * len(shown))
    figure, panels = plt.subplots(1, len(factors), figsize=size, sharey=True, squeeze=False, layout="constrained")
    rows = range(len(shown))
    for axes, factor, each in zip(panels[0], factors, kept, strict=True):
        for method, placed in zip(each.methods, each.placed, strict=True):
            marker, colour = looks[method]
            shares = [100 * float(placed[class_id] / each.area[class_id]) for class_id in shown]
            axes.plot(shares, rows, marker, color=colour, markersize=5.5, alpha=0.9, label=method, clip_on=False)
        axes.set(title=f"1/{factor:g}", xlim=(0, 100), xlabel="% of the class's area in place")
        axes.grid(axis="y", color="0.9")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_axisbelow(True)
    total = hardest.area.sum()
    names = [f"{class_names[class_id]}  {percent(hardest.area[class_id] / total)}" for class_id in shown]
    panels[0, 0].set_yticks(rows, names)
    panels[0, 0].invert_yaxis()
    left_out = len(present) - len(shown)
    more = f"; {left_out} classes that nearest-exact misplaces less are not drawn" if left_out else ""
    figure.suptitle(f"{title}: classes, their share of the area, and what stays in place{more}", fontsize=9)
    handles, texts = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=len(texts), frameon=False, fontsize=9)
    save_figure(figure, file)
