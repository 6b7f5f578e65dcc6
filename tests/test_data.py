"""Data sets in folders: what is found, how it is paired, and which classes the values of label files become."""

import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tritonsoft._extras import how_to_install
from tritonsoft.data import (
    DataError,
    UnknownLabelError,
    atomic_write,
    find_files,
    label_format,
    pair_files,
    read_image,
    read_pair,
)
from tritonsoft.data.saving import remove_temporary_files
from tritonsoft.data.tables import DATA_SETS

Image = pytest.importorskip("PIL.Image", reason="pictures are read with Pillow")

ROOT = Path(__file__).parents[1]
Array = np.ndarray[Any, Any]


def save(file: Path, pixels: Any, **options: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels)).save(file, **options)
    return file


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


# --- data sets by name -----------------------------------------------------------------------------------------------


def test_classes_of_cityscapes() -> None:
    """The evaluated ids, from the paper's table of classes: 7, 8, 11, 12, 13, 17, 19 to 28, 31, 32 and 33."""
    format = label_format(map="cityscapes", palette="cityscapes")
    evaluated = [7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]
    assert format.num_classes == len(evaluated) == 19
    assert format.ids == {id: evaluated.index(id) if id in evaluated else 255 for id in range(34)}
    names = "road,sidewalk,building,wall,fence,pole,traffic light,traffic sign,vegetation,terrain,sky,person,rider,car,"
    assert format.class_names == tuple(f"{names}truck,bus,train,motorcycle,bicycle".split(","))
    for colour, name in (
        ((128, 64, 128), "road"),
        ((153, 153, 153), "pole"),
        ((0, 0, 142), "car"),
        ((0, 0, 230), "motorcycle"),
    ):
        assert format.colours[colour] == format.class_names.index(name)
    for colour in ((0, 0, 0), (111, 74, 0), (0, 0, 90), (150, 120, 90)):  # void, dynamic, caravan, tunnel
        assert format.colours[colour] == 255


def test_classes_of_ade20k() -> None:
    format = label_format(map="ade20k")
    assert format.ids == {0: 255, **{id: id - 1 for id in range(1, 151)}}
    assert [format.class_names[id - 1] for id in (1, 2, 3, 13, 21, 150)] == [
        "wall",
        "building",
        "sky",
        "person",
        "car",
        "flag",
    ]
    assert len(set(format.class_names)) == 150


def test_classes_of_voc() -> None:
    format = label_format(map="voc", palette="voc")
    assert format.ids == {**{id: id for id in range(21)}, 255: 255}
    known = {
        "background": (0, 0, 0),
        "aeroplane": (128, 0, 0),
        "cat": (64, 0, 0),
        "person": (192, 128, 128),
        "tv/monitor": (0, 64, 128),
    }
    assert {name: format.colours[colour] for name, colour in known.items()} == {
        name: format.class_names.index(name) for name in known
    }
    assert format.colours[224, 224, 192] == 255  # what outlines are painted with
    assert len(format.colours) == 22


def test_classes_of_camvid() -> None:
    format = label_format(map="camvid", palette="camvid")
    assert format.ids == {**{id: id for id in range(11)}, 11: 255}
    assert len(format.colours) == 32
    for colour, name in (
        ((192, 192, 128), "pole"),
        ((0, 0, 64), "pole"),
        ((128, 0, 192), "road"),
        ((64, 0, 192), "pedestrian"),
    ):
        assert format.class_names[format.colours[colour]] == name
    assert format.colours[0, 0, 0] == 255


# --- what files hold -------------------------------------------------------------------------------------------------


def grey_png(ids: Array, bits: int) -> bytes:
    """A PNG file of grey values with 1, 2 or 4 bits, which Pillow does not write."""
    height, width = ids.shape
    assert width * bits % 8 == 0
    digits = (ids[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return raw_png(np.packbits(digits.astype(np.uint8).reshape(height, -1), axis=1), width, bits, 0)


def colour_png(pixels: Array) -> bytes:
    """A PNG file of RGB with 16 bits for each channel, which Pillow does not write either."""
    return raw_png(pixels, pixels.shape[1], 16, 2)


def raw_png(rows: Array, width: int, bits: int, kind_of_colour: int) -> bytes:
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, len(rows), bits, kind_of_colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_label_files_hold_ids_whatever_their_kind(tmp_path: Path) -> None:
    ids = np.arange(16, dtype=np.uint8).reshape(2, 8)
    files = {
        save(tmp_path / "grey.png", ids): ids,
        save(tmp_path / "grey.tif", ids, compression="tiff_lzw"): ids,
        save(tmp_path / "16 bits.png", ids.astype(np.uint16) + 1000): ids.astype(int) + 1000,
        save(tmp_path / "16 bits.tif", ids.astype(np.uint16) + 1000): ids.astype(int) + 1000,
        save(tmp_path / "32 bits.tif", ids.astype(np.int32) + 1000): ids.astype(int) + 1000,
        save(tmp_path / "mask.png", ids % 3 == 0): ids % 3 == 0,
    }
    palette = Image.fromarray(ids)
    palette.putpalette([255 - k // 3 for k in range(768)])  # grey values would differ from the ids
    palette.save(tmp_path / "palette.png")
    files[tmp_path / "palette.png"] = ids
    for bits in (1, 2, 4):
        (tmp_path / f"{bits}.png").write_bytes(grey_png(ids % 2**bits, bits))
        files[tmp_path / f"{bits}.png"] = ids % 2**bits
    for dtype in ("bool", "u1", "i1", "<u2", ">u2", "i4", "u4", "i8", "u8"):
        file = tmp_path / f"{dtype.replace('<', 'little ').replace('>', 'big ')}.npy"
        np.save(file, (ids % 2 if dtype == "bool" else ids).astype(dtype))
        files[file] = ids % 2 if dtype == "bool" else ids
    format = label_format(1016, ignore_index=-1)
    for file, wanted in files.items():
        got = format.read(file)
        assert got.dtype == torch.int16
        assert got.tolist() == wanted.astype(int).tolist(), file


def test_the_type_of_label_maps_holds_every_class() -> None:
    for num_classes, ignore_index, dtype in (
        (19, None, torch.uint8),
        (256, 255, torch.uint8),
        (19, -1, torch.int16),
        (257, -1, torch.int16),
        (2**15 + 1, 2**15, torch.int32),
        (19, 2**40, torch.int64),
    ):
        assert label_format(num_classes, ignore_index=ignore_index).dtype == dtype


@pytest.mark.parametrize(("largest", "dtype"), [(11, "u1"), (15, "u1"), (255, "u1"), (1000, ">u2"), (65535, ">u2")])
def test_ids_of_pgm_files_are_those_of_the_file(largest: int, dtype: str, tmp_path: Path) -> None:
    """Pillow stretches them to 0..255 or 0..65535 by the largest value that the header names."""
    ids = np.arange(12).reshape(3, 4)
    binary, plain = tmp_path / "binary.pgm", tmp_path / "plain.pgm"
    binary.write_bytes(f"P5\n4 3\n{largest}\n".encode() + ids.astype(dtype).tobytes())
    plain.write_text(f"P2\n4 3\n{largest}\n{' '.join(map(str, ids.flat))}\n")
    for file in (binary, plain):
        assert label_format(12).read(file).tolist() == ids.tolist()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [0, b"\0\x80\xff"])
def test_what_is_transparent_counts_nothing(transparency: Any, tmp_path: Path) -> None:
    ids, file = np.arange(6, dtype=np.uint8).reshape(2, 3), tmp_path / "one.png"
    picture = Image.fromarray(ids)
    picture.putpalette([value for k in range(256) for value in (k, 255 - k, 7)])
    picture.save(file, transparency=transparency)
    assert label_format(6).read(file).tolist() == ids.tolist()
    assert label_format(palette={(k, 255 - k, 7): k for k in range(6)}).read(file).tolist() == ids.tolist()
    assert read_image(file)[0].tolist() == ids.tolist()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_become_classes(mode: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (50, 3), np.uint8)
    ids = random.integers(0, 50, (37, 41))
    ids[20:] = ids[20:] // 17  # runs
    picture = Image.fromarray(colours[ids])
    if mode == "RGBA":
        picture.putalpha(Image.fromarray(random.integers(0, 256, ids.shape, np.uint8)))
    file = tmp_path / "colours.png"
    (picture.quantize(64) if mode == "P" else picture).save(file)
    assert Image.open(file).mode == mode
    palette = {tuple(colour): k for k, colour in enumerate(colours.tolist())}
    labels = label_format(palette=palette).read(file)
    assert labels.dtype == torch.uint8
    assert labels.tolist() == ids.tolist()


def test_a_palette_decides_how_a_picture_with_one_is_read(tmp_path: Path) -> None:
    """Indices are ids; but a program that saves colours in few bytes orders them as it likes."""
    picture = Image.new("P", (1, 1), 1)
    picture.putpalette([0, 0, 0, 192, 128, 128])
    picture.save(tmp_path / "one.png")
    assert label_format(map="voc").read(tmp_path / "one.png").item() == 1
    assert label_format(map="voc", palette="voc").read(tmp_path / "one.png").item() == 15


def test_ids_and_several_ignored_values_become_classes(tmp_path: Path) -> None:
    file = save(tmp_path / "ids.png", np.array([[7, 8, 26], [0, 33, 255], [40, 41, 7]], np.uint8))
    labels = label_format(map="cityscapes", ignore=(255, 40, 41)).read(file)
    assert labels.tolist() == [[0, 1, 13], [255, 18, 255], [255, 255, 0]]
    labels = label_format(42, ignore=[0, 255, 40], ignore_index=-1).read(file)
    assert labels.tolist() == [[7, 8, 26], [-1, 33, -1], [-1, 41, 7]]
    assert labels.dtype == torch.int16
    assert label_format(map={7: 1, 8: 0, 26: 2, 0: 9, 33: 9, 255: 9, 40: 9, 41: 9}, ignore_index=9).read(
        file
    ).tolist() == [
        [1, 0, 2],
        [9, 9, 9],
        [9, 9, 1],
    ]


def test_what_is_no_class_is_named_with_a_pixel(tmp_path: Path) -> None:
    ids = np.zeros((5, 7), np.uint8)
    ids[3, 2], ids[4, 6] = 77, 78
    colours = np.full((5, 7, 3), (128, 64, 128), np.uint8)
    colours[1, 6] = (1, 2, 3)
    ids_file, colour_file = save(tmp_path / "ids.png", ids), save(tmp_path / "colours.png", colours)
    for format, file, message in (
        (label_format(19), ids_file, "labels must lie in 0..18 or be 255, got 77 at row 3, column 2"),
        (label_format(77, ignore=(78, 255)), ids_file, "0..76 or be 78, 255, got 77 at row 3, column 2"),
        (label_format(map="cityscapes"), ids_file, "the id 77 at row 3, column 2 is not in the map"),
        (label_format(map={1: 1, 77: 255}), ids_file, "the id 0 at row 0, column 0 is not in the map"),
        (label_format(palette="camvid"), colour_file, "the colour (1, 2, 3) at row 1, column 6 is not in the palette"),
    ):
        with pytest.raises(UnknownLabelError) as caught:
            format.read(file)
        assert str(file) in str(caught.value)
        assert message in str(caught.value)
    np.save(tmp_path / "wrapped.npy", np.full((1, 1), 2**64 - 1, np.uint64))
    with pytest.raises(UnknownLabelError, match=f"got {2**64 - 1} at row 0, column 0"):
        label_format(19, ignore_index=-1).read(tmp_path / "wrapped.npy")


def test_files_of_another_kind_are_named(tmp_path: Path) -> None:
    colours, ids = (
        save(tmp_path / "colours.png", np.zeros((2, 2, 3), np.uint8)),
        save(tmp_path / "ids.png", np.eye(2) > 0),
    )
    Image.new("LA", (2, 2)).save(tmp_path / "LA.png")
    np.save(tmp_path / "ids.npy", np.zeros((2, 2), np.uint8))
    np.save(tmp_path / "floats.npy", np.zeros((2, 2)))
    np.save(tmp_path / "batch.npy", np.zeros((1, 2, 2), np.uint8))
    np.save(tmp_path / "empty.npy", np.zeros((0, 2), np.uint8))
    np.save(tmp_path / "objects.npy", np.array([[{}]]), allow_pickle=True)
    with (tmp_path / "archive.npy").open("wb") as stream:
        np.savez(stream, ids=np.zeros((2, 2), np.uint8))
    save(tmp_path / "lossy.jpg", np.zeros((8, 8), np.uint8))
    (tmp_path / "deep colours.png").write_bytes(colour_png(np.zeros((2, 2, 3), ">u2")))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    (tmp_path / "link.png").symlink_to("nowhere.png")
    for file, format, message in (
        (colours, label_format(2), "needs one channel of class ids, got mode RGB: have its colours a palette?"),
        (tmp_path / "LA.png", label_format(2), "needs one channel of class ids, got mode LA"),
        (ids, label_format(palette="voc"), "only colours have classes here, and this is a picture, mode 1, of ids"),
        (tmp_path / "ids.npy", label_format(palette="voc"), "only colours have classes here, and this is an array of"),
        (tmp_path / "floats.npy", label_format(2), "needs two axes of integers, got shape (2, 2) of float64"),
        (tmp_path / "batch.npy", label_format(2), "needs two axes of integers, got shape (1, 2, 2)"),
        (tmp_path / "empty.npy", label_format(2), "holds no pixel"),
        (tmp_path / "objects.npy", label_format(2), "cannot be read (Object arrays cannot be loaded"),
        (tmp_path / "archive.npy", label_format(2), "cannot be read"),
        (tmp_path / "lossy.jpg", label_format(2), "JPEG does not keep the values of a label map, as PNG does"),
        (tmp_path / "deep colours.png", label_format(palette="voc"), "of 8 bits for each channel, got mode RGB;16B"),
        (tmp_path / "broken.png", label_format(2), "cannot be read"),
        (tmp_path / "link.png", label_format(2), "is no file, but a link to nowhere.png"),
        (tmp_path / "none.npy", label_format(2), "is no file"),
    ):
        with pytest.raises(DataError) as caught:
            format.read(file)
        assert str(caught.value).startswith(f"{file}: ")
        assert message in str(caught.value)


def test_whatever_a_decoder_raises_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise TypeError("unsupported operand")

    file = save(tmp_path / "one.png", np.zeros((8, 8), np.uint8))
    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(DataError, match=r"one\.png: cannot be read \(unsupported operand\)"):
        label_format(19).read(file)


def save_turned(pixels: Any, file: Path, orientation: int) -> None:
    """So that a viewer shows these pixels upright."""
    transpose, exif = Image.Transpose, Image.Exif()
    stored = {
        1: (),
        2: (transpose.FLIP_LEFT_RIGHT,),
        3: (transpose.ROTATE_180,),
        4: (transpose.FLIP_TOP_BOTTOM,),
        5: (transpose.TRANSPOSE,),
        6: (transpose.ROTATE_90,),
        7: (transpose.TRANSVERSE,),
        8: (transpose.ROTATE_270,),
    }[orientation]
    picture = Image.fromarray(pixels)
    for each in stored:
        picture = picture.transpose(each)
    exif[0x0112] = orientation
    picture.save(file, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_read_upright(orientation: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (5, 7, 3)).astype(np.uint8)
    labels = random.integers(0, 19, (5, 7)).astype(np.uint8)
    plain_image, plain_labels = save(tmp_path / "image.png", image), save(tmp_path / "labels.png", labels)
    format = label_format(1019, ignore_index=-1)
    for suffix, ids in ((".png", labels), (".tif", labels), (".png", labels.astype(np.uint16) + 1000)):
        turned_image, turned_labels = tmp_path / f"turned{suffix}", tmp_path / f"turned_labels{suffix}"
        save_turned(image, turned_image, orientation)
        save_turned(ids, turned_labels, orientation)
        for image_file in (plain_image, turned_image):
            assert (read_image(image_file).permute(1, 2, 0).numpy() == image).all()
        assert (format.read(turned_labels).numpy() == ids).all()
    assert (format.read(plain_labels).numpy() == labels).all()
    save_turned(image, tmp_path / "turned.tif", orientation)
    palette = {tuple(colour): k for k, colour in enumerate(image.reshape(-1, 3).tolist())}
    assert label_format(palette=palette).read(tmp_path / "turned.tif").flatten().tolist() == list(range(35))


def test_images_of_every_mode_become_coloured_and_deep_ones_are_refused(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    for mode in ("RGB", "L", "P", "RGBA", "CMYK"):
        picture = Image.fromarray(pixels).convert(mode)
        picture.save(tmp_path / "one.tif")
        image = read_image(tmp_path / "one.tif")
        assert image.is_contiguous()
        assert (image.permute(1, 2, 0).numpy() == np.asarray(picture.convert("RGB"))).all()
    deep = save(tmp_path / "deep.png", pixels[..., 0].astype(np.uint16))
    with Image.open(deep) as picture:
        mode = picture.mode  # "I;16"; of old releases "I"
    with pytest.raises(DataError, match=rf"deep\.png: an image needs 8 bits for each channel, got mode {mode}$"):
        read_image(deep)
    (tmp_path / "deep.png").write_bytes(colour_png(pixels.astype(">u2")))
    with pytest.raises(DataError, match=r"deep\.png: an image needs 8 bits for each channel, got mode RGB;16B"):
        read_image(tmp_path / "deep.png")


def test_a_pair_has_one_size(tmp_path: Path) -> None:
    image = save(tmp_path / "images" / "one.jpg", np.zeros((4, 6, 3), np.uint8))
    labels = save(tmp_path / "labels" / "one.png", np.ones((4, 6), np.uint8))
    ((pair,), problems) = pair_files(tmp_path / "images", tmp_path / "labels")
    assert problems == []
    assert pair == ("one", image, labels)
    got_image, got_labels = read_pair(pair, label_format(2))
    assert got_image.shape == (3, 4, 6)
    assert got_labels.tolist() == [[1] * 6] * 4
    save(labels, np.ones((3, 6), np.uint8))
    with pytest.raises(DataError, match=r"labels/one\.png: 6x3 pixels, where its image has 6x4"):
        read_pair(pair, label_format(2))


# --- tables in files -------------------------------------------------------------------------------------------------


def write(file: Path, content: Any) -> Path:
    file.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return file


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("table.csv", "id,class,name\n5,0,sky\n\n6, 1, tree\n7,1,bush\n9,ignore,\n10,,\n"),
        ("table.csv", "\r\n,,\r\nid,class,name\r\n5,0,sky\r\n6,1,tree\r\n7,1,bush\r\n9,Ignore,\r\n10,,\r\n"),
        ("table.csv", "\ufeffName,ID,Class,other\nsky,5,0,x\ntree,6,1,x\n,7,1,x\nvoid,9,ignore,x\nvoid,10,255,x\n"),
        (
            "table.json",
            [
                {"id": 5, "class": 0, "name": "sky"},
                {"id": 6, "class": 1, "name": "tree"},
                {"id": 7, "class": 1},
                {"id": 9, "class": "ignore"},
                {"id": 10, "class": None},
            ],
        ),
    ],
)
def test_maps_are_read_from_files(name: str, content: Any, tmp_path: Path) -> None:
    format = label_format(map=write(tmp_path / name, content))
    assert format.ids == {5: 0, 6: 1, 7: 1, 9: 255, 10: 255}
    assert format.class_names == ("sky", "tree")
    more = label_format(3, map=tmp_path / name)
    assert more.class_names == ("sky", "tree", "class 2")


def test_a_map_is_an_object_of_json(tmp_path: Path) -> None:
    format = label_format(map=str(write(tmp_path / "map.JSON", {"5": 0, "6": 1, "-1": "ignore"})), ignore_index=7)
    assert format.ids == {5: 0, 6: 1, -1: 7}
    assert format.class_names == ("class 0", "class 1")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("table.csv", "red,green,blue,class,name\n0,0,255,1,water\n0,255,0,0,grass\n0,0,0,ignore,\n"),
        ("table.csv", "name, r, g, b, class\nwater, 0, 0, 255, 1\ngrass, 0, 255, 0, 0\nvoid, 0, 0, 0, ignore\n"),
        (
            "table.json",
            [
                {"red": 0, "green": 0, "blue": 255, "class": 1, "name": "water"},
                {"r": 0, "g": 255, "b": 0, "class": 0, "name": "grass"},
                {"r": 0, "g": 0, "b": 0, "class": None},
            ],
        ),
    ],
)
def test_palettes_are_read_from_files(name: str, content: Any, tmp_path: Path) -> None:
    format = label_format(palette=write(tmp_path / name, content))
    assert format.colours == {(0, 0, 255): 1, (0, 255, 0): 0, (0, 0, 0): 255}
    assert format.class_names == ("grass", "water")
    assert format.ids == {}


def test_colours_without_classes_are_numbered(tmp_path: Path) -> None:
    format = label_format(
        palette=write(tmp_path / "class_dict.csv", "name, r, g, b\nvoid, 0, 0, 0\nroad, 128, 64, 128\n")
    )
    assert format.colours == {(0, 0, 0): 0, (128, 64, 128): 1}
    assert format.class_names == ("void", "road")
    format = label_format(palette=write(tmp_path / "short.json", {"0,0,0": "ignore", "128, 64, 128": 0}))
    assert format.colours == {(0, 0, 0): 255, (128, 64, 128): 0}


@pytest.mark.parametrize(
    ("argument", "name", "content", "message"),
    [
        ("map", "x.csv", "", "holds no row"),
        ("map", "x.csv", "id,class\n", "holds no row"),
        ("map", "x.csv", "value,class\n1,2\n", "needs the columns id and class, and has no id"),
        ("map", "x.csv", "id,name\n1,sky\n", "needs the columns id and class, and has no class"),
        ("map", "x.csv", "id,class\n1,0\nx,0\n", "row 2: id must be an integer, got 'x'"),
        ("map", "x.csv", "id,class\n1,sky\n", "row 1: class must be an integer or 'ignore', got 'sky'"),
        ("map", "x.csv", "id,class\n1,0\n1,2\n", "row 2: 1 has the class 2, and 0 in a row above"),
        ("map", "x.csv", "id,class\n1,-1\n", "1 has the class -1, which must lie in 0.."),
        (
            "palette",
            "x.csv",
            "red,green,class\n1,2,3\n",
            "needs the columns red, green, blue and class, and has no blue",
        ),
        (
            "palette",
            "x.csv",
            "r,g,b,class\n1,2,300,0\n",
            "row 1: red, green and blue must lie in 0..255, got [1, 2, 300]",
        ),
        ("map", "x.csv", "id,class\n1,0\n2\n", "row 2: needs the columns id and class, and has no class"),
        ("palette", "x.csv", "r,g,b,class\n1,2,3,0\n4,5,6\n", "row 2: needs the columns red, green, blue and class"),
        ("palette", "x.json", [{"r": 1, "g": 2, "b": 3, "class": 0}, {"r": 4, "g": 5, "b": 6}], "and has no class"),
        ("map", "x.csv", "id;class\n1;0\n", "and has no id, class, but id;class"),
        ("map", "x.csv", "id,id,class\n1,2,0\n", "has several columns id"),
        ("map", "x.csv", f"id,class\n{2**63},0\n", f"row 1: id must fit 64 bits, got '{2**63}'"),
        ("map", "x.csv", f"id,class\n{'x' * 200_000},0\n", "is no CSV (field larger than field limit"),
        ("map", "x.json", '{"1": 0, "1": 1}', "names '1' more than once"),
        ("map", "x.json", "[" * 100_000, "is no JSON"),
        ("map", "x.json", "{", "is no JSON"),
        ("map", "x.json", "3", "must hold an object of classes, or a list of objects"),
        ("map", "x.json", {"1": 0.5}, "row 1: class must be an integer or 'ignore', got 0.5"),
        ("palette", "x.json", {"1,2": 0}, "the keys of a JSON object must be 'red,green,blue'"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(
    argument: str, name: str, content: Any, message: str, tmp_path: Path
) -> None:
    file = write(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        label_format(3, **{argument: file})
    assert str(file) in str(caught.value)
    assert message in str(caught.value)


def test_bad_arguments_of_a_format_are_named() -> None:
    for arguments, message in (
        ({}, "num_classes must be given where neither map nor palette says it"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"num_classes": 2**16 + 1}, "num_classes must be at most 65536"),
        ({"num_classes": 256}, "num_classes 256 makes 255, the default of ignore_index, a class: give ignore_index"),
        (
            {"num_classes": 18, "map": "cityscapes"},
            "num_classes must be at least 19, as many as cityscapes has, got 18",
        ),
        ({"num_classes": 2, "ignore_index": 2**63}, "ignore_index must fit 64 bits"),
        (
            {"map": "cityscape"},
            "map must be one of cityscapes, ade20k, voc, camvid, or a CSV or JSON file; got 'citysc",
        ),
        ({"map": "nowhere.csv"}, "nowhere.csv: cannot be read"),
        ({"palette": "ade20k"}, "palette: ade20k has no colours that tell its classes apart"),
        ({"palette": "voc", "ignore": [0]}, "ignore holds ids, and with a palette alone no file of ids is read"),
        ({"num_classes": 2, "class_names": ["a"]}, "class_names must hold num_classes=2 names, got 1"),
        ({"map": "voc", "palette": "camvid"}, "map and palette call class 0 'background' and 'sky'"),
        ({"palette": {(300, 0, 0): 0}}, "palette must have colours (red, green, blue) in 0..255, got (300, 0, 0)"),
        ({"map": {1: 0, 2: -3}}, "map: 2 has the class -3, which must lie in 0..0"),
        ({"map": {2**63: 0}}, f"map must have ids of 64 bits, got {2**63}"),
        ({"map": {1: None}}, "map must have a class from 0 that is not ignored"),
        ({"map": {1: 0}, "ignore": [2**63]}, f"ignore must hold ids of 64 bits, got {2**63}"),
        ({"map": "voc", "ignore_index": 0}, "ignore_index 0 is also a class of voc, 'background': give another"),
        ({"map": "voc", "ignore_index": 20}, "ignore_index 20 is also a class of voc, 'tv/monitor'"),
        ({"palette": "camvid", "ignore_index": 3}, "ignore_index 3 is also a class of camvid, 'road'"),
        ({"map": {7: 0, 8: 1, 9: 2}, "ignore_index": 1}, "ignore_index 1 is also a class of map"),
        ({"map": {7: 0, 8: 1}, "num_classes": 2, "ignore_index": 1}, "ignore_index 1 is also a class of map"),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            label_format(**arguments)
        assert message in str(caught.value)
    for arguments, message in (
        ({"map": {"7": 0}}, "map must have ids of integers, got '7'"),
        ({"map": {7: 0.5}}, "map must have classes of integers, got 0.5"),
        ({"map": [0, 1]}, "map must be a name, a file or a mapping, got list"),
        ({"palette": {(1.0, 0, 0): 0}}, "palette must have colours of integers, got 1.0"),
        ({"num_classes": 2, "ignore": 5}, "ignore must hold ids, such as (0, 255), got 5"),
        ({"num_classes": 2, "ignore": "5"}, "ignore must hold ids, such as (0, 255), got '5'"),
    ):
        with pytest.raises(TypeError, match=re.escape(message)):
            label_format(**arguments)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        label_format(2.5)  # type: ignore[arg-type]
    colour = tuple(np.array([128, 64, 128], np.uint8))
    assert label_format(palette={colour: np.int64(0)}).colours == {(128, 64, 128): 0}  # type: ignore[dict-item]
    assert label_format(np.int64(3), ignore=np.array([7])).ids[7] == 255


def test_formats_go_to_other_processes(tmp_path: Path) -> None:
    format = label_format(map="cityscapes", palette="cityscapes")
    file = save(tmp_path / "one.png", np.full((2, 2), 7, np.uint8))
    for each in (format, pickle.loads(pickle.dumps(format))):
        assert each == format
        assert each.read(file).tolist() == [[0, 0], [0, 0]]
        assert len(pickle.dumps(each)) < 10_000


# --- finding and pairing ---------------------------------------------------------------------------------------------


def test_pictures_are_found_through_links_and_once(tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    touch(tmp_path / "elsewhere", "one.png")
    touch(labels, "deep/two.png", "deep/notes.txt", "array.npy")
    (labels / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (labels / "deep" / "up").symlink_to(labels, target_is_directory=True)
    (labels / "folder.png").mkdir()
    (labels / "nothing.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(labels / "pipe.png")
    found = [str(path.relative_to(labels)) for path in find_files(labels)]
    assert found == ["deep/two.png", "linked/one.png", "nothing.png", "pipe.png"]
    assert find_files(labels, "a*", labels=True) == [labels / "array.npy"]
    for pattern, wanted in (
        ("t*.png", ["deep/two.png"]),
        ("linked/*", ["linked/one.png"]),
        ("one*", ["linked/one.png"]),
        ("d*wo.png", ["deep/two.png"]),
        ("eep/*", []),
        ("one.png*one.png", []),
    ):
        assert find_files(labels, pattern) == [labels / name for name in wanted]


def test_files_of_cityscapes_are_paired_by_their_suffixes(tmp_path: Path) -> None:
    for name in ("train/aachen/aachen_000000_000019", "val/lindau/lindau_000001_000019"):
        touch(tmp_path, f"leftImg8bit/{name}_leftImg8bit.png", f"gtFine/{name}_gtFine_polygons.json")
        touch(tmp_path, *(f"gtFine/{name}_gtFine_{kind}.png" for kind in ("color", "instanceIds", "labelIds")))
    suffixes = ("*_leftImg8bit.png", "*_gtFine_labelIds.png")
    pairs, problems = pair_files(tmp_path / "leftImg8bit", tmp_path / "gtFine", *suffixes)
    assert problems == []
    assert [pair.name for pair in pairs] == ["train/aachen/aachen_000000_000019", "val/lindau/lindau_000001_000019"]
    assert [pair.labels.name for pair in pairs] == [f"{pair.image.stem[:-12]}_gtFine_labelIds.png" for pair in pairs]
    from_above = pair_files(
        tmp_path, tmp_path, *(f"{part}/{each}" for part, each in zip(("leftImg8bit", "gtFine"), suffixes, strict=True))
    )
    assert from_above == (pairs, [])
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "one").symlink_to(tmp_path / "leftImg8bit" / "train", target_is_directory=True)
    (tmp_path / "links" / "two").symlink_to(tmp_path / "gtFine" / "train", target_is_directory=True)
    linked, problems = pair_files(tmp_path / "links" / "one", tmp_path / "links" / "two", *suffixes)
    assert [pair.name for pair in linked] == ["aachen/aachen_000000_000019"]
    assert problems == []


def test_a_prefix_begins_the_name_of_a_file(tmp_path: Path) -> None:
    touch(tmp_path / "images", "img_1/img_1.jpg", "img_2.jpg", "other.jpg")
    touch(tmp_path / "labels", "img_1/mask_1.png", "mask_2.npy")
    pairs, problems = pair_files(tmp_path / "images", tmp_path / "labels", "img_*", "mask_*")
    assert [(pair.name, pair.labels.name) for pair in pairs] == [("2", "mask_2.npy"), ("img_1/1", "mask_1.png")]
    assert problems == []


def test_what_has_no_partner_or_shares_a_name_is_named(tmp_path: Path) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    touch(images, "a.png", "a.jpg", "b.jpg", "deep/c.jpg", "d.jpg", "e.npy")
    touch(labels, "a.png", "c.png", "d.npy", "d.png", "e.png")
    pairs, problems = pair_files(images, labels)
    assert [(pair.name, pair.image.name, pair.labels.name) for pair in pairs] == [
        ("a", "a.jpg", "a.png"),
        ("d", "d.jpg", "d.npy"),
    ]
    assert [str(problem) for problem in problems] == [
        f"{images / 'a.png'}: a.jpg has the same name and is taken",
        f"{labels / 'd.png'}: d.npy has the same name and is taken",
        f"{images / 'b.jpg'}: no label map of this name in {labels}",
        f"{images / 'deep/c.jpg'}: no label map of this name in {labels}",
        f"{labels / 'c.png'}: no image of this name in {images}",
        f"{labels / 'e.png'}: no image of this name in {images}",
    ]


def test_bad_patterns_and_folders_are_named(tmp_path: Path) -> None:
    for pattern in ("", "x.png", "*_*.png", "/x/*"):
        with pytest.raises(
            ValueError, match="label_pattern must be that of a name or relative path with one star, got"
        ):
            pair_files(tmp_path, tmp_path, "*", pattern)
    with pytest.raises(TypeError, match="pattern must be a string, got int"):
        find_files(tmp_path, 5)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="nowhere: cannot be searched"):
        find_files(tmp_path / "nowhere")


# --- writing ---------------------------------------------------------------------------------------------------------


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "numbers.csv"
    mask = os.umask(0o027)
    try:
        with atomic_write(file) as temporary:
            assert temporary.parent == tmp_path
            assert temporary.suffix == ".csv"
            temporary.write_text("1,2")
            assert not file.exists()
    finally:
        os.umask(mask)
    assert file.read_text() == "1,2"
    assert file.stat().st_mode & 0o777 == 0o640
    file.chmod(0o600)
    (tmp_path / "link.csv").symlink_to(file)
    with atomic_write(tmp_path / "link.csv") as temporary:
        temporary.write_text("3")
    assert (tmp_path / "link.csv").is_symlink()
    assert file.read_text() == "3"
    assert file.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.csv", "numbers.csv"]
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "nowhere" / "x.csv"):
        raise AssertionError("nothing was written")


def test_what_ends_early_leaves_no_half_file(tmp_path: Path) -> None:
    def write_half(end: Callable[[], object]) -> None:
        with atomic_write(tmp_path / "x.csv") as temporary:
            temporary.write_text("half")
            end()

    def interrupt() -> None:
        raise KeyboardInterrupt

    (tmp_path / "x.csv").write_text("before")
    with pytest.raises(KeyboardInterrupt):
        write_half(interrupt)
    with pytest.raises(FileNotFoundError):
        write_half(remove_temporary_files)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x.csv", "before")]


# --- imports ---------------------------------------------------------------------------------------------------------


def test_pillow_is_needed_where_a_picture_is_read_and_not_before(tmp_path: Path) -> None:
    save(tmp_path / "one.png", np.zeros((2, 2), np.uint8))
    np.save(tmp_path / "one.npy", np.ones((1, 2), np.uint8))
    code = f"""
import sys
import tritonsoft
assert not [name for name in sys.modules if name.startswith(("tritonsoft.data", "PIL"))]
sys.modules["PIL"] = None  # as if not installed
from tritonsoft import data
format = data.label_format(map="voc")
assert format.read({str(tmp_path / "one.npy")!r}).tolist() == [[1, 1]]
try:
    format.read({str(tmp_path / "one.png")!r})
except ImportError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert f"reading pictures needs Pillow: {how_to_install('data')}" in result.stdout


def test_the_page_names_every_data_set() -> None:
    page = (ROOT / "docs" / "label_files.md").read_text("utf-8")
    assert all(f"`{name}`" in page for name in DATA_SETS)
