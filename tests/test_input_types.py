"""The types that people have: label maps of any integers, bool masks, boxes of integers and lists, sizes of NumPy's."""

from fractions import Fraction

import kornia.augmentation as K
import numpy as np
import pytest
import torch

import tritonsoft as ts
import tritonsoft.augmentation as TA
from tests.cases import RefusesUnsigned
from tritonsoft import metrics
from tritonsoft._validation import raise_label_values
from tritonsoft.backends.values import bad_labels
from tritonsoft.full_resolution import confusion_matrix

IMAGE = torch.rand(2, 3, 8, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.randint(2, (2, 8, 9), generator=torch.Generator().manual_seed(1))
LOGITS = torch.randn(2, 40, 4, 5, generator=torch.Generator().manual_seed(2))
MATRIX = torch.tensor([[[2.0, 0.3, 1.0], [0.1, 3.0, 0.0], [0.0, 0.0, 1.0]]]).expand(2, 3, 3)
# What is no class, of types whose largest label would be one if it were taken for another type.
IGNORED = {torch.bool: 255, torch.int8: -1, torch.uint16: 2**16 - 1, torch.uint32: 2**32 - 1}
CALLS = {
    "counted": lambda labels, **options: ts.soft_resize(labels, (4, 3), 40, **options),
    "in boxes": lambda labels, **options: ts.soft_crop_resize(labels, [1.5, 0, 9, 7.25], (3, 4), 40, **options),
    "largest": lambda labels, **options: ts.soft_resize(labels, (3, 4), 40, top_k=2, **options).to_dense(),
    "pyramid": lambda labels, **options: ts.soft_pyramid(labels[:, :, :8], 40, (2, 4), **options)[1],
    "pair": lambda labels, **options: ts.crop_resize_pair(IMAGE.float(), labels, None, (3, 4), 40, **options)[1],
    "warped": lambda labels, **options: ts.soft_warp(labels, MATRIX, (3, 4), 40, **options),
    "loss": lambda labels, **options: ts.area_cross_entropy(LOGITS, labels, **options),
    "loss of a warp": lambda labels, **options: ts.area_cross_entropy(
        LOGITS, labels, transform=MATRIX, filter="bilinear", **options
    ),
    "loss at full size": lambda labels, **options: ts.upsampled_cross_entropy(LOGITS, labels, **options),
    "dice at full size": lambda labels, **options: ts.upsampled_dice_loss(LOGITS, labels, **options),
    "counts": lambda labels, **options: confusion_matrix(LOGITS, labels, **options),
}
# One call for each way to load a label, and the types that need something else than others.
IN_THE_INTERPRETER = {
    **dict.fromkeys(("counted", "in boxes"), tuple(IGNORED)),
    **dict.fromkeys(("warped", "loss at full size"), (torch.uint32,)),
}
# Numba compiles these anew for each type, which takes seconds.
COMPILED_FOR = {
    **dict.fromkeys(("counted", "in boxes", "pyramid", "pair"), torch.uint32),
    "largest": torch.uint16,
    "warped": torch.bool,
    "loss": torch.int8,
    "loss of a warp": torch.bool,
}


@pytest.mark.parametrize("dtype", IGNORED, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_label_maps(target, name, dtype):
    device, backend = target
    if device != "cpu":
        pytest.skip("the inputs are on the CPU")
    if backend == "triton" and dtype not in IN_THE_INTERPRETER.get(name, ()):
        pytest.skip("the interpreter is slow, and other types are loaded in the same way")
    if backend == "numba" and COMPILED_FOR.get(name, dtype) != dtype:
        pytest.skip("compiled for another type, which is enough for loops that are the same")
    labels = LABELS if dtype == torch.bool else 38 * LABELS
    if dtype != torch.bool:
        labels = labels.masked_fill(torch.arange(9) % 4 == 1, IGNORED[dtype])
    expected = CALLS[name](labels, ignore_index=IGNORED[dtype], backend="reference")
    actual = CALLS[name](labels.to(dtype), ignore_index=IGNORED[dtype], backend=backend)
    assert actual.dtype == expected.dtype
    assert torch.allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "bad"), [(torch.int8, 40), (torch.uint16, 2**16 - 2), (torch.uint32, 2**32 - 2)])
@pytest.mark.parametrize("name", ["counted", "loss at full size"])
def test_labels_out_of_range(target, name, dtype, bad):
    device, backend = target
    if device != "cpu":
        pytest.skip("the inputs are on the CPU")
    if backend == "numba" and COMPILED_FOR.get(name, dtype) != dtype:
        pytest.skip("compiled for another type, which is enough for loops that are the same")
    labels = LABELS.clone()
    labels[1, 7, 8] = bad
    with pytest.raises(ValueError, match=rf"got 1 other values from {bad} to {bad}"):
        CALLS[name](labels.to(dtype), ignore_index=IGNORED[dtype], backend=backend)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32])
def test_nothing_computes_with_unsigned_integers(dtype):
    """PyTorch 2.11 cannot."""
    labels = torch.tensor([0, 4, 5, 40_000]).to(dtype)
    with RefusesUnsigned():
        assert bad_labels(labels, 5, 40_000).tolist() == [False, False, True, False]
        with pytest.raises(ValueError, match="got 1 other values from 5 to 5"):
            raise_label_values(labels, 5, 40_000)


# --- boxes and sizes --------------------------------------------------------------------------------------------------

ROWS = [[0, 0, 9, 8], [7, 1, 2, 6]]
LARGEST = 2**24


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64], ids=str
)
def test_integer_boxes(target, dtype):
    device, backend = target
    image = IMAGE.to(device)
    floats = torch.tensor(ROWS, dtype=torch.float64, device=device)
    expected = ts.crop_resize(image, floats, (3, 4), backend=backend)
    assert torch.equal(ts.crop_resize(image, floats.to(dtype), (3, 4), backend=backend), expected)
    assert torch.equal(ts.box_to_matrix(floats.to(dtype), (3, 4)), ts.box_to_matrix(floats, (3, 4)))


@pytest.mark.parametrize("make", [list, tuple, lambda rows: [np.asarray(row).tolist() for row in rows]])
def test_boxes_of_numbers(target, make):
    device, backend = target
    image, labels = IMAGE.to(device), LABELS.to(device)
    rows = [[0.25, 0, np.float32(9), np.int64(8)], [7, True + 0, Fraction(2), 6.5]]
    tensor = torch.tensor([[float(number) for number in row] for row in rows], dtype=torch.float64, device=device)
    rows = make(map(make, rows)) if make in (list, tuple) else tensor.tolist()
    for boxes, wanted in ((rows, tensor), (rows[0], tensor[:1].expand(2, 4))):
        small, soft = ts.crop_resize_pair(image, labels, boxes, (3, 4), 2, backend=backend)
        want_small, want_soft = ts.crop_resize_pair(image, labels, wanted, (3, 4), 2, backend=backend)
        assert torch.equal(small, want_small)
        assert torch.equal(soft, want_soft)


def test_boxes_of_numbers_for_losses_and_decoding():
    tensor = torch.tensor(ROWS, dtype=torch.float64)
    for call in (
        lambda boxes: ts.area_cross_entropy(LOGITS, LABELS, boxes, backend="reference"),
        lambda boxes: ts.upsampled_cross_entropy(LOGITS, LABELS, boxes, backend="reference"),
        lambda boxes: ts.upsampled_dice_loss(LOGITS, LABELS, boxes, backend="reference"),
        lambda boxes: ts.decode(LOGITS, (8, 9), boxes=boxes, backend="reference"),
    ):
        assert torch.equal(call(ROWS), call(tensor))
    assert ts.crop_resize(IMAGE[:0], [], (3, 4)).shape == ts.crop_resize(IMAGE[:0], ROWS[0], (3, 4)).shape


def test_boxes_of_numbers_in_a_graph():
    def call(labels):
        return ts.soft_crop_resize(labels, [0.5, 0, 9, 7], (3, 4), 2)

    assert torch.equal(torch.compile(call, fullgraph=True, backend="aot_eager")(LABELS), call(LABELS))
    with torch.no_grad():  # no device, no values, no copy to wait for
        meta = ts.soft_crop_resize(LABELS.to("meta"), [0.5, 0, 9, 7], (3, 4), 2, backend="reference", validate=False)
    assert meta.shape == (2, 2, 3, 4)


def test_integers_are_exact_up_to_the_largest_coordinate():
    image = torch.rand(1, 1, 2, 2)
    boxes = torch.tensor([[0, 0, LARGEST, 2]])
    assert torch.equal(ts.crop_resize(image, boxes, (1, 1)), ts.crop_resize(image, boxes.double(), (1, 1)))
    for beyond in (torch.tensor([[0, 0, LARGEST + 1, 2]]), [0, 0, LARGEST + 1, 2], [0, 0, 10**400, 2]):
        with pytest.raises(ValueError, match=r"boxes must (stay within|be finite)"):
            ts.crop_resize(image, beyond, (1, 1))


@pytest.mark.parametrize(
    ("boxes", "error", "message"),
    [
        ([0, 0, 9], TypeError, r"boxes must be four numbers .*\[0, 0, 9\]"),
        ([[0, 0, 9, 8], [0, 0, 9]], TypeError, "boxes must be four numbers"),
        ([0, 0, 9, "8"], TypeError, "boxes must be four numbers"),
        ([0, 0, 9, True], TypeError, "boxes must be four numbers"),
        ([[0, 0, 9, 8]], ValueError, "boxes must have four numbers for each of 2 samples, got 1"),
        ([], ValueError, "boxes must have four numbers for each of 2 samples, got 0"),
        ([0, 0, 0, 8], ValueError, "boxes must have a width and a height other than zero"),
        ([0, 0, float("nan"), 8], ValueError, "boxes must be finite"),
        (np.zeros((2, 4)), TypeError, "boxes must be None, a tensor or a list of numbers, got ndarray"),
        (torch.ones(2, 4, dtype=torch.bool), TypeError, "boxes must be floating point or integers .* got bool"),
        (torch.ones(2, 4, dtype=torch.uint64), TypeError, "boxes must be floating point or integers .* got uint64"),
        (torch.ones(2, 4, dtype=torch.complex64), TypeError, "boxes must be floating point or integers"),
    ],
)
def test_bad_boxes(boxes, error, message):
    with pytest.raises(error, match=message):
        ts.crop_resize(IMAGE, boxes, (3, 4))


def test_sizes_of_numpy(target):
    device, backend = target
    image, labels = IMAGE.to(device), LABELS.to(device)
    size = (np.int64(3), np.uint8(4))
    assert torch.equal(ts.resize(image, size, backend=backend), ts.resize(image, (3, 4), backend=backend))
    soft = ts.soft_resize(labels, list(size), 2, backend=backend)
    assert torch.equal(soft, ts.soft_resize(labels, (3, 4), 2, backend=backend))
    fine = ts.soft_pyramid(labels[:, :, :8], 2, np.array([2, 4]).tolist(), backend=backend)[0]
    assert torch.equal(fine, ts.soft_pyramid(labels[:, :, :8], 2, [np.int32(2), np.int64(4)], backend=backend)[0])


@pytest.mark.parametrize("bad", [np.float64(3), np.bool_(True), 3.0, True])
def test_sizes_that_are_none(bad):
    with pytest.raises(TypeError, match="size must be two ints"):
        ts.resize(IMAGE, (bad, 4))


def test_sizes_of_warps_and_decoding():
    size = (np.int64(3), np.int32(4))
    image = IMAGE.float()
    for call in (
        lambda size: ts.warp(image, MATRIX, size, backend="reference"),
        lambda size: ts.soft_warp(LABELS, MATRIX, size, 2, backend="reference"),
        lambda size: ts.decode(LOGITS, size, backend="reference"),
    ):
        assert torch.equal(call(size), call((3, 4)))
    assert torch.equal(ts.box_to_matrix(torch.tensor(ROWS), size), ts.box_to_matrix(torch.tensor(ROWS), (3, 4)))


# --- numbers of NumPy -------------------------------------------------------------------------------------------------

NUMBERS = {
    "counted": lambda n, k, ignored: ts.soft_resize(LABELS, (3, 4), n, ignore_index=ignored),
    "largest": lambda n, k, ignored: ts.soft_resize(LABELS, (3, 4), n, ignore_index=ignored, top_k=k).index,
    "pyramid": lambda n, k, ignored: ts.soft_pyramid(LABELS[:, :, :8], n, (k,), ignore_index=ignored)[0],
    "pair": lambda n, k, ignored: ts.crop_resize_pair(
        IMAGE, LABELS, [-1, 0, 9, 8], (3, 4), n, ignore_index=ignored, fill=k
    )[0],
    "warped": lambda n, k, ignored: (
        ts.soft_warp(LABELS, MATRIX, (3, 4), n, ignore_index=ignored, top_k=k, backend="reference").mass
    ),
    "loss": lambda n, k, ignored: ts.area_cross_entropy(LOGITS, LABELS, ignore_index=ignored, backend="reference"),
    "counts": lambda n, k, ignored: confusion_matrix(LOGITS, LABELS, ignore_index=ignored, backend="reference"),
    "remapped": lambda n, k, ignored: ts.remap_labels(LABELS, {0: k}, ignore_index=ignored),
    "metric": lambda n, k, ignored: metrics.SoftIoU(n).mass,
    "module": lambda n, k, ignored: TA.AugmentationSequential(
        TA.Resize((3, 4), num_classes=n, ignore_index=ignored), data_keys=["image", "mask"]
    )(IMAGE.float(), LABELS)[1],
}


@pytest.mark.parametrize("name", NUMBERS)
def test_classes_and_counts_of_numpy(name):
    expected = NUMBERS[name](40, 2, 1)
    for kind in (np.int64, np.uint8):
        assert torch.equal(NUMBERS[name](kind(40), kind(2), kind(1)), expected)


# Of the 8 x 9 image, where one number is given: the short side becomes 4, or both.
SQUARE = {TA.Resize: (4, 4), TA.CenterCrop: (4, 4)}


@pytest.mark.parametrize("module", [TA.Resize, TA.RandomCrop, TA.RandomResizedCrop, TA.CenterCrop, TA.RandomScaleCrop])
def test_sizes_of_numpy_for_modules(module):
    for size in ((np.int64(4), np.uint8(5)), *([np.int64(4)] if module in SQUARE else [])):
        pipeline = TA.AugmentationSequential(module(size), data_keys=["image", "mask"])
        image, mask = pipeline(IMAGE.float(), LABELS)
        assert image.shape[2:] == mask.shape[-2:] == ((4, 5) if isinstance(size, tuple) else SQUARE[module])


def test_few_classes_know_theirs_as_an_int():
    sparse = ts.SparseLabels.from_dense(torch.rand(1, 3, 2, 2) / 3, np.int64(2))
    assert type(sparse.num_classes) is int
    assert type(ts.SparseLabels(sparse.index, sparse.mass, sparse.rest, np.int16(3)).num_classes) is int
    assert type(ts.soft_resize(LABELS, (3, 4), np.int64(40), top_k=2).num_classes) is int


@pytest.mark.parametrize("bad", [np.float64(3), np.bool_(True), True, torch.tensor(3)], ids=repr)
def test_classes_and_counts_that_are_none(bad):
    with pytest.raises(TypeError, match="num_classes must be an int"):
        ts.soft_resize(LABELS, (3, 4), bad)
    with pytest.raises(TypeError, match="ignore_index must be an int"):
        ts.soft_resize(LABELS, (3, 4), 40, ignore_index=bad)
    with pytest.raises(TypeError, match="top_k must be an int"):
        ts.soft_resize(LABELS, (3, 4), 40, top_k=bad)
    with pytest.raises(TypeError, match="num_classes must be an int"):
        TA.Resize((3, 4), num_classes=bad)
    with pytest.raises(ValueError, match="num_classes must be an int"):
        metrics.SoftIoU(bad)


# --- tensors that carry notes along -----------------------------------------------------------------------------------


class _Noted(torch.Tensor):
    """As torchvision's `tv_tensors` where they stay what they are: two kinds do not mix."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if not all(issubclass(cls, kind) for kind in types):
            return NotImplemented
        return super().__torch_function__(func, types, args, kwargs or {})


class _Image(_Noted):
    pass


class _Mask(_Noted):
    pass


class _Boxes(_Noted):
    pass


SOFT = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(3)) / 3
SCORES = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(4))
REFERENCE = {"backend": "reference"}


def _measured(metric, *batch):
    metric.update(*batch)
    value = metric.compute()
    return list(value.values()) if isinstance(value, dict) else value


def _augmented(*members, keys=("image", "mask"), **options):
    def call(image, mask, boxes, soft, scores):
        torch.manual_seed(0)
        data = {"image": image, "mask": mask, "bbox_xyxy": boxes[:1, None].expand(2, 1, 4)}
        container = TA.AugmentationSequential(*members, data_keys=list(keys), **options)
        return container(*(data[key] for key in keys))

    return call


def _and_back(image, mask, boxes, soft, scores):
    container = TA.AugmentationSequential(TA.RandomHorizontalFlip(p=1.0), data_keys=["image", "mask"])
    return container.inverse(*container(image, mask))


CROP = TA.RandomResizedCrop((4, 4), num_classes=2)
NOTED = {
    "crop": lambda image, mask, boxes, soft, scores: ts.crop_resize(image, boxes, (3, 4), **REFERENCE),
    "pair": lambda image, mask, boxes, soft, scores: ts.crop_resize_pair(image, mask, boxes, (3, 4), 2, **REFERENCE),
    "pair of channels": lambda image, mask, boxes, soft, scores: ts.crop_resize_pair(
        image, mask[:, None], boxes, (3, 4), 2, **REFERENCE
    ),
    "largest": lambda image, mask, boxes, soft, scores: ts.soft_resize(mask, (3, 4), 2, top_k=1, **REFERENCE).mass,
    "one-hot": lambda image, mask, boxes, soft, scores: ts.to_soft(mask, 2, **REFERENCE),
    "pyramid": lambda image, mask, boxes, soft, scores: ts.soft_pyramid(mask[:, :, :8], 2, (2, 4), **REFERENCE),
    "distributions": lambda image, mask, boxes, soft, scores: ts.normalize(soft),
    "warp": lambda image, mask, boxes, soft, scores: ts.warp_pair(
        image, mask, MATRIX.as_subclass(_Boxes), (3, 4), 2, **REFERENCE
    ),
    "matrix": lambda image, mask, boxes, soft, scores: ts.box_to_matrix(boxes, (3, 4)),
    "mixed": lambda image, mask, boxes, soft, scores: ts.class_mix(
        image,
        torch.zeros(len(image), dtype=torch.int64).as_subclass(_Boxes),
        mask,
        torch.ones(len(image), 2, dtype=torch.bool).as_subclass(_Boxes),
        **REFERENCE,
    ),
    "blended": lambda image, mask, boxes, soft, scores: ts.mix_up(
        image.float(), torch.arange(len(image)), torch.ones(len(image)).as_subclass(_Boxes), **REFERENCE
    ),
    "remapped": lambda image, mask, boxes, soft, scores: ts.remap_labels(mask, {0: 1, 1: 0}, **REFERENCE),
    "remapped by a tensor": lambda image, mask, boxes, soft, scores: ts.remap_labels(
        mask, torch.tensor([1, 0]).as_subclass(_Boxes), **REFERENCE
    ),
    "soft loss": lambda image, mask, boxes, soft, scores: ts.soft_cross_entropy(
        scores, soft, weight=torch.ones(3).as_subclass(_Boxes), **REFERENCE
    ),
    "dice": lambda image, mask, boxes, soft, scores: ts.soft_dice_loss(scores, soft, **REFERENCE),
    "jaccard": lambda image, mask, boxes, soft, scores: ts.soft_jaccard_loss(scores, soft, **REFERENCE),
    "area loss": lambda image, mask, boxes, soft, scores: ts.area_cross_entropy(scores, mask, boxes, **REFERENCE),
    "loss at full size": lambda image, mask, boxes, soft, scores: ts.upsampled_cross_entropy(
        scores, mask, boxes, **REFERENCE
    ),
    "dice at full size": lambda image, mask, boxes, soft, scores: ts.upsampled_dice_loss(
        scores, mask, boxes, **REFERENCE
    ),
    "decoded": lambda image, mask, boxes, soft, scores: ts.decode(scores, (8, 9), boxes=boxes, **REFERENCE),
    "few classes": lambda image, mask, boxes, soft, scores: ts.SparseLabels.from_dense(soft, 2).to_dense(),
    "IoU": lambda image, mask, boxes, soft, scores: _measured(metrics.SoftIoU(3), soft, soft),
    "area": lambda image, mask, boxes, soft, scores: _measured(metrics.AreaError(3), soft, soft),
    "likelihood": lambda image, mask, boxes, soft, scores: _measured(metrics.SoftNegativeLogLikelihood(), scores, soft),
    "calibration": lambda image, mask, boxes, soft, scores: _measured(metrics.SoftCalibrationError(), soft, soft),
    "entropy": lambda image, mask, boxes, soft, scores: _measured(metrics.LabelEntropy(), soft),
    "retention": lambda image, mask, boxes, soft, scores: _measured(metrics.LabelRetention(3), soft, mask),
    "IoU at full size": lambda image, mask, boxes, soft, scores: _measured(metrics.MeanIoU(3), scores, mask),
    "container": _augmented(TA.RandomHorizontalFlip(p=1.0), CROP),
    "container of hard masks": _augmented(TA.RandomHorizontalFlip(p=1.0)),
    "container with boxes": _augmented(CROP, keys=("image", "mask", "bbox_xyxy")),
    "container that warps": _augmented(TA.RandomRotation(20.0, p=1.0, num_classes=2), CROP),
    "container of kornia's": _augmented(K.RandomGaussianNoise(p=1.0), CROP, K.RandomInvert(p=1.0)),
    "container that does nothing": _augmented(TA.RandomHorizontalFlip(p=0.0)),
    "container and back": _and_back,
}


@pytest.mark.parametrize("name", NOTED)
def test_tensors_that_carry_notes_are_taken_as_their_data(name):
    """And plain tensors come back, as torchvision's own type of result is."""
    plain = IMAGE.float(), LABELS, torch.tensor(ROWS).float(), SOFT, SCORES
    kinds = _Image, _Mask, _Boxes, _Mask, _Image
    noted = [tensor.as_subclass(kind) for tensor, kind in zip(plain, kinds, strict=True)]
    expected, actual = NOTED[name](*plain), NOTED[name](*noted)
    for one, other in zip(*([x] if isinstance(x, torch.Tensor) else x for x in (actual, expected)), strict=True):
        assert type(one) is torch.Tensor
        assert torch.equal(one, other)


def test_lists_of_masks_that_carry_notes():
    pipeline = TA.AugmentationSequential(TA.Resize((4, 3), num_classes=2), data_keys=["image", "mask"])
    masks = [LABELS[:1], LABELS[1:]]
    _, expected = pipeline(IMAGE.float(), masks)
    _, actual = pipeline(IMAGE.float(), [mask.as_subclass(_Mask) for mask in masks])
    for one, other in zip(actual, expected, strict=True):
        assert type(one) is torch.Tensor
        assert torch.equal(one, other)
