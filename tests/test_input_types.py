"""The types that people have: label maps of any integers, bool masks, boxes of integers and lists, sizes of NumPy's."""

from fractions import Fraction

import numpy as np
import pytest
import torch

import tritonsoft as ts
from tests.cases import RefusesUnsigned
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
