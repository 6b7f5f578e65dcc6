"""Label maps of ids, ``num_classes=None`` with ``top_k``: the largest of each pixel, whatever numbers they are."""

import io
import random

import numpy as np
import pytest
import torch

import tritonsoft as ts
from tests.cases import assert_close, random_case
from tests.conftest import TARGETS
from tritonsoft.backends import reference, reference_warping
from tritonsoft.ops import labels as label_ops
from tritonsoft.ops import warps as warp_ops

DTYPES = (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64)


@pytest.fixture(params=TARGETS)
def target(request):
    return request.param


def is_interpreted(target):
    """Where few ids are enough: each under a pixel takes a walk over its taps."""
    return target == ("cpu", "triton")


def spread(labels, dtype, seed):
    """Classes 0 .. 40 as ids all over what the type holds, and the id of each class, ascending."""
    info, generator = torch.iinfo(dtype), np.random.default_rng(seed)
    ids = torch.from_numpy(np.sort(generator.choice(2**7, 41, replace=False)))
    ids = ids + info.min if seed % 2 else ids * max(info.max // 2**7, 1)
    return ids[labels.long()].to(dtype), ids


@pytest.mark.parametrize("transformed", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_random_cases(target, seed, transformed):
    """The ids of the largest classes, where classes are ids by their rank."""
    device, backend = target
    rng = random.Random(seed)
    case = random_case(rng, 8 if is_interpreted(target) else 24)
    labels, size = case.labels.long().clamp(0, 40), case.size
    if is_interpreted(target):
        labels %= 3
    dtype = (torch.uint8, torch.int16, torch.uint32, torch.int64)[seed % 4]  # Numba compiles for each
    given, ids = spread(labels, dtype, seed)
    k, ignored = rng.choice([1, 3, 6]), rng.choice([None, 3])
    options = {
        "ignore_index": None if ignored is None else int(ids[ignored]),
        "filter": case.filter,
        "top_k": k,
        "backend": backend,
    }
    if transformed:
        generator = torch.Generator().manual_seed(seed)
        boxes = torch.tensor([[0.0, 0.0, labels.shape[2], labels.shape[1]]]).double().expand(len(labels), -1)
        bend = torch.eye(3) + 0.1 * torch.rand(len(labels), 3, 3, generator=generator) * torch.tensor([1.0, 1.0, 0.0])
        where = ts.box_to_matrix(boxes, size) @ bend.double()
        sparse = ts.soft_warp(given.to(device), where.to(device), size, None, **options)
        soft = reference_warping.soft_warp(
            labels, where, size, 41, -1 if ignored is None else ignored, case.filter, torch.float64
        )
        tolerance = 1e-4
    else:
        where = None if case.boxes is None else case.boxes.to(device)
        sparse = ts.soft_crop_resize(given.to(device), where, size, None, **options)
        soft = reference.soft_crop_resize(
            labels, case.boxes, size, 41, -1 if ignored is None else ignored, case.filter, torch.float64
        )
        tolerance = case.tolerance(torch.float32, 1.0)
    assert sparse.num_classes is None
    assert (sparse.index.dtype, sparse.dtype, sparse.shape) == (dtype, torch.float32, (len(labels), k, *size))
    mass = sparse.mass.cpu().double()
    assert_close(mass, soft.topk(k, 1).values, tolerance, "masses")
    index = sparse.index.cpu().long()
    rank = torch.searchsorted(ids, index).clamp(max=40)
    assert torch.equal(ids[rank].where(mass > 0, index), index)
    assert not index[mass == 0].any()
    assert_close(mass, soft.gather(1, rank).where(mass > 0, 0.0), tolerance, "masses of the ids")
    assert_close(sparse.rest, soft.sum(1) - mass.sum(1), 41 * tolerance, "rest")


def test_by_hand(target):
    device, backend = target
    ids = torch.tensor([[[7, 7, -9, 2**60], [7, -(2**63), 2**60, 5]]], device=device)
    sparse = ts.soft_resize(ids, (1, 2), None, top_k=2, ignore_index=-9, backend=backend)
    assert sparse.index[0, :, 0].tolist() == [[7, 2**60], [-(2**63), 5]]
    assert sparse.mass[0, :, 0].tolist() == [[0.75, 0.5], [0.25, 0.25]]
    assert not sparse.rest.any()
    counted = ts.soft_resize(ids, (1, 2), None, top_k=1, backend=backend)
    assert counted.rest[0, 0].tolist() == [0.25, 0.5]
    tied = ts.soft_resize(torch.tensor([[[9, 3, 1, 9]]], device=device), (1, 1), None, top_k=4, backend=backend)
    assert tied.index.flatten().tolist() == [9, 1, 3, 0]  # equal masses: the smaller id first; then none
    assert tied.argmax(ignore_index=-1).item() == 9


def test_every_pixel_of_its_own(target):
    """More ids than any table of classes would hold, under large and overlapping footprints."""
    device, backend = target
    height, width = (12, 10) if is_interpreted(target) else (48, 40)
    ids, taps = torch.arange(height * width, device=device).view(1, height, width) * 1_000_003, height * width // 6
    sparse = ts.soft_resize(ids, (3, 2), None, top_k=5, backend=backend)
    assert_close(sparse.mass, torch.full((1, 5, 3, 2), 1 / taps), 1e-7, "masses")
    assert_close(sparse.rest, torch.full((1, 3, 2), (taps - 5) / taps), 1e-4, "rest")
    assert sparse.index[0, :, 0, 0].tolist() == [n * 1_000_003 for n in range(5)]


@pytest.mark.parametrize("top_k", [16, 18, 40])
def test_many_kept(target, top_k):
    """More than fit into the registers of a kernel, more than there are, and ties between one launch and the next."""
    device, backend = target
    ids = torch.tensor([[*range(-17, 0), 4, 4, *range(5, 9), 4]], device=device).view(1, 4, 6)
    expected = [4, *range(-17, 0), *range(5, 9)][:top_k]
    sparse = ts.soft_resize(ids, (1, 1), None, top_k=top_k, backend=backend)
    assert sparse.index.flatten().tolist() == expected + [0] * (top_k - len(expected))
    masses = torch.tensor([3.0, *[1.0] * (len(expected) - 1), *[0.0] * (top_k - len(expected))]) / 24
    assert_close(sparse.mass.flatten(), masses, 1e-6, "masses")
    assert_close(sparse.rest.flatten(), torch.tensor([1 - masses.sum().item()]), 1e-6, "rest")


@pytest.mark.parametrize("layout", ["transposed", "stepped"])
def test_strides(target, layout):
    device, backend = target
    ids = torch.randint(2**40, (2, 8, 12), generator=torch.Generator().manual_seed(0)).to(device)
    given = ids.mT.contiguous().mT if layout == "transposed" else ids.repeat_interleave(2, 2)[:, :, ::2]
    options = {"top_k": 3, "backend": backend}
    for expected, made in (
        (ts.soft_resize(ids, (3, 5), None, **options), ts.soft_resize(given, (3, 5), None, **options)),
        (
            ts.soft_warp(ids, torch.eye(3, device=device).expand(2, 3, 3), (8, 12), None, **options),
            ts.soft_warp(given, torch.eye(3, device=device).expand(2, 3, 3), (8, 12), None, **options),
        ),
    ):
        assert torch.equal(made.index, expected.index)
        assert torch.equal(made.mass, expected.mass)


def _sparse(dtype=torch.int64):
    ids, _ = spread(torch.randint(41, (2, 8, 12), generator=torch.Generator().manual_seed(0)), dtype, 1)
    return ts.soft_resize(ids, (4, 6), None, top_k=3, dtype=torch.float16, backend="reference")


@pytest.mark.parametrize("dtype", DTYPES)
def test_ids_are_moved_bit_for_bit(dtype):
    sparse = _sparse(dtype)
    window = sparse.crop([1, 0], [2, 1], 2, 3)
    for sample, (top, left) in enumerate(((1, 2), (0, 1))):
        assert torch.equal(window.index[sample], sparse.index[sample, :, top : top + 2, left : left + 3])
    padded = sparse.crop([-1, 0], 0, 4, 6, pad=True)
    assert torch.equal(padded.index[0, :, 1:], sparse.index[0, :, :3])
    assert not padded.index[0, :, 0].long().any()
    flipped = sparse.flip(-1)
    assert torch.equal(flipped.index.long(), sparse.index.long().flip(-1))


def test_batches_files_and_trees():
    sparse = _sparse()
    batch = torch.utils.data.default_collate([sparse[0], sparse[1]])
    assert batch.num_classes is None
    assert torch.equal(batch.index, sparse.index)
    again = ts.SparseLabels.from_tensors(sparse.to_tensors())
    assert (again.num_classes, again.index.dtype) == (None, torch.int64)
    file = io.BytesIO()
    torch.save(sparse, file)
    file.seek(0)
    assert torch.equal(torch.load(file).index, sparse.index)
    doubled = torch.utils._pytree.tree_map(lambda tensor: tensor[:1], sparse)
    assert doubled.num_classes is None
    assert repr(sparse) == "SparseLabels(shape=(2, 3, 4, 6), ids=int64, dtype=torch.float16, device='cpu')"
    with pytest.raises(TypeError, match="ids must be of one type"):
        torch.utils.data.default_collate([sparse[0], _sparse(torch.int32)[0]])
    with pytest.raises(ValueError, match=r"num_classes must be the same .* got \[19, None\]"):
        torch.utils.data.default_collate([sparse[0], ts.SparseLabels.from_dense(torch.rand(1, 19, 4, 6), 3)[0]])


def test_augmentations_move_them():
    augmentation = pytest.importorskip("tritonsoft.augmentation", reason="the augmentations need kornia")
    sparse = _sparse()
    augment = augmentation.AugmentationSequential(
        augmentation.RandomHorizontalFlip(p=1.0), augmentation.CenterCrop((2, 4)), data_keys=["image", "mask"]
    )
    _, moved = augment(torch.rand(2, 3, 4, 6), sparse)
    assert torch.equal(moved.index, sparse.index.flip(-1)[..., 1:3, 1:5])
    augment = augmentation.AugmentationSequential(
        augmentation.RandomHorizontalFlip(num_classes=5), data_keys=["image", "mask"]
    )
    with pytest.raises(ValueError, match="num_classes=5, got SparseLabels of ids"):
        augment(torch.rand(2, 3, 4, 6), sparse)


def test_an_empty_batch(target):
    device, backend = target
    none = torch.zeros(0, 8, 12, dtype=torch.int32, device=device)
    sparse = ts.soft_resize(none, (2, 3), None, top_k=2, backend=backend)
    assert (sparse.index.shape, sparse.index.dtype) == ((0, 2, 2, 3), torch.int32)


def test_opcheck():
    labels = torch.randint(2**40, (2, 8, 12))
    torch.library.opcheck(
        label_ops.top_ids.overload, (None, None, labels, None, (2, 3), 2, None, "area", torch.float32)
    )
    transform = torch.eye(3, dtype=torch.float64).expand(2, 3, 3).contiguous()
    torch.library.opcheck(
        warp_ops.warp_top_ids.overload, (None, None, labels, transform, (2, 3), 2, 7, "area", torch.float16)
    )


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda ids: ts.soft_resize(ids, (2, 3), None), TypeError, "num_classes must be an int, got NoneType"),
        (lambda ids: ts.soft_resize(ids, (2, 3), None, top_k=0), ValueError, "top_k must be at least 1, got 0"),
        (lambda ids: ts.soft_resize(ids, (2, 3), None, top_k=1.5), TypeError, "top_k must be an int, got float"),
        (
            lambda ids: ts.soft_resize(ids, (2, 3), None, top_k=1, ignore_index="x"),
            TypeError,
            "ignore_index must be an int, got str",
        ),
        (
            lambda ids: ts.soft_resize(ids, (2, 3), None, top_k=1, dtype=torch.float64),
            TypeError,
            "dtype of a SparseLabels must be float16, bfloat16 or float32, got float64",
        ),
        (lambda ids: ts.soft_resize(ids.float(), (2, 3), None, top_k=1), TypeError, "labels must be bool"),
        (
            lambda ids: ts.soft_resize(ids, (2, 3), None, top_k=1).to_dense(),
            ValueError,
            r"to_dense\(\) needs a SparseLabels of classes, got one of ids",
        ),
        (
            lambda ids: ts.soft_resize(ids, (2, 3), None, top_k=1).argmax(),
            ValueError,
            "ignore_index must be given for a SparseLabels of ids",
        ),
        (
            lambda ids: ts.soft_resize(ids.to(torch.uint8), (2, 3), None, top_k=1).argmax(-1),
            ValueError,
            "ignore_index must fit the ids' uint8, got -1",
        ),
        (
            lambda ids: ts.soft_cross_entropy(torch.rand(2, 3, 2, 3), ts.soft_resize(ids, (2, 3), None, top_k=3)),
            ValueError,
            "soft needs a SparseLabels of classes, got one of ids",
        ),
        (
            lambda ids: ts.SparseLabels(torch.rand(1, 2, 3), torch.rand(1, 2, 3), torch.rand(2, 3), None),
            TypeError,
            "index must be uint8, .* for ids, got torch.float32",
        ),
    ],
)
def test_bad_arguments(call, error, words):
    with pytest.raises(error, match=words):
        call(torch.randint(100, (2, 8, 12)))
