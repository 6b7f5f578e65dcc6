"""`tritonsoft demo`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from tritonsoft.cli import scenes
from tritonsoft.cli.common import (
    console,
    fail,
    free_bytes,
    need,
    need_folder,
    need_writable,
    parse_classes,
    parse_device,
    parse_factors,
    parse_ignore_index,
    percent,
    saving,
    working,
)
from tritonsoft.cli.costs import cost_table
from tritonsoft.cli.figure import draw_figure
from tritonsoft.cli.kept import KEPT_CAPTION, kept_table, measure, report, thinnest_class
from tritonsoft.cli.pictures import PictureError, Pictures, folder, street


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the figure.")] = Path("demo"),
    factors: Annotated[str, typer.Option(help="How much to shrink by, separated by commas; at least 1.")] = "2,4,8",
    thin_class: Annotated[
        list[str] | None,
        typer.Option(
            help="Name or id of a class to draw; may be repeated. Default: pole; in a folder, the class that "
            "nearest-exact misplaces most."
        ),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of images, searched recursively.")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Folder of label maps of the same paths and stems: grey or palette ids of 8 or 16 bits."),
    ] = None,
    num_classes: Annotated[int | None, typer.Option(help="Number of classes in the folder's label maps.")] = None,
    ignore_index: Annotated[
        int | None,
        typer.Option(
            help="Id of unlabelled pixels in the folder's label maps.", show_default="255, unless that is a class"
        ),
    ] = None,
    class_names: Annotated[str | None, typer.Option(help="Names of the folder's classes, separated by commas.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ... Default: the GPU where there is one.")
    ] = None,
    height: Annotated[int, typer.Option(help="Height of the built-in scene.")] = 1024,
    width: Annotated[int, typer.Option(help="Width of the built-in scene.")] = 2048,
    seed: Annotated[int, typer.Option(help="Which built-in scene.")] = 0,
) -> None:
    """Shrink pictures with their labels, and show what nearest and what a soft label keeps.

    Without --images it draws a street scene. With --images, --labels and --num-classes it takes a folder; files that
    cannot be used are named and left out, and the exit code is then 1.
    """
    shrink_by, chosen_device = parse_factors(factors), parse_device(device)
    need("demo", "PIL", "matplotlib")
    try:
        if images is None:
            if labels is not None or num_classes is not None or class_names is not None or ignore_index is not None:
                raise typer.BadParameter(
                    "--labels, --num-classes, --ignore-index and --class-names describe a folder: they need --images"
                )
            pictures, problems = _street(height, width, seed), list[PictureError]()
        else:
            if labels is None or num_classes is None:
                raise typer.BadParameter("--images needs --labels and --num-classes")
            need_folder("--images", images)
            need_folder("--labels", labels)
            names, ignored = parse_classes(num_classes, class_names), parse_ignore_index(ignore_index, num_classes)
            pictures, problems = folder(images, labels, names, ignored)
        thin = [_parse_class(name, pictures.class_names) for name in thin_class or ([] if images else ["pole"])]
        file = out / "soft_labels.png"
        need_writable("--out", out, file.name)

        kept, true_areas = measure(
            pictures.names,
            lambda index: pictures.load(index)[1],
            pictures.num_classes,
            pictures.ignore_index,
            shrink_by,
            chosen_device,
            problems,
        )
    except PictureError as error:
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
    for factor, each in zip(shrink_by, kept, strict=True):
        console.print(kept_table(factor, each, pictures.class_names))
    console.print(KEPT_CAPTION, style="dim")
    if images is None:
        console.print(_sampling_error(kept[0].area / (height * width), seed), style="dim")
    console.print()
    with working("measuring time and memory"):
        costs = cost_table(ids.to(chosen_device), shrink_by, pictures.num_classes, pictures.ignore_index)
    console.print(costs)
    shown = " and ".join(pictures.class_names[k] for k in thin)
    console.print(f"{file} shows {pictures.names[example]} with {shown}{chosen}.", soft_wrap=True)
    if problems:
        report(problems, out)
        raise typer.Exit(1)


def _street(height: int, width: int, seed: int) -> Pictures:
    """The built-in scene, where its size is one that can be drawn."""
    if min(height, width) < 8 or seed < 0:
        raise typer.BadParameter(f"the scene needs 8x8 pixels and seed >= 0, got {height}x{width} and {seed}")
    needed, free = scenes.BYTES_PER_PIXEL * height * width, free_bytes(torch.device("cpu"))
    if needed > free:
        fail(
            f"a scene of {height}x{width} pixels needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: "
            "a smaller --height or --width"
        )
    with working("drawing the street scene"):
        return street(height, width, seed)


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
