"""Which backends a test meets, and outputs that show it when an element was not written."""

import dataclasses
import functools
import gc
import importlib.metadata
import os
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


@pytest.fixture(scope="session", autouse=True)
def _masks_in_the_interpreter() -> Iterator[None]:
    """In Triton 3.9's a comparison of integers, broadcast, becomes integers, which it refuses as a mask from then on.

    Compiled, its type is right.
    """
    with pytest.MonkeyPatch.context() as patch:
        if os.environ.get("TRITON_INTERPRET") == "1" and _triton_version() >= (3, 9):
            from triton.language import int1
            from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

            create_splat = InterpreterBuilder.create_splat

            def create_typed_splat(self: Any, result_type: Any, value: Any) -> Any:
                is_condition = value.data.dtype == bool
                return create_splat(self, result_type, TensorHandle(value.data, int1) if is_condition else value)

            patch.setattr(InterpreterBuilder, "create_splat", create_typed_splat)
        yield


def _triton_version() -> tuple[int, ...]:
    return tuple(map(int, importlib.metadata.version("triton").split(".")[:2]))


# Groups of tests, each for one process, in the order in which processes take them (`--no-loadscope-reorder`): the
# longest first, and beside each other those that compile different functions. Groups that are not named here come next,
# and single tests come last: they fill up what is left of each process's time.
ORDER = (
    *("augmentation", "sm_90", "snapshot", "sm_100", "sm_80", "gfx942"),
    *("test_losses", "test_full_resolution", "test_sparse", "test_backends"),
)
# The longest of the single tests, which none may be left alone with at the end.
LONG_TESTS = (
    "test_many_classes_are_kept_without_a_dense_label[cpu-triton-transform]",
    "test_two_processes_train_as_one_program_and_repeat_it",
)


@pytest.hookimpl(tryfirst=True)  # pytest-xdist's own hook reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process runs a file's tests of Numba, and one all of those of the augmentations.

    Two would compile the same types at the same time. What is compiled lies on the disk when another process needs it.
    """

    def place(item: pytest.Item) -> int:
        mark = item.get_closest_marker("xdist_group")
        if mark is None:
            return len(ORDER) + (1 if item.name in LONG_TESTS else 2)
        return ORDER.index(mark.args[0]) if mark.args[0] in ORDER else len(ORDER)

    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            if item.path.stem.startswith("test_augmentation"):
                item.add_marker(pytest.mark.xdist_group("augmentation"))
            elif "cpu-numba" in item.name:
                item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Garbage is sought less often, and not among the tests: a test that Numba compiles for took 31 s for 34 and 37."""
    gc.freeze()
    gc.set_threshold(50_000)


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


@pytest.fixture(autouse=True, scope="session")
def patched_language() -> Iterator[None]:
    """Triton's language stays patched for the interpreter from the first launch to the last test.

    The interpreter patches it anew for every call of every function inside a kernel, which is most of what it does.
    Where Triton has other insides than these, tests are slow and the same.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    import triton
    from triton.runtime import interpreter

    if not all(hasattr(interpreter, name) for name in ("_patch_lang", "_LangPatchScope", "interpreter_builder")):
        yield
        return
    patch_language, nothing_to_restore = interpreter._patch_lang, interpreter._LangPatchScope()
    scopes = {}

    @functools.cache
    def patched_once(function: Any) -> Any:
        """A function sees the language as `tl` or, in Triton's own library, as its module `core`."""
        modules = (triton.language, triton.language.core)
        seen = tuple(any(value is module for value in function.__globals__.values()) for module in modules)
        if seen not in scopes:
            scopes[seen] = patch_language(function)
        return nothing_to_restore

    patch = pytest.MonkeyPatch()
    patch.setattr(interpreter, "_patch_lang", patched_once)
    # Integers are also added in int64, for a check of overflow that is switched off with `debug`.
    builder = interpreter.interpreter_builder
    if not builder.options.debug:
        patch.setattr(builder, "options", dataclasses.replace(builder.options, sanitize_overflow=False))
    yield
    patch.undo()
    for scope in reversed(scopes.values()):
        scope.restore()
