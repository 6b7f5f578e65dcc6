"""`tritonsoft shrink`."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import ProgressColumn, Task
from rich.text import Text

from tritonsoft.cli.common import (
    IMAGE_PATTERN_HELP,
    LABEL_PATTERN_HELP,
    AsJson,
    ClassNames,
    Ignore,
    IgnoreIndex,
    LabelMap,
    Limit,
    NumClasses,
    Palette,
    console,
    fail,
    name_left_out,
    need,
    need_sources,
    parse_format,
    print_json,
    progress_of,
    show,
    table_of,
    working,
)
from tritonsoft.data import (
    ClusterError,
    DataError,
    OutputError,
    ShrinkEstimate,
    ShrinkSettings,
    estimate_shrinking,
    shrink_dataset,
    shrink_settings,
)
from tritonsoft.data.manifest import MANIFEST, ImageFormat
from tritonsoft.data.shrinking import Engine, Existing, find_pairs
from tritonsoft.data.shrunk_labels import Masses
from tritonsoft.geometry import Filter


def shrink(
    images: Annotated[Path, typer.Option(help="Folder of images, searched recursively.")],
    labels: Annotated[Path, typer.Option(help="Folder of their label files, searched recursively.")],
    out: Annotated[Path, typer.Option(help="Folder for the shrunk data set.")],
    factor: Annotated[
        float | None, typer.Option(help="How much to shrink by, at least 1; sides are rounded.", show_default=False)
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Height and width of all samples, as 256x512.", show_default=False)
    ] = None,
    num_classes: NumClasses = None,
    map: LabelMap = None,
    palette: Palette = None,
    ignore: Ignore = None,
    ignore_index: IgnoreIndex = None,
    class_names: ClassNames = None,
    image_pattern: Annotated[str, typer.Option(help=IMAGE_PATTERN_HELP)] = "*",
    label_pattern: Annotated[str, typer.Option(help=LABEL_PATTERN_HELP)] = "*",
    filter: Annotated[Filter, typer.Option(help="Of image and labels.")] = "area",
    top_k: Annotated[
        int | None, typer.Option(help="How many classes of a pixel are kept.", show_default="4, or all of fewer")
    ] = None,
    masses: Annotated[Masses, typer.Option(help="What a mass is stored in.")] = "uint8",
    image_format: Annotated[ImageFormat, typer.Option(help="Of the shrunk images.")] = "png",
    quality: Annotated[
        int | None, typer.Option(help="Of JPEG and WebP, 1 to 100.", show_default="95 of jpeg, 90 of webp")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Threads, or Ray's processes.", show_default="as many as there are cores")
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="Threads of this machine, or Ray, on one machine or several that share the folders.")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(help="Of a running Ray cluster, HOST:PORT or auto.", show_default="RAY_ADDRESS, or a new one"),
    ] = None,
    limit: Limit = None,
    resume: Annotated[bool, typer.Option("--resume", help="Do what is missing of a data set in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete a data set in --out first.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Shrink a data set once: small images, and soft labels of each pixel's largest classes.

    tritonsoft.data.ShrunkDataset reads it. Nothing is written to the sources, and a file is there whole or not at all.
    Files that cannot be used are named and left out, and the exit code is then 1.
    """
    need("data", "PIL", "safetensors")
    if engine == "ray":
        need("ray", "ray", "pyarrow")
    elif address is not None:
        raise typer.BadParameter("--address is of --engine ray")
    label_format = parse_format(num_classes, map, palette, ignore, ignore_index, class_names)
    need_sources(labels, label_pattern, images, image_pattern, limit)
    if resume and overwrite:
        raise typer.BadParameter("--resume continues what is in --out, and --overwrite deletes it: give one of them")
    if workers is not None and workers < 1:
        raise typer.BadParameter(f"--workers must be at least 1, got {workers}")
    if (factor is None) == (size is None):
        raise typer.BadParameter("give one of --factor and --size")
    try:
        settings = shrink_settings(
            label_format,
            factor=factor,
            size=None if size is None else parse_size(size),
            filter=filter,
            top_k=top_k,
            masses=masses,
            image_format=image_format,
            quality=quality,
        )
    except (TypeError, ValueError) as error:  # it calls the arguments by their names in Python
        message = re.sub(r"^\w+", lambda name: "--" + name[0].replace("_", "-"), str(error))
        raise typer.BadParameter(message) from None
    existing: Existing = "resume" if resume else "overwrite" if overwrite else "refuse"
    try:
        if dry_run:
            with working("looking at some pictures"):
                pairs, problems = find_pairs(images, labels, image_pattern, label_pattern)
                estimate = estimate_shrinking(pairs[:limit], settings, workers)
            skipped = (*[str(problem) for problem in problems], *estimate.skipped)
            say_estimate(estimate, as_json)
        else:
            with progress_bar() as progress:
                result = shrink_dataset(
                    images,
                    labels,
                    out,
                    settings,
                    image_pattern=image_pattern,
                    label_pattern=label_pattern,
                    limit=limit,
                    existing=existing,
                    workers=workers,
                    engine=engine,
                    address=address,
                    progress=progress,
                )
            skipped = result.skipped
            say_result(out, settings, len(result.samples), result.seconds, skipped, as_json)
    except (ClusterError, DataError, OutputError) as error:
        fail(str(error))
    if skipped:
        name_left_out(skipped, None if dry_run else out / MANIFEST)
        raise typer.Exit(1)


def parse_size(text: str) -> tuple[int, int]:
    if match := re.fullmatch(r"(\d+)[x×](\d+)", text.strip()):
        return int(match[1]), int(match[2])
    raise typer.BadParameter(f"--size must be height x width, as 256x512, got {text!r}")


class RateColumn(ProgressColumn):
    """Pictures a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s")


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """On the standard error; what its block gets is told how many are done, and of how many."""
    with progress_of("shrinking", RateColumn()) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def say_estimate(estimate: ShrinkEstimate, as_json: bool) -> None:
    if as_json:
        print_json("shrink", dry_run=True, **dataclasses.asdict(estimate))
        return
    table = table_of(f"{estimate.pictures} pictures, by {estimate.tried} of them", "", "now", "shrunk")
    (height, width), (source_height, source_width) = estimate.size, estimate.source_size
    table.add_row("size of the first", f"{source_height}x{source_width}", f"{height}x{width}")
    table.add_row("images", megabytes(estimate.source_image_bytes), megabytes(estimate.image_bytes))
    table.add_row("labels", megabytes(estimate.source_label_bytes), megabytes(estimate.label_bytes))
    table.add_row("time", "", duration(estimate.seconds))
    show(table)


def say_result(
    out: Path, settings: ShrinkSettings, pictures: int, seconds: float, skipped: Sequence[str], as_json: bool
) -> None:
    if as_json:
        described = {name: getattr(settings, name) for name in ("factor", "size", "filter", "top_k", "num_classes")}
        print_json("shrink", out=str(out), pictures=pictures, seconds=seconds, left_out=list(skipped), **described)
    else:
        console.print(f"{pictures} pictures in {out}, in {duration(seconds)}.", soft_wrap=True)


def megabytes(number: int) -> str:
    return f"{number / 1e6:.1f} MB" if number < 1e9 else f"{number / 1e9:.2f} GB"


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
