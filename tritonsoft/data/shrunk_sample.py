"""What one pair of files becomes: an image file and a labels file, by a pure function of the pair and the settings.

So pairs may be done in any order, anywhere and again. A pair is done when its labels file is there, which is written
after the image and names the settings, both sources' checksums, and one of what the two files hold.
"""

import hashlib
import io
import json
import numbers
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from tritonsoft import functional
from tritonsoft.data.errors import DataError, OutputError
from tritonsoft.data.label_files import LabelFormat
from tritonsoft.data.manifest import ImageFormat, Sample, ShrinkSettings, check_choices, image_file, labels_file
from tritonsoft.data.pairing import Pair
from tritonsoft.data.pictures import read_pair_as_decoded
from tritonsoft.data.saving import write_bytes
from tritonsoft.data.shrunk_labels import Masses, encode, from_file, to_file
from tritonsoft.functional import check_top_k, is_whole_number
from tritonsoft.geometry import Filter
from tritonsoft.sparse import index_type

DEFAULT_TOP_K: Final = 4
DEFAULT_QUALITY: Final[dict[ImageFormat, int | None]] = {"png": None, "jpeg": 95, "webp": 90}
# The strategy of zlib for filtered pixels: of photos 1% larger than Pillow's default, in a quarter of the time.
PNG_OPTIONS: Final = {"compress_type": zlib.Z_RLE}

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
        label_format: what the label files hold, as `tritonsoft.data.label_format` gave it.
        factor: source pixels for one of a sample, along each side, which becomes ``max(1, round(side / factor))``; at
            least 1.
        size: ``(h, w)`` of all samples in pixels, in place of ``factor``: one of both is needed.
        filter: of image and labels, as in `tritonsoft.resize`.
        top_k: how many classes of a pixel are kept; None: 4, or as many as there are.
        masses: ``"uint8"``: each is off by less than 1/255, their sum by half of that; or ``"float16"``.
        image_format: ``"png"``, ``"jpeg"`` or ``"webp"``.
        quality: of JPEG (default 95) and WebP (90), 1 to 100.

    Raises:
        TypeError, ValueError: an argument is none of these; the message names it.

    Example:
        >>> from tritonsoft.data import label_format
        >>> settings = shrink_settings(label_format(map="cityscapes"), factor=4)
        >>> settings.size_of(1024, 2048), settings.num_classes, settings.top_k, settings.image_format
        ((256, 512), 19, 4, 'png')
    """
    if (factor is None) == (size is None):
        raise ValueError(f"one of factor and size must be given, got factor={factor} and size={size}")
    if factor is not None and (isinstance(factor, bool) or not isinstance(factor, numbers.Real)):
        raise TypeError(f"factor must be a number, got {factor!r}")
    if factor is not None and not 1 <= factor < float("inf"):
        raise ValueError(f"factor must be at least 1, got {factor}")
    if size is not None and (len(size) != 2 or not all(is_whole_number(n) and n >= 1 for n in size)):
        raise ValueError(f"size must be two ints of at least 1, (h, w), got {size}")
    check_choices(filter, masses, image_format)
    num_classes = label_format.num_classes
    index_type(num_classes)  # refuses more classes than a SparseLabels holds
    if top_k is None:
        top_k = min(DEFAULT_TOP_K, num_classes)
    top_k = check_top_k(top_k, num_classes, "top_k")
    if image_format == "png" and quality is not None:
        raise ValueError(f"quality is of jpeg and webp: png loses nothing, got {quality}")
    check_whole("quality", quality)
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


def check_whole(argument: str, value: Any) -> None:
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
