"""`tritonsoft doctor`."""

import dataclasses
import importlib.metadata
import platform
import time
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import typer
from rich.table import Table
from rich.text import Text
from torch import Tensor

import tritonsoft as ts
from tritonsoft.backends import reference
from tritonsoft.backends import select as backends
from tritonsoft.cli.common import AsJson, describe, one_thread, print_json, show, table_of
from tritonsoft.geometry import FILTERS

PACKAGES = ("numpy", "triton", "numba", "kornia")


def doctor(as_json: AsJson = False) -> None:
    """Versions, devices and backends, and a check of every backend against the reference; exit code 1 if one fails."""
    versions = {
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        # Of what is imported: what was installed forgets which CUDA torch is built for, and how a checkout moves on.
        "tritonsoft": ts.__version__,
        "torch": torch.__version__,
        **{package: _version(package) for package in PACKAGES},
        "torch's CUDA / ROCm": f"{torch.version.cuda or 'none'} / {torch.version.hip or 'none'}",
    }
    devices = [
        {"device": name, "what": _describe(name), "backend": backend, "why": reason}
        for name, (backend, reason) in ts.backend_info().items()
    ]
    if not as_json:
        show(_table("Versions", ["package", "version"], versions.items()))
        show(_table("Devices", ["device", "what", "backend", "why"], (device.values() for device in devices)))
    checks = [check(name, backend) for name in ts.backend_info() for backend in backends.BACKENDS]
    passed = all(check.result != FAILED for check in checks)
    if as_json:
        found = [dataclasses.asdict(check) for check in checks]
        print_json("doctor", passed=passed, versions=versions, devices=devices, checks=found)
    else:
        rows = (
            (check.device, check.backend, Text(check.result, STYLES[check.result]), check.detail) for check in checks
        )
        table = _table("Every backend against the float64 reference", ["device", "backend", "result", "detail"], rows)
        table.caption = (
            "Images in [0, 1] and soft labels, float32, all filters: random fractional, mirrored, outlying boxes, "
            "and whole images by 2 and 3.3. Allowed: one float32 rounding for each pixel under a footprint, and 8 more."
        )
        show(table)
    if not passed:
        raise typer.Exit(1)


def _table(title: str, headings: Sequence[str], rows: Iterable[Iterable[str | Text]]) -> Table:
    table = table_of(title, *headings)
    for row in rows:
        table.add_row(*row)
    return table


def _describe(device: str) -> str:
    try:
        return describe(torch.device(device))
    except Exception as exception:  # a driver that is there and fails
        return f"{type(exception).__name__}: {_first_line(exception)}"


PASSED, FAILED, MISSING = "pass", "FAILED", "not available"
STYLES = {PASSED: "green", FAILED: "bold red", MISSING: "yellow"}


@dataclasses.dataclass(frozen=True)
class Check:
    """Of one backend on one device."""

    device: str
    backend: str
    result: str
    detail: str


def check(device: str, backend: str) -> Check:
    """Against the reference, where the backend is available."""
    available, reason = backends.explain_backend(torch.device(device).type, backend)
    if available is None:
        return Check(device, backend, MISSING, reason)
    start = time.perf_counter()
    try:
        with one_thread():
            error, allowed = self_check(torch.device(device), backend)
    except Exception as exception:  # whatever a broken installation raises belongs in the table
        return Check(device, backend, FAILED, f"{type(exception).__name__}: {_first_line(exception)}")
    elapsed = time.perf_counter() - start
    detail = f"largest error {error:.1e}, allowed {allowed:.1e}; took {elapsed:.1f} s"
    return Check(device, backend, PASSED if error <= allowed else FAILED, detail)


def self_check(device: torch.device, backend: str) -> tuple[float, float]:
    """The largest error of a backend against the float64 reference, and the largest that rounding explains."""
    random = np.random.default_rng(0)
    batch, height, width, num_classes, ignore_index = 3, 40, 66, 7, 255
    image = torch.from_numpy(random.random((batch, 3, height, width), np.float32))
    labels = torch.from_numpy(random.integers(0, num_classes + 1, (batch, height, width)).astype(np.uint8))
    labels[labels == num_classes] = ignore_index
    # One end of each box before the middle and one behind it, in either order: never empty, often outside.
    ends = random.uniform((-0.4, 0.6), (0.4, 1.4), (batch, 2, 2))  # (B, axis, end)
    corners = random.permuted(ends, axis=2).transpose(0, 2, 1) * (width, height)  # (B, end, axis)
    boxes = torch.from_numpy(corners.reshape(batch, 4)).float()
    cases: list[tuple[Tensor | None, tuple[int, int]]] = [(boxes, (13, 17)), (None, (20, 33)), (None, (12, 20))]
    worst = 0.0
    for filter in FILTERS:
        for case_boxes, size in cases:
            results = ts.crop_resize_pair(
                image.to(device),
                labels.to(device),
                None if case_boxes is None else case_boxes.to(device),
                size,
                num_classes,
                ignore_index=ignore_index,
                filter=filter,
                backend=backend,
            )
            wanted = (
                reference.crop_resize(image.double(), case_boxes, size, filter, 0.0, torch.float64),
                reference.soft_crop_resize(labels, case_boxes, size, num_classes, ignore_index, filter, torch.float64),
            )
            for result, target in zip(results, wanted, strict=True):
                worst = max(worst, float((result.cpu().double() - target).abs().nan_to_num(torch.inf).max()))
    # The boxes span at most 1.8 of an axis; the widest filter reaches one footprint to either side.
    taps = (2 * 1.8 * height / 13 + 2) * (2 * 1.8 * width / 17 + 2)
    return worst, (taps + 8) * torch.finfo(torch.float32).eps


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
