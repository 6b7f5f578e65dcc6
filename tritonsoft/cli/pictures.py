"""Pictures with label maps: the built-in street scene, or a folder."""

import colorsys
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tritonsoft.cli import scenes

Array = np.ndarray[Any, Any]

PICTURE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"))
LABEL_MODES = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B")  # Pillow's names for one channel of ids


class PictureError(Exception):
    """A picture that cannot be used; the message names its file."""


class WrongIdsError(PictureError):
    """A label map with ids that are no class."""


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures with label maps, loaded one at a time."""

    names: Sequence[str]
    load: Callable[[int], tuple[Tensor, Tensor]]  # image (3, H, W) uint8, labels (H, W); raises PictureError
    class_names: Sequence[str]
    palette: Array  # (C, 3) uint8
    ignore_index: int

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def street(height: int, width: int, seed: int) -> Pictures:
    """The built-in scene."""
    scene = scenes.street_scene(height, width, seed)
    palette = np.array(scenes.PALETTE, np.uint8)
    pair = scene.image, scene.labels
    return Pictures([f"street scene {seed}"], lambda _: pair, scenes.CLASSES, palette, scenes.IGNORE_INDEX)


def folder(
    images: Path, labels: Path, class_names: Sequence[str], ignore_index: int
) -> tuple[Pictures, list[PictureError]]:
    """The pictures that have the same path and stem in both folders, and what has no partner."""
    files, problems = pairs(images, labels)
    stems = list(files)
    # Hues a golden ratio apart stay distinct, however many there are.
    colours = [
        colorsys.hsv_to_rgb(0.618034 * k % 1, (0.75, 0.5, 0.95)[k % 3], (0.95, 0.8, 0.6)[k % 3])
        for k in range(len(class_names))
    ]
    palette = (np.array(colours) * 255).round().astype(np.uint8)

    def load(index: int) -> tuple[Tensor, Tensor]:
        return load_picture(*files[stems[index]])

    return Pictures(stems, load, class_names, palette, ignore_index), problems


def all_pictures(directory: Path, pattern: str = "*") -> list[Path]:
    """The pictures in a folder and below, through symbolic links too; links to nothing are among them, and named."""
    try:
        found = {path for folder in _folders(directory) for path in folder.glob(pattern)}
        return sorted(path for path in found if path.suffix.lower() in PICTURE_SUFFIXES and not path.is_dir())
    except OSError as error:
        raise PictureError(f"{directory}: cannot be searched ({error})") from None


def _folders(directory: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """A folder and those below it. Not below itself: a link may lead back up."""
    resolved = directory.resolve()
    if resolved not in above:
        yield directory
        for path in directory.iterdir():
            if path.is_dir():
                yield from _folders(path, above | {resolved})


def pairs(images: Path, labels: Path, pattern: str = "*") -> tuple[dict[str, tuple[Path, Path]], list[PictureError]]:
    """Images and label maps of the same path and stem, by these, and the files that are left over."""
    (image_files, same_images), (label_files, same_labels) = _by_stem(images), _by_stem(labels, pattern)
    alone = [
        PictureError(f"{files[stem]}: no {missing} of this name in {there}")
        for files, others, missing, there in (
            (image_files, label_files, "label map", labels),
            (label_files, image_files, "image", images),
        )
        for stem in sorted(files.keys() - others.keys())
    ]
    stems = sorted(image_files.keys() & label_files.keys())
    return {stem: (image_files[stem], label_files[stem]) for stem in stems}, [*same_images, *same_labels, *alone]


def _by_stem(directory: Path, pattern: str = "*") -> tuple[dict[str, Path], list[PictureError]]:
    """`all_pictures` by their path without the suffix, and those that share it with another."""
    files: dict[str, Path] = {}
    problems = []
    for path in all_pictures(directory, pattern):
        stem = str(path.relative_to(directory).with_suffix(""))
        if files.setdefault(stem, path) != path:
            problems.append(PictureError(f"{path}: {files[stem].name} has the same name and is taken"))
    return files, problems


def load_picture(image_file: Path, label_file: Path) -> tuple[Tensor, Tensor]:
    """An image ``(3, H, W)`` uint8 and its label map ``(H, W)``."""
    pixels, labels = _read(image_file, is_image=True), load_labels(label_file)
    if pixels.shape[:2] != labels.shape:
        image_height, image_width = pixels.shape[:2]
        size = f"{labels.shape[1]}x{labels.shape[0]}"
        raise PictureError(f"{label_file}: {size} pixels, where its image has {image_width}x{image_height}")
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), labels


def load_labels(file: Path) -> Tensor:
    """A label map ``(H, W)`` of grey values or palette indices, uint8 or int32."""
    ids = _read(file, is_image=False)
    return torch.from_numpy(ids.astype(np.uint8 if ids.dtype.itemsize == 1 else np.int32))


def _read(file: Path, is_image: bool) -> Array:
    from PIL import Image, ImageOps

    if not file.is_file():
        raise PictureError(f"{file}: is no file")
    try:
        # Of a stream: plain TIFF files that it opens by name Pillow maps, and takes turned ones for the wrong shape.
        with file.open("rb") as stream, Image.open(stream) as picture:
            ImageOps.exif_transpose(picture, in_place=True)  # upright, as viewers show it
            if not is_image and picture.mode not in LABEL_MODES:
                raise PictureError(f"{file}: a label map needs one channel of class ids, got mode {picture.mode}")
            return np.array(picture.convert("RGB") if is_image else picture)
    except PictureError:
        raise
    except Exception as error:  # of a broken file Pillow's decoders may raise anything
        raise PictureError(f"{file}: cannot be read ({error})") from None
