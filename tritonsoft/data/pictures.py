"""Pixels of picture files, as they are and upright."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tritonsoft._extras import how_to_install
from tritonsoft.data.errors import DataError
from tritonsoft.data.pairing import Pair

if TYPE_CHECKING:
    from PIL.Image import Image

    from tritonsoft.data.label_files import LabelFormat

Array = np.ndarray[Any, Any]

DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # of Pillow, with more than 8 bits, which it would cut off


def read_image(file: str | os.PathLike[str]) -> Tensor:
    """A picture ``(3, H, W)`` uint8, upright as viewers show it; grey and palette pictures become coloured.

    The channels are red, green and blue, 0 to 255.

    Args:
        file: any format that Pillow reads.

    Raises:
        DataError: a file that is missing, broken, no picture, or of more than 8 bits for each channel.
        ImportError: Pillow is not installed.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.NamedTemporaryFile(suffix=".png") as file:
        ...     Image.new("RGB", (6, 4), (255, 128, 0)).save(file.name)
        ...     image = read_image(file.name)
        >>> image.shape, image.dtype, image[:, 0, 0].tolist()
        (torch.Size([3, 4, 6]), torch.uint8, [255, 128, 0])
    """
    return _read_image(Path(file)).contiguous()


def _read_image(file: Path) -> Tensor:
    """The same in the memory of its decoder: channels last."""
    with open_picture(file) as picture:
        deep = deep_mode(picture)
        if deep is not None:
            raise DataError(f"{file}: an image needs 8 bits for each channel, got mode {deep}")
        turn_upright(picture)
        pixels = np.array(coloured(picture))  # (H, W, 3)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def read_pair(pair: Pair, format: "LabelFormat") -> tuple[Tensor, Tensor]:
    """The image ``(3, H, W)`` uint8 of a pair, and its label map ``(H, W)`` as `LabelFormat.read` gives it.

    Args:
        pair: one of those that `pair_files` gave.
        format: what `label_format` gave.

    Raises:
        DataError: either cannot be read, or they differ in size.
        UnknownLabelError: an id or a colour without a class (a DataError too).
        ImportError: Pillow is not installed.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from tritonsoft.data import Pair, label_format
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pair = Pair("street", Path(folder, "street.jpg"), Path(folder, "street.png"))
        ...     Image.new("RGB", (6, 4)).save(pair.image)
        ...     Image.new("L", (6, 4), 7).save(pair.labels)
        ...     image, labels = read_pair(pair, label_format(map="cityscapes"))
        >>> image.shape, labels.shape, labels.unique()  # the id 7 is class 0 there
        (torch.Size([3, 4, 6]), torch.Size([4, 6]), tensor([0], dtype=torch.uint8))
    """
    image, labels = read_pair_as_decoded(pair, format)
    return image.contiguous(), labels


def read_pair_as_decoded(pair: Pair, format: "LabelFormat") -> tuple[Tensor, Tensor]:
    """`read_pair` without a copy: the image's memory is channels last, which the operators take as it is."""
    image, labels = _read_image(pair.image), format.read(pair.labels)
    if image.shape[1:] != labels.shape:
        (image_height, image_width), (height, width) = image.shape[1:], labels.shape
        raise DataError(f"{pair.labels}: {width}x{height} pixels, where its image has {image_width}x{image_height}")
    return image, labels


@contextlib.contextmanager
def open_picture(file: Path) -> Iterator["Image"]:
    """A picture that is not decoded yet; whatever is wrong with the file is a DataError, in the block too."""
    need_file(file)
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f"{error}: reading pictures needs Pillow: {how_to_install('data')}") from None
    try:
        # Of a stream: plain TIFF files that it opens by name Pillow maps, and takes turned ones for the wrong shape.
        with file.open("rb") as stream, Image.open(stream) as picture:
            yield picture
    except DataError:
        raise
    except Exception as error:  # of a broken file Pillow's decoders may raise anything
        raise DataError(f"{file}: cannot be read ({error})") from None


def turn_upright(picture: "Image") -> None:
    """As viewers show it, where its EXIF orientation says so."""
    from PIL import ImageOps

    ImageOps.exif_transpose(picture, in_place=True)


def coloured(picture: "Image") -> "Image":
    """As RGB, whatever is transparent."""
    picture.info.pop("transparency", None)  # of a palette, which Pillow would warn about
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def raw_mode(picture: "Image") -> str:
    """What Pillow calls the bytes of a file that is not decoded yet; empty where its format does not say."""
    for _, _, _, arguments in getattr(picture, "tile", ()):  # how the file's bytes become pixels
        first = arguments if isinstance(arguments, str) or not arguments else arguments[0]
        return first if isinstance(first, str) else ""
    return ""


def deep_mode(picture: "Image") -> str | None:
    """What Pillow calls more than 8 bits for each channel, of a file that is not decoded yet; None where it has 8."""
    if picture.mode in DEEP_MODES:
        return picture.mode
    raw = raw_mode(picture)  # of several channels it would keep the upper 8 bits, without a word
    return raw if raw.endswith((";16B", ";16L", ";16N")) else None


def need_file(file: Path) -> None:
    """DataError where there is none; a link to nothing says where it leads."""
    if not file.is_file():
        link = f", but a link to {file.readlink()}" if file.is_symlink() else ""
        raise DataError(f"{file}: is no file{link}")
