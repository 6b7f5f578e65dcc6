"""What it takes to shrink a data set once, and to read a sample of it, beside what people do without this library.

CamVid, where ``TRITONSOFT_CAMVID`` names its folder, and 64 street scenes of 1024x2048, eight drawn and each taken
eight times; all by 4, on as many threads as torch has. Ways to shrink take turns. A way writes an image and a label
file for each picture: soft labels as ours, or as planes of 255 units that NumPy compresses; hard ones as PNG. Two ways
do less: "images alone" decodes each image and encodes one of the small size, whose pixels it has already, with Pillow
as it is or with our options, and knows nothing of labels.
"""

import functools
import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tritonsoft as ts
from bench.report import DataSetTime
from bench.test_speed import DEVICES

FACTOR = 4
ROUNDS = 3
PICTURES, DRAWN = 64, 8
SIZE = (1024, 2048)
OURS, ORIGINAL = "tritonsoft shrink", "decode, then ts.resize and ts.soft_resize"
ALONE, ALONE_SAME = "Pillow: images alone", "Pillow: images alone, our options"
NEEDED = ("PIL", "safetensors", "pytest_benchmark")
CAMVID = Path(os.environ.get("TRITONSOFT_CAMVID", "CamVid"))
DATA_SETS = ["CamVid", "street scenes"] if all(map(importlib.util.find_spec, NEEDED)) and DEVICES["cpu"] else []
SHRINKING = [OURS, ALONE, ALONE_SAME, "Pillow: box, labels nearest", "OpenCV per class", "albumentations, one-hot"]
READING = ["ShrunkDataset", ORIGINAL, "OpenCV per class", "albumentations, one-hot"]
ROWS = [
    (name, task, way) for name in DATA_SETS for task, ways in (("shrink", SHRINKING), ("read", READING)) for way in ways
]
PACKAGES = {"OpenCV per class": "cv2", "albumentations, one-hot": "albumentations"}

Array = np.ndarray[Any, Any]
Pair = Any  # of tritonsoft.data, which needs Pillow


@functools.cache
def source_of(name: str, folder: Path) -> tuple[list[Pair], int, int]:
    """Pairs of files, the number of classes, and what is ignored."""
    from PIL import Image

    from tritonsoft.cli.scenes import CLASSES, IGNORE_INDEX, street_scene
    from tritonsoft.data import pair_files

    if name == "CamVid":
        return pair_files(CAMVID / "images", CAMVID / "labels")[0], 11, 11
    for number in range(PICTURES):
        for kind in ("images", "labels"):
            file, drawn = folder / kind / f"{number}.png", folder / kind / f"{number % DRAWN}.png"
            if number >= DRAWN:
                file.write_bytes(drawn.read_bytes())  # a file of its own
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            scene = street_scene(*SIZE, number)
            pixels = scene.image.permute(1, 2, 0) if kind == "images" else scene.labels
            Image.fromarray(pixels.numpy()).save(file)
    return pair_files(folder / "images", folder / "labels")[0], len(CLASSES), IGNORE_INDEX


def small_size(height: int, width: int) -> tuple[int, int]:
    return round(height / FACTOR), round(width / FACTOR)


# --- ways -------------------------------------------------------------------------------------------------------------


def decoded(pair: Pair) -> tuple[Array, Array]:
    from PIL import Image

    return np.asarray(Image.open(pair.image).convert("RGB")), np.asarray(Image.open(pair.labels))


def masks_of(labels: Array, num_classes: int) -> list[Array]:
    return [(labels == class_id).astype(np.uint8) * np.uint8(255) for class_id in range(num_classes)]


def opencv_per_class(pair: Pair, num_classes: int) -> tuple[Array, Array]:
    import cv2

    image, labels = decoded(pair)
    height, width = small_size(*labels.shape)
    shrink = functools.partial(cv2.resize, dsize=(width, height), interpolation=cv2.INTER_AREA)
    return shrink(image), np.stack([shrink(mask) for mask in masks_of(labels, num_classes)])


@functools.cache
def albumentations_resize(height: int, width: int) -> Any:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else its import asks the network for a newer version
    import albumentations
    import cv2

    area = cv2.INTER_AREA
    return albumentations.Resize(height, width, interpolation=area, mask_interpolation=area)


def albumentations_one_hot(pair: Pair, num_classes: int) -> tuple[Array, Array]:
    image, labels = decoded(pair)
    planes = np.stack(masks_of(labels, num_classes), -1)
    result = albumentations_resize(*small_size(*labels.shape))(image=image, mask=planes)
    return result["image"], result["mask"].transpose(2, 0, 1)


OF_PACKAGE = {"OpenCV per class": opencv_per_class, "albumentations, one-hot": albumentations_one_hot}


def save_soft(pair: Pair, out: Path, way: Callable[[Pair, int], tuple[Array, Array]], num_classes: int) -> None:
    from PIL import Image

    image, soft = way(pair, num_classes)
    Image.fromarray(image).save(out / f"{pair.name.replace('/', '-')}.png")
    np.savez_compressed(out / f"{pair.name.replace('/', '-')}.npz", soft)


def save_nearest(pair: Pair, out: Path) -> None:
    from PIL import Image

    for file, filter, kind in (
        (pair.image, Image.Resampling.BOX, "image"),
        (pair.labels, Image.Resampling.NEAREST, "labels"),
    ):
        with Image.open(file) as picture:
            size = small_size(picture.height, picture.width)
            picture.resize(size[::-1], filter).save(out / f"{pair.name.replace('/', '-')}-{kind}.png")


def save_image_alone(pair: Pair, out: Path, small: Any, options: dict[str, int]) -> None:
    from PIL import Image

    with Image.open(pair.image) as picture:
        np.asarray(picture.convert("RGB"))
    small.save(out / f"{pair.name.replace('/', '-')}.png", **options)


def shrink_all(
    way: str, pairs: Sequence[Pair], num_classes: int, ignore_index: int, out: Path, small: dict[str, Any]
) -> None:
    from tritonsoft.data import label_format, shrink_dataset, shrink_settings
    from tritonsoft.data.shrunk_sample import PNG_OPTIONS

    out.mkdir(parents=True)
    threads = torch.get_num_threads()
    if way == OURS:
        root = Path(os.path.commonpath([pairs[0].image, pairs[0].labels]))
        settings = shrink_settings(label_format(num_classes, ignore_index=ignore_index), factor=FACTOR)
        result = shrink_dataset(root / "images", root / "labels", out, settings, workers=threads)
        assert len(result.samples) == len(pairs)
        return
    options = PNG_OPTIONS if way == ALONE_SAME else {}
    work: Callable[[Pair], None] = {
        ALONE: lambda pair: save_image_alone(pair, out, small[pair.name], options),
        ALONE_SAME: lambda pair: save_image_alone(pair, out, small[pair.name], options),
        "Pillow: box, labels nearest": lambda pair: save_nearest(pair, out),
    }.get(way) or (lambda pair: save_soft(pair, out, OF_PACKAGE[way], num_classes))
    with ThreadPool(threads) as pool:
        pool.map(work, pairs, chunksize=1)


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


@pytest.mark.parametrize(
    ("name", "task", "way"), ROWS, ids=[f"data sets, {name}, {task}: {way}" for name, task, way in ROWS]
)
def test_data_sets(name: str, task: str, way: str, data_sets: list[DataSetTime], scenes: Path, tmp_path: Path) -> None:
    row = DataSetTime("cpu", name, task, way)
    data_sets.append(row)
    package = PACKAGES.get(way)
    if name == "CamVid" and not CAMVID.is_dir():
        row.note = "TRITONSOFT_CAMVID names no folder"
    elif package is not None and importlib.util.find_spec(package) is None:
        row.note = f"{package} is not installed"
    if row.note:
        pytest.skip(row.note)
    pairs, num_classes, ignore_index = source_of(name, scenes)
    row.pictures = len(pairs)
    (time_shrinking if task == "shrink" else time_reading)(row, pairs, num_classes, ignore_index, tmp_path)


def time_shrinking(row: DataSetTime, pairs: Sequence[Pair], num_classes: int, ignore_index: int, folder: Path) -> None:
    from PIL import Image

    small = {}
    if row.way in (ALONE, ALONE_SAME):
        for pair in pairs:
            with Image.open(pair.image) as picture:
                size = small_size(picture.height, picture.width)
                small[pair.name] = picture.convert("RGB").resize(size[::-1], Image.Resampling.BOX)
    for each in {OURS, row.way}:  # what loads and compiles
        if each == OURS:
            subset = folder / "few"
            link_few(pairs, subset)
            from tritonsoft.data import pair_files

            few = pair_files(subset / "images", subset / "labels")[0]
            shrink_all(each, few, num_classes, ignore_index, folder / f"warm {each}", small)
        else:
            shrink_all(each, pairs[:2], num_classes, ignore_index, folder / f"warm {each}", small)
    times: dict[str, list[float]] = {OURS: [], row.way: []}
    for round in range(ROUNDS):
        for each, of_each in times.items():
            started = time.perf_counter()
            shrink_all(each, pairs, num_classes, ignore_index, folder / f"{each} {round}", small)
            of_each.append(1e3 * (time.perf_counter() - started) / len(pairs))
    row.milliseconds = statistics.median(times[row.way])
    row.ratio = statistics.median(a / b for a, b in zip(times[row.way], times[OURS], strict=True))
    written = [file for file in (folder / f"{row.way} 0").rglob("*.*") if file.name != "manifest.json"]
    of_labels = [file for file in written if file.suffix in (".safetensors", ".npz") or "-labels" in file.name]
    row.image_bytes = sum(file.stat().st_size for file in set(written) - set(of_labels)) / len(pairs)
    row.label_bytes = sum(file.stat().st_size for file in of_labels) / len(pairs)
    row.source_label_bytes = sum(pair.labels.stat().st_size for pair in pairs) / len(pairs)


def link_few(pairs: Sequence[Pair], folder: Path) -> None:
    for number, pair in enumerate(pairs[:2]):
        for kind, file in (("images", pair.image), ("labels", pair.labels)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            (folder / kind / f"{number}{file.suffix}").symlink_to(file.resolve())


def time_reading(row: DataSetTime, pairs: Sequence[Pair], num_classes: int, ignore_index: int, folder: Path) -> None:
    """On one thread, as a worker of a data loader reads."""
    from tritonsoft.data import ShrunkDataset, label_format, read_pair

    some = pairs[:: max(1, len(pairs) // 40)][:40]
    subset = folder / "source"
    for number, pair in enumerate(some):
        for kind, file in (("images", pair.image), ("labels", pair.labels)):
            (subset / kind).mkdir(parents=True, exist_ok=True)
            (subset / kind / f"{number:03}{file.suffix}").symlink_to(file.resolve())
    from tritonsoft.data import pair_files

    some = pair_files(subset / "images", subset / "labels")[0]
    format = label_format(num_classes, ignore_index=ignore_index)
    shrink_all(OURS, some, num_classes, ignore_index, folder / "shrunk", {})
    data = ShrunkDataset(folder / "shrunk")

    def original(index: int) -> object:
        image, labels = read_pair(some[index], format)
        size = small_size(*labels.shape)
        soft = ts.soft_resize(labels[None], size, num_classes, ignore_index=ignore_index, top_k=4)
        return ts.resize(image[None], size), soft

    def by(index: int) -> object:
        return OF_PACKAGE[row.way](some[index], num_classes)

    calls: dict[str, Callable[[int], object]] = {"ShrunkDataset": data.__getitem__, ORIGINAL: original}
    call = calls.get(row.way, by)
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for round in range(2 * ROUNDS + 1):
            for each, function in (("ours", data.__getitem__), ("theirs", call)):
                started = time.perf_counter()
                for index in range(len(some)):
                    function(index)
                if round:  # the first loads and compiles
                    times[each].append(1e3 * (time.perf_counter() - started) / len(some))
    finally:
        torch.set_num_threads(threads)
    row.milliseconds = statistics.median(times["theirs"])
    row.ratio = statistics.median(a / b for a, b in zip(times["theirs"], times["ours"], strict=True))
