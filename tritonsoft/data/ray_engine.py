"""The work of `shrink_dataset` on a Ray cluster, of this machine or of several: Ray Data hands pairs to processes.

Ray starts the processes, and does again what one of them had when it died. That is safe: a pair always becomes the same
bytes, and a file is there whole or not at all.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import pickle
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple

import torch

from tritonsoft._extras import how_to_install
from tritonsoft.data.errors import ClusterError, DataError, OutputError
from tritonsoft.data.label_files import LabelFormat
from tritonsoft.data.manifest import Sample, ShrinkSettings, versions_here
from tritonsoft.data.pairing import Pair
from tritonsoft.data.saving import TEMPORARY_PREFIX, write_bytes
from tritonsoft.data.shrunk_sample import shrink_pair
from tritonsoft.data.workers import Item, Result

SECONDS_TO_CONNECT: Final = 5
STORE_BYTES: Final = 100 << 20  # Ray's object store on this machine: records of samples are all that is in it
ITEMS_PER_TASK: Final = 16  # at most: a task costs milliseconds, and its items are seen when all are done
EXPECTED = (DataError, OutputError, ClusterError)


class RayWorkers:
    """As `Workers`, but processes of a Ray cluster; a context manager, which ends a cluster that it has started.

    Args:
        number: processes at a time; None: as many as the cluster has cores.
        address: ``HOST:PORT`` of a running cluster of which this machine is one, or ``"auto"``; None: that of the
            variable ``RAY_ADDRESS``, or a new cluster of this machine alone. Where the program is connected to a
            cluster already, that is used.

    Raises:
        ImportError: Ray is not installed.
        ClusterError: on entering, the cluster cannot be reached.
    """

    def __init__(self, number: int | None = None, address: str | None = None) -> None:
        if number is not None and number < 1:
            raise ValueError(f"workers must be at least 1, got {number}")
        try:
            import ray.data
        except ImportError as error:
            raise ImportError(f"{error}: engine 'ray' needs Ray Data: {how_to_install('ray')}") from None
        self._ray: Any = ray
        self.number, self.address = number, address

    def __enter__(self) -> "RayWorkers":
        ray = self._ray
        self._ours = not ray.is_initialized()
        if not self._ours and self.address is not None:
            raise ValueError(f"address {self.address!r} was given, but this program is connected to a Ray cluster")
        if self._ours:
            address = self.address or os.environ.get("RAY_ADDRESS") or "local"
            new = {"num_cpus": self.number, "object_store_memory": STORE_BYTES, "include_dashboard": False}
            options = new if address == "local" else {}
            _check_reachable(address)
            try:
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
            except (OSError, RuntimeError, ValueError) as error:
                raise ClusterError(f"the Ray cluster {address!r} cannot be used: {error}") from None
        self.cores = int(ray.cluster_resources().get("CPU", 0))
        if self.cores < 1:
            self.__exit__(None, None, None)
            raise ClusterError("the Ray cluster has no CPU")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._ours:
            self._ray.shutdown()

    def run(
        self, work: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result | BaseException]]:
        """Each item with what came of it, or with the error of `EXPECTED` that it raised, as they are done."""
        data, items = self._ray.data, list(items)
        context = data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        size = self.number or self.cores
        tasks = max(min(len(items), 8 * size), len(items) // ITEMS_PER_TASK)
        rows = [{"number": number, "item": pickle.dumps(item)} for number, item in enumerate(items)]
        try:
            with _quiet(logging.getLogger("ray.data")), data.DataContext.current(context):
                dataset = data.from_items(rows, override_num_blocks=max(1, tasks)).map(
                    _attempt,
                    fn_kwargs={"work": work},
                    num_cpus=1,
                    compute=data.TaskPoolStrategy(size=size),
                )
                for row in dataset.iter_rows():
                    yield items[row["number"]], pickle.loads(row["outcome"])
        except self._ray.exceptions.RayTaskError:
            raise  # an error of the work itself, with its traceback there
        except self._ray.exceptions.RayError as error:
            raise ClusterError(f"Ray gave up: {error}; what is done stays: go on with --resume") from error


def _attempt(row: dict[str, Any], work: Callable[[Any], Any]) -> dict[str, Any]:
    torch.set_num_threads(1)  # each process has one core
    try:
        outcome = work(pickle.loads(row["item"]))
    except EXPECTED as error:
        outcome = error
    return {"number": row["number"], "outcome": pickle.dumps(outcome)}


@contextlib.contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes."""
    if "://" in address:
        raise ClusterError(f"{address}: is for Ray Client; give HOST:PORT of the cluster, on one of its machines")
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_CONNECT).close()
        except (OSError, OverflowError) as error:
            raise ClusterError(f"no Ray cluster answers at {address} ({error})") from None


# --- what its processes do --------------------------------------------------------------------------------------------


class Unseen(NamedTuple):
    """A file that cannot be used because it is not there, on the machine that was to read it."""

    error: DataError
    file: Path
    machine: str


def shrink_on(
    team: RayWorkers,
    pairs: Sequence[Pair],
    settings: ShrinkSettings,
    label_format: LabelFormat,
    out: Path,
    *,
    resume: bool,
) -> Iterator[tuple[Pair, Sample | BaseException | None]]:
    """Each pair with what `shrink_pair` gave or raised, on machines that see the sources and ``out``.

    A machine that does not, or that has other versions than the manifest names, is a ClusterError in their place.
    """
    probe = (out / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}").absolute()  # a name that no other folder holds
    try:
        write_bytes(probe, b"")
    except OSError as error:
        raise OutputError(f"{probe}: cannot be written ({error.strerror or error})") from None
    try:
        work = functools.partial(
            _shrink_there,
            settings=settings,
            label_format=label_format,
            probe=probe,
            resume=resume,
            versions=tuple(versions_here().items()),
        )
        given = {pair.name: pair for pair in pairs}
        there = [Pair(pair.name, pair.image.absolute(), pair.labels.absolute()) for pair in pairs]
        for far, outcome in team.run(work, there):
            pair = given[far.name]
            if isinstance(outcome, Unseen):
                outcome = _judged(outcome)
            elif isinstance(outcome, Sample):  # names its sources as they were given
                outcome = dataclasses.replace(outcome, source_image=str(pair.image), source_labels=str(pair.labels))
            yield pair, outcome
    finally:
        probe.unlink(missing_ok=True)


def _shrink_there(
    pair: Pair,
    *,
    settings: ShrinkSettings,
    label_format: LabelFormat,
    probe: Path,
    resume: bool,
    versions: tuple[tuple[str, str], ...],
) -> Sample | Unseen | None:
    _check_machine(probe, versions)
    try:
        return shrink_pair(pair, settings, label_format, probe.parent, resume=resume)
    except DataError as error:
        missing = [file for file in (pair.image, pair.labels) if not file.exists()]
        if missing:
            return Unseen(error, missing[0], socket.gethostname())
        raise


@functools.lru_cache(maxsize=1)  # once in a process
def _check_machine(probe: Path, versions: tuple[tuple[str, str], ...]) -> None:
    machine, here = socket.gethostname(), versions_here()
    if not probe.exists():
        raise ClusterError(f"{machine} does not see {probe.parent}: all machines must share it")
    if differing := [f"{name} {here[name]}, not {version}" for name, version in versions if here[name] != version]:
        raise ClusterError(f"{machine} has {'; '.join(differing)}: all machines need the same")


def _judged(unseen: Unseen) -> DataError | ClusterError:
    if not unseen.file.exists():
        return unseen.error
    return ClusterError(f"{unseen.machine} does not see {unseen.file}: all machines must share the sources")
