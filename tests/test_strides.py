"""The same numbers however arguments lie in memory: every tensor of every public function, on every backend."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import tritonsoft as ts
from tests.cases import assert_close

SIZE, NUM_CLASSES = (3, 4), 5


def _among_others(tensor: Tensor) -> Tensor:
    """A view whose neighbours in memory, along each axis, are numbers that no result may show."""
    poison = float("nan") if tensor.is_floating_point() else 77
    memory = torch.full([2 * size + 3 for size in tensor.shape], poison, dtype=tensor.dtype, device=tensor.device)
    view = memory[tuple(slice(1, 1 + 2 * size, 2) for size in tensor.shape)]
    return view.copy_(tensor.detach())


def _reversed_axes(tensor: Tensor) -> Tensor:
    axes = list(reversed(range(tensor.ndim)))
    return _among_others(tensor.permute(axes)).permute(axes)


def _expanded(tensor: Tensor, axis: int) -> Tensor:
    """It holds other values."""
    return _among_others(tensor.narrow(axis, 0, 1)).expand(tensor.shape)


def _views(tensors: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Views of the same shapes."""
    yield "among others", {name: _among_others(tensor) for name, tensor in tensors.items()}
    yield "reversed axes", {name: _reversed_axes(tensor) for name, tensor in tensors.items()}
    for axis in range(4):
        expandable = {
            name: tensor for name, tensor in tensors.items() if axis < (1 if name == "boxes" else tensor.ndim)
        }
        if expandable:
            views = {name: _expanded(tensor, axis) for name, tensor in expandable.items()}
            yield f"expanded along {axis}", {**tensors, **views}


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def _tensors() -> dict[str, Tensor]:
    soft = _random(2, NUM_CLASSES, *SIZE, seed=1) / NUM_CLASSES
    sparse = ts.SparseLabels.from_dense(soft, 3, torch.float32)
    labels = torch.randint(NUM_CLASSES, (2, 6, 8), generator=torch.Generator().manual_seed(2))
    labels[:, 1:3, 2:5] = 255
    return {
        "image": _random(2, 3, 6, 8, seed=3),
        "labels": labels.to(torch.uint8),
        "table": torch.tensor([4, 3, 0, 1, 2]),
        "boxes": torch.tensor([[0.5, 0.0, 7.0, 5.5], [8.0, 1.0, 2.0, 6.0]]),
        "logits": 4 * _random(2, NUM_CLASSES, *SIZE, seed=4),
        "soft": soft,
        "weight": torch.tensor([1.0, 0.5, 3.0, 0.0, 2.0]),
        "index": sparse.index,
        "mass": sparse.mass,
        "rest": sparse.rest,
        "grad_of_image": _random(2, 3, *SIZE, seed=5),
        "grad_of_pixels": _random(2, *SIZE, seed=6),
        "grad_of_classes": _random(2, NUM_CLASSES, seed=7),
        "grad_of_labels": _random(2, 6, 8, seed=8),
        "grad_of_each": _random(2, NUM_CLASSES, *SIZE, seed=9),
        "known": 0.5 + _random(2, NUM_CLASSES, *SIZE, seed=10) / 2,
        "planes": torch.randint(2, (2, NUM_CLASSES, 6, 8), generator=torch.Generator().manual_seed(11)),
    }


def _with_gradient(
    function: Callable[..., Tensor], source: Tensor, *arguments: Any, grad: Tensor, **options: Any
) -> list[Tensor]:
    source = source.detach().requires_grad_()
    result = function(source, *arguments, **options)
    return [result.detach(), *torch.autograd.grad(result, source, grad)]


def _fields(sparse: ts.SparseLabels) -> list[Tensor]:
    return [sparse.index, sparse.mass, sparse.rest, sparse.to_dense()]


def _crop_resize(backend, image, boxes, grad_of_image):
    return _with_gradient(ts.crop_resize, image, boxes, SIZE, grad=grad_of_image, backend=backend)


def _pair(backend, image, labels, boxes):
    return list(ts.crop_resize_pair(image, labels, boxes, SIZE, NUM_CLASSES, backend=backend))


def _soft_crop_resize(backend, labels, boxes):
    return [ts.soft_crop_resize(labels, boxes, SIZE, NUM_CLASSES, backend=backend)]


def _soft_resize(backend, labels):
    """By the way of integer factors."""
    return [
        ts.soft_resize(labels, SIZE, NUM_CLASSES, backend=backend),
        *_fields(ts.soft_resize(labels, SIZE, NUM_CLASSES, top_k=2, backend=backend)),
        *ts.soft_pyramid(labels, NUM_CLASSES, (1, 2), backend=backend),
        ts.to_soft(labels, NUM_CLASSES, backend=backend),
    ]


def _class_areas(backend, labels, boxes):
    several = torch.stack([boxes, boxes * 0.75], dim=1)
    return [
        ts.class_areas(labels, boxes, NUM_CLASSES, backend=backend),
        ts.class_areas(labels, several.mT.contiguous().mT, NUM_CLASSES, backend=backend),
    ]


def _mixing(backend, image, labels, boxes, weight):
    partners = torch.arange(len(image), device=image.device).flip(0)
    chosen = (weight > weight.mean()).expand(len(image), len(weight))
    share = boxes[:, 0].abs() % 1
    return [
        ts.cut_mix(image, partners, boxes.long(), backend=backend),
        ts.class_mix(image, partners, labels, chosen, backend=backend),
        ts.mix_up(image, partners, share, backend=backend),
        ts.mix_up_labels(labels, partners, share, NUM_CLASSES, backend=backend),
    ]


def _remap(backend, labels, table):
    return [
        ts.remap_labels(labels, table, backend=backend),
        ts.remap_labels(labels, {0: 3, 2: 1, 10**6: 0}, backend=backend),
    ]


def _top_k(backend, labels, boxes):
    return _fields(ts.soft_crop_resize(labels, boxes, SIZE, NUM_CLASSES, top_k=2, backend=backend))


def _soft_labels(backend, soft):
    return [ts.normalize(soft), *_fields(ts.SparseLabels.from_dense(soft, 3))]


def _cross_entropy(backend, logits, soft, weight, grad_of_pixels):
    options = {"weight": weight, "reduction": "none", "grad": grad_of_pixels, "backend": backend}
    return _with_gradient(ts.soft_cross_entropy, logits, soft, **options)


def _sparse_cross_entropy(backend, logits, index, mass, rest, weight, grad_of_pixels):
    sparse = ts.SparseLabels(index, mass, rest, NUM_CLASSES)
    return [sparse.to_dense(), *_cross_entropy(backend, logits, sparse, weight, grad_of_pixels)]


def _smoothed_cross_entropy(backend, logits, soft, weight, grad_of_pixels):
    options = {"weight": weight, "label_smoothing": 0.1, "reduction": "none", "grad": grad_of_pixels}
    return _with_gradient(ts.soft_cross_entropy, logits, soft, backend=backend, **options)


def _smoothed_area_cross_entropy(backend, logits, labels, boxes, weight, grad_of_pixels):
    options = {"weight": weight, "label_smoothing": 0.1, "reduction": "none", "grad": grad_of_pixels}
    return _with_gradient(ts.area_cross_entropy, logits, labels, boxes, backend=backend, **options)


def _binary_cross_entropy(backend, logits, soft, known, weight, grad_of_each):
    options = {"weight": weight, "pos_weight": weight, "reduction": "none", "grad": grad_of_each}
    return _with_gradient(ts.soft_binary_cross_entropy, logits, soft, known, backend=backend, **options)


def _planes(backend, planes, boxes):
    return list(ts.soft_planes(planes, boxes, SIZE, backend=backend))


def _area_cross_entropy(backend, logits, labels, boxes, weight, grad_of_pixels):
    options = {"weight": weight, "reduction": "none", "grad": grad_of_pixels, "backend": backend}
    return _with_gradient(ts.area_cross_entropy, logits, labels, boxes, **options)


def _whole_area_cross_entropy(backend, logits, labels, weight, grad_of_pixels):
    """By the way of integer factors."""
    return _area_cross_entropy(backend, logits, labels, None, weight, grad_of_pixels)


def _dice(backend, logits, soft, weight, grad_of_classes):
    options = {"weight": weight, "classes": "all", "per_sample": True, "reduction": "none", "grad": grad_of_classes}
    return _with_gradient(ts.soft_dice_loss, logits, soft, **options, backend=backend)


def _sparse_jaccard(backend, logits, index, mass, rest, weight, grad_of_classes):
    sparse = ts.SparseLabels(index, mass, rest, NUM_CLASSES)
    options = {"weight": weight, "classes": "all", "per_sample": True, "reduction": "none", "grad": grad_of_classes}
    return _with_gradient(ts.soft_jaccard_loss, logits, sparse, **options, backend=backend)


def _upsampled_cross_entropy(backend, logits, labels, boxes, weight, grad_of_labels):
    options = {"weight": weight, "label_smoothing": 0.1, "reduction": "none", "grad": grad_of_labels}
    return _with_gradient(ts.upsampled_cross_entropy, logits, labels, boxes, **options, backend=backend)


def _upsampled_dice(backend, logits, labels, boxes, weight, grad_of_classes):
    options = {"weight": weight, "classes": "all", "per_sample": True, "reduction": "none", "grad": grad_of_classes}
    return _with_gradient(ts.upsampled_dice_loss, logits, labels, boxes, **options, backend=backend)


def _decode(backend, logits, boxes, weight):
    """The weight serves as a bias."""
    return list(ts.decode(logits, (6, 8), boxes=boxes, scores=True, bias=weight, backend=backend))


CALLS = [
    _crop_resize,
    _pair,
    _soft_crop_resize,
    _soft_resize,
    _class_areas,
    _mixing,
    _remap,
    _top_k,
    _soft_labels,
    _cross_entropy,
    _sparse_cross_entropy,
    _smoothed_cross_entropy,
    _smoothed_area_cross_entropy,
    _binary_cross_entropy,
    _planes,
    _area_cross_entropy,
    _whole_area_cross_entropy,
    _dice,
    _sparse_jaccard,
    _upsampled_cross_entropy,
    _upsampled_dice,
    _decode,
]
SLOW = (_upsampled_dice, _smoothed_cross_entropy, _smoothed_area_cross_entropy, _planes)
LOSSES = [call for call in CALLS if any(name in call.__name__ for name in ("cross_entropy", "dice", "jaccard"))]


def _arguments(call: Callable[..., list[Tensor]], device: str) -> dict[str, Tensor]:
    names = call.__code__.co_varnames[1 : call.__code__.co_argcount]
    tensors = _tensors()
    return {name: tensors[name].to(device) for name in names}


def _assert_same(actual: list[Tensor], expected: list[Tensor], what: str) -> None:
    for number, (first, second) in enumerate(zip(actual, expected, strict=True)):
        assert_close(first, second, 1e-5, f"{what}, result {number}")


@pytest.mark.parametrize("call", CALLS)
def test_of_arguments(target, call):
    if target == ("cpu", "triton") and call in SLOW:
        pytest.skip("the interpreter takes half a minute, for the loads that the kernels of other calls have too")
    device, backend = target
    arguments = _arguments(call, device)
    expected = call(backend, **arguments)
    # The interpreter takes a second for a call: there all arguments at once.
    groups = [list(arguments)] if target == ("cpu", "triton") else [[name] for name in arguments]
    for group in groups:
        for layout, views in _views({name: arguments[name] for name in group}):
            wanted = expected
            if "expanded" in layout:
                same = {name: view.clone(memory_format=torch.contiguous_format) for name, view in views.items()}
                wanted = call(backend, **{**arguments, **same})
            _assert_same(call(backend, **{**arguments, **views}), wanted, f"{group} {layout}")


@pytest.mark.parametrize("layout", [_among_others, _reversed_axes])
@pytest.mark.parametrize("call", [_crop_resize, *LOSSES])
def test_of_what_is_kept_for_the_gradient(target, call, layout):
    device, backend = target
    arguments = _arguments(call, device)
    expected = call(backend, **arguments)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, layout):
        actual = call(backend, **arguments)
    _assert_same(actual, expected, "gradient")
