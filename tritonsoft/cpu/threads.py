"""How functions are compiled, and the threads that run them over ranges of rows."""

import contextlib
import ctypes
import itertools
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import njit

# Numba checks a signed index for counting from the end, which keeps a loop from vectorising; an unsigned one it trusts.
unsigned: Any = np.uint64

# About nanoseconds of one core: below, handing half of it to another thread costs more than it saves.
INLINE_WORK = 1 << 18


def _stamp() -> tuple[tuple[str, int, int], ...]:
    files = sorted(Path(__file__).parent.glob("*.py"))
    return tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files)


def jit(function: Callable[..., Any]) -> Any:
    """Compiled at the first call for each combination of types, and kept on disk."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        compiled = njit(cache=True, **options)(function)
    except RuntimeError:  # no directory that a cache could be written to
        return njit(**options)(function)
    # What is kept holds inlined functions of this package's other files too, while Numba looks at its own file alone.
    with contextlib.suppress(AttributeError):
        compiled._cache._cache_file._source_stamp = _stamp()
    return compiled


_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _openmp() -> Callable[..., None] | None:
    """``GOMP_parallel``, which runs a function on every thread of a team, of the OpenMP library that torch loaded."""
    return getattr(ctypes.CDLL(None), "GOMP_parallel", None) if sys.platform == "linux" else None


class _Pool:
    """Helper threads for the calling one: torch's, or threads of our own where torch has none to lend.

    After each parallel operation of torch its OpenMP threads wait for the next one in a busy loop of several
    milliseconds. Other threads would have to share their cores with them; to these very threads a call is the next one.
    """

    def __init__(self) -> None:
        self._team = _openmp()
        self._start()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def _start(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def _after_fork(self) -> None:
        self._start()  # threads do not survive a fork
        self._team = None  # and OpenMP waits for its lost ones forever

    def run(self, job: Callable[[int, int], Any], num_rows: int, work: int) -> list[Any]:
        """Calls ``job(first_row, end_row)`` over all rows, on as many threads as torch would use."""
        num_threads = min(torch.get_num_threads(), num_rows)
        if num_threads == 1 or work < INLINE_WORK:
            return [job(0, num_rows)]
        # Several ranges per thread, as boxes of a batch differ in cost. `next` on a counter is atomic under the GIL.
        num_ranges = min(num_rows, 4 * num_threads)
        counter = itertools.count()
        results: list[Any] = []
        failures: list[BaseException] = []

        def drain(_: Any = None) -> None:
            try:
                while (index := next(counter)) < num_ranges and not failures:
                    results.append(job(num_rows * index // num_ranges, num_rows * (index + 1) // num_ranges))
            except BaseException as failure:  # for the caller: OpenMP has nowhere to send it
                failures.append(failure)

        if self._team is not None:
            self._team(_Body(drain), None, num_threads, 0)
        else:
            self._drain_together(drain, num_threads)
        if failures:
            raise failures[0]
        return results

    def _drain_together(self, drain: Callable[[], None], num_threads: int) -> None:
        helpers = []
        with self._lock, contextlib.suppress(RuntimeError):  # Python starts no threads once its main one has ended
            self._executor = self._executor or ThreadPoolExecutor(256, "tritonsoft")
            for _ in range(num_threads - 1):
                helpers.append(self._executor.submit(drain))  # noqa: PERF401 - keeps those before an error
        drain()
        # Helpers that another caller keeps busy are not waited for: there is nothing left for them to do.
        for helper in [helper for helper in helpers if not helper.cancel()]:
            helper.result()


pool = _Pool()
