"""Threads that do one thing for many items, each on one core, and stop within a second."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.pool import ThreadPool
from types import TracebackType
from typing import Final, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

SECONDS_TO_WRITE: Final = 0.4  # that writes which have begun get when all is to stop


class Workers:
    """As many threads as asked for, or as there are cores for this process; a context manager.

    Threads do: decoders, Numba's loops and zlib leave the interpreter to others while they run. They are daemons, so an
    item that takes long keeps no program from ending.
    """

    def __init__(self, number: int | None = None) -> None:
        if number is not None and number < 1:
            raise ValueError(f"workers must be at least 1, got {number}")
        self.number = number or len(os.sched_getaffinity(0))
        self._stop = threading.Event()
        self._writes = threading.Semaphore(self.number)

    def __enter__(self) -> "Workers":
        self._num_threads = torch.get_num_threads()
        self._pool = ThreadPool(self.number, torch.set_num_threads, (1,))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._pool.terminate()
        torch.set_num_threads(self._num_threads)  # what threads to come will have, too
        for _ in range(self.number):
            self._writes.acquire(timeout=SECONDS_TO_WRITE / self.number)

    @property
    def stopped(self) -> bool:
        """Whether what is under way should be left."""
        return self._stop.is_set()

    @contextlib.contextmanager
    def may_write(self) -> Iterator[bool]:
        """Around each write: whether it may begin. One that has begun is waited for."""
        with self._writes:
            yield not self.stopped

    def run(
        self, work: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result | BaseException]]:
        """Each item with what came of it, or with what it raised, in the order in which they are done."""

        def attempt(item: Item) -> tuple[Item, Result | BaseException]:
            try:
                return item, work(item)
            except BaseException as error:  # for the caller, in whose thread it is raised or counted
                return item, error

        return self._pool.imap_unordered(attempt, items)
