"""The command `tritonsoft`: its numbers against brute force, its options, and what it says about bad input."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tritonsoft._extras import how_to_install
from tritonsoft.backends import reference
from tritonsoft.backends import select as backends
from tritonsoft.cli import scenes

Image = pytest.importorskip("PIL.Image", reason="the command line needs Pillow")
pytest.importorskip("matplotlib", reason="the command line needs matplotlib")
pytest.importorskip("rich", reason="the command line needs rich")
CliRunner = pytest.importorskip("typer.testing", reason="the command line needs typer").CliRunner

from rich.console import Console  # noqa: E402

import tritonsoft as ts  # noqa: E402
from tritonsoft import data  # noqa: E402
from tritonsoft.cli import common, costs  # noqa: E402
from tritonsoft.cli.app import app  # noqa: E402
from tritonsoft.cli.audit import audit_table  # noqa: E402
from tritonsoft.cli.folding import folded  # noqa: E402
from tritonsoft.cli.kept import ALL_METHODS, areas_kept, cell_areas, kept_table, thinnest_class  # noqa: E402

_checkout = Path(__file__).parents[1]
CAMVID = Path(os.environ.get("TRITONSOFT_CAMVID", _checkout.parent / "shared" / "camvid"))


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def flat(text: str) -> str:
    """Without the frames and line breaks that depend on the width of the terminal."""
    return re.sub(r"[\s│╭╮╰╯─]+", " ", text)


def write_picture(folder: Path, stem: str, ids: np.ndarray[Any, Any], mode: str = "L") -> None:
    image_file, label_file = folder / "images" / f"{stem}.jpg", folder / "labels" / f"{stem}.png"
    for file in (image_file, label_file):
        file.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (*ids.shape, 3), np.uint8)).save(image_file)
    label_map = Image.fromarray(ids.astype(np.uint16 if mode == "I;16" else np.uint8))
    if mode == "P":
        label_map = Image.fromarray(ids.astype(np.uint8))
        label_map.putpalette([255 - k // 3 for k in range(768)])  # grey values would differ from the ids
    label_map.save(label_file)


def street_ids(height: int, width: int) -> np.ndarray[Any, Any]:
    return np.asarray(scenes.street_scene(height, width).labels.numpy())


def folder_arguments(folder: Path, out: Path, *more: str) -> list[str | Path]:
    options: list[str | Path] = ["demo", "--images", folder / "images", "--labels", folder / "labels"]
    return [*options, "--num-classes", "19", "--factors", "2.5", "--out", out, *more]


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (12, 17), (1, 1), (11, 3)])
def test_cell_areas_equal_the_reference(size: tuple[int, int]) -> None:
    mask = torch.from_numpy(np.random.default_rng(1).random((12, 17)) < 0.4)
    mean = reference.crop_resize(mask.double()[None, None], None, size, "area", 0.0, torch.float64)[0, 0]
    cell = mask.numel() / (size[0] * size[1])
    torch.testing.assert_close(cell_areas(mask, size), mean * cell, rtol=0, atol=1e-12)


def test_areas_kept_of_a_pole_by_hand() -> None:
    """A pole one pixel wide at column 1 of 8, shrunk by 4: nearest (column 0) misses it, nearest-exact (2) too."""
    labels = torch.zeros(8, 8, dtype=torch.uint8)
    labels[:, 1] = 1
    labels[:, 6] = 2  # nearest-exact meets this one, and gives it four times its area
    labels[0, 7] = 255
    kept = areas_kept(labels, 4, 3, 255, ALL_METHODS)
    assert kept.area.tolist() == [47, 8, 8]
    # Bilinear reads the columns 1, 2 and 5, 6 of the rows 1, 2 and 5, 6: each pole has half of its cells.
    assert kept.given.tolist() == [[64, 0, 0], [32, 0, 32], [64, 0, 0], [32, 16, 16], [47, 8, 8]]
    # Where each has a class it has a whole cell of 16; there the true areas are (0: 12, 12, 11, 12) and (2: 4, 4).
    assert kept.placed.tolist() == [[47, 0, 0], [24, 0, 8], [47, 0, 0], [32, 8, 8], [47, 8, 8]]
    assert kept.distance[1].tolist() == [32 + 47 - 48, 8, 32 + 8 - 16]
    assert kept.maps.tolist() == [1, 1, 1]
    assert kept.lost.tolist() == [[0, 1, 1], [0, 1, 0], [0, 1, 1], [0, 0, 0], [0, 0, 0]]


def test_soft_labels_keep_every_class_of_a_picture_of_odd_size() -> None:
    labels = scenes.street_scene(101, 203).labels
    kept = areas_kept(labels, 3, 19, 255)
    counts = torch.bincount(labels.flatten().long(), minlength=256)[:19].double()
    torch.testing.assert_close(kept.area, counts, rtol=1e-12, atol=1e-9)
    for area in (kept.given[2], kept.placed[2]):  # its float32 entries are right to 2e-7 of a cell
        torch.testing.assert_close(area, counts, rtol=1e-5, atol=1e-5)
    assert (kept.placed[:2] <= kept.area + 1e-9).all()
    assert thinnest_class(kept) in range(19)


def test_peak_memory_holds_what_must_be_there() -> None:
    labels, num_classes = torch.zeros(512, 512, dtype=torch.uint8), 19
    ((ours, theirs),) = costs.peak_memory(labels, [2], num_classes, 255)
    result = num_classes * 256 * 256 * 4
    assert result * 0.9 < ours
    assert labels.numel() * (num_classes + 1) * (8 + 4) * 0.9 < theirs  # int64 one-hot and its float copy


# --- demo ------------------------------------------------------------------------------------------------------------


def test_demo_draws_the_street(tmp_path: Path) -> None:
    result = run(
        "demo", "--height", "96", "--width", "192", "--factors", "4", "--thin-class", "fence", "--out", tmp_path
    )
    assert result.exit_code == 0, result.output
    for text in (
        *scenes.CLASSES,
        "in place",
        "shrunk by 4",
        "peak memory",
        torch.__version__,
        "street scene 0 with fence",
    ):
        assert text in flat(result.output)
    assert min(Image.open(tmp_path / "soft_labels.png").size) > 500


def test_demo_takes_a_folder(tmp_path: Path) -> None:
    ids = street_ids(60, 90)
    write_picture(tmp_path, "grey", ids)
    write_picture(tmp_path, "deep/er/palette", ids[:31, :47], "P")
    write_picture(tmp_path, "deep/sixteen bits", ids[:, :89], "I;16")
    result = run(*folder_arguments(tmp_path, tmp_path / "out", "--class-names", ",".join(scenes.CLASSES)))
    assert result.exit_code == 0, result.output
    assert "that nearest-exact misplaces most at 1/2.5" in flat(result.output)
    assert "vegetation" in result.output
    assert (tmp_path / "out" / "soft_labels.png").is_file()


def test_unusable_files_are_named_and_the_others_measured(tmp_path: Path) -> None:
    ids = street_ids(40, 60)
    write_picture(tmp_path, "good", ids)
    for stem in ("no_image", "no_labels", "other_size", "broken", "colours", "out_of_range"):
        write_picture(tmp_path, stem, np.full((40, 60), 77) if stem == "out_of_range" else ids)
    (tmp_path / "images" / "no_image.jpg").unlink()
    (tmp_path / "labels" / "no_labels.png").unlink()
    Image.fromarray(ids[:20]).save(tmp_path / "labels" / "other_size.png")
    (tmp_path / "labels" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "labels" / "colours.png")
    result = run(*folder_arguments(tmp_path, tmp_path))
    assert result.exit_code == 1
    output = flat(result.output)
    for named in (
        "no_image.png: no image of this name",
        "no_labels.jpg: no label map of this name",
        "other_size.png: 60x20 pixels, where its image has 60x40",
        "broken.png: cannot be read",
        "colours.png: a label map needs one channel of class ids, got mode RGB",
        "out_of_range.png: labels must lie in 0..18",
    ):
        assert named in output
    assert "good with class" in output
    assert (tmp_path / "soft_labels.png").is_file()


# --- audit -----------------------------------------------------------------------------------------------------------


def test_audit_measures_every_method_and_names_unusable_files(tmp_path: Path) -> None:
    ids = street_ids(48, 64)
    for stem in ("one", "deep/two", "broken", "other_size", "no_image", "out_of_range"):
        write_picture(tmp_path, stem, np.full((48, 64), 77) if stem == "out_of_range" else ids)
    (tmp_path / "labels" / "broken.png").write_bytes(b"nothing")
    Image.fromarray(ids[:20]).save(tmp_path / "labels" / "other_size.png")
    (tmp_path / "images" / "no_image.jpg").unlink()
    (tmp_path / "images" / "no_labels.png").write_bytes((tmp_path / "images" / "one.jpg").read_bytes())
    Image.fromarray(ids).save(tmp_path / "labels" / "one.tif")
    options: list[str | Path] = ["audit", "--labels", tmp_path / "labels", "--num-classes", "19", "--factors", "4,8"]
    options += ["--class-names", ",".join(scenes.CLASSES), "--out", tmp_path / "out"]
    result = run(*options, "--images", tmp_path / "images")
    assert result.exit_code == 1
    output = flat(result.output)
    for named in (
        "broken.png: cannot be read",
        "other_size.png: 64x20 pixels, where its image has 64x48",
        "no_image.png: no image of this name",
        "no_labels.png: no label map of this name",
        "one.tif: one.png has the same name and is taken",
        "out_of_range.png: labels must lie in 0..18",
        "2 label maps; every number",
    ):
        assert named in output
    assert min(Image.open(tmp_path / "out" / "audit.png").size) > 300
    with (tmp_path / "out" / "audit.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    counts = np.bincount(ids[ids != 255], minlength=19)
    assert len(rows) == 2 * (counts > 0).sum() * 5
    for row in rows:
        assert int(row["area"]) == 2 * counts[int(row["class_id"])]
        assert row["label_maps"] == "2"
        assert float(row["distance"]) == pytest.approx(float(row["kept"]) + 1 - 2 * float(row["in_place"]), abs=2e-6)
        if row["method"] == "soft":
            assert float(row["in_place"]) == pytest.approx(1, abs=1e-5)
            assert row["gone"] == "0"
        expected = areas_kept(torch.from_numpy(ids), float(row["factor"]), 19, 255, (row["method"],))
        in_place = float(expected.placed[0, int(row["class_id"])]) / counts[int(row["class_id"])]
        assert float(row["in_place"]) == pytest.approx(in_place, abs=1e-6)

    good = run(*options, "--pattern", "t*o.png")
    assert good.exit_code == 0, good.output
    assert "1 label maps" in flat(good.output)
    both = run(*options, "--pattern", "one.*")  # without images every file is a label map
    assert "2 label maps" in flat(both.output)


def test_audit_goes_through_links_and_names_what_is_no_file(tmp_path: Path) -> None:
    ids = street_ids(8, 8)
    write_picture(tmp_path / "elsewhere", "one", ids)
    write_picture(tmp_path, "deep/two", ids)
    labels = tmp_path / "labels"
    (labels / "linked").symlink_to(tmp_path / "elsewhere" / "labels", target_is_directory=True)
    (labels / "deep" / "up").symlink_to(labels, target_is_directory=True)
    (labels / "nothing.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(labels / "pipe.png")
    result = run("audit", "--labels", labels, "--num-classes", "19", "--factors", "2", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "2 label maps; every number" in result.stdout
    assert result.stderr.count("left out") == 2
    for name in ("nothing.png: is no file", "pipe.png: is no file"):
        assert name in result.stderr


def test_audit_shows_which_classes_of_camvid_suffer(tmp_path: Path) -> None:
    if not CAMVID.is_dir():
        pytest.skip("CamVid is not beside the checkout (TRITONSOFT_CAMVID)")
    names = "sky,building,pole,road,pavement,tree,sign,fence,car,pedestrian,bicyclist"
    options = ["--num-classes", "11", "--ignore-index", "11", "--factors", "8", "--class-names", names]
    result = run("audit", "--labels", CAMVID / "labels" / "val", *options, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    with (tmp_path / "audit.csv").open() as stream:
        in_place = {
            row["class"]: float(row["in_place"]) for row in csv.DictReader(stream) if row["method"] == "nearest-exact"
        }
    assert min(in_place, key=lambda name: in_place[name]) == "pole"
    assert in_place["pole"] < 0.6
    assert in_place["road"] > 0.95


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "nowhere", "--num-classes", "3"], "--labels: nowhere is not a folder"),
        (["--labels", ".", "--num-classes", "0"], "--num-classes must be at least 1"),
        (["--labels", ".", "--num-classes", "99999999999"], "--num-classes must be at most 65536"),
        (["--labels", ".", "--num-classes", "3", "--pattern", "/x/*"], "--pattern must be that of a name or relative"),
        (["--labels", ".", "--num-classes", "3", "--pattern", ""], "--pattern must be that of a name or relative"),
        (["--labels", ".", "--num-classes", "3", "--ignore-index", f"{2**70}"], "--ignore-index must fit 64 bits"),
        (["--labels", ".", "--num-classes", "3", "--pattern", "*.none"], "nothing to measure: 0 label maps found"),
    ],
)
def test_audit_says_what_is_wrong(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = run("audit", *arguments, "--out", tmp_path)
    assert result.exit_code != 0
    assert message in flat(result.output)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--factors", "two"], "--factors must be numbers"),
        (["--factors", "2,0.5"], "--factors must be at least 1, got '2,0.5'"),
        (["--factors", "nan"], "--factors must be at least 1"),
        (["--height", "4"], "the scene needs 8x8 pixels"),
        (["--thin-class", "unicorn"], "--thin-class must be an id in 0..18 or one of road"),
        (["--thin-class", "19"], "--thin-class must be an id in 0..18"),
        (["--device", "abacus"], "--device must be one of cpu"),
        (["--num-classes", "19"], "they need --images"),
        (["--images", "."], "--images needs --labels and --num-classes"),
        (["--images", "nowhere", "--labels", ".", "--num-classes", "2"], "--images: nowhere is not a folder"),
        (["--images", ".", "--labels", ".", "--num-classes", "0"], "--num-classes must be at least 1, got 0"),
        (["--images", ".", "--labels", ".", "--num-classes", "2", "--class-names", "a,b,c"], "=2 names, got 3"),
        (["--images", ".", "--labels", ".", "--num-classes", "2"], "nothing to shrink"),
        (["--colour", "blue"], "No such option"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("demo", "--out", tmp_path, *arguments)
    assert result.exit_code != 0
    assert message in flat(result.output)
    assert result.exception is None or isinstance(result.exception, SystemExit)


@pytest.mark.skipif(not CAMVID.is_dir(), reason=f"no CamVid at {CAMVID}; TRITONSOFT_CAMVID names its folder")
def test_demo_on_real_pictures(tmp_path: Path) -> None:
    """Thin things suffer most under nearest, and the soft label keeps them."""
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        for file in sorted((CAMVID / kind / "val").iterdir())[:4]:
            (tmp_path / kind / file.name).symlink_to(file)
    arguments = ["--num-classes", "11", "--ignore-index", "11", "--factors", "8", "--out", tmp_path]
    result = run("demo", "--images", tmp_path / "images", "--labels", tmp_path / "labels", *arguments)
    assert result.exit_code == 0, result.output
    assert "with class 2, the class that nearest-exact misplaces most" in flat(result.output)  # poles


# --- what users call things, and where it is printed -----------------------------------------------------------------

ODD_NAMES = ("[void]", "[/]", "$\\frac{", ":smile:", "_under")


def test_names_are_text_whatever_is_in_them(tmp_path: Path) -> None:
    root, out = tmp_path / "in[b]", tmp_path / "out[/b]"
    ids = np.arange(2400).reshape(40, 60) // 7 % 5
    write_picture(root, ":smile:[red]", ids)
    (root / "labels" / "[oops].png").write_bytes(b"nothing")
    named = ["--labels", root / "labels", "--num-classes", "5", "--class-names", ",".join(ODD_NAMES), "--out", out]
    named += ["--factors", "2"]
    audit = run("audit", *named)
    demo = run("demo", *named, "--images", root / "images", "--thin-class", "[/]", "--thin-class", "$\\frac{")
    for result in (audit, demo):
        assert result.exit_code == 1, result.output
        assert all(name in result.stdout for name in ODD_NAMES)
        assert isinstance(result.exception, SystemExit)
    assert f"every number is in {out / 'audit.csv'}, drawn in {out / 'audit.png'}." in audit.stdout
    assert f"{root / 'labels' / '[oops].png'}: cannot be read" in audit.stderr
    assert f"{out / 'soft_labels.png'} shows :smile:[red] with [/] and $\\frac{{." in demo.stdout
    assert f"{root / 'labels' / '[oops].png'}: no image of this name in {root / 'images'}" in demo.stderr
    with (out / "audit.csv").open(encoding="utf-8") as stream:
        assert {row["class"] for row in csv.DictReader(stream)} == set(ODD_NAMES)
    refused = run("demo", "--thin-class", "[/]", "--images", root / "images[", "--labels", ".", "--num-classes", "2")
    assert "in[b]/images[ is not a folder" in re.sub(r"[\s│]+", "", refused.output).replace("isnota", " is not a ")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_every_encoding_can_hold_what_is_printed(encoding: str, tmp_path: Path) -> None:
    write_picture(tmp_path, "one", np.arange(48).reshape(6, 8) % 3)
    names = "日本,Σ,".encode() + b"caf\xe9"  # the last is no UTF-8
    command = [sys.executable, "-m", "tritonsoft.cli", "audit", "--labels", tmp_path / "labels", "--num-classes", "3"]
    command += ["--factors", "2", "--class-names", names, "--out", tmp_path / "é"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "1", "PYTHONPATH": str(_checkout)}
    result = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    assert b"Traceback" not in result.stderr
    assert b"audit.csv" in result.stdout
    with (tmp_path / "é" / "audit.csv").open(encoding="utf-8") as stream:
        assert {row["class"] for row in csv.DictReader(stream)} == {"日本", "Σ", "caf\ufffd"}


@pytest.mark.parametrize("command", ["audit", "demo"])
def test_results_are_saved_before_they_are_printed(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: Any, **__: Any) -> None:
        raise BrokenPipeError

    write_picture(tmp_path, "one", street_ids(24, 32))
    monkeypatch.setattr(common.console, "print", closed)
    options = [command, "--labels", tmp_path / "labels", "--images", tmp_path / "images", "--num-classes", "19"]
    run(*options, "--factors", "2", "--out", tmp_path / "out")
    files = {"audit": {"audit.csv", "audit.png"}, "demo": {"soft_labels.png"}}[command]
    assert {file.name for file in (tmp_path / "out").iterdir()} == files


@pytest.mark.parametrize("command", ["audit", "demo"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_measuring(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*_: Any) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(sys.modules[f"tritonsoft.cli.{command}"], "measure", measure)
    write_picture(tmp_path, "one", street_ids(8, 8))
    (tmp_path / "file").touch()
    (tmp_path / "taken" / {"audit": "audit.csv", "demo": "soft_labels.png"}[command]).mkdir(parents=True)
    options = [command, "--labels", tmp_path / "labels", "--images", tmp_path / "images", "--num-classes", "19"]
    for out, message in (
        ("file", "cannot be made a folder (File exists)"),
        ("file/below", "cannot be made a folder (Not a directory)"),
        ("x" * 300, "cannot be made a folder (File name too long)"),
        ("taken", "cannot be written"),
    ):
        result = run(*options, "--out", tmp_path / out)
        assert result.exit_code == 2, result.output
        assert "--out: " in result.stderr
        assert message in flat(result.stderr)


def test_a_full_disk_is_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.modules["tritonsoft.cli.audit"], "write_csv", full)
    write_picture(tmp_path, "one", street_ids(8, 8))
    result = run("audit", "--labels", tmp_path / "labels", "--num-classes", "19", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "out: the results cannot be saved ([Errno 28] No space left on device)" in flat(result.stderr)


# --- label files of data sets ----------------------------------------------------------------------------------------


def cityscapes(folder: Path) -> np.ndarray[Any, Any]:
    """Two pictures in the layout of Cityscapes, with ids and colours; gives the classes of the first."""
    format = data.label_format(map="cityscapes", palette="cityscapes")
    id_of = {class_id: id for id, class_id in format.ids.items()}  # of what is ignored: 30, trailer
    colour_of = {class_id: colour for colour, class_id in format.colours.items()}
    classes = street_ids(32, 64)
    for name, labels in (("train/aachen/aachen_0", classes), ("train/bochum/bochum_0", classes[:, ::-1])):
        gt_fine, images = folder / "gtFine" / f"{name}_gtFine", folder / "leftImg8bit" / f"{name}_leftImg8bit.png"
        gt_fine.parent.mkdir(parents=True)
        images.parent.mkdir(parents=True)
        Image.fromarray(np.zeros((*labels.shape, 3), np.uint8)).save(images)
        ids = np.vectorize(id_of.get)(labels).astype(np.uint8)
        Image.fromarray(ids).save(f"{gt_fine}_labelIds.png")
        colours = np.array([colour_of[class_id] for class_id in labels.flatten().tolist()], np.uint8)
        Image.fromarray(colours.reshape(*labels.shape, 3)).convert("RGBA").save(f"{gt_fine}_color.png")
    return classes


@pytest.mark.parametrize("kind", ["labelIds", "color"])
def test_audit_takes_the_folders_of_cityscapes(kind: str, tmp_path: Path) -> None:
    classes = cityscapes(tmp_path)
    options = ["--map", "cityscapes"] if kind == "labelIds" else ["--palette", "cityscapes"]
    folders = ["--labels", tmp_path / "gtFine", "--images", tmp_path / "leftImg8bit"]
    patterns = ["--label-pattern", f"*_gtFine_{kind}.png", "--image-pattern", "*_leftImg8bit.png"]
    command = ["audit", *folders, *patterns, *options, "--factors", "4", "--out", tmp_path / "out"]
    result = run(*command, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["command"] == "audit"
    assert found["tritonsoft"] == ts.__version__
    assert found["label_maps"] == 2
    assert found["left_out"] == []
    areas = {row["class"]: row["area"] for row in found["rows"]}
    counts = np.bincount(classes[classes != 255], minlength=19)
    assert areas == {scenes.CLASSES[k]: 2 * count for k, count in enumerate(counts.tolist()) if count}
    with (tmp_path / "out" / "audit.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [list(row) for row in found["rows"]] == [list(row) for row in rows]
    for row, printed in zip(found["rows"], rows, strict=True):
        assert row["method"] == printed["method"]
        assert row["in_place"] == pytest.approx(float(printed["in_place"]), abs=1e-6)
    assert all(Path(file).is_file() for file in found["files"])
    first = run(*command, "--json", "--limit", "1")
    assert sum(row["area"] for row in json.loads(first.stdout)["rows"] if row["method"] == "soft") == counts.sum()


def test_demo_takes_the_folders_of_cityscapes(tmp_path: Path) -> None:
    cityscapes(tmp_path)
    folders = ["--labels", tmp_path / "gtFine", "--images", tmp_path / "leftImg8bit", "--limit", "1"]
    patterns = ["--label-pattern", "*_gtFine_labelIds.png", "--image-pattern", "*_leftImg8bit.png"]
    options = ["--map", "cityscapes", "--factors", "4", "--thin-class", "pole", "--json", "--out", tmp_path / "out"]
    result = run("demo", *folders, *patterns, *options)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["pictures"] == 1
    assert found["shown"] == {"picture": "train/aachen/aachen_0", "classes": ["pole"]}
    assert {row["method"] for row in found["rows"]} == {"nearest", "nearest-exact", "soft"}
    (cost,) = found["costs"]
    assert cost["factor"] == 4
    assert len(cost["seconds"]) == len(cost["peak_bytes"]) == 2


def test_a_colour_that_is_not_in_the_palette_is_named(tmp_path: Path) -> None:
    cityscapes(tmp_path)
    file = tmp_path / "gtFine" / "train" / "bochum" / "bochum_0_gtFine_color.png"
    with Image.open(file) as picture:
        picture.putpixel((5, 3), (1, 2, 3, 255))
        picture.save(file)
    options = ["--label-pattern", "*_color.png", "--palette", "cityscapes", "--factors", "4", "--out", tmp_path / "out"]
    result = run("audit", "--labels", tmp_path / "gtFine", *options)
    assert result.exit_code == 1
    assert "1 label maps; every number" in result.stdout
    assert result.stderr == f"left out {file}: the colour (1, 2, 3) at row 3, column 5 is not in the palette\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--num-classes must be given where neither map nor palette says it"),
        (["--map", "nothing"], "--map must be one of cityscapes, ade20k, voc, camvid, or a CSV or JSON file"),
        (["--map", "nothing.csv"], "nothing.csv: cannot be read"),
        (["--map", "voc", "--num-classes", "20"], "--num-classes must be at least 21, as many as voc has, got 20"),
        (["--palette", "voc", "--ignore", "0"], "--ignore holds ids, and with a palette alone"),
        (["--map", "voc", "--ignore", "0;1"], "--ignore must be ids separated by commas, got '0;1'"),
        (["--map", "voc", "--limit", "0"], "--limit must be at least 1, got 0"),
        (["--map", "voc", "--image-pattern", "a*"], "--image-pattern needs --images"),
        (
            ["--map", "voc", "--image-pattern", "a"],
            "--image-pattern must be that of a name or relative path with one star",
        ),
    ],
)
def test_what_is_wrong_with_the_format_is_said(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = run("audit", "--labels", tmp_path, *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in flat(result.stderr)


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_wrong_number_of_classes_stops_the_measuring(tmp_path: Path) -> None:
    ids = np.full((8, 8), 7)
    for stem in range(40):
        write_picture(tmp_path, f"{stem:02}", ids if stem % 5 else ids - 6)
    result = run("audit", "--labels", tmp_path / "labels", "--num-classes", "3", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert (
        "stopped: 10 of the first 13 of 40 label maps hold ids that are no class; are --num-classes and --ignore-index "
        f"right? The first: {tmp_path / 'labels' / '01.png'}: labels must lie in 0..2"
    ) in result.stderr.replace("\n", "")
    right = run("audit", "--labels", tmp_path / "labels", "--num-classes", "8", "--out", tmp_path / "out")
    assert right.exit_code == 0


def test_colours_without_a_palette_stop_the_measuring(tmp_path: Path) -> None:
    for stem in range(20):
        Image.new("RGB", (2, 2)).save(tmp_path / f"{stem:02}.png")
    options = ["--num-classes", "3", "--factors", "2", "--out", tmp_path / "out"]
    result = run("audit", "--labels", tmp_path, *options)
    assert result.exit_code == 1
    assert "stopped: 10 of the first 10 of 20 label maps" in result.stderr
    assert "needs one channel of class ids, got mode RGB: have its colours a palette?" in flat(result.stderr)


def test_where_much_is_left_out_a_file_names_it(tmp_path: Path) -> None:
    write_picture(tmp_path, "good", street_ids(8, 8))
    for stem in range(30):
        (tmp_path / "labels" / f"{stem:02}.png").write_bytes(b"nothing")
    options = ["audit", "--labels", tmp_path / "labels", "--num-classes", "19", "--out", tmp_path / "out"]
    result = run(*options)
    assert result.exit_code == 1
    assert "left out" not in result.stdout
    assert result.stderr.count("left out ") == 20
    assert f"and 10 more: all 30 are named in {tmp_path / 'out' / 'left_out.txt'}" in result.stderr
    lines = (tmp_path / "out" / "left_out.txt").read_text("utf-8").splitlines()
    assert [line.split(": cannot be read")[0] for line in lines] == [
        str(tmp_path / "labels" / f"{stem:02}.png") for stem in range(30)
    ]


def test_255_is_ignored_by_default_only_where_it_is_no_class(tmp_path: Path) -> None:
    write_picture(tmp_path, "one", np.array([[255, 255], [0, 1]]))
    folders = ["--labels", tmp_path / "labels", "--images", tmp_path / "images", "--out", tmp_path / "out"]
    for command in ("audit", "demo"):
        refused = run(command, *folders, "--num-classes", "256")
        assert refused.exit_code == 2
        assert "--num-classes 256 makes 255, the default of --ignore-index, a class: give --ignore-index" in flat(
            refused.stderr
        )
    for options, areas in (
        (["--num-classes", "255"], {"0": 1, "1": 1}),
        (["--num-classes", "256", "--ignore-index", "-1"], {"0": 1, "1": 1, "255": 2}),
        (["--num-classes", "256", "--ignore-index", "255"], {"0": 1, "1": 1}),
    ):
        result = run("audit", *folders, "--factors", "2", *options)
        assert result.exit_code == 0, result.output
        with (tmp_path / "out" / "audit.csv").open() as stream:
            assert {row["class_id"]: float(row["area"]) for row in csv.DictReader(stream)} == areas


def test_one_hot_finds_class_255_beside_an_ignored_minus_one() -> None:
    labels = torch.tensor([[[255, 255], [0, 1]]], dtype=torch.uint8)
    soft = costs.one_hot_interpolate(labels, (1, 1), 256, -1)[0, :, 0, 0]
    assert soft[[0, 1, 255]].tolist() == [0.25, 0.25, 0.5]


def test_what_no_memory_can_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in (["demo", "--height", "99999999", "--out", tmp_path], ["bench", "--size", "99999999x2048"]):
        result = run(*command)
        assert result.exit_code == 1
        assert isinstance(result.exception, SystemExit)
        assert re.search(r"needs? [\d.]+ GB, [\d.]+ GB are free", flat(result.stderr))
    write_picture(tmp_path, "one", street_ids(24, 32))
    monkeypatch.setattr(sys.modules["tritonsoft.cli.kept"], "free_bytes", lambda device: 1000)
    result = run("audit", "--labels", tmp_path / "labels", "--num-classes", "19", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "one.png: 19 classes of 12x16 pixels need 0.0 GB" in flat(result.stderr)


def test_memory_that_cannot_be_measured_has_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "peak_memory", lambda *_: [[0, 4096], [1 << 20, 3 << 20]])
    labels = torch.zeros(40, 60, dtype=torch.uint8)
    common.console.print(table := costs.cost_table(costs.measure_costs(labels, [2, 4], 19, 255), labels, 19))
    cells = [list(map(str, column.cells)) for column in table.columns]
    rows = [row for row in zip(*cells, strict=True) if row[1] == "peak memory"]
    assert [row[2:] for row in rows] == [("below 1 MiB", "below 1 MiB", ""), ("1.0 MiB", "3.0 MiB", "3.0x")]


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 700), (700, 1)])
def test_demo_takes_pictures_of_any_shape(size: tuple[int, int], tmp_path: Path) -> None:
    write_picture(tmp_path, "tiny", np.arange(size[0] * size[1]).reshape(size) % 19)
    result = run(*folder_arguments(tmp_path, tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert not re.search(r"\d{5}\.\dx", result.output)
    assert (tmp_path / "out" / "soft_labels.png").is_file()


# --- narrow terminals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [30, 40, 50, 60, 80])
def test_no_number_of_a_table_is_cut(width: int) -> None:
    kept = areas_kept(scenes.street_scene(64, 128).labels, 2, 19, 255, ALL_METHODS)
    costs_of_two = [costs.Cost(factor, [0.12345, 67.8], [2**34, 2**10], 1e-7) for factor in (2.0, 123.5)]
    for table, num_keys in (
        (kept_table(2, kept, scenes.CLASSES), 1),
        (
            audit_table(2, kept, ["a class with a name that is longer than the terminal is wide", *scenes.CLASSES[1:]]),
            1,
        ),
        (costs.cost_table(costs_of_two, torch.zeros(40, 60), 19), 2),
    ):
        numbers = [column for column in table.columns[num_keys:] if column.justify == "right"]
        wanted = [str(cell) for column in numbers for cell in (*column.cells, column.footer) if str(cell)]
        console = Console(width=width, file=io.StringIO(), markup=False, emoji=False, highlight=False)
        for part in folded(table, console, num_keys):
            part.caption = None
            console.print(part)
        printed = console.file.getvalue()  # type: ignore[attr-defined]
        assert max(map(len, printed.splitlines())) <= width
        for number in set(wanted):
            assert len(re.findall(rf"(?<!\S){re.escape(number)}(?!\S)", printed)) >= wanted.count(number), number


# --- doctor ----------------------------------------------------------------------------------------------------------


def test_doctor_shows_a_broken_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: torch.device) -> str:
        raise RuntimeError("the driver [550] is gone\nand a long story")

    monkeypatch.setattr(sys.modules["tritonsoft.cli.doctor"], "describe", broken)
    result = run("doctor")
    assert result.exit_code == 0, result.output
    assert "the driver [550] is gone" in flat(result.output)


def test_doctor_checks_every_backend() -> None:
    result = run("doctor")
    assert result.exit_code == 0, result.output
    output = flat(result.output)
    for text in ("tritonsoft", torch.__version__, "cpu reference pass", "Numba"):
        assert text in output
    for backend in backends.BACKENDS:
        available, _ = backends.explain_backend("cpu", backend)
        assert f"cpu {backend} {'pass' if available else 'not available'}" in output


def test_doctor_shows_a_broken_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("libwhatever.so is missing\nand a long story")

    monkeypatch.setattr(reference, "crop_resize", broken)
    result = run("doctor")
    assert result.exit_code == 1
    assert "cpu reference FAILED RuntimeError: libwhatever.so is missing" in flat(result.output)
    assert "long story" not in result.output


def test_doctor_prints_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["tritonsoft.cli.doctor"], "self_check", lambda device, name: (float("nan"), 1.0))
    result = run("doctor", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["passed"] is False
    assert found["versions"]["torch"] == torch.__version__
    assert {check["backend"]: check["result"] for check in found["checks"]}["reference"] == "FAILED"
    assert found["devices"][0]["device"] == "cpu"


def test_doctor_finds_wrong_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ts.crop_resize_pair
    monkeypatch.setattr(
        ts, "crop_resize_pair", lambda *args, **options: [out + 1e-3 for out in right(*args, **options)]
    )
    result = run("doctor")
    assert result.exit_code == 1
    assert "cpu reference FAILED largest error 1.0e-03" in flat(result.output)


# --- bench -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [3, 19, 300])
def test_bench_times_every_way(classes: int) -> None:
    result = run("bench", "--batch", "2", "--size", "32x48", "--classes", str(classes), "--factor", "4")
    assert result.exit_code == 0, result.output
    text = flat(result.output)
    assert f"2 x 32x48 to 8x12, {classes} classes" in text
    for way in ("ts.soft_resize", "one_hot + interpolate(area)", "ts.soft_cross_entropy", "ts.area_cross_entropy"):
        assert re.search(re.escape(way) + r" \d+\.\d\d ms", text), way


def test_bench_prints_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["tritonsoft.cli.bench"], "SECONDS_PER_ROW", 0)
    result = run("bench", "--batch", "1", "--size", "32x48", "--classes", "3", "--factor", "4", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["size"], found["small_size"], found["classes"]) == ([32, 48], [8, 12], 3)
    ours = found["rows"][0]
    assert (ours["way"], ours["beside_ours"]) == ("ts.soft_resize", None)
    assert all(row["seconds"] > 0 for row in found["rows"] if row["runs"])


def test_bench_has_every_class_and_ignores_none_of_them() -> None:
    from tritonsoft.cli.bench import street_batch

    for classes, ignored, dtype in ((19, 255, torch.uint8), (300, -1, torch.int16)):
        _, labels = street_batch(1, 128, 256, classes, ignored, torch.device("cpu"))
        assert labels.dtype == dtype
        known = labels[labels != ignored]
        assert 0 <= known.min() <= known.max() < classes
        assert (labels == ignored).any()
    assert (labels == 255).any()  # a class there: 17 * (300 // 19)


def test_bench_leaves_out_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["tritonsoft.cli.bench"], "free_bytes", lambda device: 500_000)
    result = run("bench", "--batch", "1", "--size", "64x64")
    assert result.exit_code == 0, result.output
    assert "one_hot + interpolate(area) not run: needs over" in flat(result.output)
    result = run("bench", "--batch", "1", "--size", "640x640")
    assert result.exit_code == 1
    assert "a smaller --batch or --size" in flat(result.output)


@pytest.mark.parametrize(
    "options", [("--size", "64"), ("--size", "4x64"), ("--batch", "0"), ("--classes", "0"), ("--factor", "0.5")]
)
def test_bench_names_the_bad_option(options: tuple[str, str]) -> None:
    result = run("bench", *options)
    assert result.exit_code == 2
    assert options[0] in flat(result.output)


# --- the console script ----------------------------------------------------------------------------------------------


def test_without_its_extra_the_command_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; from tritonsoft.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=_checkout, check=False)
    assert result.returncode == 1
    assert f"needs more packages: {how_to_install('demo')}" in result.stderr
    assert "Traceback" not in result.stderr


def test_it_runs_as_a_module() -> None:
    for module in ("tritonsoft", "tritonsoft.cli"):
        command = [sys.executable, "-m", module, "--help"]
        result = subprocess.run(command, capture_output=True, text=True, cwd=_checkout, check=False)
        assert result.returncode == 0
        assert "doctor" in result.stdout
        assert "bench" in result.stdout
        assert "demo" in result.stdout


def test_an_interrupt_before_it_begins_has_its_exit_code() -> None:
    code = """
import sys

class Interrupting:
    def find_spec(self, name, *_):
        if name == "typer":
            raise KeyboardInterrupt

from tritonsoft.cli import main
sys.meta_path.insert(0, Interrupting())
main()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=_checkout, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_an_output_that_is_full_is_said_in_a_sentence() -> None:
    command = [sys.executable, "-m", "tritonsoft", "--version"]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=_checkout, check=False)
    assert (result.returncode, result.stderr) == (1, "the output cannot be written: No space left on device\n")


def test_it_tells_its_version() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout == f"tritonsoft {ts.__version__}\n"


def test_an_interrupt_ends_it_whatever_it_does_and_leaves_no_half_file(tmp_path: Path) -> None:
    write_picture(tmp_path, "one", street_ids(8, 8))
    options = ["audit", "--labels", tmp_path / "labels", "--num-classes", "19", "--out", tmp_path / "out"]
    code = f"""
import hashlib, multiprocessing, sys, time
from tritonsoft.cli import app
from tritonsoft.data import atomic_write

def write_csv(file, *_):
    with atomic_write(file) as temporary:
        temporary.write_text("half")
        multiprocessing.get_context("spawn").Process(target=time.sleep, args=(1000,)).start()
        print("saving", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes, in which Python raises no KeyboardInterrupt

sys.modules["tritonsoft.cli.audit"].write_csv = write_csv
sys.argv[1:] = {[str(option) for option in options]!r}
app.main()
"""
    environment = {**os.environ, "PYTHONPATH": str(_checkout)}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "saving\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "interrupted\n")  # its child has ended too, and closed the pipes
        assert process.returncode == 130
    assert list((tmp_path / "out").iterdir()) == []
