"""Data sets shrunk once: images and soft labels of whole pictures, in a folder that `ShrunkDataset` reads.

A pair of files becomes two files by a pure function of the pair and the settings (`make_sample`), so pairs may be done
in any order, anywhere and again: a folder is the same however often the work was interrupted. A pair is done when its
labels file is there, which is written after the image and names the settings, both sources' checksums, and one of
what the two files hold.
"""

import dataclasses
import functools
import hashlib
import io
import json
import numbers
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, Final, Literal, get_args

from torch import Tensor

from tritonsoft import functional
from tritonsoft._validation import check_top_k, is_whole_number
from tritonsoft.data.errors import ClusterError, DataError
from tritonsoft.data.label_files import LabelFormat
from tritonsoft.data.manifest import (
    MANIFEST,
    SUFFIXES,
    ImageFormat,
    Manifest,
    Sample,
    ShrinkSettings,
    image_file,
    labels_file,
)
from tritonsoft.data.pairing import Pair, pair_files
from tritonsoft.data.pictures import read_pair_as_decoded
from tritonsoft.data.saving import TEMPORARY_PREFIX, write_bytes
from tritonsoft.data.shrunk_labels import MASSES, Masses, encode, from_file, to_file
from tritonsoft.data.workers import Workers
from tritonsoft.geometry import FILTERS, Filter
from tritonsoft.sparse import index_type

DEFAULT_TOP_K: Final = 4
DEFAULT_QUALITY: Final[dict[ImageFormat, int | None]] = {"png": None, "jpeg": 95, "webp": 90}
# The strategy of zlib for filtered pixels: of photos 1% larger than Pillow's default, in a quarter of the time.
PNG_OPTIONS: Final = {"compress_type": zlib.Z_RLE}
Existing = Literal["refuse", "resume", "overwrite"]
EXISTING: Final[tuple[Existing, ...]] = get_args(Existing)
Engine = Literal["local", "ray"]
ENGINES: Final[tuple[Engine, ...]] = get_args(Engine)
PICTURES_TRIED: Final = 8  # by an estimate


class OutputError(Exception):
    """The folder for a shrunk data set cannot be used, or a file of it cannot be written."""


# --- settings ---------------------------------------------------------------------------------------------------------


def shrink_settings(
    label_format: LabelFormat,
    *,
    factor: float | None = None,
    size: Sequence[int] | None = None,
    filter: Filter = "area",
    top_k: int | None = None,
    masses: Masses = "uint8",
    image_format: ImageFormat = "png",
    quality: int | None = None,
) -> ShrinkSettings:
    """What decides which bytes a pair of files becomes, checked.

    Args:
        label_format: what the label files hold.
        factor: each side becomes ``max(1, round(side / factor))``; at least 1.
        size: ``(h, w)`` of all samples, in place of ``factor``.
        filter: of image and labels, as in `tritonsoft.resize`.
        top_k: how many classes of a pixel are kept; None: 4, or as many as there are.
        masses: ``"uint8"``: each is off by less than 1/255, their sum by half of that; or ``"float16"``.
        image_format: ``"png"``, ``"jpeg"`` or ``"webp"``.
        quality: of JPEG (default 95) and WebP (90), 1 to 100.

    Raises:
        TypeError, ValueError: an argument is none of these.
    """
    if (factor is None) == (size is None):
        raise ValueError(f"one of factor and size must be given, got factor={factor} and size={size}")
    if factor is not None and (isinstance(factor, bool) or not isinstance(factor, numbers.Real)):
        raise TypeError(f"factor must be a number, got {factor!r}")
    if factor is not None and not 1 <= factor < float("inf"):
        raise ValueError(f"factor must be at least 1, got {factor}")
    if size is not None and (len(size) != 2 or not all(is_whole_number(n) and n >= 1 for n in size)):
        raise ValueError(f"size must be two ints of at least 1, (h, w), got {size}")
    for name, value, known in (
        ("filter", filter, FILTERS),
        ("masses", masses, MASSES),
        ("image_format", image_format, tuple(SUFFIXES)),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    num_classes = label_format.num_classes
    index_type(num_classes)  # refuses more classes than a SparseLabels holds
    if top_k is None:
        top_k = min(DEFAULT_TOP_K, num_classes)
    top_k = check_top_k(top_k, num_classes, "top_k")
    if image_format == "png" and quality is not None:
        raise ValueError(f"quality is of jpeg and webp: png loses nothing, got {quality}")
    _check_whole("quality", quality)
    if quality is not None and not 1 <= quality <= 100:
        raise ValueError(f"quality must lie in 1..100, got {quality}")
    return ShrinkSettings(
        num_classes,
        label_format.ignore_index,
        tuple(label_format.class_names),
        tuple(sorted(label_format.ids.items())),
        tuple(sorted(label_format.colours.items())),
        None if factor is None else float(factor),
        None if size is None else (int(size[0]), int(size[1])),
        filter,
        top_k,
        masses,
        image_format,
        DEFAULT_QUALITY[image_format] if quality is None else int(quality),  # NumPy's is none of JSON's
    )


def _check_whole(argument: str, value: Any) -> None:
    if value is not None and not is_whole_number(value):
        raise TypeError(f"{argument} must be an int or None, got {value!r}")


def label_format_of(settings: ShrinkSettings) -> LabelFormat:
    """What settings say of label files."""
    return LabelFormat(
        settings.num_classes, settings.ignore_index, settings.class_names, dict(settings.ids), dict(settings.colours)
    )


# --- one pair ---------------------------------------------------------------------------------------------------------


def make_sample(pair: Pair, settings: ShrinkSettings, label_format: LabelFormat) -> tuple[Sample, bytes, bytes]:
    """What becomes of a pair: its record, its image file and its labels file.

    Raises:
        DataError: a file of it cannot be used.
    """
    image, labels = read_pair_as_decoded(pair, label_format)
    height, width = labels.shape
    size = settings.size_of(height, width)
    # The same box, size and filter: `crop_resize_pair` without a dense soft label. The image is rounded once.
    small = functional.resize(image[None], size, filter=settings.filter)[0]
    soft = functional.soft_resize(
        labels[None],
        size,
        settings.num_classes,
        ignore_index=settings.ignore_index,
        filter=settings.filter,
        top_k=settings.top_k,
    )[0]
    sample = _record(pair, settings, size, (height, width))
    image_bytes, pixels = _image_bytes(small, settings), encode(soft, settings.masses)
    return sample, image_bytes, to_file(pixels, _metadata(sample, settings, image_bytes, pixels))


def shrink_pair(
    pair: Pair,
    settings: ShrinkSettings,
    label_format: LabelFormat,
    out: Path,
    *,
    resume: bool = False,
    may_write: Callable[[], AbstractContextManager[bool]] = lambda: nullcontext(True),
) -> Sample | None:
    """Write the two files of a pair, unless they are there already (``resume``), or the work has stopped: then None.

    Raises:
        DataError: a file of the pair cannot be used.
        OutputError: a file cannot be written.
    """
    if resume and (sample := _finished(pair, settings, out)):
        return sample
    sample, image, labels = make_sample(pair, settings, label_format)
    with may_write() as allowed:
        if not allowed:
            return None
        _write(out / sample.image, image)
        _write(out / sample.labels, labels)
    return sample


def _write(file: Path, content: bytes) -> None:
    try:
        write_bytes(file, content)
    except OSError as error:
        raise OutputError(f"{file}: cannot be written ({error.strerror or error})") from None


def _record(pair: Pair, settings: ShrinkSettings, size: tuple[int, int], source_size: tuple[int, int]) -> Sample:
    return Sample(
        pair.name,
        image_file(pair.name, settings),
        labels_file(pair.name),
        size,
        source_size,
        str(pair.image),
        str(pair.labels),
        _sha256(pair.image),
        _sha256(pair.labels),
    )


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error})") from None


def _metadata(sample: Sample, settings: ShrinkSettings, image: bytes, pixels: bytes | memoryview) -> str:
    """What a labels file says of itself and its image file, and by which both are known again."""
    known = ("size", "source_size", "image_sha256", "labels_sha256")
    content = hashlib.sha256(image)
    content.update(pixels)
    return json.dumps(
        {
            "settings": settings.digest,
            **{name: getattr(sample, name) for name in known},
            "content_sha256": content.hexdigest(),
        }
    )


def _finished(pair: Pair, settings: ShrinkSettings, out: Path) -> Sample | None:
    """The record of a pair that is done: with these settings, of files with these checksums, and whole."""
    try:
        image = (out / image_file(pair.name, settings)).read_bytes()
        pixels, found = from_file(out / labels_file(pair.name))
        size, source_size = (tuple(json.loads(found)[name]) for name in ("size", "source_size"))
    except (DataError, OSError, KeyError, TypeError, ValueError):
        return None  # missing or broken, as by a copy that stopped: made again
    sample = _record(pair, settings, size, source_size)
    return sample if found == _metadata(sample, settings, image, pixels) else None


def _image_bytes(image: Tensor, settings: ShrinkSettings) -> bytes:
    from PIL import Image

    options: dict[ImageFormat, dict[str, Any]] = {
        "png": PNG_OPTIONS,
        "jpeg": {"quality": settings.quality, "subsampling": 0},  # colours as sharp as the rest
        "webp": {"quality": settings.quality},
    }
    stream = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(
        stream, settings.image_format, **options[settings.image_format]
    )
    return stream.getvalue()


# --- all pairs --------------------------------------------------------------------------------------------------------


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
        size, source_size: of the first of these.
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
        image_pattern: which images, and which part of their paths is the sample's name: as in `pair_files`.
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
        >>> from tritonsoft.data import label_format
        >>> settings = shrink_settings(label_format(map="cityscapes"), factor=4)
        >>> shrink_dataset("leftImg8bit", "gtFine", "cityscapes-4", settings,  # doctest: +SKIP
        ...     image_pattern="*_leftImg8bit.png", label_pattern="*_gtFine_labelIds.png")
    """
    started = time.monotonic()
    if existing not in EXISTING:
        raise ValueError(f"existing must be one of {', '.join(EXISTING)}, got {existing!r}")
    _check_whole("limit", limit)
    _check_whole("workers", workers)
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

    Raises:
        DataError: none of those can be used.
    """
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
