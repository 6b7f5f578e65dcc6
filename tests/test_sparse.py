"""SparseLabels: made right by every backend, nothing lost, and at home in loaders, graphs and files; pyramids."""

import copy
import functools
import itertools
import operator
import pickle
import random
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tritonsoft as ts
from tests.cases import assert_close, random_case
from tritonsoft.backends import reference
from tritonsoft.ops import labels as label_ops


def _labels(num_classes=5, shape=(2, 8, 12), device="cpu"):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(num_classes, shape, generator=generator).to(device)


def _sparse(device="cpu", **options):
    return ts.soft_resize(_labels(device=device), (4, 6), 150, top_k=3, **options)


def check_order(sparse):
    """Largest mass first, equal masses by smaller class first, empty entries class 0."""
    index, mass = sparse.index.long(), sparse.mass
    before, after = mass[:, :-1], mass[:, 1:]
    assert ((before > after) | ((before == after) & ((index[:, :-1] < index[:, 1:]) | (after == 0)))).all()
    assert not index[mass == 0].any()
    assert (mass >= 0).all()


@pytest.mark.parametrize("seed", range(20))
def test_random_cases(target, seed):
    device, backend = target
    rng = random.Random(seed)
    case = random_case(rng, 14 if target == ("cpu", "triton") else 40)
    soft = reference.soft_crop_resize(
        case.labels, case.boxes, case.size, case.num_classes, case.ignore_index, case.filter, torch.float64
    )
    k = rng.choice([1, min(2, case.num_classes), min(5, case.num_classes), min(17, case.num_classes)])
    dtype = case.soft_dtype if case.soft_dtype != torch.float64 else torch.float32
    there = case.to(device)
    sparse = ts.soft_crop_resize(
        there.labels,
        there.boxes,
        case.size,
        case.num_classes,
        ignore_index=case.ignore_index,
        filter=case.filter,
        dtype=dtype,
        top_k=k,
        backend=backend,
    )
    assert sparse.shape == soft.shape
    assert sparse.k == k
    assert sparse.dtype == dtype
    tolerance = case.tolerance(dtype, 1.0)
    sparse = sparse.cpu()
    # Half precision can make equal what was not, so that only float32 masses are in order for sure.
    if dtype == torch.float32:
        check_order(sparse)
    largest = soft.topk(k, 1).values
    assert_close(sparse.mass, largest, tolerance, "masses")
    assert_close(
        sparse.mass, torch.where(sparse.mass > 0, soft.gather(1, sparse.index.long()), 0), tolerance, "of their class"
    )
    assert_close(sparse.rest, soft.sum(1) - largest.sum(1), tolerance * case.num_classes, "rest")


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_as_many_entries_as_taps_lose_nothing(target, factor):
    device, backend = target
    labels = _labels(150, (1, 2 * factor, 3 * factor), device).to(torch.uint8)
    sparse = ts.soft_resize(labels, (2, 3), 150, top_k=factor**2, backend=backend)
    dense = ts.soft_resize(labels, (2, 3), 150, backend=backend)
    assert torch.equal(sparse.to_dense(), dense)
    assert not sparse.rest.any()
    check_order(sparse)


@pytest.mark.parametrize("top_k", [1, 2, 19])
def test_equals_from_dense(target, top_k):
    device, backend = target
    labels = _labels(19, (2, 8, 12), device)
    for boxes in (None, torch.tensor([[1.5, 0.0, 11.0, 7.5], [12.0, 8.0, 0.0, 0.0]], device=device)):
        direct = ts.soft_crop_resize(labels, boxes, (2, 3), 19, top_k=top_k, backend=backend)
        soft = ts.soft_crop_resize(labels, boxes, (2, 3), 19, backend=backend)
        later = ts.SparseLabels.from_dense(soft, top_k, torch.float32)
        assert torch.equal(direct.index, later.index)
        assert torch.equal(direct.mass, later.mass)
        assert_close(direct.rest, later.rest, 1e-6, "rest")


class _LargestTensor(TorchDispatchMode):
    """The elements of the largest tensor that an operator of PyTorch's makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.elements = max(self.elements, out.numel())
        return out


@pytest.mark.parametrize("way", ["factor", "boxes", "transform"])
def test_many_classes_are_kept_without_a_dense_label(target, way):
    """Three launches of Triton's kernel, where the last takes few and the masses of some pixels are used up before."""
    device, backend = target
    labels = _labels(90, (2, 16, 16)).masked_fill(_labels(2, (2, 1, 16)) == 0, 7).to(device)
    where, call = None, ts.soft_crop_resize
    if way != "factor":
        where = torch.tensor([[1.5, 0.0, 14.0, 15.5], [16.0, 16.0, 0.0, 0.0]], device=device)
    if way == "transform":
        if target == ("cpu", "triton"):  # which takes half a minute for a sample: it gets that of both kinds
            labels, where = labels[1:], where[1:]
        where, call = ts.box_to_matrix(where, (2, 2)), ts.soft_warp
    made = call(labels, where, (2, 2), 90, backend=backend)
    with _LargestTensor() as record:
        sparse = call(labels, where, (2, 2), 90, top_k=35, backend=backend)
    if backend == "triton":
        assert record.elements <= labels.numel() < made.numel()
    expected = ts.SparseLabels.from_dense(made, 35, torch.float32)
    assert torch.equal(sparse.index, expected.index)
    assert torch.equal(sparse.mass, expected.mass)
    assert_close(sparse.rest, expected.rest, 1e-6, "rest")
    assert (expected.rest > 0).any()
    if way == "factor":  # where there are fewer classes than launches could take
        few = ts.soft_crop_resize(labels % 3, None, (2, 2), 90, top_k=35, backend=backend)
        assert torch.equal(few.to_dense(), ts.soft_crop_resize(labels % 3, None, (2, 2), 90, backend=backend))


def test_ties_go_to_the_smaller_class(target):
    device, backend = target
    labels = torch.tensor([[[3, 1, 7, 7], [2, 0, 7, 7]]], device=device)
    sparse = ts.soft_resize(labels, (1, 2), 9, top_k=3, backend=backend)
    assert sparse.index[0, :, 0].tolist() == [[0, 7], [1, 0], [2, 0]]
    assert sparse.mass[0, :, 0].tolist() == [[0.25, 1.0], [0.25, 0.0], [0.25, 0.0]]
    assert sparse.rest[0, 0].tolist() == [0.25, 0.0]


@pytest.mark.parametrize(
    ("num_classes", "dtype"), [(1, torch.uint8), (256, torch.uint8), (257, torch.int16), (1000, torch.int16)]
)
def test_type_of_the_index(target, num_classes, dtype):
    device, backend = target
    labels = torch.full((1, 2, 2), num_classes - 1, device=device)
    sparse = ts.soft_resize(labels, (1, 1), num_classes, ignore_index=-1, top_k=1, backend=backend)
    assert sparse.index.dtype == dtype
    assert sparse.index.item() == num_classes - 1
    assert sparse.to_dense()[0, -1].item() == 1


def test_empty_batch(target):
    device, backend = target
    sparse = ts.soft_resize(_labels(device=device)[:0], (4, 6), 5, top_k=2, backend=backend)
    assert sparse.shape == (0, 5, 4, 6)
    assert len(sparse) == 0
    assert sparse.to_dense().shape == (0, 5, 4, 6)


def test_size():
    sparse = ts.soft_resize(_labels(150, (2, 64, 64)), (16, 16), 150, top_k=4, dtype=torch.float16)
    dense = ts.soft_resize(_labels(150, (2, 64, 64)), (16, 16), 150)
    assert dense.nbytes / sparse.nbytes > 20
    assert sparse.nbytes == 2 * 16 * 16 * (4 * 3 + 2)
    assert ts.soft_resize(_labels(150, (2, 64, 64)), (16, 16), 150, top_k=4).nbytes * 20 < dense.nbytes


# --- at home ---------------------------------------------------------------------------------------------------------


def assert_same(first, second):
    assert first.num_classes == second.num_classes
    for name in ("index", "mass", "rest"):
        assert torch.equal(getattr(first, name), getattr(second, name))
        assert getattr(first, name).dtype == getattr(second, name).dtype


def test_indexing():
    sparse = _sparse()
    assert len(sparse) == 2
    assert sparse[0].shape == (150, 4, 6)
    assert sparse[-1].rest.shape == (4, 6)
    assert torch.equal(sparse[1].to_dense(), sparse.to_dense()[1])
    assert sparse[:1].shape == (1, 150, 4, 6)
    for item in ([1, 0], torch.tensor([1, 0]), torch.tensor([True, False])):
        assert torch.equal(sparse[item].to_dense(), sparse.to_dense()[item])
    assert [sample.shape for sample in sparse] == [(150, 4, 6)] * 2
    with pytest.raises(TypeError, match="one sample"):
        next(iter(sparse[0]))
    with pytest.raises(TypeError, match="batch"):
        sparse[0, 1]
    with pytest.raises(TypeError, match="one sample"):
        len(sparse[0])
    for index in (2, -3):
        with pytest.raises(IndexError, match=f"sample {index} of a batch of 2"):
            sparse[index]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_masses_of_every_type(target, dtype):
    device, backend = target
    exact = _sparse(device, backend=backend)
    made = _sparse(device, dtype=dtype, backend=backend)
    dense = ts.soft_resize(_labels(device=device), (4, 6), 150, backend=backend)
    logits = torch.randn(exact.shape, generator=torch.Generator().manual_seed(0)).to(device)
    for sparse in (made, exact.to(dtype), ts.SparseLabels.from_dense(dense, 3, dtype)):
        assert sparse.dtype == sparse.mass.dtype == sparse.rest.dtype == sparse.to_dense().dtype == dtype
        assert torch.equal(sparse.mass, exact.mass.to(dtype))
        assert torch.equal(sparse.rest, exact.rest.to(dtype))
        assert_same(ts.SparseLabels.from_tensors(sparse.to_tensors()), sparse)
        assert_same(torch.utils.data.default_collate(list(sparse)), sparse)
        for loss in (ts.soft_cross_entropy, ts.soft_dice_loss):
            expected = loss(logits, sparse.to_dense(torch.float32), backend="reference")
            assert_close(loss(logits, sparse, validate=True, backend=backend), expected, 1e-5, loss.__name__)


def test_masses_below_0_are_none():
    soft = torch.tensor([[0.5, -1e-3, 0.0], [-1e-7, -1e-7, 0.0], [0.25, 0.75, 0.0]]).T.reshape(1, 3, 1, 3)
    for k in (1, 2, 3):
        assert_same(ts.SparseLabels.from_dense(soft, k), ts.SparseLabels.from_dense(soft.clamp(min=0), k))


def test_moving():
    sparse = _sparse()
    assert sparse.to("cpu", torch.float16).mass.dtype == torch.float16
    assert sparse.to(torch.float16).rest.dtype == torch.float16
    assert sparse.to(torch.float16).index.dtype == torch.uint8
    assert sparse.to("meta").device.type == "meta"
    assert sparse.to("meta").rest.device.type == "meta"
    assert_same(sparse.cpu(), sparse)


class _Samples(torch.utils.data.Dataset):
    def __init__(self, sparse):
        self.sparse = sparse

    def __len__(self):
        return len(self.sparse)

    def __getitem__(self, index):
        return {"image": torch.zeros(3), "soft": self.sparse[index]}


@pytest.mark.parametrize("workers", [0, 2])
def test_data_loader(workers):
    sparse = _sparse()
    (batch,) = torch.utils.data.DataLoader(_Samples(sparse), batch_size=2, num_workers=workers)
    assert_same(batch["soft"], sparse)
    assert_same(torch.utils.data.default_collate([sparse[0], sparse[1]]), sparse)
    with pytest.raises(ValueError, match="num_classes"):
        torch.utils.data.default_collate([sparse[0], ts.soft_resize(_labels(), (4, 6), 7, top_k=3)[0]])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_gpu_pinned_batches():
    (batch,) = torch.utils.data.DataLoader(_Samples(_sparse()), batch_size=2, pin_memory=True)
    assert batch["soft"].mass.is_pinned()
    assert_same(batch["soft"].cuda(non_blocking=True).cpu(), _sparse())


def test_files(tmp_path):
    sparse = _sparse()
    torch.save(sparse.to_tensors(), tmp_path / "labels.pt")
    assert_same(ts.SparseLabels.from_tensors(torch.load(tmp_path / "labels.pt")), sparse)
    torch.save(sparse, tmp_path / "whole.pt")
    assert_same(torch.load(tmp_path / "whole.pt"), sparse)
    assert_same(pickle.loads(pickle.dumps(sparse)), sparse)
    assert_same(copy.deepcopy(sparse), sparse)
    with pytest.raises(ValueError, match="rest"):
        ts.SparseLabels.from_tensors({"index": sparse.index, "mass": sparse.mass, "num_classes": torch.tensor(150)})
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    safetensors.save_file(sparse[1:].to_tensors(), tmp_path / "labels.safetensors")
    assert_same(ts.SparseLabels.from_tensors(safetensors.load_file(tmp_path / "labels.safetensors")), sparse[1:])


def test_trees():
    sparse = _sparse()
    doubled = torch.utils._pytree.tree_map(
        lambda leaf: leaf + leaf if leaf.is_floating_point() else leaf, {"a": sparse}
    )
    assert isinstance(doubled["a"], ts.SparseLabels)
    assert torch.equal(doubled["a"].mass, 2 * sparse.mass)
    assert torch.utils._pytree.tree_map(type, sparse).index is torch.Tensor
    named = torch.utils._pytree.tree_map_with_path(lambda path, _: str(path[0]), sparse)
    assert (named.index, named.mass, named.rest) == (".index", ".mass", ".rest")


def _in_bfloat16(tensor):
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor


def test_what_distributed_modules_do_to_their_inputs():
    """FSDP casts the inputs of a module and moves them: every dataclass is built anew of its fields."""
    sparse = _sparse()
    batch = {"image": torch.zeros(2, 3, 4, 6), "soft": sparse}
    cast = torch.distributed.utils._apply_to_tensors(_in_bfloat16, batch)
    assert cast["image"].dtype == torch.bfloat16
    assert_same(cast["soft"], sparse.to(torch.bfloat16))
    moved = torch.distributed.utils._apply_to_tensors(lambda tensor: tensor.to("meta"), batch)
    assert moved["soft"].device.type == "meta"


def test_what_lightning_does_to_its_batches():
    apply_to_collection = pytest.importorskip("lightning_utilities", reason="not installed").apply_to_collection
    sparse = _sparse()
    batch = {"image": torch.zeros(2, 3, 4, 6), "soft": [sparse]}
    cast = apply_to_collection(batch, torch.Tensor, _in_bfloat16)
    assert_same(cast["soft"][0], sparse.to(torch.bfloat16))
    assert_same(batch["soft"][0], _sparse())  # the one that was walked is as it was
    assert apply_to_collection(sparse, torch.Tensor, len).index == 2
    moved = apply_to_collection(batch, ts.SparseLabels, lambda labels: labels.to("meta"))
    assert moved["soft"][0].device.type == "meta"


def test_bootstrapped_metrics():
    wrappers = pytest.importorskip("torchmetrics.wrappers", reason="torchmetrics is not installed")
    from tritonsoft.metrics import SoftIoU

    sparse = ts.SparseLabels.from_dense(torch.rand(8, 5, 4, 6, generator=torch.Generator().manual_seed(0)) / 5, 2)
    probabilities = torch.rand(8, 5, 4, 6, generator=torch.Generator().manual_seed(1)) / 5
    results = []
    for soft in (sparse, sparse.to_dense()):
        torch.manual_seed(0)
        metric = wrappers.BootStrapper(SoftIoU(5), num_bootstraps=4, raw=True)
        metric.update(probabilities, soft)
        results.append(metric.compute()["raw"])
    assert torch.equal(*results)
    assert results[0].unique().numel() > 1


def test_no_list_to_what_walks_batches():
    """Autocast would make a generator of a list, and Lightning look for the batch size inside the samples."""
    sparse = _sparse()
    assert not isinstance(sparse, Iterable)
    assert torch.amp.autocast_mode._cast(sparse, "cpu", torch.bfloat16) is sparse


def test_fields_may_be_set_one_after_the_other():
    logits = torch.randn(2, 150, 4, 6, generator=torch.Generator().manual_seed(0))
    other = ts.soft_resize(_labels(shape=(3, 8, 12)), (4, 6), 300, ignore_index=-1, top_k=2, dtype=torch.float16)
    for names in itertools.permutations(("index", "mass", "rest", "num_classes")):
        sparse = _sparse()
        for number, name in enumerate(names):
            setattr(sparse, name, getattr(other, name))
            if number < 3:  # in between it fits no more, and says so where it is used
                for use in (
                    functools.partial(ts.soft_cross_entropy, logits),
                    functools.partial(ts.soft_dice_loss, logits),
                    ts.SparseLabels.to_dense,
                    ts.SparseLabels.cpu,
                    operator.itemgetter(slice(1)),
                ):
                    with pytest.raises((TypeError, ValueError), match=r"^(index|mass|rest) must"):
                        use(sparse)
        assert_same(sparse, other)
        assert torch.equal(sparse.to_dense(), other.to_dense())
    sparse = _sparse()
    sparse.mass = 3
    with pytest.raises(TypeError, match="mass must be a tensor, got int"):
        ts.soft_cross_entropy(logits, sparse)


def test_export_of_a_loss_of_sparse_labels():
    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.losses = torch.nn.ModuleList([ts.SoftCrossEntropyLoss(torch.rand(5)), ts.SoftDiceLoss(torch.rand(5))])

        def forward(self, logits, sparse):
            return sum(loss(logits, sparse) for loss in self.losses)

    sparse = ts.soft_resize(_labels(), (4, 6), 5, top_k=3)
    logits, step = torch.randn(sparse.shape), Step()
    exported = torch.export.export(step, (logits, sparse)).module()
    torch.testing.assert_close(exported(logits, sparse), step(logits, sparse))


def test_opcheck(target):
    device, backend = target
    labels, boxes = _labels(device=device), torch.tensor([[0.5, 0.0, 9.0, 8.0], [7.5, 1.0, 1.0, 6.0]], device=device)
    utils = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    arguments = (backend, None, labels, boxes, [3, 4], 5, 2, 255, "area", torch.uint8, torch.float32)
    torch.library.opcheck(label_ops.soft_crop_resize_top.overload, arguments, test_utils=utils)
    arguments = (backend, None, labels, 5, [1, 2, 4], 255, torch.float32)
    torch.library.opcheck(label_ops.soft_pyramid.overload, arguments, test_utils=utils)


def test_compiled_iteration():
    def step(sparse):
        return sum(number * sample.mass.sum() for number, sample in enumerate(sparse))

    torch._dynamo.reset()
    sparse = _sparse()
    assert torch.equal(torch.compile(step, fullgraph=True, backend="eager")(sparse), step(sparse))


def test_compile_fullgraph(target):
    device, backend = target

    def step(labels, sparse):
        made = ts.soft_resize(labels, (4, 6), 150, top_k=3, backend=backend)
        fine, coarse = ts.soft_pyramid(labels, 5, (2, 4), backend=backend)
        return made, sparse.to_dense() + made.to_dense(), ts.SparseLabels.from_dense(fine, 2), coarse

    torch._dynamo.reset()
    labels, sparse = _labels(device=device), _sparse(device, backend=backend)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    actual, expected = compiled(labels, sparse), step(labels, sparse)
    assert_same(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])
    assert_same(actual[2], expected[2])
    assert torch.equal(actual[3], expected[3])


# --- pixels ----------------------------------------------------------------------------------------------------------

_ON_CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=_ON_CUDA)])
def device(request):
    return request.param


def _random_sparse(rng, device):
    """Of any size, number of classes and type of masses; its dense form with the rest as a last class, in float64."""
    batch, height, width = rng.randint(0, 3), rng.randint(1, 9), rng.randint(1, 9)
    num_classes = rng.choice([1, 5, 19, 300])
    soft = torch.rand(batch, num_classes, height, width, generator=torch.Generator().manual_seed(rng.randrange(10**6)))
    soft[:, :, :1] = 0  # pixels without mass
    k, dtype = rng.randint(1, min(4, num_classes)), rng.choice([torch.float16, torch.bfloat16, torch.float32])
    sparse = ts.SparseLabels.from_dense(soft / num_classes, k, dtype)
    return sparse.to(device), _with_rest(sparse)


def _with_rest(sparse):
    return torch.cat([sparse.to_dense(torch.float64), sparse.rest.double().unsqueeze(-3)], dim=-3).cpu()


def _windows(dense, tops, lefts, height, width):
    """Slices of a dense label with zeros all around it."""
    padded = torch.nn.functional.pad(dense, (30, 30, 30, 30))
    cut = [
        padded[sample, :, 30 + top : 30 + top + height, 30 + left : 30 + left + width]
        for sample, (top, left) in enumerate(zip(tops, lefts, strict=True))
    ]
    return torch.stack(cut) if cut else dense.new_zeros(0, dense.shape[1], height, width)


@pytest.mark.parametrize("seed", range(20))
def test_crops_are_those_of_the_dense_label(device, seed):
    rng = random.Random(seed)
    sparse, dense = _random_sparse(rng, device)
    batch, (height, width) = len(sparse), sparse.shape[2:]
    h, w = rng.randint(1, height), rng.randint(1, width)
    top, left = rng.randint(0, height - h), rng.randint(0, width - w)
    window = sparse.crop(top, left, h, w)
    assert torch.equal(_with_rest(window), dense[:, :, top : top + h, left : left + w])
    assert window.dtype == sparse.dtype
    assert window.index.dtype == sparse.index.dtype
    tops, lefts = ([rng.randint(0, most) for _ in range(batch)] for most in (height - h, width - w))
    expected = _windows(dense, tops, lefts, h, w)
    there = torch.tensor(tops, dtype=rng.choice([torch.uint8, torch.int32]), device=device)
    for starts in ((tops, lefts), (there, torch.tensor(lefts, dtype=torch.int64)), (np.array(tops, int), lefts)):
        assert torch.equal(_with_rest(sparse.crop(*starts, h, w)), expected)
    for sample, starts in enumerate(zip(tops, lefts, strict=True)):
        assert torch.equal(_with_rest(sparse[sample].crop(*starts, h, w)), expected[sample])


@pytest.mark.parametrize("seed", range(10))
def test_crops_may_reach_outside(device, seed):
    rng = random.Random(seed)
    sparse, dense = _random_sparse(rng, device)
    h, w = rng.randint(1, 12), rng.randint(1, 12)
    tops, lefts = ([rng.randint(-12, 12) for _ in range(len(sparse))] for _ in "yx")
    expected = _windows(dense, tops, lefts, h, w)
    assert torch.equal(_with_rest(sparse.crop(tops, lefts, h, w, pad=True)), expected)
    for sample, starts in enumerate(zip(tops, lefts, strict=True)):
        assert torch.equal(_with_rest(sparse[sample].crop(*starts, h, w, pad=True)), expected[sample])
    if len(sparse):
        far = sparse.crop([10**9] * len(sparse), -(10**12), h, w, pad=True)
        assert not _with_rest(far).any()
        assert (far.argmax(-1) == -1).all()
        before = _windows(dense, [tops[0]] * len(sparse), [lefts[0]] * len(sparse), h, w)
        assert torch.equal(_with_rest(sparse.crop(tops[0], lefts[0], h, w, pad=True)), before)


@pytest.mark.parametrize("seed", range(10))
def test_flips_are_those_of_the_dense_label(device, seed):
    rng = random.Random(seed)
    sparse, dense = _random_sparse(rng, device)
    chosen = [rng.random() < 0.5 for _ in range(len(sparse))]
    for dims in ((-1,), (2,), (-2, 3), ([-1, -2],), ((3,),)):
        flat = dims if isinstance(dims[0], int) else dims[0]
        expected = dense.flip(flat)
        assert torch.equal(_with_rest(sparse.flip(*dims)), expected)
        partly = torch.where(torch.tensor(chosen, dtype=torch.bool).view(-1, 1, 1, 1), expected, dense)
        assert torch.equal(_with_rest(sparse.flip(*dims, where=chosen)), partly)
        there = torch.tensor(chosen, dtype=torch.bool, device=device)
        assert torch.equal(_with_rest(sparse.flip(*dims, where=there)), partly)
    for sample in range(len(sparse)):
        assert torch.equal(_with_rest(sparse[sample].flip(2)), dense[sample].flip(2))


@pytest.mark.parametrize("seed", range(10))
def test_argmax_is_that_of_the_dense_label(device, seed):
    sparse, dense = _random_sparse(random.Random(seed), device)
    soft, labels = dense[:, :-1], sparse.argmax(-1).cpu().long()
    assert torch.equal(labels >= 0, soft.amax(1) > 0)
    assert torch.equal(soft.gather(1, labels[:, None].clamp(min=0))[:, 0], soft.amax(1))
    if sparse.dtype == torch.float32:  # others round, and what became equal stays in the order it had
        assert torch.equal(labels, torch.where(soft.amax(1) > 0, soft.argmax(1), -1))
    for sample in range(len(sparse)):
        assert torch.equal(sparse[sample].argmax(-1).cpu().long(), labels[sample])


@pytest.mark.parametrize(
    ("num_classes", "ignore_index", "dtype"),
    [
        (255, None, torch.uint8),
        (256, 255, torch.uint8),
        (19, 300, torch.int16),
        (19, -1, torch.int16),
        (300, -100, torch.int16),
        (19, 2**20, torch.int32),
        (19, -(2**40), torch.int64),
    ],
)
def test_type_of_the_argmax(num_classes, ignore_index, dtype):
    soft = torch.zeros(1, num_classes, 1, 2)
    soft[0, num_classes - 1, 0, 0] = 1
    labels = ts.SparseLabels.from_dense(soft, 1).argmax(ignore_index)
    assert labels.dtype == dtype
    assert labels.tolist() == [[[num_classes - 1, 255 if ignore_index is None else ignore_index]]]


def test_a_window_is_a_view_until_it_is_made_contiguous():
    sparse = _sparse()
    window = sparse.crop(1, 2, 2, 3)
    assert window.mass.untyped_storage().data_ptr() == sparse.mass.untyped_storage().data_ptr()
    whole = window.contiguous()
    assert whole.mass.is_contiguous()
    assert whole.mass.untyped_storage().nbytes() < sparse.mass.untyped_storage().nbytes()
    assert_same(whole, window)


def test_pixels_are_moved_without_reading_a_value():
    """A meta tensor has none to read; what waits for a GPU would raise here."""
    sparse = _sparse().to("meta")
    place, chosen = torch.zeros(2, dtype=torch.int64, device="meta"), torch.ones(2, dtype=torch.bool, device="meta")
    assert sparse.crop(place, place, 2, 3).shape == sparse.crop(place, 5, 2, 3, pad=True).shape == (2, 150, 2, 3)
    assert sparse.flip(-1, where=chosen).device.type == "meta"
    assert sparse.argmax().shape == (2, 4, 6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_gpu_pixels_are_moved_without_a_synchronisation():
    sparse = _sparse("cuda")
    place, chosen = torch.tensor([1, 2], device="cuda"), torch.tensor([True, False], device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        outside = sparse.crop(place + 100, [0, 1], 2, 3)  # not looked at, and without mass
        made = sparse.crop(place, [0, 1], 2, 3).flip(-1, where=chosen)
        labels = made.argmax()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not outside.mass.any()
    assert torch.equal(labels.cpu(), _sparse().crop([1, 2], [0, 1], 2, 3).flip(-1, where=[True, False]).argmax())


def test_losses_metrics_and_files_take_what_was_cropped_and_flipped(target):
    from tritonsoft.metrics import LabelEntropy, SoftIoU, SoftNegativeLogLikelihood

    device, backend = target
    sparse = ts.soft_resize(_labels(device=device), (4, 6), 5, top_k=3, backend=backend)
    views = [
        sparse.crop(1, 2, 2, 3),
        sparse.flip(-2, -1).crop(0, 1, 2, 3),
        sparse.crop([0, 3], [-1, 4], 2, 3, pad=True),
    ]
    logits = torch.randn(2, 5, 2, 3, generator=torch.Generator().manual_seed(0)).to(device)
    for view in views:
        dense = view.to_dense()
        for loss in (ts.soft_cross_entropy, ts.soft_dice_loss):
            expected = loss(logits, dense, backend="reference")
            assert_close(loss(logits, view, validate=True, backend=backend), expected, 1e-5, loss.__name__)
        for metric, *scores in (
            (SoftIoU(5), logits.softmax(1)),
            (SoftNegativeLogLikelihood(), logits),
            (LabelEntropy(),),
        ):
            results = []
            for soft in (view, dense):
                metric.to(device).reset()
                metric.update(*scores, soft)
                results.append(metric.compute())
            assert torch.equal(*results)
        assert_same(torch.utils.data.default_collate(list(view)), view)
        tensors = view.to_tensors()
        assert all(tensor.is_contiguous() for tensor in tensors.values())
        assert_same(ts.SparseLabels.from_tensors(tensors), view)


def test_compiled_crops_and_flips():
    def step(sparse, place, chosen):
        return sparse.crop(place, 1, 2, 3), sparse.flip(-1, where=chosen).crop(-1, 0, 3, 3, pad=True).argmax()

    torch._dynamo.reset()
    arguments = _sparse(), torch.tensor([0, 2]), torch.tensor([True, False])
    actual = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=False)(*arguments)
    expected = step(*arguments)
    assert_same(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


# --- pyramid ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factors", [(2, 4, 8, 16), (1, 2), (4,), (8, 16), (1, 3, 6), (2, 4, 16), (3, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_pyramid_is_a_resize_at_each_factor(target, factors, dtype):
    device, backend = target
    labels = _labels(6, (2, 48, 96) if target != ("cpu", "triton") else (1, 48, 48), device).to(torch.uint8)
    labels[:, :20, 5:30] = 3
    labels[0, 30:, :7] = 255
    levels = ts.soft_pyramid(labels, 5 + 1, factors, dtype=dtype, backend=backend)
    assert len(levels) == len(factors)
    for level, factor in zip(levels, factors, strict=True):
        size = (labels.shape[1] // factor, labels.shape[2] // factor)
        expected = ts.soft_resize(labels, size, 6, dtype=torch.float64, backend="reference")
        assert level.dtype == dtype
        assert_close(
            level, expected, torch.finfo(dtype).eps * (1 if dtype == torch.float16 else 64), f"factor {factor}"
        )


def test_pyramid_of_many_classes_and_of_none(target):
    device, backend = target
    labels = _labels(300, (1, 8, 8), device)
    fine, coarse = ts.soft_pyramid(labels, 300, (2, 4), ignore_index=-1, backend=backend)
    assert_close(coarse, torch.nn.functional.avg_pool2d(fine, 2), 1e-6, "coarse")
    assert [level.shape for level in ts.soft_pyramid(labels[:0], 300, (2, 4), ignore_index=-1, backend=backend)] == [
        (0, 300, 4, 4),
        (0, 300, 2, 2),
    ]


# --- errors ----------------------------------------------------------------------------------------------------------

INDEX = torch.zeros(2, 3, 4, 5, dtype=torch.uint8)
MASS, REST = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5)
BAD = [
    # changes, error, the words that its message must hold
    ({"index": [1]}, TypeError, ["index", "list"]),
    ({"index": INDEX.long()}, TypeError, ["index", "uint8", "int64"]),
    ({"num_classes": 300}, TypeError, ["index", "int16", "300"]),
    ({"num_classes": 10**6}, ValueError, ["num_classes", "32768"]),
    ({"num_classes": 2.0}, TypeError, ["num_classes", "float"]),
    ({"num_classes": 0}, ValueError, ["num_classes", "at least 1"]),
    ({"num_classes": 2}, ValueError, ["index", "1 to 2 entries", "3"]),
    ({"index": INDEX[0, 0]}, ValueError, ["index", "(B, k, h, w)", "(4, 5)"]),
    ({"mass": MASS.double()}, TypeError, ["mass", "float64"]),
    ({"mass": MASS[:1]}, ValueError, ["mass", "(2, 3, 4, 5)", "(1, 3, 4, 5)"]),
    ({"rest": REST.half()}, TypeError, ["rest", "float16"]),
    ({"rest": REST[0]}, ValueError, ["rest", "(2, 4, 5)", "(4, 5)"]),
    ({"mass": MASS.to("meta")}, ValueError, ["mass", "device", "meta"]),
    ({"rest": REST.to("meta")}, ValueError, ["rest", "device", "meta"]),
]


@pytest.mark.parametrize(("changes", "error", "words"), BAD)
def test_bad_argument_of_the_constructor(changes, error, words):
    with pytest.raises(error) as caught:
        ts.SparseLabels(**{"index": INDEX, "mass": MASS, "rest": REST, "num_classes": 150, **changes})
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ts.soft_resize(_labels(), (4, 6), 5, top_k=0), ValueError, ["top_k", "1..5", "0"]),
        (lambda: ts.soft_resize(_labels(), (4, 6), 5, top_k=6), ValueError, ["top_k", "1..5", "6"]),
        (lambda: ts.soft_resize(_labels(), (4, 6), 5, top_k=2.0), TypeError, ["top_k", "float"]),
        (lambda: ts.soft_resize(_labels(), (4, 6), 5, top_k=True), TypeError, ["top_k", "bool"]),
        (
            lambda: ts.soft_resize(_labels(), (4, 6), 5, top_k=2, dtype=torch.float64),
            TypeError,
            ["dtype", "bfloat16", "float64"],
        ),
        (
            lambda: ts.soft_resize(_labels(), (4, 6), 10**5, ignore_index=-1, top_k=2),
            ValueError,
            ["num_classes", "32768"],
        ),
        (lambda: ts.soft_resize(_labels() + 3, (4, 6), 5, top_k=2), ValueError, ["labels", "0..4"]),
        (lambda: ts.SparseLabels.from_dense(MASS, 4), ValueError, ["k", "1..3", "4"]),
        (lambda: ts.SparseLabels.from_dense(MASS.long(), 1), TypeError, ["soft", "int64"]),
        (lambda: ts.SparseLabels.from_dense(MASS[0], 1), ValueError, ["soft", "(3, 4, 5)"]),
        (lambda: ts.SparseLabels.from_dense(MASS, 1, torch.float64), TypeError, ["dtype", "float64"]),
        (lambda: _sparse().to(torch.float64), TypeError, ["dtype", "float64"]),
        (lambda: _sparse().to_dense("float32"), TypeError, ["dtype", "'float32'"]),
        (lambda: _sparse()[True], TypeError, ["along its batch", "True"]),
        (lambda: _sparse()[torch.zeros(1, 2, dtype=torch.long)], TypeError, ["along its batch"]),
        (lambda: torch.utils.data.default_collate([_sparse(), _sparse()]), ValueError, ["no batch axis", "shape="]),
        (
            lambda: torch.utils.data.default_collate([ts.SparseLabels.from_dense(MASS, k)[0] for k in (1, 2)]),
            ValueError,
            ["one k", "k=1", "k=2"],
        ),
        (lambda: _sparse().crop(3, 0, 2, 2), ValueError, ["top", "0..2", "pad=True", "3"]),
        (lambda: _sparse().crop(0, -1, 2, 2), ValueError, ["left", "0..4", "pad=True", "-1"]),
        (lambda: _sparse().crop([0, 3], 0, 2, 2), ValueError, ["top", "0..2", "pad=True", "3"]),
        (lambda: _sparse().crop(0, 0, 5, 2), ValueError, ["height", "at most", "4", "pad=True", "5"]),
        (lambda: _sparse().crop(0, 0, 2, 0, pad=True), ValueError, ["width", "at least 1", "0"]),
        (lambda: _sparse().crop(0.0, 0, 2, 2), TypeError, ["top", "int", "float"]),
        (lambda: _sparse().crop(0, True, 2, 2), TypeError, ["left", "int", "bool"]),
        (lambda: _sparse().crop(0, [0.0, 1.0], 2, 2), TypeError, ["left", "int64", "float32"]),
        (lambda: _sparse().crop("01", 0, 2, 2), TypeError, ["top", "each sample", "'01'"]),
        (lambda: _sparse().crop([0], 0, 2, 2), ValueError, ["top", "(B,) = (2,)", "(1,)"]),
        (lambda: _sparse().crop(torch.zeros(2, 2).long(), 0, 2, 2), ValueError, ["top", "(2,)", "(2, 2)"]),
        (lambda: _sparse()[0].crop([0], 0, 2, 2), TypeError, ["one sample"]),
        (lambda: _sparse().crop(torch.zeros(2, device="meta").long(), 0, 2, 2), ValueError, ["top", "device", "meta"]),
        (lambda: _sparse().crop(0, 0, 2, 2, pad=0), TypeError, ["pad", "0"]),
        (lambda: _sparse()["a"], TypeError, ["along its batch alone", "'a'"]),
        (lambda: _sparse()[0.0], TypeError, ["along its batch alone", "0.0"]),
        (lambda: _sparse()[np.True_], TypeError, ["along its batch alone", "True"]),
        (lambda: _sparse().flip(), ValueError, ["dims", "left-right", "top-bottom"]),
        (lambda: _sparse().flip(1), ValueError, ["dims", "[1]"]),
        (lambda: _sparse().flip(-1, 3), ValueError, ["dims", "[-1, 3]"]),
        (lambda: _sparse().flip("h"), TypeError, ["dims", "str"]),
        (lambda: _sparse().flip(-1, where=[1, 0]), TypeError, ["where", "bool", "int64"]),
        (lambda: _sparse().flip(-1, where=[True]), ValueError, ["where", "(2,)", "(1,)"]),
        (lambda: _sparse()[0].flip(-1, where=[True]), TypeError, ["one sample"]),
        (lambda: _sparse().argmax(0.5), TypeError, ["ignore_index", "float"]),
        (
            lambda: ts.SparseLabels.from_dense(MASS.repeat(1, 100, 1, 1), 1).argmax(),
            ValueError,
            ["ignore_index", "255"],
        ),
        (lambda: ts.soft_pyramid(_labels(), 5, (2, 3)), ValueError, ["factors", "(8, 12)", "3", "soft_resize"]),
        (lambda: ts.soft_pyramid(_labels(), 5, (4, 2)), ValueError, ["factors", "ascending", "(4, 2)"]),
        (lambda: ts.soft_pyramid(_labels(), 5, (0, 2)), ValueError, ["factors", "at least 1"]),
        (lambda: ts.soft_pyramid(_labels(), 5, ()), TypeError, ["factors", "at least one"]),
        (lambda: ts.soft_pyramid(_labels(), 5, 2), TypeError, ["factors", "2"]),
        (lambda: ts.soft_pyramid(_labels(), 5, (2.0,)), TypeError, ["factors", "2.0"]),
        (lambda: ts.soft_pyramid(_labels() + 1, 5, (2,)), ValueError, ["labels", "0..4"]),
        (lambda: ts.soft_pyramid(_labels(), 5, (2,), dtype=torch.int32), TypeError, ["dtype", "int32"]),
        (lambda: ts.soft_pyramid(_labels(), 5, (2,), backend="gpu"), ValueError, ["backend", "gpu"]),
    ],
)
def test_bad_argument(call, error, words):
    with pytest.raises(error) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
