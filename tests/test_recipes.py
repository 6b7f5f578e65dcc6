"""The pages of docs/recipes run from top to bottom, and do what they say.

A page needs the library that it is about. MONAI and Albumentations are installed for the benchmark; `make test-recipes`
installs them all.
"""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

RECIPES = Path(__file__).parent.parent / "docs" / "recipes"
Names = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def torchvision_of_another_build() -> None:
    """A torchvision for CUDA beside a torch for CPUs can be imported, by itself and by libraries that do.

    It cannot load its compiled operators. Its transforms and tensors need none, but its import asks for two by name.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")


def import_or_skip(library: str) -> None:
    pytest.importorskip(library, reason=f"{library} is not installed here; make test-recipes installs it")


def run(page: str) -> Names:
    """Runs a page's snippets one after the other, and returns the names that they leave."""
    path = RECIPES / f"{page}.md"
    text = path.read_text("utf-8")
    names: Names = {"__name__": f"recipe_{page}"}
    snippets = [*re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]
    assert snippets
    for snippet in snippets:
        lines_before = text[: snippet.start(1)].count("\n")
        exec(compile("\n" * lines_before + snippet[1], str(path), "exec"), names)
    return names


def enlarged(logits: Tensor, labels: Tensor) -> Tensor:
    return F.interpolate(logits, labels.shape[1:], mode="bilinear")


# --- other libraries --------------------------------------------------------------------------------------------------


def test_lightning() -> None:
    import_or_skip("lightning")
    names = run("lightning")
    trainer, model, ts = names["trainer"], names["model"], names["ts"]
    assert trainer.global_step == 2
    assert 0 < trainer.callback_metrics["loss"] < 5
    images, labels = names["images"].float() / 255, names["label_maps"]
    with torch.no_grad():
        predicted = enlarged(model.network.cpu()(ts.resize(images, model.size)), labels).argmax(1)
    overlap = [((predicted == c) & (labels == c)).sum() / ((predicted == c) | (labels == c)).sum() for c in range(5)]
    mean_iou = trainer.callback_metrics["mean IoU"].cpu()
    torch.testing.assert_close(mean_iou, sum(overlap) / 5, rtol=1e-3, atol=0, check_dtype=False)


def check_soft_batch(small: Tensor, soft: Tensor) -> None:
    assert type(small) is type(soft) is torch.Tensor
    assert small.shape == (4, 3, 16, 32)
    assert soft.shape == (4, 5, 16, 32)
    assert small.is_floating_point()
    assert -0.5 < small.min() < small.max() < 1.5
    torch.testing.assert_close(soft.sum(1), torch.ones(4, 16, 32), rtol=1e-5, atol=0)


def test_torchvision() -> None:
    import_or_skip("torchvision")
    names = run("torchvision")
    tv_tensors, ts = names["tv_tensors"], names["ts"]
    assert type(names["small"]) is tv_tensors.Image
    assert type(names["soft"]) is tv_tensors.Mask
    plain = ts.soft_crop_resize(names["mask"].as_subclass(Tensor), names["boxes"].tolist(), (16, 32), 5)
    assert names["soft"].as_subclass(Tensor).equal(plain)
    assert names["flipped_soft"].as_subclass(Tensor).equal(plain.flip(-1))


def test_torchvision_before_a_crop() -> None:
    import_or_skip("torchvision")
    page = (RECIPES / "torchvision.md").read_text("utf-8")
    first_two = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[:2]
    names: Names = {}
    exec("\n".join(first_two), names)
    check_soft_batch(names["small"], names["soft"])


def test_albumentations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")  # its import asks an index for a newer one
    import_or_skip("albumentations")
    names = run("albumentations")
    check_soft_batch(names["small"].cpu(), names["soft"].cpu())


def test_monai() -> None:
    import_or_skip("monai")
    names = run("monai")
    check_soft_batch(names["batch"]["image"], names["batch"]["label"])
    boxes = names["crop"].boxes
    assert len({box[:2] for box in boxes}) == 4
    again = names["RandSoftCropd"]("image", "label", (32, 64), 2, 5).set_random_state(0)
    for _ in range(2):
        again.randomize((4, 3, 64, 128))
    assert again.boxes == boxes


def test_segformer() -> None:
    import_or_skip("transformers")
    names = run("segformer")
    model, image, labels, ts = names["model"], names["image"], names["labels"], names["ts"]
    labels = labels.masked_fill(labels == 4, 255)
    with torch.no_grad():
        output = model(pixel_values=image, labels=labels)
    torch.testing.assert_close(ts.upsampled_cross_entropy(output.logits, labels), output.loss)
    assert names["predicted"].equal(enlarged(names["logits"], labels).argmax(1).to(torch.uint8))


# --- plain PyTorch ----------------------------------------------------------------------------------------------------


def test_mmsegmentation() -> None:
    import_or_skip("kornia")
    import_or_skip("torchmetrics")
    names = run("mmsegmentation")
    assert names["schedule"].get_last_lr() == [0.0]
    assert torch.isfinite(names["loss"])
    assert 0 < names["mean_iou"] < 1


def test_distillation() -> None:
    names = run("distillation")
    ts, mixed, soft, target = names["ts"], names["mixed"], names["soft"], names["target"]
    torch.testing.assert_close(mixed.sum(1), torch.ones(2, 16, 32), rtol=1e-5, atol=0)
    assert (soft.sum(1) == 0).any()
    assert mixed[0, :, 0].equal(target[0, :, 0])
    assert isinstance(names["few"], ts.SparseLabels)
    assert names["few"].nbytes == 14 * 2 * 16 * 32
    assert names["loss"].requires_grad


def test_multi_label() -> None:
    import_or_skip("kornia")
    names = run("multi_label")
    soft, mass, planes = names["soft"], names["mass"], names["planes"]
    assert (soft.sum(1) > mass.amax(1)).any()  # a marking on the road is both
    assert (soft <= mass).all()
    road, _, tree = mass.unbind(1)
    assert (road < tree).any()  # of what is behind the tree, nobody knows whether it is road
    known = planes[:, 0] != 255
    target, weight = (planes[:, 0] == 1).float()[:, None], known.float()[:, None]
    boxes, ts = names["augment"].boxes, names["ts"]
    torch.testing.assert_close(soft[:, :1], ts.crop_resize(target, boxes, (16, 32)))
    torch.testing.assert_close(road[:, None], ts.crop_resize(weight, boxes, (16, 32)))
    with torch.no_grad():
        logits = names["network"](names["small"])
        losses = F.binary_cross_entropy_with_logits(logits, soft / mass.clamp(min=1e-6), mass, reduction="sum")
        loss = ts.soft_binary_cross_entropy(logits, soft, mass)
    torch.testing.assert_close(loss, losses / mass.sum())
    assert names["pos_weight"].argmax() == 1
    assert names["predicted"].shape == planes.shape


def test_rare_classes() -> None:
    import_or_skip("kornia")
    names = run("rare_classes")
    soft, network, ts, images = names["soft"], names["network"], names["ts"], names["images"]
    drawn = names["augment"][0]._params["drawn_class"]
    assert (soft[torch.arange(4), drawn].sum((1, 2)) > 0).all()
    weight = names["weight"]
    assert weight[names["POLE"]] == weight.max()
    assert weight[3] == 0  # no label map has it
    with torch.no_grad():
        logits = enlarged(network(ts.resize(images, (32, 64))), names["label_maps"])
    assert names["found"].equal(logits.argmax(1).to(torch.uint8))
    probability = (logits + names["bias"][:, None, None]).softmax(1).amax(1)
    torch.testing.assert_close(names["probability"], probability, rtol=1e-4, atol=1e-6)


def test_many_classes() -> None:
    import_or_skip("kornia")
    import_or_skip("torchmetrics")
    names = run("many_classes")
    assert names["few"].shape == (2, 10_000, 32, 64)
    assert names["few"].rest.abs().max() == 0  # of factor 2
    assert 0 <= names["left_out"] < 0.1
    assert names["network"].weight.grad.isfinite().all()
    assert names["likelihood"].compute() == pytest.approx(names["loss"].item(), rel=1e-3)
