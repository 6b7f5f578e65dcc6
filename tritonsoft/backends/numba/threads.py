"""How functions are compiled, and the threads that run them over ranges of rows."""

import contextlib
import ctypes
import itertools
import os
import queue
import sys
import threading
import time
from _thread import start_new_thread
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from numba import njit
from numba.core.entrypoints import init_all

from tritonsoft.backends.numba.cache import cache_of

# Numba checks a signed index for counting from the end, which keeps a loop from vectorising; an unsigned one it trusts.
unsigned: Any = np.uint64

# Nanoseconds by which sharing must shorten a call: waking helpers takes half of that on an idle machine, and more where
# cores are busy (bench/NOTES.md).
MIN_SAVED_NANOSECONDS = 1_000_000

if numba.config.DISABLE_JIT:
    raise RuntimeError(
        "the Numba backend cannot run: NUMBA_DISABLE_JIT (or numba.config.DISABLE_JIT) keeps Numba from compiling; "
        "unset it, or pass backend='reference'"
    )

# What Numba would import in its first call, under no lock that a fork could wait for (`tritonsoft.backends`).
init_all()
numba.typeof(np.empty(0))


def jit(function: Callable[..., Any]) -> Any:
    """Compiled at the first call for each combination of types, and kept on disk."""
    compiled = njit(nogil=True, error_model="numpy")(function)
    compiled._cache = cache_of(function)
    return compiled


_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _openmp() -> Callable[..., None] | None:
    """``GOMP_parallel``, which runs a function on every thread of a team, of the OpenMP library that torch loaded."""
    return getattr(ctypes.CDLL(None), "GOMP_parallel", None) if sys.platform == "linux" else None


class _Call:
    """The rows of one call, in ranges that whoever is free takes. Who has taken none is not waited for."""

    def __init__(self, job: Callable[[int, int], Any], num_rows: int, num_ranges: int) -> None:
        self.results: list[Any] = []
        self.failures: list[BaseException] = []
        self._job, self._num_rows, self._num_ranges = job, num_rows, num_ranges
        self._next_range = itertools.count()  # `next` on it is atomic under the GIL
        self._lock = threading.Lock()
        self._num_helping = 0
        self._closed = False
        self._last_has_left = threading.Lock()
        self._last_has_left.acquire()

    def drain(self) -> None:
        """Runs ranges until none is left."""
        try:
            while (index := next(self._next_range)) < self._num_ranges and not self.failures:
                first, end = (self._num_rows * each // self._num_ranges for each in (index, index + 1))
                self.results.append(self._job(first, end))
        except BaseException as failure:  # for the caller, in whichever thread
            self.failures.append(failure)

    def help(self) -> None:
        """What another thread does; nothing once the caller has found no range left."""
        with self._lock:
            if self._closed:
                return
            self._num_helping += 1
        self.drain()
        with self._lock:
            self._num_helping -= 1
            if self._closed and self._num_helping == 0:
                self._last_has_left.release()

    def close(self) -> None:
        """Waits for the ranges that other threads are running.

        They write to memory that is the caller's to free, so an interrupt is a failure of the call, and waits as well.
        """
        while True:
            try:
                with self._lock:
                    self._closed = True
                    wait = self._num_helping > 0
                if wait:
                    self._last_has_left.acquire()
                return
            except BaseException as failure:
                self.failures.append(failure)


class _Pool:
    """Helper threads for the calling one: threads of our own, or torch's while these are running anyway.

    OpenMP ends a parallel region when each of its threads has been there, and a thread without a core comes late: where
    cores are busy that takes milliseconds. A call waits for none of our own threads that has not started. But after
    each parallel operation torch's OpenMP threads wait for the next one in a busy loop of several milliseconds, and our
    own would have to share the cores with them; to these very threads a call is the next one, and they start at once.
    """

    def __init__(self) -> None:
        self._team = _openmp()
        self._start()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def _start(self) -> None:
        self._num_helpers = 0
        self._starting = threading.Lock()
        self._open: list[_Call] = []
        self._wake_ups: queue.SimpleQueue[None] = queue.SimpleQueue()
        # Of each calling thread's OpenMP team: its size and the clocks of its threads' processor times.
        self._team_clocks = threading.local()

    def _after_fork(self) -> None:
        self._start()  # threads do not survive a fork
        self._team = None  # and OpenMP waits for its lost ones forever

    def run(self, job: Callable[[int, int], Any], num_rows: int, work: float) -> list[Any]:
        """Calls ``job(first_row, end_row)`` over all rows, on as many threads as torch would use where that pays.

        ``work`` is about how many nanoseconds one thread takes.
        """
        num_threads = min(torch.get_num_threads(), num_rows)
        if num_threads == 1 or work - work / num_threads < MIN_SAVED_NANOSECONDS:
            return [job(0, num_rows)]
        call = _Call(job, num_rows, min(num_rows, 4 * num_threads))  # several each: boxes of a batch differ in cost
        if self._team is not None and self._team_is_running(num_threads):
            self._team(_Body(lambda _: call.drain()), None, num_threads, 0)
        else:
            self._drain_together(call, num_threads)
        if call.failures:
            raise call.failures[0]
        return call.results

    def _team_is_running(self, num_threads: int) -> bool:
        """Whether each of the OpenMP threads has a core at this moment: the clocks of their processor times move.

        In its first call, a thread waits for its whole team once, to get these clocks.
        """
        if getattr(self._team_clocks, "num_threads", 0) != num_threads:
            self._measure_team(num_threads)
        try:
            first, second = ([time.clock_gettime_ns(clock) for clock in self._team_clocks.clocks] for _ in range(2))
        except OSError:  # a thread has ended
            self._team_clocks.num_threads = 0
            return False
        return all(before < after for before, after in zip(first, second, strict=True))

    def _measure_team(self, num_threads: int) -> None:
        caller, clocks = threading.get_ident(), []

        def note(_: Any) -> None:
            if threading.get_ident() != caller:
                clocks.append(time.pthread_getcpuclockid(threading.get_ident()))

        assert self._team is not None
        self._team(_Body(note), None, num_threads, 0)
        self._team_clocks.clocks, self._team_clocks.num_threads = clocks, num_threads

    def _drain_together(self, call: _Call, num_threads: int) -> None:
        with self._starting, contextlib.suppress(RuntimeError):  # Python starts no threads once its main one has ended
            while self._num_helpers < num_threads - 1:
                start_new_thread(self._help, (self._wake_ups,))  # `threading` would wait until it runs
                self._num_helpers += 1
        try:
            self._open.append(call)
            for _ in range(num_threads - 1 - self._wake_ups.qsize()):
                self._wake_ups.put(None)
            call.drain()
        finally:  # an interrupt may come anywhere, and nobody may help once the caller has left
            call.close()
            with contextlib.suppress(ValueError):
                self._open.remove(call)

    def _help(self, wake_ups: "queue.SimpleQueue[None]") -> None:
        while True:
            wake_ups.get()
            self._help_all()

    def _help_all(self) -> None:
        # In a function of its own: while a helper waits it must not hold a call, with its tensors.
        for call in list(self._open):
            call.help()


pool = _Pool()
