"""Data sets shrunk once: images and soft labels of whole pictures, in a folder that `ShrunkDataset` reads.

A pair of files becomes two files by a pure function of the pair and the settings (`make_sample`), so pairs may be done
in any order, anywhere and again: a folder is the same however often the work was interrupted. A pair is done when its
labels file is there, which is written after the image and names the settings and both sources' checksums.
"""

import dataclasses
import hashlib
import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, Final, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tritonsoft import functional
from tritonsoft._validation import check_top_k
from tritonsoft.data.errors import DataError
from tritonsoft.data.label_files import LabelFormat
from tritonsoft.data.manifest import SUFFIXES, ImageFormat, Manifest, Sample, Settings, image_file, labels_file
from tritonsoft.data.pairing import Pair, pair_files
from tritonsoft.data.pictures import read_pair
from tritonsoft.data.saving import atomic_write
from tritonsoft.data.shrunk_labels import MASSES, Masses, encode
from tritonsoft.geometry import FILTERS, Filter
from tritonsoft.sparse import index_type

DEFAULT_TOP_K: Final = 4
DEFAULT_QUALITY: Final[dict[ImageFormat, int | None]] = {"png": None, "jpeg": 95, "webp": 90}
PNG_LEVEL: Final = 3  # of zlib: the default of Pillow, 6, saves 4% of the bytes and takes more than twice as long
PIXELS: Final = "pixels"  # the tensor of a labels file
Existing = Literal["refuse", "resume", "overwrite"]
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
) -> Settings:
    """The settings of `shrink_dataset`, checked."""
    if (factor is None) == (size is None):
        raise ValueError(f"one of factor and size must be given, got factor={factor} and size={size}")
    if factor is not None and not 1 <= factor < float("inf"):
        raise ValueError(f"factor must be at least 1, got {factor}")
    if size is not None and (len(size) != 2 or not all(isinstance(n, int) and n >= 1 for n in size)):
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
    check_top_k(top_k, num_classes, "top_k")
    if image_format == "png" and quality is not None:
        raise ValueError(f"quality is of jpeg and webp: png loses nothing, got {quality}")
    if quality is not None and not 1 <= quality <= 100:
        raise ValueError(f"quality must lie in 1..100, got {quality}")
    return Settings(
        num_classes,
        label_format.ignore_index,
        tuple(label_format.class_names),
        tuple(sorted(label_format.ids.items())),
        tuple(sorted(label_format.colours.items())),
        None if factor is None else float(factor),
        None if size is None else (size[0], size[1]),
        filter,
        top_k,
        masses,
        image_format,
        DEFAULT_QUALITY[image_format] if quality is None else quality,
    )


def label_format_of(settings: Settings) -> LabelFormat:
    """What settings say of label files."""
    return LabelFormat(
        settings.num_classes, settings.ignore_index, settings.class_names, dict(settings.ids), dict(settings.colours)
    )


# --- one pair ---------------------------------------------------------------------------------------------------------


def make_sample(pair: Pair, settings: Settings, label_format: LabelFormat) -> tuple[Sample, bytes, bytes]:
    """What becomes of a pair: its record, its image file and its labels file.

    Raises:
        DataError: a file of it cannot be used.
    """
    image, labels = read_pair(pair, label_format)
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
    pixels = torch.frombuffer(bytearray(encode(soft, settings.masses)), dtype=torch.uint8)
    return sample, _image_bytes(small, settings), save({PIXELS: pixels}, _metadata(sample, settings))


def shrink_pair(
    pair: Pair, settings: Settings, label_format: LabelFormat, out: Path, resume: bool, stopped: Callable[[], bool]
) -> Sample | None:
    """Write the two files of a pair, unless they are there already (``resume``), or the work has stopped: then None.

    Raises:
        DataError: a file of the pair cannot be used.
        OutputError: a file cannot be written.
    """
    if stopped():
        return None
    if resume and (sample := _finished(pair, settings, out)):
        return sample
    sample, image, labels = make_sample(pair, settings, label_format)
    for file, content in ((out / sample.image, image), (out / sample.labels, labels)):
        if stopped():
            return None
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(file) as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            raise OutputError(f"{file}: cannot be written ({error.strerror or error})") from None
    return sample


def _record(pair: Pair, settings: Settings, size: tuple[int, int], source_size: tuple[int, int]) -> Sample:
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


def _metadata(sample: Sample, settings: Settings) -> dict[str, str]:
    """What a labels file says of itself, and by which it is known again."""
    sizes = json.dumps([sample.size, sample.source_size])
    sources = {"image_sha256": sample.image_sha256, "labels_sha256": sample.labels_sha256}
    return {"settings": settings.digest, "sizes": sizes, **sources}


def _finished(pair: Pair, settings: Settings, out: Path) -> Sample | None:
    """The record of a pair that is done: with these settings, of files with these checksums."""
    file = out / labels_file(pair.name)
    if not ((out / image_file(pair.name, settings)).is_file() and file.is_file()):
        return None
    try:
        with safe_open(file, "pt") as stream:
            found = stream.metadata() or {}
        size, source_size = json.loads(found["sizes"])
    except (SafetensorError, OSError, KeyError, ValueError):
        return None  # broken, as by a copy that stopped: made again
    sample = _record(pair, settings, tuple(size), tuple(source_size))
    return sample if found == _metadata(sample, settings) else None


def _image_bytes(image: Tensor, settings: Settings) -> bytes:
    from PIL import Image

    options: dict[str, Any] = {
        "png": {"compress_level": PNG_LEVEL},
        "jpeg": {"quality": settings.quality, "subsampling": 0},  # colours as sharp as the rest
        "webp": {"quality": settings.quality},
    }[settings.image_format]
    stream = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(stream, settings.image_format, **options)
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
        dropped: the largest share of the labelled area that lies in classes beyond ``top_k``, of one picture.
        skipped: what is wrong with files that cannot be used, as far as was looked at.
    """

    pictures: int
    tried: int
    size: tuple[int, int]
    source_size: tuple[int, int]
    image_bytes: float
    label_bytes: float
    source_image_bytes: int
    source_label_bytes: int
    seconds: float
    skipped: tuple[str, ...]


def shrink_dataset(
    images: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    out: str | os.PathLike[str],
    label_format: LabelFormat,
    *,
    factor: float | None = None,
    size: Sequence[int] | None = None,
    filter: Filter = "area",
    top_k: int | None = None,
    masses: Masses = "uint8",
    image_format: ImageFormat = "png",
    quality: int | None = None,
    image_pattern: str = "*",
    label_pattern: str = "*",
    limit: int | None = None,
    existing: Existing = "refuse",
    workers: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> ShrinkResult:
    """Shrink a folder of images and one of label files to a data set that `ShrunkDataset` reads.

    Sources are read and never written to. A file of the data set is there whole or not at all, and the same bytes
    come of the same sources and settings, whatever the number of workers. Interrupted, it is continued with
    ``existing="resume"``. The format and its errors are described in ``docs/shrunk_datasets.md``.

    Args:
        images: folder of images.
        labels: folder of label files.
        out: folder of the data set; it may not lie in those two, nor they in it.
        label_format: what the label files hold.
        factor: each side becomes ``max(1, round(side / factor))``; at least 1.
        size: ``(h, w)`` of all samples, in place of ``factor``.
        filter: of image and labels, as in `tritonsoft.resize`.
        top_k: how many classes of a pixel are kept; None: 4, or as many as there are.
        masses: ``"uint8"``: each is off by less than 1/255, their sum by half of that; or ``"float16"``.
        image_format: ``"png"``, ``"jpeg"`` or ``"webp"``.
        quality: of JPEG (default 95) and WebP (90).
        image_pattern: which images, and which part of their paths is the sample's name: as in `pair_files`.
        label_pattern: the same of label files.
        limit: do the first so many pairs alone, by name.
        existing: where ``out`` holds a shrunk data set: ``"refuse"``; ``"resume"``, which does what is missing where
            the settings are the same; or ``"overwrite"``, which deletes what the manifest names.
        workers: threads; None: as many as there are cores for this process.
        progress: is called with the number of pairs done, and of all, after each.

    Raises:
        OutputError: ``out`` cannot be used, or written to, as on a full disk. What is done stays, for ``"resume"``.
        DataError: a folder that cannot be searched, or that holds no pair.
        TypeError, ValueError: another argument, which is named.
    """
    started = time.monotonic()
    settings = shrink_settings(
        label_format,
        factor=factor,
        size=size,
        filter=filter,
        top_k=top_k,
        masses=masses,
        image_format=image_format,
        quality=quality,
    )
    if existing not in ("refuse", "resume", "overwrite"):
        raise ValueError(f"existing must be refuse, resume or overwrite, got {existing!r}")
    folder = Path(out)
    _check_apart(folder, Path(images), Path(labels))
    pairs, problems = _pairs(images, labels, image_pattern, label_pattern)
    names = _prepare(folder, pairs, limit, settings, existing)
    chosen = [pair for pair in pairs if pair.name in names]
    samples: list[Sample] = []
    skipped = [str(problem) for problem in problems]
    if progress is not None:
        progress(0, len(chosen))
    with Workers(workers) as team:
        resume = existing == "resume"

        def work(pair: Pair) -> Sample | None:
            return shrink_pair(pair, settings, label_format, folder, resume, team.stopped)

        for done, (_, outcome) in enumerate(team.run(work, chosen), 1):
            if isinstance(outcome, DataError):
                skipped.append(str(outcome))
            elif isinstance(outcome, OutputError):
                raise OutputError(f"{outcome}; {len(samples)} of {len(chosen)} pictures are done and stay: --resume")
            elif isinstance(outcome, BaseException):
                raise outcome
            elif outcome is not None:
                samples.append(outcome)
            if progress is not None:
                progress(done, len(chosen))
    samples.sort(key=lambda sample: sample.name)
    skipped.sort()
    result = ShrinkResult(tuple(samples), tuple(skipped), time.monotonic() - started)
    try:
        _write_manifest(folder, Manifest(settings, tuple(s.name for s in samples), result.samples, True, result.skipped))
    except OSError as error:
        raise OutputError(f"{folder}: the manifest cannot be written ({error.strerror or error})") from None
    return result


def _pairs(
    images: str | os.PathLike[str], labels: str | os.PathLike[str], image_pattern: str, label_pattern: str
) -> tuple[list[Pair], list[DataError]]:
    pairs, problems = pair_files(images, labels, image_pattern, label_pattern)
    if not pairs:
        why = f"; {problems[0]}" if problems else ""
        raise DataError(f"{images}, {labels}: no image has a label file of the same name{why}")
    return pairs, problems
