"""Metrics of soft labels against brute force, over batches, and over processes."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("torchmetrics", reason="the metrics keep their state in torchmetrics")

import tritonsoft as ts
from tritonsoft import metrics

CLASSES = 5


def batches(seed: int = 0, count: int = 3) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Logits, soft labels, label maps of sizes that differ; some pixels are unknown, and the last class is absent."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for index in range(count):
        height, width = 8 + 4 * index, 12
        labels = torch.randint(0, CLASSES - 1, (2, height, width), generator=generator)
        labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
        labels[:, :4, :4] = 255
        soft = ts.soft_resize(labels, (height // 4, width // 4), CLASSES)
        logits = torch.randn(soft.shape, generator=generator)
        result.append((logits, soft, labels))
    return result


def pixels(values: list[Tensor]) -> Tensor:
    """``(pixels, C)`` of all batches, float64."""
    return torch.cat([value.permute(0, 2, 3, 1).reshape(-1, CLASSES) for value in values]).double()


def brute_force() -> dict[str, Any]:
    data = batches()
    q = pixels([soft for _, soft, _ in data])
    z = pixels([logits for logits, _, _ in data])
    p, mass = z.softmax(1), q.sum(1)
    weighted = p * mass[:, None]
    per_class = [
        (
            torch.minimum(weighted[:, c], q[:, c]).sum() / torch.maximum(weighted[:, c], q[:, c]).sum(),
            (weighted[:, c].sum() - q[:, c].sum()).abs() / q[:, c].sum(),
        )
        for c in range(CLASSES - 1)
    ]
    calibration = 0.0
    confidence, predicted = p.max(1)
    for index in range(15):
        inside = (confidence > index / 15) & (confidence <= (index + 1) / 15)
        right = sum(q[n, predicted[n]] for n in inside.nonzero().flatten().tolist())
        calibration += float(abs((mass * confidence)[inside].sum() - right))
    known = mass > 0
    distribution = q[known] / mass[known, None]
    entropy = -(distribution * distribution.clamp(min=1e-300).log2()).sum(1)
    return {
        "iou": torch.stack([iou for iou, _ in per_class]),
        "area": torch.stack([area for _, area in per_class]),
        "mass": q.sum(0)[:-1],
        "likelihood": -(q * F.log_softmax(z, 1)).sum() / q.sum(),
        "calibration": calibration / float(mass.sum()),
        "entropy": (mass[known] * entropy).sum() / mass.sum(),
    }


def assert_equal(actual: Tensor, expected: Any) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["iou", "area"])
def test_per_class(name: str) -> None:
    kind = {"iou": metrics.SoftIoU, "area": metrics.AreaError}[name]
    found = {average: kind(CLASSES, average=average) for average in ("classes", "mass", "none")}
    for logits, soft, _ in batches():
        for metric in found.values():
            metric.update(logits.softmax(1), soft)
    expected = brute_force()
    values = found["none"].compute()
    assert values[-1].isnan()  # a class that no label holds
    assert_equal(values[:-1], expected[name])
    assert_equal(found["classes"].compute(), expected[name].mean())
    assert_equal(found["mass"].compute(), (expected[name] * expected["mass"]).sum() / expected["mass"].sum())


def test_likelihood_calibration_and_entropy() -> None:
    likelihood, calibration = metrics.SoftNegativeLogLikelihood(), metrics.SoftCalibrationError()
    entropy, expected = metrics.LabelEntropy(), brute_force()
    for logits, soft, _ in batches():
        likelihood.update(logits, soft)
        calibration.update(logits.softmax(1), soft)
        entropy.update(soft)
    assert_equal(likelihood.compute(), expected["likelihood"])
    assert_equal(calibration.compute(), expected["calibration"])
    assert_equal(entropy.compute(), expected["entropy"])
    loss = ts.soft_cross_entropy(batches()[0][0], batches()[0][1])
    likelihood.reset()
    likelihood.update(*batches()[0][:2])
    assert_equal(likelihood.compute(), loss)


def test_a_perfect_prediction() -> None:
    _, soft, _ = batches()[0]
    soft = soft.double()
    distributions = ts.normalize(soft)
    iou, area = metrics.SoftIoU(CLASSES), metrics.AreaError(CLASSES)
    iou.update(distributions, soft)
    area.update(distributions, soft)
    assert_equal(iou.compute(), 1.0)
    assert_equal(area.compute(), 0.0)


def test_retention_of_hard_and_soft_labels() -> None:
    retention = metrics.LabelRetention(CLASSES, average="none")
    for _, soft, labels in batches():
        retention.update(soft, labels)
    result = retention.compute()
    assert_equal(result["area"][:-1], [1.0] * (CLASSES - 1))
    assert_equal(result["in_place"][:-1], [1.0] * (CLASSES - 1))
    assert_equal(result["distance"][:-1], [0.0] * (CLASSES - 1))
    assert all(value[-1].isnan() for value in result.values())

    # A pole one pixel wide: nearest (column 0 of 4) never meets it, and gives its area to the background.
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    labels[:, :, 1] = 1
    hard = F.interpolate(labels[:, None].float(), (2, 2), mode="nearest")[:, 0].to(torch.uint8)
    retention = metrics.LabelRetention(2, average="none")
    retention.update(hard, labels)
    result = retention.compute()
    assert_equal(result["area"], [64 / 56, 0])
    assert_equal(result["in_place"], [1, 0])
    assert_equal(result["distance"], [8 / 56, 1])


def test_sparse_labels_stand_for_dense_ones() -> None:
    logits, soft, labels = batches()[0]
    sparse = ts.SparseLabels.from_dense(soft, CLASSES, torch.float32)
    for dense, compact in ((metrics.SoftIoU(CLASSES), metrics.SoftIoU(CLASSES)),):
        dense.update(logits.softmax(1), soft)
        compact.update(logits.softmax(1), sparse)
        assert_equal(compact.compute(), dense.compute())
    retention = metrics.LabelRetention(CLASSES)
    retention.update(sparse, labels)
    assert_equal(retention.compute()["distance"], 0.0)


def test_a_mass_a_little_below_0_counts_as_0() -> None:
    below = torch.tensor([0.5, 0.5, -1e-7, 0.0]).view(1, 4, 1, 1).expand(2, 4, 3, 3)
    probabilities = torch.full((2, 4, 3, 3), 0.25)
    for name, arguments in (("LabelEntropy", ()), ("SoftNegativeLogLikelihood", (probabilities,))):
        values = []
        for soft in (below, below.clamp(min=0)):
            metric = getattr(metrics, name)()
            metric.update(*arguments, soft)
            values.append(metric.compute())
        assert values[0].isfinite()
        assert torch.equal(*values)


def test_nothing_known_is_not_a_number() -> None:
    soft, logits = torch.zeros(1, CLASSES, 2, 2), torch.randn(1, CLASSES, 2, 2)
    for metric in (metrics.SoftIoU(CLASSES), metrics.AreaError(CLASSES), metrics.SoftCalibrationError()):
        metric.update(logits.softmax(1), soft)
        assert metric.compute().isnan()
    likelihood = metrics.SoftNegativeLogLikelihood()
    likelihood.update(torch.full_like(logits, -math.inf), soft)
    assert likelihood.compute().isnan()
    assert float(likelihood.total) == 0


def test_bad_input_names_the_argument() -> None:
    logits, soft, labels = batches()[0]
    iou = metrics.SoftIoU(CLASSES)
    with pytest.raises(ValueError, match="soft must have the shape of probabilities"):
        iou.update(logits[:, :, 1:], soft)
    with pytest.raises(ValueError, match="probabilities must have num_classes=5"):
        iou.update(logits[:, 1:], soft[:, 1:])
    with pytest.raises(TypeError, match="soft must be a tensor or a SparseLabels"):
        iou.update(logits, [1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="probabilities must be a floating-point tensor"):
        iou.update(labels[:, None], soft)
    for metric in (iou, metrics.AreaError(CLASSES), metrics.SoftCalibrationError()):
        with pytest.raises(ValueError, match="probabilities must be at least 0 and at most 1"):
            metric.update(logits, soft)
    with pytest.raises(ValueError, match="soft must be at least 0 and at most 1"):
        metrics.SoftNegativeLogLikelihood().update(logits, 2 * soft)
    with pytest.raises(ValueError, match="bias must have one number for each of 3 classes, got 2"):
        metrics.MeanIoU(3, bias=torch.zeros(2))
    with pytest.raises(ValueError, match="average must be"):
        metrics.AreaError(CLASSES, average="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_classes must be"):
        metrics.LabelRetention(0)
    with pytest.raises(ValueError, match="num_bins must be"):
        metrics.SoftCalibrationError(0)
    with pytest.raises(ValueError, match="label must have the batch of labels"):
        metrics.LabelRetention(CLASSES).update(soft[:1], labels)


def test_two_processes_add_up(tmp_path: Path) -> None:
    """Each sees other batches; both compute what one process computes of all."""
    program = """
import os, sys, torch
import torch.distributed as dist
sys.path.insert(0, sys.argv[3])
from tests.test_metrics import CLASSES, batches
from tritonsoft import metrics
rank = int(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
iou, likelihood, hard = metrics.SoftIoU(CLASSES), metrics.SoftNegativeLogLikelihood(), metrics.MeanIoU(CLASSES)
for logits, soft, labels in batches()[rank::2]:
    iou.update(logits.softmax(1), soft)
    likelihood.update(logits, soft)
    hard.update(logits, labels)
print(float(iou.compute()), float(likelihood.compute()), float(hard.compute()), flush=True)
dist.destroy_process_group()
os._exit(0)  # see examples/train_segmentation.py
"""
    root = str(Path(__file__).parents[1])
    arguments = [sys.executable, "-c", program]
    processes = [
        subprocess.Popen(
            [*arguments, str(rank), str(tmp_path / "store"), root], stdout=subprocess.PIPE, text=True, cwd=root
        )
        for rank in range(2)
    ]
    results = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    iou, likelihood, hard = metrics.SoftIoU(CLASSES), metrics.SoftNegativeLogLikelihood(), metrics.MeanIoU(CLASSES)
    for logits, soft, labels in batches():
        iou.update(logits.softmax(1), soft)
        likelihood.update(logits, soft)
        hard.update(logits, labels)
    for result in results:
        values = torch.tensor([float(number) for number in result.split()], dtype=torch.float64)
        assert_equal(values, torch.stack([iou.compute(), likelihood.compute(), hard.compute()]))


# --- at full size ----------------------------------------------------------------------------------------------------


def full_size_batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Logits and label maps whose ratio differs; some pixels are ignored, and the last class is absent."""
    generator = torch.Generator().manual_seed(0)
    result = []
    for index in range(count):
        labels = torch.randint(0, CLASSES - 1, (2, 21 + 8 * index, 37), generator=generator)
        labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
        logits = torch.randn(2, CLASSES, 5 + index, 9, generator=generator)
        logits[:, CLASSES - 1] -= 9
        result.append((logits, labels.to(torch.uint8)))
    return result


def test_full_size_metrics_are_those_of_the_enlarged_argmax() -> None:
    from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

    arguments = {"num_classes": CLASSES, "ignore_index": 255}
    theirs = {name: MulticlassConfusionMatrix(normalize=name, **arguments) for name in (None, "true", "pred", "all")}
    ours = {name: metrics.ConfusionMatrix(CLASSES, normalize=name) for name in theirs}
    jaccard = {name: MulticlassJaccardIndex(average=name, **arguments) for name in ("macro", "none")}
    iou = {"macro": metrics.MeanIoU(CLASSES), "none": metrics.MeanIoU(CLASSES, average="none")}
    for logits, labels in full_size_batches():
        enlarged = F.interpolate(logits, labels.shape[1:], mode="bilinear").argmax(1)
        for metric in (*theirs.values(), *jaccard.values()):
            metric.update(enlarged, labels.long())
        for metric in (*ours.values(), *iou.values()):
            metric.update(logits, labels)
    for name, metric in theirs.items():
        torch.testing.assert_close(ours[name].compute().double(), metric.compute().double(), rtol=1e-6, atol=1e-7)
    assert ours[None].compute().dtype == torch.int64
    torch.testing.assert_close(iou["macro"].compute().float(), jaccard["macro"].compute())
    assert iou["none"].compute()[-1].isnan()
    torch.testing.assert_close(iou["none"].compute()[:-1].float(), jaccard["none"].compute()[:-1])


def test_an_ignored_class_is_not_in_the_mean() -> None:
    from torchmetrics.classification import MulticlassJaccardIndex

    theirs = MulticlassJaccardIndex(CLASSES, average="macro", ignore_index=0)
    ours = {average: metrics.MeanIoU(CLASSES, ignore_index=0, average=average) for average in ("classes", "none")}
    for logits, labels in full_size_batches():
        labels = torch.where(labels == 255, 0, labels)
        theirs.update(F.interpolate(logits, labels.shape[1:], mode="bilinear").argmax(1), labels.long())
        for metric in ours.values():
            metric.update(logits, labels)
    assert (ours["none"].counts.sum(0) > 0)[0]  # it is predicted
    assert ours["none"].compute()[0].isnan()
    torch.testing.assert_close(ours["classes"].compute().float(), theirs.compute())


def test_full_size_metrics_take_boxes_and_a_bias() -> None:
    logits, labels = full_size_batches(1)[0]
    boxes = torch.tensor([[3.0, 2.0, 30.0, 20.0], [35.0, 18.0, 1.0, 4.0]])
    bias = torch.linspace(-1, 1, CLASSES)
    matrix = metrics.ConfusionMatrix(CLASSES, bias=bias)
    matrix.update(logits, labels, boxes)
    size = (labels.shape[1], labels.shape[2])
    decoded = ts.decode(logits, size, boxes=boxes, bias=bias)
    scored = (decoded != 255) & (labels != 255)
    pairs = labels[scored].long() * CLASSES + decoded[scored].long()
    assert torch.equal(matrix.compute(), torch.bincount(pairs, minlength=CLASSES**2).view(CLASSES, CLASSES))
    assert matrix.bias is bias or torch.equal(matrix.bias, bias)


def test_an_empty_confusion_has_no_iou() -> None:
    iou = metrics.MeanIoU(3)
    iou.update(torch.zeros(1, 3, 2, 2), torch.full((1, 4, 4), 255))
    assert iou.compute().isnan()
    iou.reset()
    assert (iou.counts == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes must be"),
        ({"num_classes": 3, "normalize": "row"}, "normalize must be"),
        ({"num_classes": 300}, "ignore_index must be given"),
    ],
)
def test_bad_options_of_confusion_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.ConfusionMatrix(**options)
    with pytest.raises(ValueError, match="average must be"):
        metrics.MeanIoU(3, average="mass")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="logits must have num_classes=3 channels, got 4"):
        metrics.MeanIoU(3).update(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 4, dtype=torch.uint8))
