"""Which backend computes what: Triton on GPUs, Numba on CPUs, the reference anywhere."""

import functools
import importlib
import importlib.util
import os
from typing import TYPE_CHECKING, cast

from tritonsoft.backends.protocol import Backend

BACKENDS = ("reference", "numba", "triton")

# Triton decides when it decorates a kernel whether that kernel is interpreted, so this too is fixed for the process.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@functools.cache
def explain_backend(device_type: str, forced: str | None) -> tuple[str | None, str]:
    """The backend that a device type gets and the reason; ``(None, why not)`` where a forced one cannot run."""
    on_gpu = device_type in ("cuda", "xpu")  # ROCm calls itself cuda
    reasons: dict[str, tuple[bool, str]] = {
        "triton": (
            _installed("triton") and (on_gpu or (device_type == "cpu" and _INTERPRETED)),
            "Triton is not installed"
            if not _installed("triton")
            else "Triton compiles for this device"
            if on_gpu
            else "TRITON_INTERPRET=1 runs the Triton kernels on CPU tensors"
            if device_type == "cpu" and _INTERPRETED
            else f"Triton has no {device_type} device; on a CPU it needs TRITON_INTERPRET=1 set before the import",
        ),
        "numba": (
            _installed("numba") and device_type == "cpu",
            f"Numba runs on the CPU, not on {device_type}"
            if device_type != "cpu"
            else "Numba is installed"
            if _installed("numba")
            else "Numba is not installed; pip install '.[cpu]' in a checkout of tritonsoft",
        ),
        "reference": (True, "eager PyTorch runs anywhere"),
    }
    if forced is not None:
        available, reason = reasons[forced]
        return (forced if available else None), reason
    for name, (available, reason) in reasons.items():
        if available and name != "reference":
            return name, reason
    missing = reasons["numba" if device_type == "cpu" else "triton"][1]
    return "reference", f"eager PyTorch runs anywhere ({missing})"


if TYPE_CHECKING:  # a module that lacks a function, or has another signature, is a type error here
    from tritonsoft import cpu, kernels
    from tritonsoft.backends import eager

    _FACES: tuple[Backend, ...] = (eager, cpu, kernels)

_MODULES = {
    "reference": "tritonsoft.backends.eager",
    "numba": "tritonsoft.cpu",
    "triton": "tritonsoft.kernels",
}


@functools.cache
def backend_for(device_type: str, forced: str | None) -> Backend:
    """The backend that a device gets, imported at first use; ValueError where the forced one cannot run."""
    name, reason = explain_backend(device_type, forced)
    if name is None:
        raise ValueError(f"backend={forced!r} cannot run on {device_type}: {reason}")
    return cast(Backend, importlib.import_module(_MODULES[name]))
