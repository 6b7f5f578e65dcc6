"""What several commands need: the console, tables, devices."""

import contextlib
import importlib.util
import math
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
import typer
from rich import box
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text
from torch import Tensor

import tritonsoft as ts

# Names of classes, files and devices are the user's or the machine's: brackets and colons in them are no markup.
console = Console(markup=False, emoji=False, highlight=False)
# What is no result goes to the standard error, so that a pipe holds results alone.
errors = Console(stderr=True, markup=False, emoji=False, highlight=False)
MAX_CLASSES = 2**16  # as many ids as a label map of 16 bits can hold


def table_of(title: str, *headings: str, caption: str | None = None, show_footer: bool = False) -> Table:
    """As narrow as its contents, so that it fits 80 columns."""
    style: dict[str, Any] = {"box": box.SIMPLE_HEAD, "pad_edge": False, "padding": (0, 0, 0, 1)}
    return Table(*headings, title=title, caption=caption, show_footer=show_footer, title_style="bold", **style)


def percent(share: Tensor | float, digits: int = 1) -> str:
    return f"{100 * float(share):.{digits}f}%"


def fail(message: str) -> NoReturn:
    errors.print(Text(message, "bold red"), soft_wrap=True)
    raise typer.Exit(1)


def working(on: str) -> Status:
    """Says what takes a while, for as long as its block runs."""
    return errors.status(on, spinner="line")


def need(extra: str, *packages: str) -> None:
    """Usage error where a package is missing that one of our extras brings."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise typer.BadParameter(f"this needs {package}: pip install '.[{extra}]' in a checkout of tritonsoft")


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
        if file.is_dir() or not os.access(file if file.exists() else directory, os.W_OK):
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


def parse_classes(num_classes: int, text: str | None) -> list[str]:
    """The names of the classes."""
    if num_classes < 1:
        raise typer.BadParameter(f"--num-classes must be at least 1, got {num_classes}")
    if num_classes > MAX_CLASSES:
        raise typer.BadParameter(f"--num-classes must be at most {MAX_CLASSES}, got {num_classes}")
    if text is None:
        return [f"class {class_id}" for class_id in range(num_classes)]
    # Bytes that the command line could not decode stand in a string as halves of characters, which no figure draws.
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    names = [name.strip() for name in text.split(",")]
    if len(names) != num_classes:
        raise typer.BadParameter(f"--class-names must hold --num-classes={num_classes} names, got {len(names)}")
    return names


def parse_ignore_index(ignore_index: int | None, num_classes: int) -> int:
    """255 where none is given, but never silently where 255 is a class."""
    if ignore_index is None and num_classes > 255:
        raise typer.BadParameter(
            f"--num-classes {num_classes} makes 255, the default of --ignore-index, a class: "
            "give --ignore-index, -1 where every pixel is labelled"
        )
    if ignore_index is not None and not -(2**63) <= ignore_index < 2**63:
        raise typer.BadParameter(f"--ignore-index must fit 64 bits, got {ignore_index}")
    return 255 if ignore_index is None else ignore_index


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
