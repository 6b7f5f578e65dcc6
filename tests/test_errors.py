"""Bad input: an error that names the argument, what it got and what it wanted."""

import pytest
import torch

import tritonsoft as ts
from tritonsoft.backends import select as backends

IMAGE = torch.rand(2, 3, 8, 9)
LABELS = torch.randint(5, (2, 8, 9))
BOXES = torch.tensor([[0.0, 0.0, 9.0, 8.0], [1.0, 1.0, 4.0, 5.0]])
NAN, INF = float("nan"), float("inf")


def _pair(**changes):
    arguments = {"image": IMAGE, "labels": LABELS, "boxes": BOXES, "size": (3, 4), "num_classes": 5, **changes}
    return ts.crop_resize_pair(**arguments)


def _with_box(*row):
    return torch.tensor([[0.0, 0.0, 9.0, 8.0], row])


BAD = [
    # changes, error, the words that its message must hold
    ({"labels": LABELS + 1}, ValueError, ["labels", "0..4", "ignore_index=255", "5"]),
    ({"labels": LABELS - 1}, ValueError, ["labels", "0..4", "-1"]),
    ({"labels": LABELS.float()}, TypeError, ["labels", "uint8", "float32"]),
    ({"labels": LABELS.to(torch.uint64)}, TypeError, ["labels", "uint32", "uint64"]),
    ({"labels": LABELS.numpy()}, TypeError, ["labels", "tensor", "ndarray"]),
    ({"labels": LABELS[0]}, ValueError, ["labels", "(B, H, W)", "(8, 9)"]),
    ({"labels": LABELS[:, None].expand(2, 2, 8, 9)}, ValueError, ["labels", "(2, 2, 8, 9)"]),
    ({"labels": LABELS[:1]}, ValueError, ["labels", "(2, 8, 9)", "(1, 8, 9)"]),
    ({"labels": LABELS[:, :7]}, ValueError, ["labels", "(2, 8, 9)", "(2, 7, 9)"]),
    ({"labels": torch.zeros(2, 0, 9, dtype=torch.long)}, ValueError, ["labels", "H, W >= 1"]),
    ({"labels": LABELS.to("meta")}, ValueError, ["labels", "device", "cpu", "meta"]),
    ({"image": IMAGE[0]}, ValueError, ["image", "(B, K, H, W)", "(3, 8, 9)"]),
    ({"image": IMAGE.long()}, TypeError, ["image", "int64"]),
    ({"image": IMAGE.to(torch.complex64)}, TypeError, ["image", "complex64"]),
    ({"image": [1]}, TypeError, ["image", "list"]),
    ({"boxes": BOXES[:1]}, ValueError, ["boxes", "(2, 4)", "(1, 4)"]),
    ({"boxes": BOXES[:, :3]}, ValueError, ["boxes", "(2, 4)", "(2, 3)"]),
    ({"boxes": BOXES[0]}, ValueError, ["boxes", "(4,)"]),
    ({"boxes": BOXES.bool()}, TypeError, ["boxes", "floating", "bool"]),
    ({"boxes": BOXES.numpy()}, TypeError, ["boxes", "tensor", "ndarray"]),
    ({"boxes": BOXES.to("meta")}, ValueError, ["boxes", "device", "meta"]),
    ({"boxes": BOXES.clone().requires_grad_()}, ValueError, ["boxes", "gradient"]),
    ({"boxes": _with_box(NAN, 0, 1, 1)}, ValueError, ["boxes", "finite", "nan", "sample 1"]),
    ({"boxes": _with_box(0, 0, INF, 1)}, ValueError, ["boxes", "finite", "inf"]),
    ({"boxes": _with_box(2, 0, 2, 1)}, ValueError, ["boxes", "zero", "2.0", "sample 1"]),
    ({"boxes": _with_box(2, 3, 4, 3)}, ValueError, ["boxes", "zero", "3.0"]),
    ({"boxes": _with_box(0, 0, 1e9, 1)}, ValueError, ["boxes", "16777216", "1000000000"]),
    ({"size": (0, 4)}, ValueError, ["size", "(0, 4)"]),
    ({"size": (3, -4)}, ValueError, ["size", "-4"]),
    ({"size": 3}, TypeError, ["size", "two ints", "3"]),
    ({"size": (3, 4, 5)}, TypeError, ["size", "two ints"]),
    ({"size": (3.0, 4)}, TypeError, ["size", "two ints", "3.0"]),
    ({"size": (True, 4)}, TypeError, ["size", "True"]),
    ({"num_classes": 0}, ValueError, ["num_classes", "at least 1", "0"]),
    ({"num_classes": 5.0}, TypeError, ["num_classes", "int", "float"]),
    ({"ignore_index": 1.0}, TypeError, ["ignore_index", "int", "float"]),
    ({"num_classes": 256}, ValueError, ["ignore_index", "255", "num_classes=256"]),
    ({"filter": "box"}, ValueError, ["filter", "area", "box"]),
    ({"filter": "bicubic"}, ValueError, ["filter", "bicubic", "negative"]),
    ({"filter": "lanczos"}, ValueError, ["filter", "lanczos", "negative"]),
    ({"filter": "Lanczos3"}, ValueError, ["filter", "Lanczos3", "negative"]),
    ({"num_classes": 2**40}, ValueError, ["num_classes", "at most"]),
    ({"size": (3, 2**40)}, ValueError, ["size", "at most"]),
    ({"ignore_index": 10**30}, ValueError, ["ignore_index", "int64", "1000"]),
    ({"validate": "yes"}, TypeError, ["validate", "yes"]),
    ({"boxes": BOXES.to(torch.float8_e5m2)}, TypeError, ["boxes", "float8_e5m2"]),
    ({"filter": None}, ValueError, ["filter", "area", "None"]),
    ({"fill": "black"}, TypeError, ["fill", "number", "str"]),
    ({"image": IMAGE.byte(), "fill": 300}, ValueError, ["fill", "0..255", "300"]),
    ({"dtype": torch.int32}, TypeError, ["dtype", "int32"]),
    ({"dtype": torch.uint8}, TypeError, ["dtype", "uint8", "float32"]),
    ({"soft_dtype": torch.uint8}, TypeError, ["soft_dtype", "float32", "uint8"]),
    ({"soft_dtype": torch.complex64}, TypeError, ["soft_dtype", "complex64"]),
    ({"soft_dtype": None}, TypeError, ["soft_dtype", "None"]),
    ({"backend": "cuda"}, ValueError, ["backend", "reference", "cuda"]),
]


@pytest.mark.parametrize(("changes", "error", "words"), BAD)
def test_bad_argument(changes, error, words):
    with pytest.raises(error) as caught:
        _pair(**changes)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("device_and_backend", [("cpu", "numba"), ("cpu", "triton"), ("cuda", "numba")])
def test_a_forced_backend_that_cannot_run(device_and_backend, monkeypatch):
    device, backend = device_and_backend
    monkeypatch.setattr(backends, "_installed", lambda package: False)
    monkeypatch.setattr(backends, "_INTERPRETED", False)
    backends.explain_backend.cache_clear()
    backends.backend_for.cache_clear()
    try:
        name, reason = backends.explain_backend(device, backend)
        assert name is None
        assert reason
        if device == "cpu":
            with pytest.raises(ValueError, match=rf"backend='{backend}' cannot run on cpu: .*install"):
                ts.soft_resize(LABELS, (3, 4), 5, backend=backend)
        assert backends.explain_backend("cpu", None)[0] == "reference"
        assert "Numba is not installed" in backends.explain_backend("cpu", None)[1]
    finally:
        backends.explain_backend.cache_clear()
        backends.backend_for.cache_clear()


def test_triton_on_a_cpu_needs_the_interpreter(monkeypatch):
    monkeypatch.setattr(backends, "_INTERPRETED", False)
    backends.explain_backend.cache_clear()
    backends.backend_for.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"backend='triton' cannot run on cpu: .*TRITON_INTERPRET=1"):
            ts.soft_resize(LABELS, (3, 4), 5, backend="triton")
    finally:
        backends.explain_backend.cache_clear()
        backends.backend_for.cache_clear()


@pytest.fixture
def without_numba(monkeypatch):
    """As in a process that starts where Numba is not installed."""
    monkeypatch.setattr(backends, "_installed", lambda package: False)
    monkeypatch.setattr(backends, "_INTERPRETED", False)
    once = (backends.explain_backend, backends.backend_for, backends.warn_where_numba_is_missing)
    for function in once:
        function.cache_clear()
    yield
    for function in once:
        function.cache_clear()


SMALL, LARGE = ((1, rows, 1024) for rows in (backends.LARGE // 1024 - 1, backends.LARGE // 1024))


@pytest.mark.usefixtures("without_numba")
def test_a_large_call_on_the_cpu_says_once_what_is_missing(recwarn):
    def call(shape, backend=None):
        ts.soft_resize(torch.zeros(shape, dtype=torch.uint8), (2, 2), 1, backend=backend)

    call(SMALL)
    call(LARGE, "reference")  # who asks for it knows
    assert not recwarn.list
    message = r"ten to a hundred times as slowly without Numba: pip install 'numba>="
    with pytest.warns(RuntimeWarning, match=message) as warned:
        call(LARGE)
    assert warned[0].filename == __file__  # neither ours nor torch's
    recwarn.clear()
    call(LARGE)
    assert not recwarn.list


@pytest.mark.usefixtures("without_numba")
def test_a_graph_of_a_large_call_is_made_without_a_warning(recwarn):
    labels = torch.zeros(LARGE, dtype=torch.uint8)
    exported = torch.export.export(Shrink(), (labels,))  # on tensors without memory, as under torch.compile
    assert not [warning for warning in recwarn if "Numba" in str(warning.message)]
    with pytest.warns(RuntimeWarning, match="without Numba"):
        exported.module()(labels)


class Shrink(torch.nn.Module):
    def forward(self, labels):
        return ts.soft_resize(labels, (2, 2), 1)


def test_nothing_is_missing_where_numba_is(recwarn):
    pytest.importorskip("numba", reason="Numba is not installed")
    backends.warn_where_numba_is_missing.cache_clear()
    ts.soft_resize(torch.zeros(LARGE, dtype=torch.uint8), (2, 2), 1)
    assert not recwarn.list


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize(("bad", "ignore_index"), [(5, 255), (200, 255), (255, 7), (255, -1), (255, 2**40)])
def test_labels_out_of_range_are_found_wherever_they_are(target, dtype, bad, ignore_index):
    device, backend = target
    if device != "cpu":
        pytest.skip("a GPU checks values on request only; see test_torch")
    labels = torch.zeros(3, 61, 67, dtype=dtype)
    for position in (0, 61 * 67 + 13, labels.numel() - 1):
        marked = labels.clone()
        marked.view(-1)[position] = bad
        with pytest.raises(ValueError, match=rf"got 1 other values from {bad} to {bad}"):
            ts.soft_resize(marked, (3, 4), 5, ignore_index=ignore_index, backend=backend)
    ts.soft_resize(labels, (3, 4), 5, ignore_index=ignore_index, backend=backend)


def test_uint8_labels_with_more_classes_than_the_dtype_holds(target):
    device, backend = target
    labels = torch.tensor([[[0, 200, 254, 255]]], dtype=torch.uint8, device=device)
    soft = ts.to_soft(labels, 1000, ignore_index=255, backend=backend)
    assert soft[0, :, 0].argmax(0).tolist() == [0, 200, 254, 0]
    assert soft.sum().item() == 3


def test_a_default_never_takes_a_class_for_unlabelled(target):
    """With more than 255 classes 255 may be one of them: silence would drop it."""
    device, backend = target
    labels = torch.full((1, 4, 4), 255, device=device)
    logits, image = torch.zeros(1, 300, 2, 2, device=device), torch.zeros(1, 1, 4, 4, device=device)
    for call in (
        lambda **options: ts.soft_resize(labels, (2, 2), 300, backend=backend, **options),
        lambda **options: ts.soft_resize(labels, (2, 2), 300, top_k=2, backend=backend, **options).to_dense(),
        lambda **options: ts.to_soft(labels, 300, backend=backend, **options),
        lambda **options: ts.soft_pyramid(labels, 300, (1, 2), backend=backend, **options)[1],
        lambda **options: ts.crop_resize_pair(image, labels, None, (2, 2), 300, backend=backend, **options)[1],
        lambda **options: ts.area_cross_entropy(logits, labels, backend=backend, reduction="none", **options),
    ):
        with pytest.raises(ValueError, match="ignore_index must be given where num_classes is more than 255"):
            call()
        assert (call(ignore_index=-1).sum() > 0).all()
        assert call(ignore_index=255).sum() == 0  # said, and so done
    assert ts.soft_resize(labels, (2, 2), 255, backend=backend).sum() == 0


def test_normalize_checks_its_argument():
    with pytest.raises(TypeError, match=r"soft must be .*int64"):
        ts.normalize(LABELS)
    with pytest.raises(ValueError, match=r"soft must have shape \(B, C, h, w\), got \(3, 8, 9\)"):
        ts.normalize(IMAGE[0])
