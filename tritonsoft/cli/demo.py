"""`tritonsoft demo`."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from tritonsoft.cli import scenes
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
    free_bytes,
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
    working,
)
from tritonsoft.cli.costs import cost_table, measure_costs
from tritonsoft.cli.figure import draw_figure
from tritonsoft.cli.kept import KEPT_CAPTION, kept_rows, kept_table, measure, report, thinnest_class
from tritonsoft.cli.pictures import Pictures, folder, street
from tritonsoft.data import DataError, LabelFormat, pair_files


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the figure.")] = Path("demo"),
    factors: Factors = "2,4,8",
    thin_class: Annotated[
        list[str] | None,
        typer.Option(
            help="Name or id of a class to draw; may be repeated. Default: pole; in a folder, the class that "
            "nearest-exact misplaces most.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of images, searched recursively.", show_default=False)
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Folder of label maps of the same names: ids of 1 to 16 bits, colours, or .npy files.",
            show_default=False,
        ),
    ] = None,
    num_classes: NumClasses = None,
    map: LabelMap = None,
    palette: Palette = None,
    ignore: Ignore = None,
    ignore_index: IgnoreIndex = None,
    class_names: ClassNames = None,
    image_pattern: Annotated[str, typer.Option(help=IMAGE_PATTERN_HELP)] = "*",
    label_pattern: Annotated[str, typer.Option(help=LABEL_PATTERN_HELP)] = "*",
    limit: Limit = None,
    device: Device = None,
    height: Annotated[int, typer.Option(help="Height of the built-in scene.")] = 1024,
    width: Annotated[int, typer.Option(help="Width of the built-in scene.")] = 2048,
    seed: Annotated[int, typer.Option(help="Which built-in scene.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Shrink pictures with their labels, and show what nearest and what a soft label keeps.

    Without --images it draws a street scene. With --images, --labels and --num-classes, --map or --palette it takes a
    folder; files that cannot be used are named and left out, and the exit code is then 1.
    """
    shrink_by, chosen_device = parse_factors(factors), parse_device(device)
    need("demo", "PIL", "matplotlib")
    file = out / "soft_labels.png"
    find: Callable[[], tuple[Pictures, list[DataError]]]
    if images is None:
        described = (labels, num_classes, map, palette, ignore, ignore_index, class_names, limit)
        if any(option is not None for option in described) or (image_pattern, label_pattern) != ("*", "*"):
            raise typer.BadParameter(
                "--labels, --num-classes, --map, --palette, --ignore, --ignore-index, --class-names, --image-pattern, "
                "--label-pattern and --limit describe a folder: they need --images"
            )
        _need_drawable(height, width, seed)
        names: Sequence[str] = scenes.CLASSES
        find = functools.partial(_street, height, width, seed)
    else:
        if labels is None or (num_classes, map, palette) == (None, None, None):
            raise typer.BadParameter("--images needs --labels and --num-classes, --map or --palette")
        need_sources(labels, label_pattern, images, image_pattern, limit)
        format = parse_format(num_classes, map, palette, ignore, ignore_index, class_names)
        names = format.class_names
        find = functools.partial(_folder, images, labels, image_pattern, label_pattern, limit, format)
    thin = [_parse_class(name, names) for name in thin_class or ([] if images else ["pole"])]
    need_writable("--out", out, file.name)
    try:
        pictures, problems = find()
        kept, true_areas = measure(
            pictures.names,
            lambda index: pictures.load(index)[1],
            pictures.num_classes,
            pictures.ignore_index,
            shrink_by,
            chosen_device,
            problems,
            options=format_options(map, palette),
        )
    except DataError as error:
        fail(str(error))
    if not kept[0].area.any():
        report(problems, out)
        fail(f"nothing to shrink: {len(pictures.names)} pictures with labels found, none usable with a labelled pixel")

    chosen = ""
    if not thin:
        thin = [thinnest_class(kept[-1])]
        chosen = f", the class that nearest-exact misplaces most at 1/{shrink_by[-1]:g}"
    portions = {index: (areas[thin] / kept[0].area[thin].clamp(min=1)).sum() for index, areas in true_areas.items()}
    example = max(portions, key=lambda index: float(portions[index]))  # the picture with most of the thin classes
    image, ids = pictures.load(example)
    with working("drawing the figure"), saving(out):
        draw_figure(file, image, ids, shrink_by, thin, pictures)
    if not as_json:
        for factor, each in zip(shrink_by, kept, strict=True):
            show(kept_table(factor, each, names))
        console.print(KEPT_CAPTION, style="dim")
        if images is None:
            console.print(_sampling_error(kept[0].area / (height * width), seed), style="dim")
        console.print()
    with working("measuring time and memory"):
        costs = measure_costs(ids.to(chosen_device), shrink_by, pictures.num_classes, pictures.ignore_index)
    if as_json:
        print_json(
            "demo",
            pictures=len(true_areas),
            left_out=[str(problem) for problem in problems],
            rows=list(kept_rows(shrink_by, kept, names)),
            costs=[dataclasses.asdict(cost) for cost in costs],
            shown={"picture": pictures.names[example], "classes": [names[k] for k in thin]},
            files=[str(file)],
        )
    else:
        show(cost_table(costs, ids.to(chosen_device), pictures.num_classes), num_keys=2)
        shown = " and ".join(names[k] for k in thin)
        console.print(f"{file} shows {pictures.names[example]} with {shown}{chosen}.", soft_wrap=True)
    if problems:
        report(problems, out)
        raise typer.Exit(1)


def _street(height: int, width: int, seed: int) -> tuple[Pictures, list[DataError]]:
    with working("drawing the street scene"):
        return street(height, width, seed), []


def _folder(
    images: Path, labels: Path, image_pattern: str, label_pattern: str, limit: int | None, format: LabelFormat
) -> tuple[Pictures, list[DataError]]:
    pairs, problems = pair_files(images, labels, image_pattern, label_pattern)
    return folder(pairs[:limit], format), problems


def _need_drawable(height: int, width: int, seed: int) -> None:
    """A size of the built-in scene that can be drawn."""
    if min(height, width) < 8 or seed < 0:
        raise typer.BadParameter(f"the scene needs 8x8 pixels and seed >= 0, got {height}x{width} and {seed}")
    needed, free = scenes.BYTES_PER_PIXEL * height * width, free_bytes(torch.device("cpu"))
    if needed > free:
        fail(
            f"a scene of {height}x{width} pixels needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: "
            "a smaller --height or --width"
        )


def _sampling_error(shares: Tensor, seed: int) -> str:
    """How far the label map itself is from the drawing."""
    true = scenes.true_coverage(seed=seed).flatten()
    error = (shares / true - 1).abs().where(true > 0, 0)
    worst = int(error.argmax())
    return (
        f"The label map samples a vector drawing at pixel centres; its class areas lie within {percent(error[worst])} "
        f"({scenes.CLASSES[worst]}) of the drawing's own, counted on 8192x16384 points."
    )


def _parse_class(text: str, class_names: Sequence[str]) -> int:
    if text in class_names:
        return class_names.index(text)
    if text.isdecimal() and int(text) < len(class_names):
        return int(text)
    wanted = f"an id in 0..{len(class_names) - 1} or one of {', '.join(class_names)}"
    raise typer.BadParameter(f"--thin-class must be {wanted}; got {text!r}")
