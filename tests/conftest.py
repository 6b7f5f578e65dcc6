"""Which backends a test meets, and outputs that show it when an element was not written."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from tritonsoft import memory
from tritonsoft.backends import select as backends


def _target(device: str, backend: str, *marks: pytest.MarkDecorator) -> Any:
    runnable, reason = (True, "")
    if device != "cpu" and not (torch.cuda.is_available() if device == "cuda" else torch.xpu.is_available()):
        runnable, reason = False, f"no {device} device on this machine"
    else:
        name, reason = backends.explain_backend(device, backend)
        runnable = name is not None
    return pytest.param(
        (device, backend), id=f"{device}-{backend}", marks=[*marks, pytest.mark.skipif(not runnable, reason=reason)]
    )


TARGETS = [
    _target("cpu", "reference"),
    _target("cpu", "numba"),
    _target("cpu", "triton"),  # the interpreter: runs where TRITON_INTERPRET=1 was set before the import
    _target("cuda", "triton", pytest.mark.gpu),
    _target("xpu", "triton", pytest.mark.gpu),
]


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A device and the backend that is forced on it."""
    device, backend = request.param
    return device, backend


@pytest.fixture(autouse=True, scope="session")
def poisoned_outputs() -> Iterator[None]:
    """Outputs start as NaN (77 for uint8), so an element that a kernel skips cannot pass for a right one."""
    allocate = memory.empty

    def poisoned(shape: Sequence[int], dtype: torch.dtype, device: torch.device, channels_last: bool = False) -> Any:
        return allocate(shape, dtype, device, channels_last).fill_(float("nan") if dtype.is_floating_point else 77)

    patch = pytest.MonkeyPatch()
    patch.setattr(memory, "empty", poisoned)
    yield
    patch.undo()
