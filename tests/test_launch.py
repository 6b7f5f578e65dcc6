"""Remembered launches: the arguments that reach a compiled kernel, with a stub in the place of the GPU's driver."""

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.skipif(
    bool(triton.knobs.runtime.interpret), reason="Triton's interpreter launches nothing that could be remembered"
)


class _Driver:
    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 17

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """What compiled kernels are run with: kernel, grid, stream, and its arguments; none is compiled."""
    from triton.compiler import CompiledKernel
    from triton.runtime.jit import JITFunction

    from tritonsoft.kernels import launch

    calls: list[tuple[Any, ...]] = []

    class Compiled(CompiledKernel):  # type: ignore[misc]
        function = packed_metadata = module = None

        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def _init_handles(self) -> None:
            """Nothing is loaded."""

        def launch_metadata(self, *_: Any) -> None:
            """No hook asks for it."""

        @property
        def run(self) -> Callable[..., None]:
            def run(grid_x: int, grid_y: int, grid_z: int, stream: int, *rest: Any) -> None:
                calls.append((self.kernel, (grid_x, grid_y, grid_z), stream, rest[5:]))

            return run

    def compile_nothing(self: Any, key: Any, signature: Any, device: Any, *_: Any) -> Compiled:
        compiled = Compiled(self)
        self.device_caches[device][0][key] = compiled
        return compiled

    monkeypatch.setattr(triton.runtime.driver, "_active", _Driver())
    monkeypatch.setattr(JITFunction, "_do_compile", compile_nothing)
    monkeypatch.setattr(launch, "on_device", lambda device: launch._NOTHING)
    monkeypatch.setattr(launch, "platform_of", lambda device: "cuda")
    kernels = _kernels()
    for kernel in kernels:
        kernel.device_caches.clear()
    launch.remembered.clear()
    yield calls
    launch.remembered.clear()
    for kernel in kernels:
        kernel.device_caches.clear()


def _kernels() -> list[Any]:
    from triton.runtime.jit import JITFunction

    from tritonsoft.kernels import (
        adjoint,
        area_loss,
        areas,
        binary_loss,
        decoding,
        enlarged_cross_entropy,
        enlarged_gradient,
        enlarged_overlap,
        enlarging,
        forward,
        mixing,
        pyramid,
        remapping,
        soft_cross_entropy,
        soft_overlap,
        sums,
        top_k,
        top_k_ids,
    )

    of_full_size = (decoding, enlarged_cross_entropy, enlarged_gradient, enlarged_overlap, enlarging)
    labels = (areas, forward, mixing, pyramid, remapping, top_k, top_k_ids)
    modules = (adjoint, area_loss, binary_loss, *labels, soft_cross_entropy, soft_overlap, sums, *of_full_size)
    return [value for module in modules for value in vars(module).values() if isinstance(value, JITFunction)]


def _calls() -> dict[str, Callable[[], Any]]:
    """Each makes new tensors of the same kind; several of one call differ in nothing but their memory."""
    from tritonsoft import kernels

    def f(*shape: int) -> Tensor:
        return torch.rand(shape)

    def labels() -> Tensor:
        return torch.zeros(2, 32, 32, dtype=torch.uint8)

    def index() -> Tensor:
        return torch.zeros(2, 2, 8, 8, dtype=torch.uint8)

    logits, maps, box = (2, 19, 8, 8), (2, 8, 8), (2, 4)
    source = ("area",)
    return {
        "image": lambda: kernels.crop_resize(f(2, 3, 8, 8), f(2, 3, 32, 32), f(*box), "area", 0.5),
        "adjoint": lambda: kernels.crop_resize_adjoint(f(2, 3, 32, 32), f(2, 3, 8, 8), f(*box), "area"),
        "soft": lambda: kernels.soft_crop_resize(f(*logits), labels(), None, 255, "area", False),
        "soft of odd width": lambda: kernels.soft_crop_resize(f(2, 19, 8, 7), labels(), None, 255, "area", False),
        "pair": lambda: kernels.crop_resize_pair(
            f(2, 3, 8, 8), f(*logits), f(2, 3, 32, 32), labels(), f(*box), 255, "area", 0.0, False
        ),
        "top": lambda: kernels.soft_crop_resize_top(
            index(), f(2, 2, 8, 8), f(*maps), labels(), None, 19, 255, "area", False
        ),
        "top ids": lambda: kernels.top_ids(index(), f(2, 2, 8, 8), f(*maps), labels(), f(*box), None, "area"),
        "pyramid": lambda: kernels.soft_pyramid([f(2, 19, 16, 16), f(*logits)], labels(), 255, False),
        "areas": lambda: kernels.class_areas(f(2, 3, 19), labels(), f(2, 3, 4), 255, False),
        "paste": lambda: kernels.paste(
            f(2, 3, 32, 32), f(2, 3, 32, 32), torch.tensor([1, 0]), None, labels(), torch.ones(2, 19, dtype=torch.bool)
        ),
        "blend": lambda: kernels.blend(f(2, 3, 8, 8), f(2, 3, 8, 8), torch.tensor([1, 0]), f(2)),
        "blend labels": lambda: kernels.blend_labels(
            f(2, 19, 32, 32), labels(), torch.tensor([1, 0]), f(2), 255, False
        ),
        "remap": lambda: kernels.remap_labels(
            labels(), labels(), torch.tensor([3, 10**6]), torch.zeros(2, dtype=torch.int32), 0, 255, False
        ),
        "cross entropy": lambda: kernels.cross_entropy(
            f(), f(), f(*maps), f(*maps), f(*logits), f(2, 2, 8, 8), index(), f(19), 0.0, "mean", False
        ),
        "cross entropy backward": lambda: kernels.cross_entropy_backward(
            f(*logits), f().expand(maps), f(), f(*logits), f(*logits), None, None, 0.1, f(*maps), f(*maps)
        ),
        "area cross entropy": lambda: kernels.area_cross_entropy(
            f(), f(), f(*maps), f(*maps), f(*logits), labels(), f(*box), 255, *source, None, 0.1, "mean", False
        ),
        "area cross entropy backward": lambda: kernels.area_cross_entropy_backward(
            f(*logits), f(*maps), None, f(*logits), labels(), None, 255, *source, f(19), 0.1, f(2, *maps), f(*maps)
        ),
        "binary cross entropy": lambda: kernels.binary_cross_entropy(
            f(), f(), f(*logits), f(*logits), f(*logits), f(19), f(19), "mean", False
        ),
        "binary cross entropy backward": lambda: kernels.binary_cross_entropy_backward(
            f(*logits), f().expand(logits), f(), f(*logits), f(*logits), None, None, f(19)
        ),
        "overlap": lambda: kernels.overlap_loss(
            *(f(), f(1, 19, 2), f(*maps), f(*maps), f(*logits), f(*logits), None, f(19)),
            *("dice", "present", "mean", False),
        ),
        "overlap backward": lambda: kernels.overlap_loss_backward(
            f(*logits), f().expand(1, 19), f(1, 19, 2), f(*logits), f(*logits), None, f(*maps), f(*maps)
        ),
        "upsampled cross entropy": lambda: kernels.upsampled_cross_entropy(
            f(), f(), f(2, 32, 32), f(*logits), labels(), f(*box), 255, f(19), 0.1, "mean", False
        ),
        "upsampled cross entropy backward": lambda: kernels.upsampled_cross_entropy_backward(
            f(*logits), f(2, 32, 32), f(), f(*logits), labels(), None, 255, None, 0.0, f(2, 32, 32)
        ),
        "upsampled overlap": lambda: kernels.upsampled_overlap_loss(
            *(f(), f(1, 19, 2), f(2, 32, 32), f(*logits), labels(), f(*box), 255, f(19)),
            *("dice", "present", "mean", False),
        ),
        "upsampled overlap backward": lambda: kernels.upsampled_overlap_loss_backward(
            f(*logits), f(1, 19), f(1, 19, 2), f(*logits), labels(), None, 255, f(2, 32, 32)
        ),
        "decode": lambda: kernels.decode(labels(), f(2, 32, 32), f(*logits), f(*box), f(19), 255),
        "confusion matrix": lambda: kernels.confusion_matrix(
            torch.zeros(19, 19, dtype=torch.int64), f(*logits), labels(), None, None, 255, False
        ),
    }


NAMES = [
    *("image", "adjoint", "soft", "pair", "top", "pyramid", "areas", "remap", "cross entropy"),
    *("paste", "blend", "blend labels"),
    *("cross entropy backward",),
    *("area cross entropy", "area cross entropy backward", "overlap", "overlap backward"),
    *("binary cross entropy", "binary cross entropy backward"),
    *("upsampled cross entropy", "upsampled cross entropy backward", "upsampled overlap", "upsampled overlap backward"),
    *("decode", "confusion matrix"),
]


def _described(value: Any) -> Any:
    """An argument without what may differ between two calls: of tensors, where they lie."""
    if isinstance(value, Tensor):
        return value.dtype, value.shape, value.stride()
    return tuple(map(_described, value)) if isinstance(value, tuple) else (type(value), value)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, tuple) else []


@pytest.mark.parametrize("name", NAMES)
def test_the_second_call_launches_what_triton_would(launched, monkeypatch, name):
    from tritonsoft.kernels import launch

    call = _calls()[name]
    call()
    by_triton = launched.copy()
    launched.clear()
    configured = []
    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", lambda *_, **__: configured.append(name))
    call()
    assert not configured
    assert len(launched) == len(by_triton) == len(launch.remembered) > 0
    for first, second in zip(by_triton, launched, strict=True):
        assert second[:3] == first[:3]
        assert _described(second[3]) == _described(first[3])


def test_each_argument_is_the_callers_own(launched):
    """Every tensor of a remembered launch is the one that stands at its place, in calls that exchange two of a kind."""
    from tritonsoft import kernels

    def call() -> tuple[Tensor, ...]:
        tensors = [torch.rand(2, 8, 8) for _ in range(3)]
        logits = [torch.rand(2, 19, 8, 8) for _ in range(3)]
        grad, mass, lse = tensors
        out, scores, soft = logits
        launched.clear()
        kernels.cross_entropy_backward(out, grad, None, scores, soft, None, None, 0.0, mass, lse)
        return out, grad, scores, soft, mass, lse

    for _ in range(3):
        expected = call()
        actual = _tensors(launched[0][3])
        assert [tensor.data_ptr() for tensor in actual] == [tensor.data_ptr() for tensor in expected]
    # The same tensor twice in the first call says nothing about the next ones.
    one, logits = torch.rand(2, 8, 9), torch.rand(2, 19, 8, 9)
    kernels.cross_entropy_backward(logits, one, None, logits, logits, None, None, 0.0, one, one)
    launched.clear()
    maps, planes = [torch.rand(2, 8, 9) for _ in range(3)], [torch.rand(2, 19, 8, 9) for _ in range(3)]
    kernels.cross_entropy_backward(planes[0], maps[0], None, planes[1], planes[2], None, None, 0.0, maps[1], maps[2])
    wanted = [planes[0], maps[0], planes[1], planes[2], maps[1], maps[2]]
    assert [tensor.data_ptr() for tensor in _tensors(launched[0][3])] == [tensor.data_ptr() for tensor in wanted]


def _shifted(tensor: Tensor) -> Tensor:
    """At an address that 16 does not divide."""
    memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    return memory[1:].view(tensor.shape).copy_(tensor)


CHANGES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "shape": lambda _: {"out": torch.rand(2, 19, 8, 16)},
    "batch": lambda _: {"out": torch.rand(3, 19, 8, 8), "labels": torch.zeros(3, 32, 32, dtype=torch.uint8)},
    "strides": lambda given: {"labels": given["labels"].mT},
    "dtype of labels": lambda given: {"labels": given["labels"].int()},
    "dtype of masses": lambda given: {"out": given["out"].half()},
    "alignment": lambda given: {"labels": _shifted(given["labels"])},
    "boxes": lambda _: {"boxes": torch.rand(2, 4)},
    "ignored class": lambda _: {"ignore_index": 3},
    "filter": lambda _: {"filter": "triangle"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_decides_a_launch_has_its_own(launched, change):
    from tritonsoft import kernels
    from tritonsoft.kernels import launch

    given: dict[str, Any] = {
        "out": torch.rand(2, 19, 8, 8),
        "labels": torch.zeros(2, 32, 32, dtype=torch.uint8),
        "boxes": None,
        "ignore_index": 255,
        "filter": "area",
        "validate": False,
    }
    changed = {**given, **CHANGES[change](given)}
    for arguments in (given, changed, given, changed):
        kernels.soft_crop_resize(**arguments)
    assert len(launch.remembered) == 2
    descriptions = [(grid, _described(arguments)) for _, grid, _, arguments in launched]
    assert descriptions[:2] == descriptions[2:]


def test_zeros_of_either_sign_are_two_fills(launched):
    from tritonsoft import kernels

    for fill in (0.0, -0.0, 0.0, -0.0):
        kernels.crop_resize(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 8, 8), torch.rand(1, 4), "area", fill)
    place = launched[0][0].arg_names.index("fill")
    assert [str(arguments[place]) for *_, arguments in launched] == ["0.0", "-0.0", "0.0", "-0.0"]


def test_on_amd_small_memories_are_told_apart(monkeypatch):
    from tritonsoft.kernels import launch

    small = torch.empty(8, dtype=torch.uint8, device="meta")
    large = torch.empty(2**31, dtype=torch.uint8, device="meta")[:8]
    monkeypatch.setattr(torch.version, "hip", None)
    assert launch._key_of(small) == launch._key_of(large)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert launch._key_of(small) != launch._key_of(large)


def test_a_hook_sees_every_launch(launched, monkeypatch):
    """What Triton alone can do is left to it, before and after a launch is remembered."""
    from tritonsoft.kernels import forward

    seen = []
    call = _calls()["image"]
    call()
    call()
    monkeypatch.setattr(forward.crop_resize_kernel, "pre_run_hooks", [lambda *_, **__: seen.append(1)])
    call()
    call()
    assert len(seen) == 2
    assert len(launched) == 4


def test_no_tensor_is_kept(launched):
    from tritonsoft.kernels import launch

    for call in _calls().values():
        call()
    entries = list(launch.remembered._entries.items())
    assert entries
    for key, entry in entries:
        assert not _tensors(key)
        assert not any(_tensors(value) for value in entry._arguments)


def test_the_number_of_launches_is_bounded(launched, monkeypatch):
    from tritonsoft.kernels import launch

    cache = launch.LaunchCache(3)
    for key in range(5):
        cache.put(key, key)  # type: ignore[arg-type]
        assert cache.get(2 if key >= 2 else 0) is not None
    assert len(cache) == 3
    assert [cache.get(key) for key in range(5)] == [None, None, 2, 3, 4]
    cache.get(2)
    cache.put(5, 5)  # type: ignore[arg-type]
    assert cache.get(2) is not None
    assert cache.get(3) is None


def test_threads_share_the_launches(launched):
    from tritonsoft.kernels import launch

    calls = _calls()
    errors = []

    def run() -> None:
        try:
            for _ in range(20):
                for call in calls.values():
                    call()
        except Exception as error:
            errors.append(error)

    for call in calls.values():
        call()
    count = len(launch.remembered)
    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(launch.remembered) == count


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_process_remembers_nothing(launched):
    from tritonsoft.kernels import launch

    _calls()["image"]()
    assert len(launch.remembered) == 1
    child = os.fork()
    if child == 0:
        os._exit(len(launch.remembered))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(launch.remembered) == 1
