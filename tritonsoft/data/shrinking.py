"""Data sets shrunk once: images and soft labels of whole pictures, in a folder that `ShrunkDataset` reads.

Each pair of files is done by `shrunk_sample`, by threads here or by processes of a Ray cluster: a folder is the same
however often the work was interrupted.
"""

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Final, Literal, get_args

from tritonsoft.data.errors import ClusterError, DataError, OutputError
from tritonsoft.data.label_files import LabelFormat
from tritonsoft.data.manifest import MANIFEST, Manifest, Sample, ShrinkSettings, image_file, labels_file
from tritonsoft.data.pairing import Pair, pair_files
from tritonsoft.data.saving import TEMPORARY_PREFIX
from tritonsoft.data.shrunk_sample import check_whole, label_format_of, make_sample, shrink_pair
from tritonsoft.data.workers import Workers

Existing = Literal["refuse", "resume", "overwrite"]
EXISTING: Final[tuple[Existing, ...]] = get_args(Existing)
Engine = Literal["local", "ray"]
ENGINES: Final[tuple[Engine, ...]] = get_args(Engine)
PICTURES_TRIED: Final = 8  # by an estimate


@dataclasses.dataclass(frozen=True)
class ShrinkResult:
    """What came of `shrink_dataset`.

    Attributes:
        samples: what the data set holds.
        skipped: what is wrong with the files that are not in it.
        seconds: how long it took.
    """

    samples: tuple[Sample, ...]
    skipped: tuple[str, ...]
    seconds: float


@dataclasses.dataclass(frozen=True)
class ShrinkEstimate:
    """What `shrink_dataset` would do, by some pictures spread over all of them.

    Attributes:
        pictures: how many there are.
        tried: how many were shrunk for this.
        size, source_size: ``(h, w)`` and ``(H, W)`` of the first of these.
        image_bytes, label_bytes: of all together, expected.
        source_image_bytes, source_label_bytes: of all sources together.
        seconds: expected.
        skipped: what is wrong with files that cannot be used, as far as was looked at.
    """

    pictures: int
    tried: int
    size: tuple[int, int]
    source_size: tuple[int, int]
    image_bytes: int
    label_bytes: int
    source_image_bytes: int
    source_label_bytes: int
    seconds: float
    skipped: tuple[str, ...]


def shrink_dataset(
    images: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: ShrinkSettings,
    *,
    image_pattern: str = "*",
    label_pattern: str = "*",
    limit: int | None = None,
    existing: Existing = "refuse",
    workers: int | None = None,
    engine: Engine = "local",
    address: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> ShrinkResult:
    """Shrink a folder of images and one of label files to a data set that `ShrunkDataset` reads.

    Sources are read and never written to. A file of the data set is there whole or not at all, and the same bytes
    come of the same sources and settings, whatever the engine and the number of workers. Interrupted, it is continued
    with ``existing="resume"``. The format and its errors are described in ``docs/shrunk_datasets.md``.

    Args:
        images: folder of images.
        labels: folder of label files.
        out: folder of the data set; it may not lie in those two, nor they in it.
        settings: what `shrink_settings` gave.
        image_pattern: which images, with one star, which stands for the sample's name (as in `pair_files`).
        label_pattern: the same of label files.
        limit: do the first so many pairs alone, by name.
        existing: where ``out`` holds a shrunk data set: ``"refuse"``; ``"resume"``, which does what is missing where
            the settings are the same; or ``"overwrite"``, which deletes what the manifest names.
        workers: threads, or Ray's processes; None: as many as there are cores for this process, or in the cluster.
        engine: ``"local"``, threads of this process; or ``"ray"``, processes of a Ray cluster, whose machines share the
            folders; it needs the extra ``ray``.
        address: of a running Ray cluster, ``HOST:PORT`` or ``"auto"``; None: the variable ``RAY_ADDRESS``, or a new one
            of this machine.
        progress: is called with the number of pairs done, and of all, before the first and after each.

    Raises:
        OutputError: ``out`` cannot be used, or written to, as on a full disk. What is done stays, for ``"resume"``.
        DataError: a folder that cannot be searched, or that holds no pair.
        ClusterError: a Ray cluster cannot be reached, or a machine of it does not see the folders. What is done stays.
        ImportError: Ray is not installed.
        TypeError, ValueError: another argument, which is named.

    Example:
        >>> from tritonsoft.data import label_format, shrink_settings
        >>> settings = shrink_settings(label_format(map="cityscapes"), factor=4)
        >>> shrink_dataset("leftImg8bit", "gtFine", "cityscapes-4", settings,  # doctest: +SKIP
        ...     image_pattern="*_leftImg8bit.png", label_pattern="*_gtFine_labelIds.png")
    """
    started = time.monotonic()
    if existing not in EXISTING:
        raise ValueError(f"existing must be one of {', '.join(EXISTING)}, got {existing!r}")
    check_whole("limit", limit)
    check_whole("workers", workers)
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if address is not None and engine != "ray":
        raise ValueError(f"address is of engine 'ray', got {address!r} with {engine!r}")
    folder, resume = Path(out), existing == "resume"
    label_format = label_format_of(settings)
    team: AbstractContextManager[object]
    if engine == "ray":
        from tritonsoft.data import ray_engine  # what needs Ray

        team = ray_workers = ray_engine.RayWorkers(workers, address)
        shrink_all = functools.partial(ray_engine.shrink_on, ray_workers)
    else:
        team = threads = Workers(workers)
        shrink_all = functools.partial(_shrink_on, threads)
    check_output(folder, Path(images), Path(labels), existing)
    with team:
        pairs, problems = find_pairs(images, labels, image_pattern, label_pattern)
        chosen = prepare(folder, pairs, limit, settings, existing)
        if progress is not None:
            progress(0, len(chosen))
        outcomes = shrink_all(chosen, settings, label_format, folder, resume=resume)
        samples, errors = collect(outcomes, len(chosen), progress)
    if engine == "ray":
        _remove_leftovers(folder)  # of processes that died
    manifest = finish(folder, settings, samples, [*problems, *errors])
    return ShrinkResult(manifest.samples, manifest.skipped, time.monotonic() - started)


def _shrink_on(
    team: Workers,
    pairs: Sequence[Pair],
    settings: ShrinkSettings,
    label_format: LabelFormat,
    out: Path,
    *,
    resume: bool,
) -> Iterator[tuple[Pair, Sample | BaseException | None]]:
    """Each pair with what `shrink_pair` gave or raised."""

    def work(pair: Pair) -> Sample | None:
        return shrink_pair(pair, settings, label_format, out, resume=resume, may_write=team.may_write)

    return team.run(work, pairs)


def find_pairs(
    images: str | os.PathLike[str], labels: str | os.PathLike[str], image_pattern: str, label_pattern: str
) -> tuple[list[Pair], list[DataError]]:
    """`pair_files`; none is a DataError."""
    pairs, problems = pair_files(images, labels, image_pattern, label_pattern)
    if not pairs:
        why = f"; {problems[0]}" if problems else ""
        raise DataError(f"{images} and {labels} hold no image with a label file of the same name{why}")
    return pairs, problems


def check_output(out: Path, images: Path, labels: Path, existing: Existing) -> None:
    """OutputError where a folder cannot hold the data set; said before the sources are searched, which may be long."""
    for source in (images, labels):
        inner, outer = out.resolve(), source.resolve()
        if inner == outer or outer in inner.parents or inner in outer.parents:
            raise OutputError(f"{out}: a shrunk data set may not lie in its source {source}, nor that in it")
    try:
        old = _manifest_in(out)
    except DataError as error:
        raise OutputError(f"{error}; {out} is left as it is") from None
    if old is not None and existing == "refuse":
        raise OutputError(f"{out}: holds a shrunk data set; --resume continues it, --overwrite deletes it")
    nearest = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not os.access(nearest, os.W_OK):
        raise OutputError(f"{out}: cannot be written")


def prepare(
    out: Path, pairs: Sequence[Pair], limit: int | None, settings: ShrinkSettings, existing: Existing
) -> list[Pair]:
    """Make a folder that `check_output` took ready, with an unfinished manifest; gives the pairs that it is to hold.

    Raises:
        OutputError: it cannot be used so. Nothing in it has changed then.
    """
    chosen = list(pairs[:limit])
    try:
        old = _manifest_in(out)
        if old is not None and existing == "resume":
            if differences := settings.differences(old.settings):
                raise OutputError(f"{out}: was shrunk with other settings: {'; '.join(differences)}")
            strangers = sorted(set(old.names) - {pair.name for pair in pairs})
            if strangers:
                raise OutputError(
                    f"{out}: holds {len(strangers)} pictures that the sources have not, such as {strangers[0]}: "
                    "are the folders and patterns the same?"
                )
            held = set(old.names) | {pair.name for pair in chosen}
            chosen = [pair for pair in pairs if pair.name in held]
        if old is not None:
            _remove_leftovers(out)
            if existing == "overwrite":
                _remove(out, old)
        out.mkdir(parents=True, exist_ok=True)
        Manifest(settings, tuple(pair.name for pair in chosen)).write(out)
    except OSError as error:
        raise OutputError(f"{error.filename or out}: cannot be written ({error.strerror or error})") from None
    return chosen


def collect(
    outcomes: Iterable[tuple[Pair, Sample | BaseException | None]],
    number: int,
    progress: Callable[[int, int], object] | None,
) -> tuple[list[Sample], list[DataError]]:
    """The samples, and what is wrong with files; the first error of another kind is raised."""
    samples: list[Sample] = []
    errors: list[DataError] = []
    for done, (pair, outcome) in enumerate(outcomes, 1):
        if isinstance(outcome, Sample):
            samples.append(outcome)
        elif isinstance(outcome, DataError):
            errors.append(outcome)
        elif isinstance(outcome, (OutputError, ClusterError)):
            raise type(outcome)(
                f"{outcome}; {len(samples)} of {number} pictures are done and stay: go on with --resume"
            )
        elif outcome is not None:
            outcome.add_note(f"from {pair.image} and {pair.labels}")
            raise outcome
        if progress is not None:
            progress(done, number)
    return samples, errors


def finish(out: Path, settings: ShrinkSettings, samples: Sequence[Sample], problems: Sequence[DataError]) -> Manifest:
    """Write the manifest of a data set that is complete."""
    samples = sorted(samples, key=lambda sample: sample.name)
    skipped = tuple(sorted(map(str, problems)))
    manifest = Manifest(settings, tuple(sample.name for sample in samples), tuple(samples), True, skipped)
    try:
        manifest.write(out)
    except OSError as error:
        raise OutputError(
            f"{out / MANIFEST}: cannot be written ({error.strerror or error}); all {len(samples)} pictures are done "
            "and stay: go on with --resume"
        ) from None
    return manifest


def _manifest_in(out: Path) -> Manifest | None:
    """That of a folder, None of one that is empty or not there; another one is an OutputError."""
    if (out / MANIFEST).exists():
        return Manifest.read(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "holds files that are of no shrunk data set" if out.is_dir() else "is no folder"
        raise OutputError(f"{out}: {what}: give another --out")
    return None


def _remove(out: Path, manifest: Manifest) -> None:
    """What the manifest says is the data set's; folders that are empty then; the manifest last."""
    for name in manifest.names:
        (out / image_file(name, manifest.settings)).unlink(missing_ok=True)
        (out / labels_file(name)).unlink(missing_ok=True)
    for top in (out / "images", out / "labels"):
        for folder, _, _ in os.walk(top, topdown=False):
            with suppress(OSError):  # it holds what is not ours
                Path(folder).rmdir()
    (out / MANIFEST).unlink()


def _remove_leftovers(out: Path) -> None:
    """Temporary files of `atomic_write` that a killed program has left."""
    for top in (out / "images", out / "labels"):
        for file in top.rglob(f"{TEMPORARY_PREFIX}*"):
            file.unlink(missing_ok=True)
    for file in out.glob(f"{TEMPORARY_PREFIX}*"):
        file.unlink(missing_ok=True)


# --- what it will take ------------------------------------------------------------------------------------------------


def estimate_shrinking(pairs: Sequence[Pair], settings: ShrinkSettings, workers: int | None = None) -> ShrinkEstimate:
    """What shrinking these pairs will take, by some of them, which are shrunk and written nowhere.

    Args:
        pairs: what `pair_files` gave, at least one; up to 8 of them, spread evenly, are tried.
        settings: what `shrink_settings` gave.
        workers: threads that the work would have; None: as many as there are cores for this process.

    Raises:
        DataError: none of those that were tried can be used.
        ValueError: no pair, or ``workers`` below 1.
        TypeError: ``workers`` is no int.
        ImportError: Pillow is not installed.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from tritonsoft.data import label_format, shrink_settings
        >>> settings = shrink_settings(label_format(num_classes=19), factor=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pair = Pair("street", Path(folder, "street.jpg"), Path(folder, "street.png"))
        ...     Image.new("RGB", (64, 32)).save(pair.image)
        ...     Image.new("L", (64, 32)).save(pair.labels)
        ...     estimate = estimate_shrinking([pair], settings)
        >>> estimate.pictures, estimate.source_size, estimate.size, estimate.label_bytes > 0
        (1, (32, 64), (8, 16), True)
    """
    check_whole("workers", workers)
    if not pairs:
        raise ValueError("pairs must hold at least one, got none")
    step = max(1, len(pairs) // PICTURES_TRIED)
    tried = list(pairs[::step][:PICTURES_TRIED])
    made: list[tuple[Sample, int, int]] = []
    errors: list[DataError] = []
    label_format = label_format_of(settings)
    with Workers(workers) as team:

        def work(pair: Pair) -> tuple[Sample, int, int]:
            sample, image, labels = make_sample(pair, settings, label_format)
            return sample, len(image), len(labels)

        list(team.run(work, tried[:1]))  # loads and compiles what is needed
        started = time.monotonic()
        for _, outcome in team.run(work, tried):
            if isinstance(outcome, DataError):
                errors.append(outcome)
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                made.append(outcome)
        seconds = time.monotonic() - started
    if not made:
        raise errors[0]
    share = len(pairs) / len(made)
    first = min(made, key=lambda each: each[0].name)[0]
    return ShrinkEstimate(
        pictures=len(pairs),
        tried=len(tried),
        size=first.size,
        source_size=first.source_size,
        image_bytes=round(sum(image for _, image, _ in made) * share),
        label_bytes=round(sum(labels for _, _, labels in made) * share),
        source_image_bytes=_bytes_of([pair.image for pair in pairs]),
        source_label_bytes=_bytes_of([pair.labels for pair in pairs]),
        seconds=seconds * len(pairs) / len(tried),
        skipped=tuple(sorted(map(str, errors))),
    )


def _bytes_of(files: Sequence[Path]) -> int:
    total = 0
    for file in files:
        with suppress(OSError):  # named when it is read
            total += file.stat().st_size
    return total
