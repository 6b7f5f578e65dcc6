"""`tritonsoft audit`."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from torch import Tensor

from tritonsoft.cli.common import (
    console,
    fail,
    need,
    need_folder,
    need_writable,
    parse_classes,
    parse_device,
    parse_factors,
    parse_ignore_index,
    percent,
    saving,
    table_of,
)
from tritonsoft.cli.figure import pyplot, save_figure
from tritonsoft.cli.kept import ALL_METHODS, Kept, coloured, measure, report, short
from tritonsoft.cli.pictures import PictureError, all_pictures, load_labels, load_picture, pairs

CAPTION = (
    "in place: the share of the class's true area that it is given in the very low-resolution pixels where it lies, "
    "sum min(given, true) / sum true. gone: label maps that hold the class and lose all of it. nearest: PyTorch's "
    "default, which shifts; exact: nearest-exact; major: the class with most area; linear: one-hot planes interpolated "
    "without antialiasing; soft: ts.soft_resize. True areas: float64 running totals over the full-size label map."
)
MOST_CLASSES_DRAWN = 30


def audit(
    labels: Annotated[
        Path, typer.Option(help="Folder of label maps, searched recursively: grey or palette ids of 8 or 16 bits.")
    ],
    num_classes: Annotated[int, typer.Option(help="Number of classes.")],
    factors: Annotated[str, typer.Option(help="How much to shrink by, separated by commas; at least 1.")] = "2,4,8",
    ignore_index: Annotated[
        int | None, typer.Option(help="Id of unlabelled pixels.", show_default="255, unless that is a class")
    ] = None,
    class_names: Annotated[str | None, typer.Option(help="Names of the classes, separated by commas.")] = None,
    pattern: Annotated[str, typer.Option(help="Which files are label maps, such as '*_labelTrainIds.png'.")] = "*",
    images: Annotated[
        Path | None, typer.Option(help="Folder of their images: each must have the path, stem and size of its labels.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ... Default: the GPU where there is one.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for audit.csv and audit.png.")] = Path("audit"),
) -> None:
    """Measure what a dataset loses when its label maps are shrunk, for each class, factor and usual method.

    Files that cannot be used are named and left out, and the exit code is then 1.
    """
    shrink_by, chosen_device = parse_factors(factors), parse_device(device)
    names, ignored = parse_classes(num_classes, class_names), parse_ignore_index(ignore_index, num_classes)
    need("demo", "PIL", "matplotlib")
    need_folder("--labels", labels)
    if images is not None:
        need_folder("--images", images)
    try:
        next(labels.glob(pattern), None)
    except (ValueError, NotImplementedError):
        raise typer.BadParameter(f"--pattern must be that of a name or relative path, got {pattern!r}") from None
    table, figure = out / "audit.csv", out / "audit.png"
    need_writable("--out", out, table.name, figure.name)
    load: Callable[[Path], Tensor] = load_labels
    try:
        if images is None:
            files, problems = all_pictures(labels, pattern), list[PictureError]()
        else:
            of_pairs, problems = pairs(images, labels, pattern)
            image_of = {label_file: image_file for image_file, label_file in of_pairs.values()}
            files, load = list(image_of), lambda file: load_picture(image_of[file], file)[1]
        kept, usable = measure(
            [str(file) for file in files],
            lambda index: load(files[index]),
            num_classes,
            ignored,
            shrink_by,
            chosen_device,
            problems,
            ALL_METHODS,
        )
    except PictureError as error:
        fail(str(error))
    if not kept[0].area.any():
        report(problems, out)
        fail(f"nothing to measure: {len(files)} label maps found, none usable with a labelled pixel")
    with saving(out):
        write_csv(table, shrink_by, kept, names)
        draw(figure, shrink_by, kept, names, f"{len(usable)} label maps")
    for factor, each in zip(shrink_by, kept, strict=True):
        console.print(audit_table(factor, each, names))
    console.print(CAPTION, style="dim")
    console.print(f"{len(usable)} label maps; every number is in {table}, drawn in {figure}.", soft_wrap=True)
    if problems:
        report(problems, out)
        raise typer.Exit(1)


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
    """One row per factor, class and method; areas in source pixels."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        shares_of_area = ["kept", "in_place", "distance"]
        writer.writerow(["factor", "class_id", "class", "method", "area", *shares_of_area, "label_maps", "gone"])
        for factor, each in zip(factors, kept, strict=True):
            for class_id in each.area.nonzero().flatten().tolist():
                area = float(each.area[class_id])
                for row, method in enumerate(each.methods):
                    sums = (each.given[row, class_id], each.placed[row, class_id], each.distance[row, class_id])
                    shares = (f"{float(value) / area:.6f}" for value in sums)
                    counts = (f"{each.maps[class_id]:.0f}", f"{each.lost[row, class_id]:.0f}")
                    name = class_names[class_id]
                    writer.writerow([f"{factor:g}", class_id, name, method, f"{area:.0f}", *shares, *counts])


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
