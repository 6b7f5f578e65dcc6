"""Which files of two folders belong together."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tritonsoft.data.errors import DataError

PICTURE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"))
LABEL_SUFFIXES = PICTURE_SUFFIXES | {".npy"}


class Pair(NamedTuple):
    """An image and its label file.

    Attributes:
        name: what both share: the path below either folder, without what the patterns spell out.
        image: its file.
        labels: the label file.
    """

    name: str
    image: Path
    labels: Path


def pair_files(
    images: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    image_pattern: str = "*",
    label_pattern: str = "*",
) -> tuple[list[Pair], list[DataError]]:
    """The images and label files of two folders that share a name, sorted by it, and what is wrong with the others.

    A name is the part of a file's path below its folder that the star of the pattern stands for, folders included, and
    where the pattern ends with its star, without the suffix. So by default a name is the path without the suffix, and
    ``"*_leftImg8bit.png"`` with ``"*_gtFine_labelIds.png"`` pairs the files of Cityscapes. Text before the star
    begins a file's name, or a folder's.

    Both folders are searched with all below, through symbolic links too. Files that do not match a pattern are not
    looked at. Named as errors are files without a partner, links to nothing, and each file after the first of a name.

    Args:
        images: folder of images.
        labels: folder of label files: pictures, or arrays in ``.npy`` files.
        image_pattern: relative to ``images``, with one star.
        label_pattern: relative to ``labels``, with one star.

    Raises:
        DataError: a folder that cannot be searched.
        ValueError: a pattern without exactly one star, or an absolute one.
        TypeError: a pattern that is no string.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("street_image.jpg", "street_labels.png", "lake_image.jpg"):
        ...         Path(folder, name).touch()
        ...     pairs, problems = pair_files(folder, folder, "*_image.jpg", "*_labels.png")
        >>> [(pair.name, pair.image.name, pair.labels.name) for pair in pairs]
        [('street', 'street_image.jpg', 'street_labels.png')]
        >>> len(problems)  # the lake has no labels
        1
    """
    images, labels = Path(images), Path(labels)
    image_files, image_problems = _by_name(images, image_pattern, "image_pattern", PICTURE_SUFFIXES)
    label_files, label_problems = _by_name(labels, label_pattern, "label_pattern", LABEL_SUFFIXES)
    alone = [
        DataError(f"{files[name]}: no {missing} of this name in {there}")
        for files, others, missing, there in (
            (image_files, label_files, "label map", labels),
            (label_files, image_files, "image", images),
        )
        for name in sorted(files.keys() - others.keys())
    ]
    names = sorted(image_files.keys() & label_files.keys())
    pairs = [Pair(name, image_files[name], label_files[name]) for name in names]
    return pairs, [*image_problems, *label_problems, *alone]


def find_files(directory: str | os.PathLike[str], pattern: str = "*", *, labels: bool = False) -> list[Path]:
    """The pictures in a folder and below that match a pattern of `pair_files`, sorted; links to nothing are among them.

    Args:
        directory: the folder; symbolic links in it are followed, but not back up.
        pattern: relative to the folder, with one star, such as ``"*_leftImg8bit.png"``.
        labels: whether ``.npy`` files are looked for too.

    Raises:
        DataError: a folder that cannot be searched.
        ValueError: a pattern without exactly one star, or an absolute one.
        TypeError: a pattern that is no string.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("street.jpg", "lake.png", "ids.npy", "notes.txt"):
        ...         Path(folder, name).touch()
        ...     found = find_files(folder), find_files(folder, "l*"), find_files(folder, labels=True)
        >>> for files in found:
        ...     print(*[file.name for file in files])
        lake.png street.jpg
        lake.png
        ids.npy lake.png street.jpg
    """
    return [
        file for file, _ in _find(Path(directory), pattern, "pattern", LABEL_SUFFIXES if labels else PICTURE_SUFFIXES)
    ]


def _by_name(
    directory: Path, pattern: str, argument: str, suffixes: frozenset[str]
) -> tuple[dict[str, Path], list[DataError]]:
    """Files by their names, and those that share one with another."""
    files: dict[str, Path] = {}
    problems = []
    for file, name in _find(directory, pattern, argument, suffixes):
        if files.setdefault(name, file) != file:
            problems.append(DataError(f"{file}: {files[name].name} has the same name and is taken"))
    return files, problems


def _find(directory: Path, pattern: str, argument: str, suffixes: frozenset[str]) -> list[tuple[Path, str]]:
    """Files with their names, sorted by path."""
    before, after = check_pattern(pattern, argument)
    found = []
    try:
        for file in _files(directory):
            if file.suffix.lower() in suffixes:
                name = _name_of(file.relative_to(directory), before, after)
                if name is not None:
                    found.append((file, name))
    except OSError as error:
        raise DataError(f"{directory}: cannot be searched ({error})") from None
    return sorted(found)


def check_pattern(pattern: str, argument: str) -> tuple[str, str]:
    """What stands before and after the star."""
    if not isinstance(pattern, str):
        raise TypeError(f"{argument} must be a string, got {type(pattern).__name__}")
    if pattern.count("*") != 1 or Path(pattern).is_absolute():
        raise ValueError(f"{argument} must be that of a name or relative path with one star, got {pattern!r}")
    before, after = pattern.split("*")
    return before, after


def _name_of(file: Path, before: str, after: str) -> str | None:
    """What the star stands for, behind the folders above the text before it."""
    path = file.as_posix()
    if not path.endswith(after):
        return None
    # Text before the star begins at a folder; at the deepest, so that what begins a file's name is looked for there.
    start = 0 if not before else ("/" + path).rfind("/" + before)
    end = len(path) - len(after)
    if start < 0 or start + len(before) > end:
        return None
    name = path[:start] + path[start + len(before) : end]
    return name if after else name.removesuffix(file.suffix)


def _files(directory: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """What is in a folder and below and is no folder. Not below itself: a link may lead back up."""
    resolved = directory.resolve()
    if resolved not in above:
        for path in directory.iterdir():
            if path.is_dir():
                yield from _files(path, above | {resolved})
            else:
                yield path
