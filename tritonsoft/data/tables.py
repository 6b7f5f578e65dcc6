"""Tables of ids and colours: those of data sets that many use, and those that people write in files.

Sources of the facts: Cityscapes, ``cityscapesscripts/helpers/labels.py`` (https://github.com/mcordts/cityscapesScripts);
ADE20K, the 150 categories of SceneParsing (http://sceneparsing.csail.mit.edu) as mmsegmentation names them; Pascal VOC
2012, its development kit, with the colours of its formula; CamVid, the colours of its authors
(http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/) in the 11 classes of the SegNet tutorial.
"""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from tritonsoft.data.errors import DataError

Colour = tuple[int, int, int]  # red, green, blue in 0..255
Key = TypeVar("Key", int, Colour)
Classes = Mapping[Key, int | None]  # the class of each id or colour; None: of no class, ignored


class DataSet(NamedTuple):
    """What is known of a data set's label files."""

    class_names: tuple[str, ...]
    ids: Classes[int]
    colours: Classes[Colour]


_CITYSCAPES: Final = (  # id, whether it is one of the 19 classes, colour, name
    (0, False, (0, 0, 0), "unlabeled"),
    (1, False, (0, 0, 0), "ego vehicle"),
    (2, False, (0, 0, 0), "rectification border"),
    (3, False, (0, 0, 0), "out of roi"),
    (4, False, (0, 0, 0), "static"),
    (5, False, (111, 74, 0), "dynamic"),
    (6, False, (81, 0, 81), "ground"),
    (7, True, (128, 64, 128), "road"),
    (8, True, (244, 35, 232), "sidewalk"),
    (9, False, (250, 170, 160), "parking"),
    (10, False, (230, 150, 140), "rail track"),
    (11, True, (70, 70, 70), "building"),
    (12, True, (102, 102, 156), "wall"),
    (13, True, (190, 153, 153), "fence"),
    (14, False, (180, 165, 180), "guard rail"),
    (15, False, (150, 100, 100), "bridge"),
    (16, False, (150, 120, 90), "tunnel"),
    (17, True, (153, 153, 153), "pole"),
    (18, False, (153, 153, 153), "polegroup"),
    (19, True, (250, 170, 30), "traffic light"),
    (20, True, (220, 220, 0), "traffic sign"),
    (21, True, (107, 142, 35), "vegetation"),
    (22, True, (152, 251, 152), "terrain"),
    (23, True, (70, 130, 180), "sky"),
    (24, True, (220, 20, 60), "person"),
    (25, True, (255, 0, 0), "rider"),
    (26, True, (0, 0, 142), "car"),
    (27, True, (0, 0, 70), "truck"),
    (28, True, (0, 60, 100), "bus"),
    (29, False, (0, 0, 90), "caravan"),
    (30, False, (0, 0, 110), "trailer"),
    (31, True, (0, 80, 100), "train"),
    (32, True, (0, 0, 230), "motorcycle"),
    (33, True, (119, 11, 32), "bicycle"),
)


def _cityscapes() -> DataSet:
    """The train ids are the 19 classes in the order of their ids."""
    names = tuple(name for _, is_class, _, name in _CITYSCAPES if is_class)
    class_of = {name: train_id for train_id, name in enumerate(names)}
    ids = {id: class_of.get(name) for id, _, _, name in _CITYSCAPES}
    # Two colours are shared: black is of none of the classes, and polegroup has the colour of pole.
    colours = {colour: class_of.get(name) for _, _, colour, name in reversed(_CITYSCAPES)}
    return DataSet(names, ids, colours)


_ADE20K: Final = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet",
    "sidewalk", "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water",
    "painting", "sofa", "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence", "desk",
    "rock", "wardrobe", "lamp", "bathtub", "railing", "cushion", "base", "box", "column", "signboard",
    "chest of drawers", "counter", "sand", "sink", "skyscraper", "fireplace", "refrigerator", "grandstand", "path",
    "stairs", "runway", "case", "pool table", "pillow", "screen door", "stairway", "river", "bridge", "bookcase",
    "blind", "coffee table", "toilet", "flower", "book", "hill", "bench", "countertop", "stove", "palm",
    "kitchen island", "computer", "swivel chair", "boat", "bar", "arcade machine", "hovel", "bus", "towel", "light",
    "truck", "tower", "chandelier", "awning", "streetlight", "booth", "television receiver", "airplane",
    "dirt track", "apparel", "pole", "land", "bannister", "escalator", "ottoman", "bottle", "buffet", "poster",
    "stage", "van", "ship", "fountain", "conveyer belt", "canopy", "washer", "plaything", "swimming pool", "stool",
    "barrel", "basket", "waterfall", "tent", "bag", "minibike", "cradle", "oven", "ball", "food", "step", "tank",
    "trade name", "microwave", "pot", "animal", "bicycle", "lake", "dishwasher", "screen", "blanket", "sculpture",
    "hood", "sconce", "vase", "traffic light", "tray", "ashcan", "fan", "pier", "crt screen", "plate", "monitor",
    "bulletin board", "shower", "radiator", "glass", "clock", "flag",
)  # fmt: skip


def _ade20k() -> DataSet:
    """No colours: those that are in use give several classes the same one."""
    return DataSet(_ADE20K, {0: None, **{class_id + 1: class_id for class_id in range(len(_ADE20K))}}, {})


_VOC: Final = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table",
    "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv/monitor",
)  # fmt: skip


def _voc_colour(id: int) -> Colour:
    """The bits of an id in turn are bits of red, green and blue, the lowest of it their highest."""
    red, green, blue = (sum((id >> 3 * k + channel & 1) << 7 - k for k in range(8)) for channel in range(3))
    return red, green, blue


def _voc() -> DataSet:
    ids = {**{id: id for id in range(len(_VOC))}, 255: None}
    return DataSet(_VOC, ids, {_voc_colour(id): value for id, value in ids.items()})


_CAMVID: Final = (  # class, and the colours of the 32 that it is made of
    ("sky", {"Sky": (128, 128, 128)}),
    (
        "building",
        {
            "Building": (128, 0, 0),
            "Bridge": (0, 128, 64),
            "Wall": (64, 192, 0),
            "Tunnel": (64, 0, 64),
            "Archway": (192, 0, 128),
        },
    ),
    ("pole", {"Column_Pole": (192, 192, 128), "TrafficCone": (0, 0, 64)}),
    ("road", {"Road": (128, 64, 128), "LaneMkgsDriv": (128, 0, 192), "LaneMkgsNonDriv": (192, 0, 64)}),
    ("pavement", {"Sidewalk": (0, 0, 192), "ParkingBlock": (64, 192, 128), "RoadShoulder": (128, 128, 192)}),
    ("tree", {"Tree": (128, 128, 0), "VegetationMisc": (192, 192, 0)}),
    ("sign", {"SignSymbol": (192, 128, 128), "Misc_Text": (128, 128, 64), "TrafficLight": (0, 64, 64)}),
    ("fence", {"Fence": (64, 64, 128)}),
    (
        "car",
        {
            "Car": (64, 0, 128),
            "SUVPickupTruck": (64, 128, 192),
            "Truck_Bus": (192, 128, 192),
            "Train": (192, 64, 128),
            "OtherMoving": (128, 64, 64),
        },
    ),
    (
        "pedestrian",
        {
            "Pedestrian": (64, 64, 0),
            "Child": (192, 128, 64),
            "CartLuggagePram": (64, 0, 192),
            "Animal": (64, 128, 64),
        },
    ),
    ("bicyclist", {"Bicyclist": (0, 128, 192), "MotorcycleScooter": (192, 0, 192)}),
)


def _camvid() -> DataSet:
    """The ids of the SegNet tutorial, whose 11 are unlabelled pixels; Void is black."""
    ids = {**{class_id: class_id for class_id in range(len(_CAMVID))}, len(_CAMVID): None}
    colours = {colour: class_id for class_id, (_, parts) in enumerate(_CAMVID) for colour in parts.values()}
    return DataSet(tuple(name for name, _ in _CAMVID), ids, {**colours, (0, 0, 0): None})


DATA_SETS: Final[Mapping[str, DataSet]] = {
    "cityscapes": _cityscapes(),
    "ade20k": _ade20k(),
    "voc": _voc(),
    "camvid": _camvid(),
}


# --- tables in files -------------------------------------------------------------------------------------------------


class Table(NamedTuple):
    """Classes of ids or colours, and what they are called."""

    source: str  # a data set, a file or an argument: for messages
    classes: dict[Any, int | None]
    names: dict[int, str]


def id_table(map: str | os.PathLike[str] | Mapping[int, int]) -> Table:
    """The classes of ids: of a data set by name, a file, or as they are given."""
    if isinstance(map, Mapping):
        return Table("map", dict(map), {})
    if isinstance(map, str) and map in DATA_SETS:
        data_set = DATA_SETS[map]
        return Table(map, dict(data_set.ids), dict(enumerate(data_set.class_names)))
    return _read_table(_table_file("map", map), ("id",))


def colour_table(palette: str | os.PathLike[str] | Mapping[Colour, int]) -> Table:
    """The classes of colours: likewise."""
    if isinstance(palette, Mapping):
        for colour in palette:
            if not (isinstance(colour, tuple) and len(colour) == 3 and all(part in range(256) for part in colour)):
                raise ValueError(f"palette must have colours (red, green, blue) in 0..255, got {colour!r}")
        return Table("palette", dict(palette), {})
    if isinstance(palette, str) and palette in DATA_SETS:
        data_set = DATA_SETS[palette]
        if not data_set.colours:
            raise ValueError(
                f"palette: {palette} has no colours that tell its classes apart: give a file, or map={palette}"
            )
        return Table(palette, dict(data_set.colours), dict(enumerate(data_set.class_names)))
    return _read_table(_table_file("palette", palette), ("red", "green", "blue"))


def _table_file(argument: str, source: str | os.PathLike[str]) -> Path:
    file = Path(source)
    if file.suffix.lower() not in (".csv", ".json"):
        raise ValueError(
            f"{argument} must be one of {', '.join(DATA_SETS)}, or a CSV or JSON file; got {str(source)!r}"
        )
    return file


def _read_table(file: Path, keys: Sequence[str]) -> Table:
    """A CSV or JSON file, of which docs/label_files.md says what it holds."""
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from None
    rows = _csv_rows(text) if file.suffix.lower() == ".csv" else _json_rows(file, text, keys)
    if len(keys) == 3 and not any("class" in row for row in rows):
        rows = [{**row, "class": number} for number, row in enumerate(rows)]
    classes: dict[Any, int | None] = {}
    names: dict[int, str] = {}
    for number, row in enumerate(rows, 1):
        where = f"{file}, row {number}"
        if missing := [name for name in (*keys, "class") if name not in row]:
            raise DataError(f"{where}: needs the columns {', '.join(keys)} and class, and has no {', '.join(missing)}")
        parts = [_integer(row[name], name, where) for name in keys]
        if len(keys) == 3 and not all(0 <= part <= 255 for part in parts):
            raise DataError(f"{where}: red, green and blue must lie in 0..255, got {parts}")
        key: Any = tuple(parts) if len(keys) == 3 else parts[0]
        value = row["class"]
        class_id = None if value is None or str(value).strip() in ("", "ignore") else _integer(value, "class", where)
        if classes.setdefault(key, class_id) != class_id:
            raise DataError(f"{where}: {key} has the class {class_id}, and {classes[key]} in a row above")
        name = str(row.get("name") or "").strip()
        if name and class_id is not None:
            names.setdefault(class_id, name)
    if not classes:
        raise DataError(f"{file}: holds no row")
    return Table(str(file), classes, names)


def _csv_rows(text: str) -> list[dict[str, Any]]:
    lines = list(csv.reader(text.splitlines(), skipinitialspace=True))
    heading = [_column(name) for name in lines[0]] if lines else []
    return [dict(zip(heading, line, strict=False)) for line in lines[1:] if any(cell.strip() for cell in line)]


def _json_rows(file: Path, text: str, keys: Sequence[str]) -> list[dict[str, Any]]:
    """A list of objects with the columns of a CSV file, or an object: classes by ids, or by ``"red,green,blue"``."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise DataError(f"{file}: is no JSON ({error})") from None
    if isinstance(content, dict):
        split = [(key.split(","), value) for key, value in content.items()]
        if any(len(parts) != len(keys) for parts, _ in split):
            raise DataError(f"{file}: the keys of a JSON object must be {','.join(keys)!r}")
        return [{**dict(zip(keys, parts, strict=True)), "class": value} for parts, value in split]
    if isinstance(content, list) and all(isinstance(row, dict) for row in content):
        return [{_column(name): value for name, value in row.items()} for row in content]
    raise DataError(f"{file}: must hold an object of classes, or a list of objects with {', '.join(keys)} and class")


def _column(name: str) -> str:
    name = name.strip().lower()
    return {"r": "red", "g": "green", "b": "blue"}.get(name, name)


def _integer(value: Any, name: str, where: str) -> int:
    try:
        if isinstance(value, (int, str)) and not isinstance(value, bool):
            return int(value)
    except ValueError:
        pass
    wanted = "an integer or 'ignore'" if name == "class" else "an integer"
    raise DataError(f"{where}: {name} must be {wanted}, got {value!r}")
