"""Every element that a kernel reads or writes is one of its tensors: no result tells of one that is not."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tritonsoft as ts

triton = pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="a GPU has compute-sanitizer for this: `bench.sanitize`"
)

NUM_CLASSES = 3


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _tensors(part)


def _addresses(tensor: Tensor) -> np.ndarray:
    """Of each element, whatever the strides."""
    offsets = np.zeros(1, np.int64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        offsets = np.add.outer(offsets, np.arange(size) * stride).ravel()
    return (tensor.data_ptr() + offsets * tensor.element_size()).astype(np.uint64)


@pytest.fixture(autouse=True)
def strangers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The accesses of launched kernels to what is no element of their tensors; there must be none."""
    from triton.runtime import interpreter

    from tritonsoft.kernels import launch

    memory, run = interpreter._interpreter, launch.Launch.run
    own = np.zeros(0, np.uint64)
    found: list[str] = []
    accesses = 0

    def watch(kind: str, pointers: Any, mask: Any) -> None:
        nonlocal accesses
        touched = np.asarray(pointers)[np.broadcast_to(np.asarray(mask, dtype=bool), np.shape(pointers))]
        accesses += touched.size
        outside = np.count_nonzero(~np.isin(touched.astype(np.uint64), own))
        if outside:
            found.append(f"{kind} of {outside} elements")

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(memory, name)

        def load(self, pointers: Any, mask: Any, *others: Any) -> Any:
            watch("load", pointers, mask)
            return memory.load(pointers, mask, *others)

        def store(self, pointers: Any, value: Any, mask: Any) -> Any:
            watch("store", pointers, mask)
            return memory.store(pointers, value, mask)

    def watched_run(self: launch.Launch, device: torch.device) -> Any:
        nonlocal own
        own = np.unique(np.concatenate([_addresses(tensor) for tensor in _tensors(tuple(self.arguments.values()))]))
        return run(self, device)

    monkeypatch.setattr(interpreter, "_interpreter", Watched())
    monkeypatch.setattr(launch.Launch, "run", watched_run)
    yield found
    assert accesses > 0
    assert not found


# Both ways round: what lies behind the last output of one lies before the first of the other.
BOXES = ([0.0, 0.0, 8.0, 8.0], [8.0, 8.0, 0.0, 0.0], [-3.0, -2.0, 5.5, 25.0], [30.0, 30.0, 40.0, 40.0])


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("size", [(2, 2), (9, 3)])
def test_an_image_and_its_gradient(box, size):
    image = torch.rand(1, 1, 20, 8, requires_grad=True)
    out = ts.crop_resize(image, torch.tensor([box]), size, backend="triton")
    out.backward(torch.rand_like(out))


@pytest.mark.parametrize("box", BOXES[1:3])
def test_labels(box):
    labels = torch.randint(NUM_CLASSES, (1, 12, 9), dtype=torch.uint8)
    boxes = torch.tensor([box])
    ts.soft_crop_resize(labels, boxes, (2, 5), NUM_CLASSES, dtype=torch.float16, backend="triton")
    ts.soft_crop_resize(labels, boxes, (2, 5), NUM_CLASSES, top_k=2, backend="triton")
    logits = torch.randn(1, NUM_CLASSES, 2, 5, requires_grad=True)
    ts.area_cross_entropy(logits, labels, boxes, backend="triton").backward()


@pytest.mark.parametrize("box", BOXES)
def test_areas_of_classes(box):
    labels = torch.randint(NUM_CLASSES, (1, 20, 9), dtype=torch.uint8)
    boxes = torch.tensor([[box, [0.5, 1.0, 4.5, 2.0]]])
    ts.class_areas(labels, boxes, NUM_CLASSES, backend="triton")
    ts.class_areas(labels.mT, boxes, NUM_CLASSES, backend="triton")


@pytest.mark.parametrize("channels_last", [False, True])
def test_samples_that_are_mixed(channels_last):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = torch.rand(2, 3, 5, 9).contiguous(memory_format=layout)
    partners, weight = torch.tensor([1, 0]), torch.tensor([0.25, 0.75])
    ts.cut_mix(images, partners, torch.tensor([[-5, -5, 99, 3], [3, 2, 4, 99]]), backend="triton")
    ts.mix_up(images, partners, weight, backend="triton")
    labels = torch.tensor([0, 255, -(2**40), 2**40, NUM_CLASSES - 1]).repeat(18).view(2, 5, 9)
    chosen = torch.ones(2, NUM_CLASSES, dtype=torch.bool)
    for some in (labels, labels.mT.contiguous().mT):
        ts.class_mix(images, partners, some, chosen, backend="triton")
    ts.mix_up_labels(torch.randint(NUM_CLASSES, (2, 5, 9)), partners, weight, NUM_CLASSES, backend="triton")


def test_labels_whose_ids_are_looked_up():
    labels = torch.tensor([-(2**31), -1, 0, 4, 5, 2**31 - 1], dtype=torch.int32).view(1, 2, 3)
    for table in ({0: 1, 4: 2}, {0: 1, 4: 2, 10**6: 3}, torch.arange(5)):
        ts.remap_labels(labels, table, backend="triton")
        ts.remap_labels(labels.mT, table, backend="triton")


@pytest.mark.parametrize("loss", [ts.soft_cross_entropy, ts.soft_dice_loss])
def test_losses_of_soft_labels(loss):
    logits = torch.randn(1, NUM_CLASSES, 2, 5, requires_grad=True)
    loss(logits, torch.full((1, NUM_CLASSES, 2, 5), 0.3), backend="triton").backward()
