"""What a call of the Triton backend costs the host, on a machine without a GPU: the driver is a stub.

    python -m bench.host_time

Nothing is compiled and no kernel runs, so the times hold all that Python, torch and Triton do for a call, and nothing
else. Beside them torch's own calls on as many pixels, whose small kernels do run; the ratios are what to look at.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
import triton
from rich.console import Console
from rich.table import Table
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

import tritonsoft as ts
from tritonsoft import kernels
from tritonsoft.kernels import launch
from tritonsoft.ops import _define


class _Driver:
    """The device that is not there."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


class _Compiled(CompiledKernel):  # type: ignore[misc]
    """A kernel that does nothing when it is launched."""

    function = packed_metadata = module = None
    name = ""

    def __init__(self) -> None:
        """Nothing is compiled."""

    def _init_handles(self) -> None:
        """Nothing is loaded."""

    @staticmethod
    def run(*arguments: Any) -> None:
        """Where the driver would begin."""

    def launch_metadata(self, grid: Any, stream: int, *arguments: Any) -> None:
        """No hook asks for it."""


def _compile_nothing(self: Any, key: Any, signature: Any, device: Any, *_: Any) -> _Compiled:
    compiled: _Compiled = self.device_caches[device][0].setdefault(key, _Compiled())
    return compiled


def _without_a_device() -> None:
    triton.runtime.driver.set_active(_Driver())
    JITFunction._do_compile = _compile_nothing
    launch.on_device = lambda device: launch._NOTHING
    launch.platform_of = lambda device: "cuda"
    _define.backend_for = lambda device_type, forced: kernels  # type: ignore[assignment, return-value]
    _define.should_validate = lambda device, validate: False  # as on a GPU


def microseconds(call: Callable[[], Any], repeats: int = 7, calls: int = 300) -> float:
    """The best of several means."""
    means = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        means.append((time.perf_counter() - start) / calls)
    return min(means) * 1e6


def _with_gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> Callable[[], None]:
    return lambda: loss(logits).backward()  # type: ignore[no-untyped-call]


def rows() -> Iterator[tuple[str, Callable[[], Any], str, Callable[[], Any]]]:
    """A call and its baseline."""
    image, box = torch.rand(2, 3, 32, 32), torch.tensor([[0.0, 0, 32, 32]] * 2)
    labels = torch.randint(19, (2, 32, 32), dtype=torch.uint8)
    logits = torch.randn(2, 19, 8, 8, requires_grad=True)
    soft = torch.rand(2, 19, 8, 8).softmax(1)

    def interpolate() -> Tensor:
        return F.interpolate(image, (8, 8), mode="bilinear", antialias=True)

    entropy = _with_gradient(lambda z: F.cross_entropy(z, soft), logits)
    resized, torchs = "F.interpolate(antialias=True)", "F.cross_entropy of probabilities, forward + backward"
    yield "soft_resize", lambda: ts.soft_resize(labels, (8, 8), 19), resized, interpolate
    yield (
        "crop_resize_pair",
        lambda: ts.crop_resize_pair(image, labels, box, (8, 8), 19),
        resized,
        interpolate,
    )
    losses: dict[str, Callable[[Tensor], Tensor]] = {
        "soft_cross_entropy": lambda z: ts.soft_cross_entropy(z, soft),
        "area_cross_entropy": lambda z: ts.area_cross_entropy(z, labels),
        "soft_dice_loss": lambda z: ts.soft_dice_loss(z, soft),
    }
    for name, loss in losses.items():
        yield f"{name}, forward + backward", _with_gradient(loss, logits), torchs, entropy


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    _without_a_device()
    table = Table(title="host time per call, microseconds; the driver is a stub")
    for column in ("call", "every launch configured", "remembered", "baseline", "of it", "remembered / baseline"):
        table.add_column(column, justify="left" if column in ("call", "baseline") else "right")
    keep = launch.remembered.put
    for name, call, baseline, other in rows():
        launch.remembered.clear()
        launch.remembered.put = lambda key, entry: None  # type: ignore[method-assign]
        configured = microseconds(call)
        launch.remembered.put = keep  # type: ignore[method-assign]
        ours, theirs = microseconds(call), microseconds(other)
        numbers = (f"{configured:.0f}", f"{ours:.0f}", baseline, f"{theirs:.0f}", f"{ours / theirs:.2f}")
        table.add_row(name, *numbers)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
