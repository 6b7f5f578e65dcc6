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
from typing import Any

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

import tritonsoft as ts

console = Console()


def table_of(title: str, *headings: str, caption: str | None = None, show_footer: bool = False) -> Table:
    """As narrow as its contents, so that it fits 80 columns."""
    style: dict[str, Any] = {"box": box.SIMPLE_HEAD, "pad_edge": False, "padding": (0, 0, 0, 1)}
    return Table(*headings, title=title, caption=caption, show_footer=show_footer, title_style="bold", **style)


def percent(share: Tensor | float, digits: int = 1) -> str:
    return f"{100 * float(share):.{digits}f}%"


def fail(message: str) -> None:
    console.print(Text(message, "bold red"), soft_wrap=True)
    raise typer.Exit(1)


def need(extra: str, *packages: str) -> None:
    """Usage error where a package is missing that one of our extras brings."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise typer.BadParameter(f"this needs {package}: pip install 'tritonsoft[{extra}]'")


def need_folder(option: str, directory: Path) -> None:
    if not directory.is_dir():
        raise typer.BadParameter(f"{option}: {directory} is not a folder")


def parse_factors(text: str) -> list[float]:
    try:
        factors = [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--factors must be numbers separated by commas, got {text!r}") from None
    if not all(1 <= factor < math.inf for factor in factors):
        raise typer.BadParameter(f"--factors must be at least 1, got {text!r}")
    return factors


def parse_class_names(text: str | None, num_classes: int) -> list[str]:
    if num_classes < 1:
        raise typer.BadParameter(f"--num-classes must be at least 1, got {num_classes}")
    if text is None:
        return [f"class {class_id}" for class_id in range(num_classes)]
    names = [name.strip() for name in text.split(",")]
    if len(names) != num_classes:
        raise typer.BadParameter(f"--class-names must hold --num-classes={num_classes} names, got {len(names)}")
    return names


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
        match = re.search(r"model name\s*: (.+)", information.read_text()) if information.exists() else None
        model = match.group(1) if match else platform.processor() or platform.machine()
        threads = f"{torch.get_num_threads()} threads of {os.cpu_count()}"
        return f"{model}, {threads}, {torch.backends.cpu.get_cpu_capability()}"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        capability = f"capability {properties.major}.{properties.minor}"
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {capability}"
    return str(torch.xpu.get_device_properties(device))


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
