"""What several commands need: options, the console, tables, devices."""

import contextlib
import importlib.util
import json
import math
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.status import Status
from rich.table import Table
from rich.text import Text
from torch import Tensor

import tritonsoft as ts
from tritonsoft._extras import Extra, how_to_install
from tritonsoft.cli.folding import folded
from tritonsoft.data import LabelFormat, label_format
from tritonsoft.data.pairing import check_pattern
from tritonsoft.data.tables import DATA_SETS

# Names of classes, files and devices are the user's or the machine's: brackets and colons in them are no markup.
console = Console(markup=False, emoji=False, highlight=False)
# What is no result goes to the standard error, so that a pipe holds results alone.
errors = Console(stderr=True, markup=False, emoji=False, highlight=False)
MAX_LINES = 20  # of files that are named one by one

# --- options that commands share ---------------------------------------------------------------------------------

NumClasses = Annotated[
    int | None, typer.Option(help="Number of classes; --map and --palette say it too.", show_default=False)
]
LabelMap = Annotated[
    str | None,
    typer.Option(
        "--map",
        help=f"Which class each id of a label file is: {', '.join(DATA_SETS)}, or a CSV or JSON file. "
        "Default: ids are classes.",
        show_default=False,
    ),
]
Palette = Annotated[
    str | None,
    typer.Option(
        help=f"Which class each colour of a label file is: "
        f"{', '.join(name for name, data_set in DATA_SETS.items() if data_set.colours)}, or a CSV or JSON file.",
        show_default=False,
    ),
]
Ignore = Annotated[
    str | None, typer.Option(help="More ids without a class, separated by commas: 0,255.", show_default=False)
]
IgnoreIndex = Annotated[
    int | None, typer.Option(help="What unlabelled pixels are.", show_default="255, unless that is a class")
]
ClassNames = Annotated[str | None, typer.Option(help="Names of the classes, separated by commas.", show_default=False)]
IMAGE_PATTERN_HELP = "Which files are images, and by its star which labels they have, such as '*_leftImg8bit.png'."
LABEL_PATTERN_HELP = "Which files are label maps, such as '*_gtFine_labelIds.png'."
Limit = Annotated[int | None, typer.Option(help="Take the first N files only.", metavar="N", show_default=False)]
Factors = Annotated[str, typer.Option(help="How much to shrink by, separated by commas; at least 1.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, ... Default: the GPU where there is one.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object in the place of tables.")]

# --- printing ----------------------------------------------------------------------------------------------------


def table_of(title: str, *headings: str, caption: str | None = None, show_footer: bool = False) -> Table:
    """As narrow as its contents, so that it fits 80 columns."""
    style: dict[str, Any] = {"box": box.SIMPLE_HEAD, "pad_edge": False, "padding": (0, 0, 0, 1)}
    return Table(*headings, title=title, caption=caption, show_footer=show_footer, title_style="bold", **style)


def show(table: Table, num_keys: int = 1) -> None:
    """Print a table, on a narrow terminal in parts that share the first columns."""
    for part in folded(table, console, num_keys):
        console.print(part)


def print_json(command: str, **content: Any) -> None:
    """What a command found, as one JSON object on the standard output, with the versions that found it."""
    versions = {"tritonsoft": ts.__version__, "torch": torch.__version__}
    # Letters beyond ASCII are escaped: any encoding of the output holds them.
    typer.echo(json.dumps({"command": command, **versions, **content}, indent=2, allow_nan=False))


def percent(share: Tensor | float, digits: int = 1) -> str:
    return f"{100 * float(share):.{digits}f}%"


def fail(message: str) -> NoReturn:
    errors.print(Text(message, "bold red"), soft_wrap=True)
    raise typer.Exit(1)


def name_left_out(problems: Sequence[object], all_in: Path | None) -> None:
    """What was left out, by name; of much, the first, and the file that names all, where there is one."""
    for problem in problems[:MAX_LINES]:
        errors.print(Text.assemble(("left out ", "red"), str(problem)), soft_wrap=True)
    if len(problems) > MAX_LINES:
        where = f": all {len(problems)} are named in {all_in}" if all_in else ""
        errors.print(f"and {len(problems) - MAX_LINES} more{where}", soft_wrap=True)


def progress_of(what: str, *columns: ProgressColumn) -> Progress:
    """A bar on the standard error, where that is a terminal, with columns between the number and the time left."""
    shown = (TextColumn(what), BarColumn(), MofNCompleteColumn(), *columns, TimeRemainingColumn())
    return Progress(*shown, console=errors, transient=True, disable=not errors.is_terminal)


def working(on: str) -> Status:
    """Says what takes a while, for as long as its block runs."""
    return errors.status(on, spinner="line")


def need(extra: Extra, *packages: str) -> None:
    """Usage error where a package is missing that one of our extras brings."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise typer.BadParameter(f"this needs {package}: {how_to_install(extra)}")


def need_folder(option: str, directory: Path) -> None:
    if not directory.is_dir():
        raise typer.BadParameter(f"{option}: {directory} is not a folder")


def need_writable(option: str, directory: Path, *files: str) -> None:
    """Make a folder for some files; a usage error where that cannot be, before anything is measured for them."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"{option}: {directory} cannot be made a folder ({error.strerror})") from None
    for file in (directory / name for name in files):
        needed = (directory, file) if file.exists() else (directory,)
        if file.is_dir() or not all(os.access(path, os.W_OK) for path in needed):
            raise typer.BadParameter(f"{option}: {file} cannot be written")


@contextlib.contextmanager
def saving(directory: Path) -> Iterator[None]:
    """Ends the program with a message where what its block saves does not get there, as on a disk that is full."""
    try:
        yield
    except OSError as error:
        fail(f"{directory}: the results cannot be saved ({error})")


def parse_factors(text: str) -> list[float]:
    try:
        factors = [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--factors must be numbers separated by commas, got {text!r}") from None
    if not all(1 <= factor < math.inf for factor in factors):
        raise typer.BadParameter(f"--factors must be at least 1, got {text!r}")
    return factors


def parse_format(
    num_classes: int | None,
    map: str | None,
    palette: str | None,
    ignore: str | None,
    ignore_index: int | None,
    class_names: str | None,
) -> LabelFormat:
    """What the options say of the label files."""
    names = None
    if class_names is not None:
        # Bytes that the command line could not decode stand in a string as halves of characters, which no figure draws.
        text = class_names.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        names = [name.strip() for name in text.split(",")]
    try:
        ignored = [] if ignore is None else [int(part) for part in ignore.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--ignore must be ids separated by commas, got {ignore!r}") from None
    try:
        return label_format(
            num_classes, map=map, palette=palette, ignore=ignored, ignore_index=ignore_index, class_names=names
        )
    except ValueError as error:  # it calls the arguments by their names in Python
        arguments = r"\b(num_classes|ignore_index|class_names)\b|^(map|palette|ignore)\b"
        message = re.sub(arguments, lambda argument: "--" + argument[0].replace("_", "-"), str(error))
        raise typer.BadParameter(message) from None


def format_options(map: str | None, palette: str | None) -> str:
    """The options that are wrong where label files hold what is no class."""
    given = [option for option, value in (("--map", map), ("--palette", palette)) if value is not None]
    return f"{' and '.join(given)} (or --ignore)" if given else "--num-classes and --ignore-index"


def need_sources(
    labels: Path,
    label_pattern: str,
    images: Path | None,
    image_pattern: str,
    limit: int | None,
    label_option: str = "--label-pattern",
) -> None:
    """Usage error where the options that say which files are taken do not fit: folders, patterns, and a limit."""
    try:
        check_pattern(label_pattern, label_option)
        check_pattern(image_pattern, "--image-pattern")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if limit is not None and limit < 1:
        raise typer.BadParameter(f"--limit must be at least 1, got {limit}")
    if images is not None:
        need_folder("--images", images)
    need_folder("--labels", labels)


def parse_device(name: str | None) -> torch.device:
    devices = list(ts.backend_info())
    if name is None:
        return torch.device(devices[min(1, len(devices) - 1)])
    found = {"cuda": "cuda:0", "xpu": "xpu:0"}.get(name, name)
    if found not in devices:
        raise typer.BadParameter(f"--device must be one of {', '.join(devices)}; got {name!r}")
    return torch.device(found)


def describe(device: torch.device) -> str:
    if device.type == "cpu":
        information = Path("/proc/cpuinfo")
        match = (
            re.search(r"model name\s*: (.+)", information.read_text(errors="replace")) if information.exists() else None
        )
        model = match.group(1) if match else platform.processor() or platform.machine()
        threads = f"{torch.get_num_threads()} threads of {os.cpu_count()}"
        return f"{model}, {threads}, {torch.backends.cpu.get_cpu_capability()}"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        capability = f"capability {properties.major}.{properties.minor}"
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {capability}"
    return str(torch.xpu.get_device_properties(device))


def free_bytes(device: torch.device) -> int:
    """Memory that is left."""
    if device.type != "cpu":
        return int(torch.accelerator.get_memory_info(device)[0])
    information = Path("/proc/meminfo")
    match = re.search(r"MemAvailable:\s+(\d+) kB", information.read_text()) if information.exists() else None
    return int(match[1]) * 1024 if match else 1 << 62


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Small operations on one thread each: many would spend their time waiting for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """How long one call takes until the device is done."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start
