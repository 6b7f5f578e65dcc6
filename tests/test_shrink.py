"""Data sets shrunk once: what is in their files, how they are made, continued and read, and what bad input gets."""

import errno
import hashlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import tritonsoft as ts

Image = pytest.importorskip("PIL.Image", reason="pictures are read by Pillow")
pytest.importorskip("safetensors", reason="labels are stored by safetensors")
CliRunner = pytest.importorskip("typer.testing", reason="the command line needs typer").CliRunner
pytest.importorskip("rich", reason="the command line needs rich")

from tritonsoft.cli.app import app  # noqa: E402
from tritonsoft.data import (  # noqa: E402
    DataError,
    OutputError,
    ShrunkDataset,
    estimate_shrinking,
    label_format,
    pair_files,
    shrink_dataset,
    shrink_settings,
    shrunk_sample,
)
from tritonsoft.data.saving import TEMPORARY_PREFIX  # noqa: E402
from tritonsoft.data.shrunk_labels import decode, encode, round_together  # noqa: E402

NUM_CLASSES = 5
SETTINGS = shrink_settings(label_format(NUM_CLASSES), factor=3)
HEIGHT, WIDTH = 31, 44  # by 3: 10 x 15, footprints of 3.1 x 2.93 pixels


def blobs(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray[Any, Any]:
    """Ids of regions, as people label them, 255 among them."""
    random = np.random.default_rng(seed)
    coarse = random.choice([*range(NUM_CLASSES), 255], (height // 6 + 1, width // 6 + 1))
    return np.asarray(coarse.repeat(6, 0).repeat(6, 1)[:height, :width], np.uint8)


def write_pair(folder: Path, name: str, seed: int, **of_size: int) -> None:
    ids = blobs(seed, **of_size)
    pixels = np.random.default_rng(seed).integers(0, 256, (*ids.shape, 3), np.uint8)
    for kind, content in (("images", pixels), ("labels", ids)):
        file = folder / kind / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(content).save(file)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Four pictures, two of them in train/ and two in val/."""
    for seed, name in enumerate(("train/a", "train/b", "val/a", "val/c")):
        write_pair(tmp_path / "source", name, seed)
    return tmp_path / "source"


def shrink(source: Path, out: Path, settings: Any = SETTINGS, **options: Any) -> Any:
    return shrink_dataset(source / "images", source / "labels", out, settings, **options)


def run(source: Path, out: Path, *options: str | Path) -> Any:
    arguments = ["shrink", "--images", source / "images", "--labels", source / "labels", "--out", out, *options]
    given = [] if any(str(option) in ("--map", "--palette") for option in options) else ["--num-classes", "5"]
    size = [] if "--size" in options or "--factor" in options else ["--factor", "3"]
    return CliRunner().invoke(app, [str(argument) for argument in (*arguments, *given, *size)])


def flat(text: str) -> str:
    return re.sub(r"[\s│╭╮╰╯─]+", " ", text)


def files_of(folder: Path, *, manifest: bool = False) -> dict[str, str]:
    """The checksum of each file."""
    files = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    return {
        name: hashlib.sha256(file.read_bytes()).hexdigest()
        for name, file in files.items()
        if manifest or name != "manifest.json"
    }


# --- the bytes of labels ----------------------------------------------------------------------------------------------


def test_shares_are_rounded_together_by_hand() -> None:
    shares = np.array([[0.5, 0.3, 0.2, 0.0], [0.6, 0.0, 0.0, 0.2], [1 / 3, 1 / 3, 1 / 3, 0]], np.float32).T
    # 127.5 76.5 51 0 -> one unit to the first; 153 and 51 are whole; three times 85.
    assert round_together(shares).T.tolist() == [[128, 76, 51, 0], [153, 0, 0, 51], [85, 85, 85, 0]]


@pytest.mark.parametrize("num_classes", [1, 2, 19, 254, 255, 256, 300])
@pytest.mark.parametrize("filter", ["area", "triangle"])
def test_labels_come_back_to_the_stated_error(num_classes: int, filter: Any) -> None:
    random = torch.Generator().manual_seed(num_classes)
    labels = torch.randint(-1, min(num_classes, 12), (1, 23, 35), generator=random) % num_classes
    labels[:, :9] = num_classes - 1  # wholly of one class
    labels[:, 9:14] = -1  # nothing known
    k = min(3, num_classes)
    exact = ts.soft_resize(labels, (7, 9), num_classes, ignore_index=-1, filter=filter, top_k=k)[0]
    for masses, error in (("uint8", 1 / 255), ("float16", 2**-11)):
        stored = decode(encode(exact, masses), (7, 9), k, num_classes, masses, torch.float32)  # type: ignore[arg-type]
        difference = (stored.to_dense() - exact.to_dense()).abs()
        assert difference.max() < error
        assert ((stored.rest - exact.rest).abs() < error).all()
        if masses == "uint8":
            totals = [labels.mass.double().sum(0) + labels.rest.double() for labels in (stored, exact)]
            assert (totals[0] - totals[1]).abs().max() <= 0.5 / 255 + 1e-6
            assert not stored.to_dense()[exact.to_dense() == 0].any()
        assert (stored.mass[:-1] >= stored.mass[1:]).all()
        ties = (stored.mass[:-1] == stored.mass[1:]) & (stored.mass[1:] > 0)
        assert (stored.index[:-1] < stored.index[1:])[ties].all()
        assert not stored.index[stored.mass == 0].any()


def test_small_masses_beside_one_that_becomes_1_in_float16_are_kept() -> None:
    labels = torch.zeros(1, 64, 64, dtype=torch.int64)
    labels[0, 5, 7] = 3
    exact = ts.soft_resize(labels, (1, 1), 5, top_k=2)[0]
    assert exact.mass.flatten().tolist() == [1 - 2**-12, 2**-12]
    stored = decode(encode(exact, "float16"), (1, 1), 2, 5, "float16", torch.float32)
    assert stored.index.flatten().tolist() == [0, 3]
    assert stored.mass.flatten().tolist() == [1, 2**-12]


def test_bytes_that_are_no_labels_are_refused() -> None:
    labels = ts.soft_resize(torch.arange(12).view(1, 3, 4) % 5, (2, 3), 5, top_k=2)[0]
    data = encode(labels, "uint8")
    with pytest.raises(ValueError, match="cannot be unpacked"):
        decode(data[:-3], (2, 3), 2, 5, "uint8", torch.float32)
    with pytest.raises(ValueError, match="are not those of 2x2 pixels"):
        decode(data, (2, 2), 2, 5, "uint8", torch.float32)
    with pytest.raises(ValueError, match="too few for 90x120 pixels"):
        decode(data, (90, 120), 2, 5, "uint8", torch.float32)


# --- a data set and its samples ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"factor": 3}, {"size": (9, 7), "masses": "float16", "filter": "triangle", "top_k": 5}]
)
def test_samples_are_what_the_operators_give(options: Any, source: Path, tmp_path: Path) -> None:
    settings = shrink_settings(label_format(NUM_CLASSES), **options)
    before, threads = files_of(source), torch.get_num_threads()
    result = shrink(source, tmp_path / "out", settings)
    assert torch.get_num_threads() == threads
    assert files_of(source) == before  # nothing is written to a source
    assert not result.skipped
    data = ShrunkDataset(tmp_path / "out")
    assert data.names == ("train/a", "train/b", "val/a", "val/c")
    assert (data.num_classes, data.class_names[1]) == (NUM_CLASSES, "class 1")
    size = options.get("size", (10, 15))
    mixed_error = 1 / 255 if settings.masses == "uint8" else 2**-11
    for seed, (image, labels) in enumerate(data):
        ids = torch.from_numpy(blobs(seed))[None]
        pixels = torch.from_numpy(np.array(Image.open(source / "images" / f"{data.names[seed]}.png")))
        assert torch.equal(image, ts.resize(pixels.permute(2, 0, 1)[None], size, filter=settings.filter)[0])
        exact = ts.soft_resize(ids, size, NUM_CLASSES, filter=settings.filter)[0]
        stored = labels.to_dense()
        assert stored.shape == exact.shape == (NUM_CLASSES, *size)
        # Under no footprint are more classes than are kept: only rounding is lost, and none where one class is alone.
        share_mixed = ((exact > 1e-6) & (exact < 1 - 1e-6)).float().mean((1, 2))
        area, exact_area = stored.mean((1, 2)), exact.mean((1, 2))
        assert ((area - exact_area).abs() <= share_mixed * mixed_error + 1e-6).all()
        assert not labels.rest.any()
        if settings.filter == "area":  # and these are the areas in the source itself
            counted = torch.stack([(ids == class_id).float().mean() for class_id in range(NUM_CLASSES)])
            torch.testing.assert_close(exact_area, counted, rtol=0, atol=1e-5)
    sample = data.samples[0]
    assert (sample.size, sample.source_size) == (size, (HEIGHT, WIDTH))
    assert sample.labels_sha256 == before["labels/train/a.png"]


@pytest.mark.parametrize(("format", "suffix", "largest"), [("jpeg", ".jpg", 40), ("webp", ".webp", 60)])
def test_images_of_lossy_formats_are_near(format: Any, suffix: str, largest: int, source: Path, tmp_path: Path) -> None:
    shrink(source, tmp_path / "out", shrink_settings(label_format(NUM_CLASSES), factor=3, image_format=format))
    shrink(source, tmp_path / "png")
    assert (tmp_path / "out" / "images" / "train" / f"a{suffix}").is_file()
    for (image, _), (exact, _) in zip(ShrunkDataset(tmp_path / "out"), ShrunkDataset(tmp_path / "png"), strict=True):
        difference = image.float() - exact.float()
        assert difference.abs().mean() < largest  # of noise, which is hard for them


def test_what_top_k_drops_is_the_rest(source: Path, tmp_path: Path) -> None:
    shrink(source, tmp_path / "out", shrink_settings(label_format(NUM_CLASSES), factor=12, top_k=1))
    _, labels = ShrunkDataset(tmp_path / "out")[0]
    exact = ts.soft_resize(torch.from_numpy(blobs(0))[None], (3, 4), NUM_CLASSES, top_k=1)[0]
    assert exact.rest.max() > 0.2
    torch.testing.assert_close(labels.rest, exact.rest, rtol=0, atol=1 / 255)


def test_a_data_set_is_collated_pickled_and_read_by_workers(source: Path, tmp_path: Path) -> None:
    shrink(source, tmp_path / "out")
    data = ShrunkDataset(tmp_path / "out", split="train")
    assert len(data) == 2
    assert len(ShrunkDataset(tmp_path / "out", split="val")) == 2
    again = pickle.loads(pickle.dumps(data))
    for workers in (0, 2):
        ((image, labels),) = DataLoader(again, 2, num_workers=workers)
        assert image.shape == (2, 3, 10, 15)
        assert torch.equal(image[1], data[1][0])
        assert labels.shape == (2, NUM_CLASSES, 10, 15)
        assert torch.equal(labels[0].mass, data[0][1].mass)
    dense = ShrunkDataset(tmp_path / "out", lambda image, soft: (soft, image.shape), labels="dense", split="train")
    soft, shape = dense[0]
    assert shape == (3, 10, 15)
    assert torch.equal(soft, data[0][1].to_dense())
    half = ShrunkDataset(tmp_path / "out", dtype=torch.float16).read_labels(0)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.mass.float(), data[0][1].mass, rtol=2**-11, atol=0)


def watch_making(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Gets the name of each sample that is made."""
    made: list[str] = []
    make_sample = shrunk_sample.make_sample

    def watched(pair: Any, *rest: Any) -> Any:
        made.append(pair.name)
        return make_sample(pair, *rest)

    monkeypatch.setattr(shrunk_sample, "make_sample", watched)
    return made


def test_the_documented_bytes_are_those_in_the_files(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink(source, tmp_path / "cityscapes-4")
    page = (Path(__file__).parents[1] / "docs" / "shrunk_datasets.md").read_text("utf-8")
    snippet = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[-1]
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(snippet, found)
    _, labels = ShrunkDataset("cityscapes-4")[0]
    mixed = found["codes"] == NUM_CLASSES + 1
    assert 0 < mixed.sum() < mixed.size
    assert np.array_equal(labels.index.numpy()[:, mixed], found["classes"])
    numbers = found["numbers"].astype(np.float32) / np.float32(255)
    assert np.array_equal(labels.mass.numpy()[:, mixed], numbers[:-1])
    assert np.array_equal(labels.rest.numpy()[mixed], numbers[-1])
    assert not labels.mass[:, torch.from_numpy(found["codes"] == NUM_CLASSES)].any()


# --- continuing and replacing -----------------------------------------------------------------------------------------


def test_the_bytes_are_the_same_however_often_it_stops(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink(source, tmp_path / "whole", workers=1)
    out = tmp_path / "out"

    def stop(done: int, number: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    make_sample, interrupted = shrunk_sample.make_sample, threading.Event()

    def of_the_third_slowly(pair: Any, *rest: Any) -> Any:
        if pair.name == "val/a":
            interrupted.wait(10)
        return make_sample(pair, *rest)

    monkeypatch.setattr(shrunk_sample, "make_sample", of_the_third_slowly)
    with pytest.raises(KeyboardInterrupt):
        shrink(source, out, workers=1, progress=stop)
    interrupted.set()
    monkeypatch.undo()
    there = files_of(out)
    assert len(there) == 4
    assert there.items() <= files_of(tmp_path / "whole").items()  # whole files, under their names
    with pytest.raises(DataError, match="is unfinished: run the command that shrinks it again, with --resume"):
        ShrunkDataset(out)

    made = watch_making(monkeypatch)
    (out / "labels" / f"{TEMPORARY_PREFIX}0123.safetensors").write_bytes(b"of a killed program")
    shrink(source, out, workers=2, existing="resume")
    assert len(made) == 4 - sum(name.startswith("labels") for name in there)
    assert files_of(out) == files_of(tmp_path / "whole")
    assert ShrunkDataset(out).samples == ShrunkDataset(tmp_path / "whole").samples


def test_what_has_changed_or_is_broken_is_done_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shrink(source, out)
    write_pair(source, "train/b", seed=9)
    cut_short(out / "labels" / "val" / "a.safetensors")
    (out / "images" / "val" / "c.png").unlink()
    made = watch_making(monkeypatch)
    shrink(source, out, existing="resume")
    assert sorted(made) == ["train/b", "val/a", "val/c"]
    shrink(source, tmp_path / "new")
    assert files_of(out) == files_of(tmp_path / "new")


def zero_the_end(file: Path) -> None:
    """As of a copy into a file that had its size from the start."""
    content = file.read_bytes()
    file.write_bytes(content[:-20] + bytes(20))


@pytest.mark.parametrize("kind", ["images", "labels"])
@pytest.mark.parametrize("damage", ["emptied", "cut short", "zeros at its end", "of another picture", "a folder"])
def test_a_small_file_that_is_not_whole_is_done_again(
    damage: str, kind: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shrink(source, out)
    before = files_of(out)
    file, other = (next((out / kind / "train").glob(f"{name}.*")) for name in "ab")
    match damage:
        case "emptied":
            file.write_bytes(b"")
        case "cut short":
            cut_short(file)
        case "zeros at its end":
            zero_the_end(file)
        case "of another picture":
            file.write_bytes(other.read_bytes())
        case "a folder":
            file.unlink()
            file.mkdir()
    made = watch_making(monkeypatch)
    if damage == "a folder":  # it may hold anything: named, not deleted
        with pytest.raises(OutputError, match=f"{file.name}: cannot be written"):
            shrink(source, out, existing="resume")
    else:
        shrink(source, out, existing="resume")
        assert files_of(out) == before
    assert made == ["train/a"]


def test_limits_grow_by_resuming(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert len(shrink(source, out, limit=2).samples) == 2
    assert len(shrink(source, out, limit=3, existing="resume").samples) == 3
    assert len(shrink(source, out, limit=1, existing="resume").samples) == 3  # what is there stays
    assert len(shrink(source, out, existing="resume").samples) == 4


def test_another_shrink_in_the_folder_is_refused_continued_or_replaced(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shrink(source, out)
    before = files_of(out, manifest=True)
    result = run(source, out)
    assert result.exit_code == 1
    assert "holds a shrunk data set; --resume continues it, --overwrite deletes it" in flat(result.stderr)
    result = run(source, out, "--factor", "2", "--masses", "float16", "--resume")
    assert result.exit_code == 1
    assert "other settings: factor 3.0 there, 2.0 here; masses uint8 there, float16 here" in flat(result.stderr)
    write_pair(tmp_path / "other", "x", 0)
    result = run(tmp_path / "other", out, "--resume")
    assert "holds 4 pictures that the sources have not, such as train/a" in flat(result.stderr)
    assert files_of(out, manifest=True) == before
    (out / "images" / "train" / "mine.txt").write_text("not of the data set")
    assert run(tmp_path / "other", out, "--overwrite").exit_code == 0
    assert set(files_of(out)) == {"images/x.png", "labels/x.safetensors", "images/train/mine.txt"}
    assert run(source, out, "--overwrite", "--resume").exit_code == 2


def test_a_folder_with_other_files_or_among_the_sources_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    for existing in ("refuse", "resume", "overwrite"):
        with pytest.raises(OutputError, match="holds files that are of no shrunk data set"):
            shrink(source, tmp_path / "full", existing=existing)
    (tmp_path / "link").symlink_to(source)
    for out in (source / "images", source / "labels" / "small", source, tmp_path / "link" / "images" / "new"):
        with pytest.raises(OutputError, match="may not lie in its source"):
            shrink(source, out, existing="overwrite")
    assert len(files_of(source)) == 8


# --- bad input --------------------------------------------------------------------------------------------------------


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])


def test_files_that_cannot_be_used_are_named_and_the_others_shrunk(source: Path, tmp_path: Path) -> None:
    write_pair(source, "broken", 1)
    cut_short(source / "images" / "broken.png")
    write_pair(source, "small", 2)
    Image.fromarray(blobs(2)[:20]).save(source / "labels" / "small.png")
    write_pair(source, "wrong", 3)
    ids = blobs(3)
    ids[4, 7] = 77
    Image.fromarray(ids).save(source / "labels" / "wrong.png")
    write_pair(source, "alone", 4)
    (source / "labels" / "alone.png").unlink()
    (source / "images" / "train" / "a.webp").write_bytes(b"another picture of one name")
    result = run(source, tmp_path / "out", "--json")
    assert result.exit_code == 1
    printed = json.loads(result.stdout)  # and nothing else on the standard output
    assert printed["pictures"] == 4
    said = flat(result.stderr)
    for expected in (
        "broken.png: cannot be read",
        "small.png: 44x20 pixels, where its image has 44x31",
        "wrong.png: labels must lie in 0..4 or be 255, got 77 at row 4, column 7",
        "alone.png: no label map of this name",
        "has the same name and is taken",
    ):
        assert expected in said
    data = ShrunkDataset(tmp_path / "out")
    assert len(data) == 4
    assert len(data.skipped) == len(printed["left_out"]) == 5


def test_a_colour_that_is_not_in_the_palette_is_named_with_its_pixel(source: Path, tmp_path: Path) -> None:
    colours = np.array([(10 * k, 0, 0) for k in range(NUM_CLASSES)], np.uint8)
    for file in (source / "labels").rglob("*.png"):
        ids = np.asarray(Image.open(file))
        Image.fromarray(colours[np.where(ids == 255, 0, ids)]).save(file)
    pixels = np.array(Image.open(source / "labels" / "val" / "a.png"))
    pixels[3, 8] = 1, 2, 3
    Image.fromarray(pixels).save(source / "labels" / "val" / "a.png")
    table = tmp_path / "colours.csv"
    table.write_text("red,green,blue,class\n" + "".join(f"{10 * k},0,0,{k}\n" for k in range(NUM_CLASSES)))
    result = run(source, tmp_path / "out", "--palette", table)
    assert result.exit_code == 1
    assert "val/a.png: the colour (1, 2, 3) at row 3, column 8 is not in the palette" in flat(result.stderr)
    assert ShrunkDataset(tmp_path / "out").names == ("train/a", "train/b", "val/c")


def test_a_full_disk_loses_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(source, tmp_path / "whole")
    writes = iter(range(100))
    replace = Path.replace

    def on_a_small_disk(temporary: Path, file: Path) -> Path:
        if file.name != "manifest.json" and next(writes) >= 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(temporary))
        return replace(temporary, file)

    monkeypatch.setattr(Path, "replace", on_a_small_disk)
    result = run(source, tmp_path / "out", "--workers", "1")
    assert result.exit_code == 1
    said = flat(result.stderr)
    assert "labels/train/b.safetensors: cannot be written (No space left on device)" in said
    assert "1 of 4 pictures are done and stay: go on with --resume" in said
    there = files_of(tmp_path / "out")
    assert there.items() <= files_of(tmp_path / "whole").items()
    assert set(there) == {"images/train/a.png", "labels/train/a.safetensors", "images/train/b.png"}
    monkeypatch.undo()
    assert run(source, tmp_path / "out", "--resume").exit_code == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: Any) -> None:
        raise AssertionError("worked")

    monkeypatch.setattr(shrunk_sample, "make_sample", work)
    (tmp_path / "file").write_text("a file")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        result = run(source, out)
        assert result.exit_code == 1
        assert str(out) in result.stderr.replace("\n", "")
    if os.geteuid() != 0:  # whom no mode keeps out
        (tmp_path / "closed").mkdir(mode=0o500)
        assert "cannot be written" in run(source, tmp_path / "closed" / "out").stderr


def change_manifest(out: Path, **fields: Any) -> None:
    file = out / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_what_is_no_data_set_of_this_version_is_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"out: is no shrunk data set: there is no manifest\.json in it"):
        ShrunkDataset(out)
    shrink(source, out)
    original = (out / "manifest.json").read_text()
    change_manifest(out, version=2)
    message = r"manifest\.json: of version 2 of the format, and this tritonsoft \(.*\) reads version 1"
    with pytest.raises(DataError, match=message):
        ShrunkDataset(out)
    for existing in ("resume", "overwrite"):  # what it does not know it does not delete
        with pytest.raises(OutputError, match=r"version 2 .* is left as it is"):
            shrink(source, out, existing=existing)
    change_manifest(out, version=1, format="another")
    with pytest.raises(DataError, match="is no manifest of a tritonsoft shrunk data set"):
        ShrunkDataset(out)
    for broken, message in (
        (original[:-30], "cannot be read"),
        (original.replace('"top_k": 4', '"top_k": 3'), "is broken"),
        (original.replace('"filter": "area"', '"filter": "cubic"'), "is broken"),
        (original.replace('"samples"', '"simples"'), "holds no sample"),
        (original.replace('"name": "val/a"', '"name": 3'), "is broken"),
        (original.replace('"image": "images/val/a.png"', '"image": "/etc/a.png"'), "leads out of the folder"),
    ):
        assert broken != original
        (out / "manifest.json").write_text(broken)
        with pytest.raises(DataError, match=message):
            ShrunkDataset(out)
    (out / "manifest.json").write_text(original)
    with pytest.raises(DataError, match="no sample whose name begins with test/"):
        ShrunkDataset(out, split="test")
    with pytest.raises(ValueError, match="labels must be one of sparse, dense"):
        ShrunkDataset(out, labels="hard")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="dtype must be"):
        ShrunkDataset(out, dtype=torch.float64)


@pytest.mark.parametrize("state", ["finished", "unfinished"])
def test_nothing_outside_the_folder_is_deleted_whatever_the_manifest_names(
    state: str, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shrink(source, out)
    precious = tmp_path / "precious.png"
    precious.write_bytes(b"of somebody else")
    name = "../../precious"
    if state == "finished":
        samples = json.loads((out / "manifest.json").read_text())["samples"]
        change_manifest(out, samples=[{**samples[0], "name": name}, *samples[1:]])
    else:
        change_manifest(out, state=state, names=[name, "train/b"])
    before = files_of(tmp_path, manifest=True)
    for existing in ("resume", "overwrite"):
        with pytest.raises(OutputError, match=r"\.\./precious leads out of the folder.* is left as it is"):
            shrink(source, out, existing=existing)
    assert files_of(tmp_path, manifest=True) == before


def test_broken_files_of_a_data_set_are_named(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shrink(source, out)
    data = ShrunkDataset(out)
    cut_short(out / "labels" / "train" / "a.safetensors")
    (out / "labels" / "train" / "b.safetensors").unlink()
    cut_short(out / "images" / "val" / "a.png")
    (out / "images" / "val" / "c.png").unlink()
    for index, message in enumerate(
        (r"train/a\.safetensors: cannot be read", r"train/b\.safetensors: is missing", r"val/a\.png: cannot be read",
         r"val/c\.png: is missing")
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            data[index]
    other = tmp_path / "other"
    shrink(source, other, shrink_settings(label_format(NUM_CLASSES), factor=3, top_k=2))
    (other / "labels" / "val" / "a.safetensors").replace(out / "labels" / "val" / "a.safetensors")
    with pytest.raises(DataError, match=r"val/a\.safetensors: was shrunk with other settings"):
        data.read_labels(2)
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(out / "images" / "val" / "a.png")
    with pytest.raises(DataError, match=r"val/a\.png: has shape \(4, 5, 3\), where manifest\.json says \(10, 15, 3\)"):
        data[2]


def test_indices_are_those_of_a_list_without_slices(source: Path, tmp_path: Path) -> None:
    shrink(source, tmp_path / "out")
    data = ShrunkDataset(tmp_path / "out")
    for index in (3, np.int64(3), torch.tensor(3)):
        assert torch.equal(data[index][0], data[-1][0])
        assert torch.equal(data.read_labels(index).mass, data.read_labels(-1).mass)
    for read in (data.__getitem__, data.read_labels):
        with pytest.raises(TypeError, match=r"index must be an int, got slice\(0, 2, None\)"):
            read(slice(0, 2))  # type: ignore[arg-type]
        with pytest.raises(IndexError):
            read(4)


@pytest.mark.parametrize("argument", ["limit", "workers"])
@pytest.mark.parametrize("value", [2.5, "2", True])
def test_numbers_that_are_no_ints_are_refused_before_any_work(
    value: Any, argument: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(TypeError, match=f"{argument} must be an int or None, got {value!r}"):
        shrink(source, tmp_path / "out", **{argument: value})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": "4"}, "factor must be a number, got '4'"),
        ({"factor": True}, "factor must be a number, got True"),
        ({"factor": 2, "image_format": "jpeg", "quality": 50.5}, "quality must be an int or None, got 50.5"),
    ],
)
def test_settings_of_other_types_are_refused(options: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        shrink_settings(label_format(NUM_CLASSES), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of factor and size must be given"),
        ({"factor": 2, "size": (3, 4)}, "one of factor and size must be given"),
        ({"factor": 0.5}, "factor must be at least 1, got 0.5"),
        ({"size": (0, 4)}, r"size must be two ints of at least 1"),
        ({"factor": 2, "filter": "cubic"}, "filter must be one of area, triangle"),
        ({"factor": 2, "top_k": 6}, "top_k must"),
        ({"factor": 2, "masses": "int4"}, "masses must be one of uint8, float16"),
        ({"factor": 2, "image_format": "gif"}, "image_format must be one of png"),
        ({"factor": 2, "quality": 90}, "quality is of jpeg and webp"),
        ({"factor": 2, "quality": 101, "image_format": "jpeg"}, r"quality must lie in 1\.\.100"),
    ],
)
def test_settings_name_what_is_wrong(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shrink_settings(label_format(NUM_CLASSES), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", "256"), "--size must be height x width"),
        (("--factor", "2", "--size", "3x4"), "one of --factor and --size"),
        (("--top-k", "9"), "--top-k must"),
        (("--limit", "0"), "--limit must be at least 1"),
        (("--workers", "0"), "--workers must be at least 1"),
        (("--image-pattern", "*_*"), "--image-pattern must"),
        (("--quality", "50"), "--quality is of jpeg"),
    ],
)
def test_the_command_names_the_bad_option(options: tuple[str, ...], message: str, source: Path, tmp_path: Path) -> None:
    result = run(source, tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in flat(result.stderr)
    assert not (tmp_path / "out").exists()


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_dry_run_writes_nothing_and_expects_what_comes(source: Path, tmp_path: Path) -> None:
    result = run(source, tmp_path / "out", "--dry-run", "--json")
    assert result.exit_code == 0, result.stderr
    assert not (tmp_path / "out").exists()
    printed = json.loads(result.stdout)
    assert (printed["pictures"], printed["size"], printed["source_size"]) == (4, [10, 15], [HEIGHT, WIDTH])
    assert "10x15" in run(source, tmp_path / "out", "--dry-run").stdout
    shrink(source, tmp_path / "out")
    for key, kind in (("image_bytes", "images"), ("label_bytes", "labels")):
        assert printed[key] == sum(f.stat().st_size for f in (tmp_path / "out" / kind).rglob("*.*"))  # all were tried
        assert printed[f"source_{key}"] == sum(f.stat().st_size for f in (source / kind).rglob("*.*"))
    cut_short(source / "images" / "train" / "a.png")
    pairs, _ = pair_files(source / "images", source / "labels")
    estimate = estimate_shrinking(pairs, SETTINGS)
    assert len(estimate.skipped) == 1
    assert estimate.size == (10, 15)
    with pytest.raises(ValueError, match="pairs must hold at least one, got none"):
        estimate_shrinking([], SETTINGS)
    with pytest.raises(TypeError, match="workers must be an int or None, got 'two'"):
        estimate_shrinking(pairs, SETTINGS, workers="two")  # type: ignore[arg-type]


def test_an_interrupt_ends_the_command_at_once_and_leaves_whole_files(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    write_pair(source, "0", 0, height=1024, width=1024)
    for kind in ("images", "labels"):
        for number in range(1, 2000):
            (source / kind / f"{number}.png").symlink_to(source / kind / "0.png")
    options = ("--images", source / "images", "--labels", source / "labels", "--num-classes", "5", "--factor", "4")
    command = [sys.executable, "-m", "tritonsoft", "shrink", *map(str, options), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not list(out.glob("labels/*.safetensors")) and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        _, said = process.communicate(timeout=20)
        seconds = time.monotonic() - started
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted" in said
    assert seconds < 5  # one, where the machine has nothing else to do
    assert not list(out.rglob(f"{TEMPORARY_PREFIX}*"))
    whole = {hashlib.sha256(file.read_bytes()).digest() for file in out.glob("images/*.png")}
    assert len(whole) == 1
    with pytest.raises(DataError, match="unfinished"):
        ShrunkDataset(out)


# --- a data set as people have it -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up pictures under the names of Cityscapes, and its ids."""
    root = tmp_path_factory.mktemp("cityscapes")
    for seed, (split, city) in enumerate(
        (("train", "aachen"), ("train", "bochum"), ("train", "bochum"), ("val", "ulm"))
    ):
        random = np.random.default_rng(seed)
        ids = random.integers(0, 34, (8, 16), np.uint8).repeat(8, 0).repeat(8, 1)
        stem = f"{split}/{city}/{city}_{seed:06}_000019"
        for file, pixels in (
            (f"leftImg8bit/{stem}_leftImg8bit.png", random.integers(0, 256, (64, 128, 3), np.uint8)),
            (f"gtFine/{stem}_gtFine_labelIds.png", ids),
            (f"gtFine/{stem}_gtFine_instanceIds.png", np.zeros((64, 128), np.uint16)),
            (f"gtFine/{stem}_gtFine_color.png", np.zeros((64, 128, 4), np.uint8)),
        ):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / file)
    return root


def test_cityscapes_shrinks_with_one_command_and_trains_with_a_second(
    cityscapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("kornia", "torchmetrics"):
        pytest.importorskip(package, reason=f"the training example needs {package}")
    out = tmp_path / "cityscapes-4"
    command = f"""shrink --images {cityscapes}/leftImg8bit --labels {cityscapes}/gtFine --out {out} --map cityscapes
        --image-pattern *_leftImg8bit.png --label-pattern *_gtFine_labelIds.png --factor 4"""
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 0, result.output
    data = ShrunkDataset(out)
    assert data.names[0] == "train/aachen/aachen_000000_000019"
    assert (data.num_classes, data.class_names[5]) == (19, "pole")
    for index, sample in enumerate(data.samples):  # the areas of the ids that a sceptic counts in the source
        ids = np.asarray(Image.open(sample.source_labels))
        areas = data.read_labels(index).to_dense().mean((1, 2))
        expected = torch.tensor(
            [float((ids == id).mean()) for id in sorted(set(range(7, 34)) - {9, 10, 14, 15, 16, 18, 29, 30})]
        )
        torch.testing.assert_close(areas, expected, rtol=0, atol=1 / 255 / 2)

    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    import train_segmentation

    options = ["--shrunk", str(out), "--epochs", "1", "--batch", "2", "--channels", "4", "--device", "cpu"]
    assert 0 < train_segmentation.main(options)["soft_nll"] < 10
    assert train_segmentation.main([*options, "--loss", "cross-entropy+dice", "--class-weights"])["soft_iou"] >= 0
    for wrong, message in (
        (["--loss", "area"], "takes the label map itself, which --shrunk does not hold"),
        (["--labels", "nearest"], "holds soft labels"),
    ):
        with pytest.raises(SystemExit):
            train_segmentation.main([*options, *wrong])
        assert message in flat(capsys.readouterr().err)
    with pytest.raises(SystemExit):
        train_segmentation.main(["--epochs", "1"])
    assert "give --data, --shrunk, or both" in flat(capsys.readouterr().err)


def test_what_was_trained_small_is_measured_at_full_size(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("kornia", "torchmetrics"):
        pytest.importorskip(package, reason=f"the training example needs {package}")
    (source / "images" / "val" / "c.png").unlink()
    (source / "labels" / "val" / "c.png").unlink()
    shrink(source, tmp_path / "small", shrink_settings(label_format(NUM_CLASSES), size=(9, 13)))
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    import train_segmentation

    options = ["--shrunk", str(tmp_path / "small"), "--data", str(source), "--epochs", "1", "--batch", "2"]
    sizes = []
    forward = train_segmentation.UNet.forward

    def watched(network: Any, image: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(image.shape[2:]))
        return forward(network, image)

    monkeypatch.setattr(train_segmentation.UNet, "forward", watched)
    options += ["--num-classes", "5", "--channels", "4", "--device", "cpu"]
    result = train_segmentation.main(options)
    assert {"miou_likeliest", "nll", "soft_nll"} <= set(result)
    assert set(sizes) == {(9, 13)}
    with pytest.raises(SystemExit, match="has 5 classes, --data 6"):
        train_segmentation.main([*options, "--num-classes", "6"])
