"""Ids to classes: what a table says of each id, whatever its type, its layout and its place on the number line."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
from torch import Tensor

import tritonsoft as ts
from tests.cases import LAYOUTS, RefusesUnsigned, _layout
from tritonsoft._validation import raise_unknown_ids
from tritonsoft.backends import eager, reference

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64)
ALL_TYPES = (torch.bool, *INTEGERS)
CITYSCAPES = {-1: 255, 7: 0, 8: 1, 11: 2, 33: 18}


def _by_hand(labels: Tensor, table: dict[int, int], ignore_index: int) -> list[int]:
    return [table.get(int(value), ignore_index) for value in labels.flatten().tolist()]


def _ids(rng: random.Random, dtype: torch.dtype) -> list[int]:
    """Close together or far apart, with the ends of the type among them."""
    low, high = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    near = [value for value in range(-3, 40) if low <= value <= high]
    far = [low, high, *(rng.randint(low, high) for _ in range(12))]
    return rng.choice([near, far, [high], near + far])


@pytest.mark.parametrize("dtype", ALL_TYPES, ids=str)
def test_every_type_and_layout(target, dtype):
    device, backend = target
    # The interpreter takes a tenth of a second for a call.
    for seed in range(3 if backend == "triton" else 12):
        rng = random.Random(seed)
        ids = _ids(rng, dtype)
        chosen = rng.sample(ids, rng.randint(1, len(ids)))
        largest = rng.choice([18, 300, 70_000])
        table = {id: rng.randint(-largest if rng.random() < 0.3 else 0, largest) for id in chosen}
        ignore_index = rng.choice([255, -1, 2**40])
        shape = rng.choice([(2, 5, 7), (2, 1, 5, 7), (5, 7), (1, 1, 4500), (3, 33, 1)])
        count = int(np.prod(shape))
        values = torch.tensor(rng.choices(ids, k=count)).view(shape)  # runs and single pixels
        labels = _layout(values.to(dtype), rng.choice(LAYOUTS[:1] if len(shape) == 2 else LAYOUTS)).to(device)
        out = ts.remap_labels(labels, table, ignore_index=ignore_index, backend=backend)
        assert out.shape == labels.shape
        assert out.is_contiguous()
        assert out.flatten().tolist() == _by_hand(labels, table, ignore_index)
        prepared = ts.remap_labels(labels, ts.LabelTable(table), ignore_index=ignore_index, backend=backend)
        assert torch.equal(prepared, out)


@pytest.mark.parametrize("table_dtype", INTEGERS, ids=str)
def test_a_tensor_is_what_indexing_gives(target, table_dtype):
    device, backend = target
    table = torch.randint(0, 100, (40,), generator=torch.Generator().manual_seed(0))
    for dtype in (torch.uint8, torch.int16, torch.int64):
        labels = torch.randint(0, 40, (2, 6, 9), generator=torch.Generator().manual_seed(1))
        on_device = table.to(table_dtype).to(device)
        out = ts.remap_labels(labels.to(device, dtype), on_device, ignore_index=7, backend=backend)
        assert out.dtype == table_dtype
        assert out.tolist() == table[labels].tolist()
    outside = torch.tensor([[[0, 39, 40, 255]]], dtype=torch.uint8, device=device)
    out = ts.remap_labels(outside, table.to(device), ignore_index=-5, backend=backend)
    assert out.flatten().tolist() == [table[0].item(), table[39].item(), -5, -5]


def test_a_strided_table_and_one_with_gaps(target):
    device, backend = target
    table = torch.tensor([4, -9, 5, -9, 6, -9, -(2**31), -9], dtype=torch.int32, device=device)[::2]
    labels = torch.tensor([[[0, 1, 2, 3, 4]]], device=device)
    out = ts.remap_labels(labels, table, backend=backend)
    assert out.flatten().tolist() == [4, 5, 6, 255, 255]


def test_ends_of_the_number_line(target):
    """Differences of ids overflow, and must not pass for a place in the table."""
    device, backend = target
    low, high = -(2**63), 2**63 - 1
    labels = torch.tensor([[[low, low + 1, -1, 0, 1, high - 1, high]]], device=device)
    for table in ({low: 1, low + 1: 2}, {high: 3, high - 1: 4}, {low: 5, high: 6}, {0: 7}, {-1: 8, 1: 9}):
        out = ts.remap_labels(labels, table, backend=backend)
        assert out.flatten().tolist() == _by_hand(labels, table, 255)


def test_ids_far_apart_take_memory_for_themselves_alone():
    table = ts.LabelTable({1000 * 1000 * k: k for k in range(100)})
    held = [tensor for tensor in vars(table).values() if isinstance(tensor, Tensor)]
    assert sum(tensor.numel() for tensor in held) == 200


@pytest.mark.parametrize("far", [False, True])
def test_unknown_ids_are_an_error_on_request(target, far):
    device, backend = target
    table = {7: 0, 8: 1, **({10**9: 2} if far else {})}
    for dtype in (torch.uint8, torch.int16, torch.uint16):
        labels = torch.full((2, 3, 5000), 7, dtype=torch.int32)
        labels[1, 2, 4999], labels[0, 1, 4], labels[1, 0, 0] = 99, 33, 8
        labels = labels.to(dtype).to(device)
        unknown = ts.remap_labels(labels, table, backend=backend) == 255
        assert unknown.nonzero().tolist() == [[0, 1, 4], [1, 2, 4999]]
        message = r"got 2 others from 33 to 99, the first of them 33 in row 1, column 4 of sample 0"
        with pytest.raises(ValueError, match=message):
            ts.remap_labels(labels, table, unknown="error", validate=True, backend=backend)
        known = ts.remap_labels(labels[1:, :1], table, unknown="error", validate=True, backend=backend)
        assert known.unique().tolist() == [0, 1]


def test_a_class_may_be_the_ignored_one_without_being_unknown(target):
    device, backend = target
    labels = torch.tensor([[[-1, 7]]], dtype=torch.int16, device=device)
    out = ts.remap_labels(labels, CITYSCAPES, unknown="error", validate=True, backend=backend)
    assert out.tolist() == [[[255, 0]]]


@pytest.mark.parametrize(
    ("table", "ignore_index", "expected"),
    [
        ({0: 18}, None, torch.uint8),
        ({0: 255}, None, torch.uint8),
        ({0: 18}, -1, torch.int16),
        ({0: 300}, -1, torch.int16),
        ({0: 40_000}, -1, torch.int32),
        ({0: 1}, 2**40, torch.int64),
        ({0: 2**31 - 1}, 0, torch.int32),
    ],
)
def test_the_smallest_type_that_holds_everything(table, ignore_index, expected):
    labels = torch.zeros(1, 1, 2, dtype=torch.uint8)
    out = ts.remap_labels(labels, table, ignore_index=ignore_index)
    assert out.dtype == expected
    assert out.tolist() == [[[table[0]] * 2]]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_a_type_by_request(target, dtype):
    device, backend = target
    labels = torch.tensor([[[0, 1, 2]]], device=device)
    out = ts.remap_labels(labels, {0: 5, 1: 100}, ignore_index=127, dtype=dtype, backend=backend)
    assert out.dtype == dtype
    assert out.flatten().tolist() == [5, 100, 127]


def test_empty_batches_and_transforms(target):
    device, backend = target
    labels = torch.tensor([[[7, 8], [11, 12]]] * 3, dtype=torch.uint8, device=device)

    def call(labels: Tensor) -> Tensor:
        return ts.remap_labels(labels, {7: 0, 8: 1, 11: 2, 10**7: 3}, backend=backend)

    expected = call(labels)
    assert call(labels[:0]).shape == (0, 2, 2)
    assert torch.equal(torch.vmap(call)(labels), expected)
    assert torch.equal(torch.compile(call, fullgraph=True, backend="aot_eager")(labels), expected)


@pytest.mark.parametrize("make", [dict, ts.LabelTable, lambda table: torch.tensor([255] * 7 + [0, 1])])
def test_compile_and_export(make):
    table = make({7: 0, 8: 1})
    labels = torch.tensor([[[7, 8], [1, 2]]])

    class Remap(torch.nn.Module):
        def forward(self, labels: Tensor) -> Tensor:
            return ts.remap_labels(labels, table)

    expected = Remap()(labels)
    assert torch.equal(torch.compile(Remap(), fullgraph=True, backend="aot_eager")(labels), expected)
    assert torch.equal(torch.export.export(Remap(), (labels,)).module()(labels), expected)


def test_nothing_computes_with_unsigned_integers():
    """PyTorch 2.11 cannot."""
    for dtype in (torch.uint16, torch.uint32):
        labels, out = torch.tensor([[[7, 8, 60_000]]]).to(dtype), torch.zeros(1, 1, 3, dtype=dtype)
        table = (torch.tensor([7, 60_000]), torch.tensor([0, 1]).to(dtype), 0)
        with RefusesUnsigned():
            assert not eager.remap_labels(out, labels, *table, 255, True)
            with pytest.raises(ValueError, match="got 1 others from 8 to 8"):
                raise_unknown_ids(labels, *table)
        assert out.flatten().tolist() == [0, 255, 1]


def test_a_prepared_table_is_a_value():
    table = ts.LabelTable({np.int64(7): np.uint8(0), 8: 1})
    assert table.classes == {7: 0, 8: 1}
    assert (table.smallest_class, table.largest_class) == (0, 1)
    assert repr(table) == "LabelTable(2 ids from 7 to 8, classes from 0 to 1)"
    for other in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert other.classes == table.classes
    with pytest.raises(TypeError):
        table.classes[9] = 2
    meta = torch.zeros(1, 2, 2, dtype=torch.uint8, device="meta")
    for labels in (meta, meta):
        assert ts.remap_labels(labels, table, backend="reference").device.type == "meta"


def test_the_reference_by_hand():
    ids, classes = torch.tensor([-5, 2, 10**9]), torch.tensor([1, 2, 3])
    values, known = reference.remap_labels(torch.tensor([10**9, 2, 3, -5, -6, 2**62]), ids, classes, 0)
    assert known.tolist() == [True, True, False, True, False, False]
    assert values[known].tolist() == [3, 2, 1]


LABELS = torch.zeros(1, 2, 2, dtype=torch.uint8)
BAD = [
    # table, options, error, the words that its message must hold
    ({}, {}, ValueError, ["table", "at least one"]),
    ([1, 2], {}, TypeError, ["table", "mapping", "list"]),
    ({0.5: 1}, {}, TypeError, ["table", "id", "0.5", "float"]),
    ({"road": 1}, {}, TypeError, ["table", "id", "road"]),
    ({0: True}, {}, TypeError, ["table", "class", "bool"]),
    ({2**63: 1}, {}, ValueError, ["table", "int64", str(2**63)]),
    ({0: 2**31}, {}, ValueError, ["table", "classes", str(2**31)]),
    ({0: -(2**31)}, {}, ValueError, ["table", "classes", str(-(2**31))]),
    ({0: 300}, {}, ValueError, ["ignore_index", "255", "300"]),
    ({0: 300}, {"ignore_index": -1, "dtype": torch.uint8}, ValueError, ["dtype=uint8", "300", "-1"]),
    ({0: 3}, {"ignore_index": -1, "dtype": torch.uint8}, ValueError, ["dtype=uint8", "-1"]),
    ({0: 3}, {"dtype": torch.float32}, TypeError, ["dtype", "float32"]),
    ({0: 3}, {"dtype": torch.bool}, TypeError, ["dtype", "bool"]),
    ({0: 3}, {"ignore_index": 1.5}, TypeError, ["ignore_index", "float"]),
    ({0: 3}, {"unknown": "drop"}, ValueError, ["unknown", "'error'", "drop"]),
    ({0: 3}, {"validate": 1}, TypeError, ["validate", "1"]),
    ({0: 3}, {"backend": "cuda"}, ValueError, ["backend", "cuda"]),
    (torch.tensor([1.0]), {}, TypeError, ["table", "float32"]),
    (torch.tensor([True]), {}, TypeError, ["table", "bool"]),
    (torch.tensor([[1]]), {}, ValueError, ["table", "(N,)", "(1, 1)"]),
    (torch.tensor([], dtype=torch.long), {}, ValueError, ["table", "N >= 1", "(0,)"]),
    (torch.tensor([1], device="meta"), {}, ValueError, ["table", "device", "cpu", "meta"]),
    (torch.tensor([1]), {"dtype": torch.uint8}, TypeError, ["dtype=uint8", "int64", "cast the table"]),
    (torch.tensor([1], dtype=torch.int8), {}, ValueError, ["ignore_index=255", "int8", "dtype="]),
    (torch.tensor([1]), {"dtype": torch.int64, "ignore_index": 2**63}, ValueError, ["ignore_index", "int64"]),
]


@pytest.mark.parametrize(("table", "options", "error", "words"), BAD)
def test_bad_argument(table, options, error, words):
    with pytest.raises(error) as caught:
        ts.remap_labels(LABELS, table, **options)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "error", "words"),
    [
        (LABELS.float(), TypeError, ["labels", "uint32", "float32"]),
        (LABELS.to(torch.uint64), TypeError, ["labels", "uint64"]),
        (LABELS.numpy(), TypeError, ["labels", "tensor", "ndarray"]),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), ValueError, ["labels", "(2, 3, 4, 4)"]),
        (torch.zeros(4, dtype=torch.uint8), ValueError, ["labels", "(4,)"]),
    ],
)
def test_bad_labels(labels, error, words):
    with pytest.raises(error) as caught:
        ts.remap_labels(labels, {0: 0})
    for word in words:
        assert word in str(caught.value)
