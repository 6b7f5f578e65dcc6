"""Which backend computes what: Triton on GPUs, Numba on CPUs, the reference anywhere."""

import functools
import importlib
import importlib.util
import os
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any, cast

from tritonsoft._extras import how_to_install
from tritonsoft.backends.protocol import Backend

BACKENDS = ("reference", "numba", "triton")

# Triton decides when it decorates a kernel whether that kernel is interpreted, so this too is fixed for the process.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


# --- forks -----------------------------------------------------------------------------------------------------------
#
# A child has one thread alone: what another thread was importing or compiling would stay locked there for good. So a
# fork waits until that is done.

_importing = threading.RLock()
_held: list[Any] = []


def _before_fork() -> None:
    _importing.acquire()
    compiler = getattr(sys.modules.get("numba.core.compiler_lock"), "global_compiler_lock", None)
    if compiler is not None:
        compiler.acquire()
    _held.append(compiler)


def _after_fork() -> None:
    compiler = _held.pop()
    if compiler is not None:
        compiler.release()
    _importing.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


# --- choice ----------------------------------------------------------------------------------------------------------


def _numba_may_compile() -> bool:
    return os.environ.get("NUMBA_DISABLE_JIT", "").strip() in ("", "0")


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
            _installed("numba") and _numba_may_compile() and device_type == "cpu",
            f"Numba runs on the CPU, not on {device_type}"
            if device_type != "cpu"
            else f"Numba is not installed: {how_to_install('cpu')}"
            if not _installed("numba")
            else "Numba is installed"
            if _numba_may_compile()
            else "NUMBA_DISABLE_JIT keeps Numba from compiling",
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
    from tritonsoft import kernels
    from tritonsoft.backends import eager, numba

    _FACES: tuple[Backend, ...] = (eager, numba, kernels)

_MODULES = {
    "reference": "tritonsoft.backends.eager",
    "numba": "tritonsoft.backends.numba",
    "triton": "tritonsoft.kernels",
}


@functools.cache
def backend_for(device_type: str, forced: str | None) -> Backend:
    """The backend that a device gets, imported at first use; ValueError where the forced one cannot run."""
    name, reason = explain_backend(device_type, forced)
    if name is None:
        raise ValueError(f"backend={forced!r} cannot run on {device_type}: {reason}")
    with _importing:
        return cast(Backend, importlib.import_module(_MODULES[name]))


# Elements of a call's first tensor. From here on the reference takes tens of milliseconds, and Numba a tenth or less.
LARGE = 2**19
_LIBRARIES = ("tritonsoft", "torch", "kornia")


@functools.cache
def warn_where_numba_is_missing() -> None:
    """Says what to install before a large call on the CPU, once in a process."""
    if not _installed("numba") and explain_backend("cpu", None)[0] == "reference":
        warnings.warn(
            "tritonsoft computes large tensors on the CPU ten to a hundred times as slowly without Numba: "
            f"{how_to_install('cpu')}",
            RuntimeWarning,
            stacklevel=1 + _frames_of_libraries(),
        )


def _frames_of_libraries() -> int:
    """How many frames, the caller's first, are of this library and of those that call it: the next is a user's.

    Python 3.11 has no ``skip_file_prefixes`` for `warnings.warn`.
    """
    number, frame = 0, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES:
        number, frame = number + 1, frame.f_back
    return number
