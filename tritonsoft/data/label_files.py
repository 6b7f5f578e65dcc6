"""What the values of label files mean, and label maps of classes read from them."""

import dataclasses
import functools
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tritonsoft.data.errors import DataError, UnknownLabelError
from tritonsoft.data.pictures import Array, coloured, deep_mode, need_file, open_picture, raw_mode, turn_upright
from tritonsoft.data.tables import DATA_SETS, Colour, Table, colour_table, fits, id_table
from tritonsoft.functional import smallest_label_dtype

if TYPE_CHECKING:
    from PIL.Image import Image

ID_MODES = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow's names for one channel of ids
COLOUR_MODES = ("RGB", "RGBA", "RGBX", "P")
LOSSY_FORMATS = ("JPEG", "MPO")
MAX_CLASSES = 2**16  # as many ids as a label map of 16 bits can hold
DEFAULT_IGNORE_INDEX = 255


@dataclasses.dataclass(frozen=True)
class LabelFormat:
    """What the values of label files mean: made by `label_format`.

    Attributes:
        num_classes: C; label maps hold the classes ``0 .. C-1`` and ``ignore_index``.
        ignore_index: the value of pixels that belong to no class.
        class_names: C names.
        ids: the class, or ``ignore_index``, of each id that a file may hold; empty where only colours have classes.
        colours: the class, or ``ignore_index``, of each colour (red, green, blue) that a file may hold; empty where
            only ids have classes.
    """

    num_classes: int
    ignore_index: int
    class_names: tuple[str, ...]
    ids: Mapping[int, int]
    colours: Mapping[Colour, int]

    @property
    def dtype(self) -> torch.dtype:
        """The type of label maps, uint8, int16, int32 or int64, by what holds the classes and ``ignore_index``."""
        return smallest_label_dtype(self.ignore_index, self.num_classes - 1)

    def read(self, file: str | os.PathLike[str]) -> Tensor:
        """The label map ``(H, W)`` of a file, upright as viewers show it: classes and ``ignore_index``, as `dtype`.

        Colour pictures (and, where colours have classes, pictures with a palette) are read by their colours; their
        alpha counts nothing. All others and ``.npy`` files hold ids: grey values of 1 to 16 bits, indices of a
        palette, integers.

        Args:
            file: a picture that Pillow reads and whose format keeps values, or an ``.npy`` file.

        Raises:
            UnknownLabelError: an id or a colour without a class; the message names the file, the value and a pixel. Or
                ids where only colours have classes, or colours where only ids have.
            DataError: a file that is missing, broken or of another kind: a JPEG, which does not keep values, or colours
                of more than 8 bits.
            ImportError: Pillow is not installed.
        """
        file = Path(file)
        if file.suffix.lower() == ".npy":
            ids = _read_array(file)
            self._need_ids(file, "an array")
            return self._classes(file, ids, self._of_ids)
        with open_picture(file) as picture:
            if picture.format in LOSSY_FORMATS:
                raise DataError(f"{file}: {picture.format} does not keep the values of a label map, as PNG does")
            stretched, largest = _stretched(picture)
            deep = deep_mode(picture)
            turn_upright(picture)
            if self.colours and picture.mode in COLOUR_MODES:
                if deep is not None:
                    raise DataError(f"{file}: a palette has colours of 8 bits for each channel, got mode {deep}")
                return self._classes(file, _packed_colours(picture), self._of_colours)
            if picture.mode not in ID_MODES:
                hint = ": have its colours a palette?" if picture.mode in COLOUR_MODES else ""
                raise UnknownLabelError(
                    f"{file}: a label map needs one channel of class ids, got mode {picture.mode}{hint}"
                )
            self._need_ids(file, f"a picture, mode {picture.mode},")
            ids = np.asarray(picture)
            if stretched != largest:
                ids = np.rint(ids.astype(np.float64) * (largest / stretched)).astype(np.int64)
            return self._classes(file, ids, self._of_ids)

    def _need_ids(self, file: Path, what: str) -> None:
        if not self.ids:
            raise UnknownLabelError(f"{file}: only colours have classes here, and this is {what} of ids")

    @functools.cached_property
    def _of_ids(self) -> tuple[Array, Array]:
        return self._sorted(self.ids)

    @functools.cached_property
    def _of_bytes(self) -> tuple[bytes, bytes]:
        """The ids of one byte that have a class, and the class of each of the 256, for `bytes.translate`."""
        known = [id for id in self.ids if 0 <= id <= 255]
        return bytes(known), bytes(self.ids.get(id, 0) for id in range(256))

    @functools.cached_property
    def _of_colours(self) -> tuple[Array, Array]:
        return self._sorted(
            {red | green << 8 | blue << 16: value for (red, green, blue), value in self.colours.items()}
        )

    def _sorted(self, table: Mapping[int, int]) -> tuple[Array, Array]:
        """Keys, ascending, and the classes of each."""
        keys = np.array(sorted(table), np.int64)
        dtype = np.dtype(str(self.dtype).removeprefix("torch."))
        return keys, np.array([table[key] for key in keys.tolist()], dtype)

    def _classes(self, file: Path, values: Array, table: tuple[Array, Array]) -> Tensor:
        """The classes of ids or packed colours ``(H, W)``."""
        keys, classes = table
        line = values.ravel()
        if not line.size:
            raise DataError(f"{file}: holds no pixel")
        if values.dtype == classes.dtype == np.uint8 and table is self._of_ids:
            known_bytes, class_of_byte = self._of_bytes
            content = values.tobytes()
            if not content.translate(None, known_bytes):  # nothing is left without what is known
                translated = np.frombuffer(bytearray(content).translate(class_of_byte), np.uint8)
                return torch.from_numpy(translated.reshape(values.shape))
        # Label maps are long runs of one value: only the first of each run is looked up.
        starts = np.concatenate(([0], np.flatnonzero(line[1:] != line[:-1]) + 1))
        first = line[starts].astype(np.int64)
        found = np.searchsorted(keys, first).clip(max=len(keys) - 1)
        known = (keys[found] == first) & ((first < 0) == (line[starts] < 0))  # 64 unsigned bits may have wrapped
        if not known.all():
            run = int(np.argmin(known))
            raise self._unknown(
                file, int(line[starts[run]]), divmod(int(starts[run]), values.shape[1]), table is self._of_ids
            )
        result = np.repeat(classes[found], np.diff(starts, append=line.size))
        return torch.from_numpy(result.reshape(values.shape))

    def _unknown(self, file: Path, value: int, pixel: tuple[int, int], is_id: bool) -> UnknownLabelError:
        where = f"at row {pixel[0]}, column {pixel[1]}"
        if not is_id:
            colour = (value & 0xFF, value >> 8 & 0xFF, value >> 16)
            return UnknownLabelError(f"{file}: the colour {colour} {where} is not in the palette")
        if self._ids_are_classes:
            others = sorted(self.ids.keys() - set(range(self.num_classes)))
            also = f" or be {', '.join(map(str, others))}" if others else ""
            return UnknownLabelError(f"{file}: labels must lie in 0..{self.num_classes - 1}{also}, got {value} {where}")
        return UnknownLabelError(f"{file}: the id {value} {where} is not in the map")

    @functools.cached_property
    def _ids_are_classes(self) -> bool:
        """Whether each class has its own id, and no other."""
        mapped = {key: value for key, value in self.ids.items() if value != self.ignore_index}
        return mapped.keys() <= set(range(self.num_classes)) <= self.ids.keys() and all(
            k == v for k, v in mapped.items()
        )


def label_format(
    num_classes: int | None = None,
    *,
    map: str | os.PathLike[str] | Mapping[int, int] | None = None,
    palette: str | os.PathLike[str] | Mapping[Colour, int] | None = None,
    ignore: Iterable[int] = (),
    ignore_index: int | None = None,
    class_names: Sequence[str] | None = None,
) -> LabelFormat:
    """What the values of label files mean.

    Without ``map`` and ``palette``, ids are classes. Data sets by name are ``"cityscapes"`` (its ``labelIds`` and
    ``color`` files, 19 classes), ``"ade20k"`` (150 classes, ids 1 to 150; no colours), ``"voc"`` (21 classes) and
    ``"camvid"`` (SegNet's 11 classes; the colours of all 32). Files are described in ``docs/label_files.md``.

    Args:
        num_classes: C; needed where neither ``map`` nor ``palette`` says it, and at least as many as they name.
        map: the class of each id: a data set by name, a CSV or JSON file, or a mapping of ids to classes.
        palette: the class of each colour: likewise. With a palette alone, files of ids are errors.
        ignore: ids that belong to no class, besides those that ``map`` says.
        ignore_index: what pixels without a class are in the label maps: no class of ``map`` and ``palette``; where
            neither is given, also an id of theirs. Default: 255, unless that is a class.
        class_names: C names. Default: those that ``map`` or ``palette`` gives, else ``"class 0"``, ...

    Raises:
        DataError: a file that cannot be read, or is no such table.
        ValueError: an argument that contradicts another, or is out of range.
        TypeError: an argument of another type.

    >>> cityscapes = label_format(map="cityscapes")
    >>> cityscapes.num_classes, cityscapes.class_names[5], cityscapes.ids[17]
    (19, 'pole', 5)
    """
    of_ids = None if map is None else id_table(map)
    of_colours = None if palette is None else colour_table(palette)
    tables = [table for table in (of_ids, of_colours) if table is not None]
    num_classes = _number_of_classes(
        num_classes, tables, DEFAULT_IGNORE_INDEX if ignore_index is None else ignore_index
    )
    ignore_index = _ignore_index(ignore_index, num_classes)
    ignored = dict.fromkeys(_ignored(ignore), ignore_index)
    if of_ids is not None:
        ids = _checked(of_ids, num_classes, ignore_index)
    elif of_colours is None:
        ids = {id: id for id in (*range(num_classes), ignore_index)}
    elif ignored:
        raise ValueError("ignore holds ids, and with a palette alone no file of ids is read: give map too")
    else:
        ids = {}
    colours = {} if of_colours is None else _checked(of_colours, num_classes, ignore_index)
    names = _names(class_names, num_classes, tables)
    return LabelFormat(num_classes, ignore_index, names, {**ids, **ignored}, colours)


def _number_of_classes(num_classes: int | None, tables: Sequence[Table], ignore_index: int) -> int:
    values = {value for table in tables for value in (*table.classes.values(), *table.names)} - {ignore_index}
    known = 1 + max((value for value in values if value is not None), default=-1)
    if num_classes is None:
        if not tables:
            raise ValueError("num_classes must be given where neither map nor palette says it")
        if known < 1:
            raise ValueError(
                f"{' and '.join(table.source for table in tables)} must have a class from 0 that is not ignored"
            )
        num_classes = known
    num_classes = operator.index(num_classes)
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if num_classes > MAX_CLASSES:
        raise ValueError(f"num_classes must be at most {MAX_CLASSES}, got {num_classes}")
    if num_classes < known:
        sources = " and ".join(table.source for table in tables)
        raise ValueError(f"num_classes must be at least {known}, as many as {sources} has, got {num_classes}")
    return num_classes


def _ignore_index(ignore_index: int | None, num_classes: int) -> int:
    """255 where none is given, but never silently where 255 is a class."""
    if ignore_index is None:
        if num_classes > DEFAULT_IGNORE_INDEX:
            raise ValueError(
                f"num_classes {num_classes} makes {DEFAULT_IGNORE_INDEX}, the default of ignore_index, a class: "
                "give ignore_index, -1 where every pixel is labelled"
            )
        return DEFAULT_IGNORE_INDEX
    ignore_index = operator.index(ignore_index)
    if not fits(ignore_index):
        raise ValueError(f"ignore_index must fit 64 bits, got {ignore_index}")
    return ignore_index


def _ignored(ignore: Iterable[int]) -> list[int]:
    if isinstance(ignore, str) or not isinstance(ignore, Iterable):
        raise TypeError(f"ignore must hold ids, such as (0, 255), got {ignore!r}")
    ids = [operator.index(id) for id in ignore]
    if wrong := [id for id in ids if not fits(id)]:
        raise ValueError(f"ignore must hold ids of 64 bits, got {wrong[0]}")
    return ids


def _checked(table: Table, num_classes: int, ignore_index: int) -> dict[Any, int]:
    """Its classes, with ``ignore_index`` for what is ignored."""
    if ignore_index in table.classes.values() and (ignore_index < num_classes or table.source in DATA_SETS):
        # Of a table of the user's, a number beyond the classes may stand for "ignore"; among them, a class would go.
        name = f", {table.names[ignore_index]!r}" if ignore_index in table.names else ""
        raise ValueError(f"ignore_index {ignore_index} is also a class of {table.source}{name}: give another number")
    for key, value in table.classes.items():
        if value not in (None, ignore_index) and not 0 <= value < num_classes:
            raise DataError(
                f"{table.source}: {key} has the class {value}, which must lie in 0..{num_classes - 1}, or be ignored"
            )
    return {key: ignore_index if value is None else value for key, value in table.classes.items()}


def _names(class_names: Sequence[str] | None, num_classes: int, tables: Sequence[Table]) -> tuple[str, ...]:
    if class_names is not None:
        if len(class_names) != num_classes:
            raise ValueError(f"class_names must hold num_classes={num_classes} names, got {len(class_names)}")
        return tuple(class_names)
    known: dict[int, str] = {}
    for table in tables:
        for class_id, name in table.names.items():
            if class_id < num_classes and known.setdefault(class_id, name) != name:
                raise ValueError(f"map and palette call class {class_id} {known[class_id]!r} and {name!r}")
    return tuple(known.get(class_id, f"class {class_id}") for class_id in range(num_classes))


def _read_array(file: Path) -> Array:
    """The ids of a ``.npy`` file."""
    need_file(file)
    try:
        with file.open("rb") as stream:
            ids: Array = np.lib.format.read_array(stream, allow_pickle=False)
    except Exception as error:  # of a broken file
        raise DataError(f"{file}: cannot be read ({error})") from None
    if ids.ndim != 2 or ids.dtype.kind not in "bui":
        raise DataError(f"{file}: a label map needs two axes of integers, got shape {ids.shape} of {ids.dtype}")
    return ids


def _packed_colours(picture: "Image") -> Array:
    """Red, green and blue of each pixel in the lower bits of one number, ``(H, W)`` uint32."""
    pixels = np.frombuffer(coloured(picture).tobytes("raw", "RGBX"), "<u4")
    return (pixels & 0xFFFFFF).reshape(picture.height, picture.width)


def _stretched(picture: "Image") -> tuple[int, int]:
    """What Pillow makes of the largest grey value that a file may hold, and that value; 1 and 1 where it keeps them.

    Of files of 2 and 4 bits it makes 0..255, and of PGM files, whose header names their largest value, too, or
    0..65535.
    """
    raw = raw_mode(picture)
    if raw.startswith(("L;2", "L;4")):
        return 255, 2 ** int(raw[2]) - 1
    for decoder, _, _, arguments in getattr(picture, "tile", ()):
        if decoder in ("ppm", "ppm_plain") and len(arguments) == 2 and picture.mode in ("L", "I"):
            return 255 if picture.mode == "L" else 65535, int(arguments[1])
    return 1, 1
