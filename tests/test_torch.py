"""The operators as citizens of PyTorch: opcheck, gradients, compile, export, autocast, graphs, odd and empty sizes."""

import copy
import pickle

import pytest
import torch
from torch.autograd import forward_ad
from torch.library import opcheck

import tritonsoft as ts
from tests.cases import assert_close
from tritonsoft.ops import images
from tritonsoft.ops import labels as label_ops
from tritonsoft.ops import mixing as mixing_ops

BOXES = torch.tensor([[0.5, 0.0, 9.0, 8.25], [7.5, -2.0, 1.0, 6.0]])


def _inputs(device="cpu", dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 8, 9, dtype=torch.float64, generator=generator).to(device, dtype)
    labels = torch.randint(5, (2, 8, 9), generator=generator).to(device)
    return image, labels, BOXES.to(device)


def _mixing(image, labels):
    """Operators that mix samples, and their arguments."""
    batch, device = len(image), image.device
    partners, weight = torch.arange(batch, device=device).roll(1), torch.rand(batch, device=device)
    whole, chosen = torch.ones(batch, 4, dtype=torch.int64, device=device), torch.ones(batch, 5, device=device) > 0
    yield mixing_ops.paste, (image, partners, whole, None, None)
    yield mixing_ops.paste, (image, partners, None, labels, chosen)
    yield mixing_ops.blend, (image, partners, weight)
    yield mixing_ops.blend_labels, (labels, partners, weight, 5, 255, torch.float32)


OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize(("boxed", "memory_format"), [(True, torch.channels_last), (False, torch.contiguous_format)])
def test_opcheck(target, boxed, memory_format):
    if target == ("cpu", "triton") and not boxed:
        pytest.skip("the interpreter is slow: it checks each operator once")
    device, backend = target
    image, labels, boxes = _inputs(device)
    image = image.contiguous(memory_format=memory_format).requires_grad_()
    boxes = boxes if boxed else None
    double, single = torch.float64, torch.float32
    how = (backend, None)
    for operator, arguments in (
        (images.crop_resize, (image, boxes, [3, 4], "area", 0.5, double)),
        (images.crop_resize_adjoint, (image, boxes, [12, 7], "triangle", double)),
        (label_ops.soft_crop_resize, (labels, boxes, [3, 4], 5, 255, "area", single)),
        (label_ops.class_areas, (labels, None if boxes is None else boxes[:, None], 5, 255)),
        (label_ops.remap_labels, (labels, None, torch.arange(5, device=device), 0, 255, True, torch.int64)),
        (label_ops.crop_resize_pair, (image, labels, boxes, [3, 4], 5, 255, "area", 0.5, double, single)),
        *_mixing(image, labels),
    ):
        opcheck(operator.overload, (*how, *arguments), test_utils=OPCHECKS)


@pytest.mark.parametrize("filter", ["area", "triangle", "bilinear", "nearest"])
@pytest.mark.parametrize("size", [(3, 4), (11, 6)])
def test_gradcheck(target, filter, size):
    if target == ("cpu", "triton") and (filter in ("area", "nearest")) != (size == (3, 4)):
        pytest.skip("the interpreter is slow: it shrinks with two filters and enlarges with the others")
    device, backend = target
    image, labels, boxes = _inputs(device)
    image = image[:, :1, :5, :6].clone().requires_grad_()
    labels = labels[:, :5, :6]

    def single(image):
        return ts.crop_resize(image, boxes, size, filter=filter, backend=backend)

    def pair(image):
        return ts.crop_resize_pair(image, labels, boxes, size, 5, filter=filter, backend=backend)[0]

    # The fast check compares one random projection: enough for a linear map, and kind to the interpreter.
    assert torch.autograd.gradcheck(single, image, fast_mode=True)
    assert torch.autograd.gradgradcheck(single, image, fast_mode=True)
    assert torch.autograd.gradcheck(pair, image, fast_mode=True)


def test_gradient_reaches_only_the_image():
    image, labels, boxes = _inputs()
    image.requires_grad_()
    small, soft = ts.crop_resize_pair(image, labels, boxes, (3, 4), 5)
    assert small.requires_grad
    assert not soft.requires_grad
    small.sum().backward()
    assert image.grad is not None


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph(target, dynamic):
    device, backend = target
    image, labels, boxes = _inputs(device, torch.float32)

    def step(image, labels, boxes):
        small, soft = ts.crop_resize_pair(image * 2, labels, boxes, (3, 4), 5, backend=backend)
        return small + 1, ts.normalize(soft), ts.soft_resize(labels, (4, 3), 5, backend=backend)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for actual, expected in zip(compiled(image, labels, boxes), step(image, labels, boxes), strict=True):
        torch.testing.assert_close(actual, expected)
    leaf = image.clone().requires_grad_()
    compiled(leaf, labels, boxes)[0].sum().backward()
    assert leaf.grad is not None


def test_forward_mode(target):
    device, backend = target
    image, labels, boxes = _inputs(device)

    def crop(image, fill=0.5):
        return ts.crop_resize(image, boxes, (3, 4), fill=fill, backend=backend)

    expected = crop(image, fill=0.0)  # of a map that is linear but for the fill
    value, tangent = torch.func.jvp(crop, (image,), (image,))
    torch.testing.assert_close(value, crop(image))
    torch.testing.assert_close(tangent, expected)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(image, image)
        torch.testing.assert_close(forward_ad.unpack_dual(crop(dual)).tangent, expected)
        pair = ts.crop_resize_pair(dual, labels, boxes, (3, 4), 5, backend=backend)
        torch.testing.assert_close(forward_ad.unpack_dual(pair[0]).tangent, expected)
        assert forward_ad.unpack_dual(pair[1]).tangent is None
        for call in (
            lambda boxes: ts.crop_resize(image, boxes, (3, 4), backend=backend),
            lambda boxes: ts.soft_crop_resize(labels, boxes, (3, 4), 5, backend=backend),
        ):
            with pytest.raises(ValueError, match="boxes must not have a tangent"):
                call(forward_ad.make_dual(boxes, boxes))


def test_function_transforms(target):
    device, backend = target
    image, labels, boxes = _inputs(device)
    image, labels, boxes = image[:, :1, :4, :4], labels[:, :4, :4], boxes * 0.5

    def crop(image, boxes=boxes):
        return ts.crop_resize(image, boxes, (2, 2), backend=backend)

    leaf = image.clone().requires_grad_()
    (expected,) = torch.autograd.grad(crop(leaf).pow(2).sum(), leaf)
    torch.testing.assert_close(torch.func.grad(lambda image: crop(image).pow(2).sum())(image), expected)
    per_sample = torch.vmap(torch.func.grad(lambda image, box: crop(image[None], box[None]).pow(2).sum()))
    torch.testing.assert_close(per_sample(image, boxes), expected)
    jacobian = torch.func.jacrev(lambda image: crop(image, boxes[:1]))(image[:1])
    torch.testing.assert_close(torch.func.jacfwd(lambda image: crop(image, boxes[:1]))(image[:1]), jacobian)
    hessian = torch.func.hessian(lambda image: crop(image, boxes[:1]).pow(2).sum())(image[:1]).reshape(16, 16)
    torch.testing.assert_close(hessian, 2 * jacobian.reshape(4, 16).T @ jacobian.reshape(4, 16))

    both = torch.stack([labels, labels.flip(2)])
    for call in (
        lambda labels: ts.soft_crop_resize(labels, boxes, (2, 2), 5, backend=backend),
        lambda labels: ts.soft_resize(labels, (2, 2), 5, top_k=2, backend=backend).mass,
        lambda labels: ts.soft_pyramid(labels, 5, (1, 2, 4), backend=backend),
        lambda labels: ts.crop_resize_pair(image, labels, boxes, (2, 2), 5, backend=backend),
    ):
        expected = torch.utils._pytree.tree_map(lambda *pair: torch.stack(pair), call(both[0]), call(both[1]))
        torch.testing.assert_close(torch.vmap(call)(both), expected)


def test_a_compiled_forward_mode_raises():
    """Its tangent would be 0: a graph holds the operators, whose kernels know no forward mode."""
    image, _, boxes = _inputs()

    def tangent(image):
        return torch.func.jvp(lambda image: ts.crop_resize(image, boxes, (3, 4)), (image,), (image,))[1]

    torch._dynamo.reset()
    compiled = torch.compile(tangent, fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match="cannot be compiled"):
        compiled(image)
    torch._dynamo.reset()
    compiled = torch.compile(tangent, backend="aot_eager")
    if torch.__version__ >= (2, 15):  # leaves a call that raises out of the graph, and calls it as it is
        torch.testing.assert_close(compiled(image), tangent(image))
    else:
        with pytest.raises(RuntimeError, match="cannot be compiled"):
            compiled(image)


@pytest.mark.parametrize("dynamic", [None, True])
def test_a_changing_batch_and_size_recompile_once(dynamic):
    """As torch's own operators do: Dynamo gives up at the ninth graph."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    def step(image, labels, boxes):
        small, soft = ts.crop_resize_pair(image, labels, boxes, (image.shape[2] // 2, 4), 5)
        losses = (
            ts.soft_cross_entropy(small, soft),
            ts.area_cross_entropy(small, labels),
            ts.soft_dice_loss(small, soft),
        )
        return small, soft, ts.soft_resize(labels, (3, 4), 5), sum(losses)

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in range(4, 26, 2):
        image, labels = torch.rand(size // 2, 5, size, size + 2), torch.randint(5, (size // 2, size, size + 2))
        boxes = torch.tensor([0.0, 1.0, size + 1.0, size - 0.5]).expand(size // 2, 4)
        torch.testing.assert_close(compiled(image, labels, boxes), step(image, labels, boxes))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


class _Noted(torch.Tensor):
    """A tensor that carries a note along, as torchvision's `tv_tensors` do; two kinds do not mix."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if not all(issubclass(cls, kind) for kind in types):
            return NotImplemented
        return super().__torch_function__(func, types, args, kwargs or {})


class _NotedImage(_Noted):
    pass


class _NotedMask(_Noted):
    pass


def test_a_result_names_its_gradient():
    image, _, _ = _inputs()
    assert ts.resize(image.requires_grad_(), (2, 2)).grad_fn.name() == "CropResizeBackward"


def test_sparse_labels_of_subclasses_are_taken_as_their_data(target):
    device, backend = target
    _, labels, _ = _inputs(device)
    soft, logits = ts.soft_resize(labels, (3, 4), 5), torch.zeros(2, 5, 3, 4, device=device)
    sparse = ts.SparseLabels.from_dense(soft.as_subclass(_NotedMask), 2)
    for made in (ts.soft_cross_entropy(logits, sparse, backend=backend), sparse.to_dense()):
        assert type(made) is torch.Tensor
    assert type(ts.normalize(soft.as_subclass(_NotedMask))) is torch.Tensor


def test_tensors_of_subclasses_are_taken_as_their_data(target):
    device, backend = target
    image, labels, boxes = _inputs(device)
    noted = image.as_subclass(_NotedImage), labels.as_subclass(_NotedMask), boxes.as_subclass(_NotedMask)
    expected = ts.crop_resize_pair(image, labels, boxes, (3, 4), 5, backend=backend)
    actual = ts.crop_resize_pair(*noted, (3, 4), 5, backend=backend)
    for one, other in zip(actual, expected, strict=True):
        assert type(one) is torch.Tensor
        assert one.equal(other)
    parameter = torch.nn.Parameter(image)
    ts.crop_resize(parameter, boxes, (3, 4), backend=backend).sum().backward()
    assert parameter.grad is not None


def test_compile_with_inductor():
    image, labels, boxes = _inputs(dtype=torch.float32)
    image = image.contiguous(memory_format=torch.channels_last)

    def step(image, labels, boxes):
        small, soft = ts.crop_resize_pair(image * 2, labels, boxes, (3, 4), 5)
        return small + 1, soft * 2

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True)
    for actual, expected in zip(compiled(image, labels, boxes), step(image, labels, boxes), strict=True):
        torch.testing.assert_close(actual, expected)


def test_compiled_graph_still_checks_values():
    _, labels, boxes = _inputs()
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda labels, boxes: ts.soft_crop_resize(labels, boxes, (3, 4), 5), fullgraph=True, backend="aot_eager"
    )
    compiled(labels, boxes)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.4"):
        compiled(labels + 3, boxes)


class _Shrink(torch.nn.Module):
    def forward(self, image, labels, boxes):
        return ts.crop_resize_pair(image, labels, boxes, (3, 4), 5)


def test_export():
    image, labels, boxes = _inputs(dtype=torch.float32)
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = {"image": {0: batch}, "labels": {0: batch}, "boxes": {0: batch}}
    program = torch.export.export(_Shrink(), (image, labels, boxes), dynamic_shapes=shapes)
    more = (image.repeat(3, 1, 1, 1), labels.repeat(3, 1, 1), boxes.repeat(3, 1))
    for actual, expected in zip(program.module()(*more), _Shrink()(*more), strict=True):
        torch.testing.assert_close(actual, expected)


def test_autocast_changes_nothing(target):
    device, backend = target
    image, labels, boxes = _inputs(device, torch.float32)
    image.requires_grad_()
    expected = ts.crop_resize_pair(image, labels, boxes, (3, 4), 5, backend=backend)
    with torch.autocast(device, dtype=torch.bfloat16):
        actual = ts.crop_resize_pair(image, labels, boxes, (3, 4), 5, backend=backend)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])
    actual[0].sum().backward()
    assert image.grad is not None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_cuda_graph_capture():
    image, labels, boxes = _inputs("cuda", torch.float32)
    expected = ts.crop_resize_pair(image, labels, boxes, (3, 4), 5)
    dense = ts.soft_resize(labels, (4, 3), 5)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # fails on any synchronisation or copy from the host
        actual = ts.crop_resize_pair(image, labels, boxes, (3, 4), 5)
        dense_actual = ts.soft_resize(labels, (4, 3), 5)
    for output in (*actual, dense_actual):
        output.fill_(float("nan"))
    graph.replay()
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])
    assert torch.equal(dense_actual, dense)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_gpu_values_are_checked_on_request():
    _, labels, boxes = _inputs("cuda")
    with pytest.raises(ValueError, match="labels must lie"):
        ts.soft_crop_resize(labels + 3, boxes, (3, 4), 5, validate=True)
    unchecked = ts.soft_crop_resize(labels + 3, boxes, (3, 4), 5)
    expected = ts.soft_crop_resize(labels.where(labels < 2, -4) + 3, boxes, (3, 4), 5, ignore_index=-1)
    assert torch.equal(unchecked, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_gpu_garbage_boxes_do_not_crash():
    image, labels, _ = _inputs("cuda", torch.float32)
    nan, inf = float("nan"), float("inf")
    for row in ([nan, 0, 1, 1], [-inf, -inf, inf, inf], [3, 3, 3, 3], [0, 0, 1e30, 1e30], [inf, 0, nan, 5]):
        boxes = torch.tensor([row, [0.0, 0.0, 9.0, 8.0]], device="cuda")
        _, soft = ts.crop_resize_pair(image, labels, boxes, (3, 4), 5)
        whole = ts.soft_resize(labels[1:], (3, 4), 5)
        assert_close(soft[1:], whole, 1e-5, "the sample with a good box")
    torch.cuda.synchronize()


def test_empty_batch(target):
    device, backend = target
    image, labels, boxes = (tensor[:0] for tensor in _inputs(device))
    small, soft = ts.crop_resize_pair(image.requires_grad_(), labels, boxes, (3, 4), 5, backend=backend)
    assert small.shape == (0, 3, 3, 4)
    assert soft.shape == (0, 5, 3, 4)
    small.sum().backward()
    assert image.grad is not None
    assert ts.soft_resize(labels, (3, 4), 5, backend=backend).shape == (0, 5, 3, 4)
    assert ts.to_soft(labels, 5, backend=backend).shape == (0, 5, 8, 9)


@pytest.mark.parametrize(
    ("height", "width", "size", "classes"),
    [
        (1, 1, (1, 1), 1),
        (1, 7, (3, 2), 3),
        (9, 1, (2, 4), 3),
        (6, 8, (3, 4), 1000),
        (2, 5000, (1, 2500), 2),
        (3, 5001, (2, 19), 2),
    ],
)
def test_extreme_shapes(target, height, width, size, classes):
    device, backend = target
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (1, height, width), generator=generator, dtype=torch.int16)
    image = torch.rand(1, 1, height, width, generator=generator)
    boxes = torch.tensor([[width + 0.0, 0.0, 0.0, height + 0.0]])
    for box in (None, boxes):
        expected = ts.crop_resize_pair(
            image.double(),
            labels,
            box,
            size,
            classes,
            ignore_index=-1,
            soft_dtype=torch.float64,
            backend="reference",
        )
        there = None if box is None else box.to(device)
        image_there, labels_there = image.to(device), labels.to(device)
        actual = ts.crop_resize_pair(image_there, labels_there, there, size, classes, ignore_index=-1, backend=backend)
        taps = height / size[0] + width / size[1] + 8
        for got, want in zip(actual, expected, strict=True):
            assert_close(got, want, 8 * taps * torch.finfo(torch.float32).eps, f"{height}x{width}")


def test_channel_axis_of_labels_is_optional(target):
    device, backend = target
    _, labels, boxes = _inputs(device)
    flat = ts.soft_crop_resize(labels, boxes, (3, 4), 5, backend=backend)
    assert torch.equal(flat, ts.soft_crop_resize(labels[:, None], boxes, (3, 4), 5, backend=backend))


def test_functions_can_be_pickled_and_copied():
    assert pickle.loads(pickle.dumps(ts.soft_resize)) is ts.soft_resize
    assert copy.deepcopy(ts.soft_resize) is ts.soft_resize


@pytest.mark.parametrize(
    ("shape", "steps"),
    [
        ((2, 3, 1 << 15, 1 << 15), (1 << 12, 1 << 12)),  # samples and channels further apart than 2^31 elements
        ((1, 1, 50_000, 50_000), (6_250, 6_250)),  # one plane that spans more
    ],
)
def test_offsets_past_2_to_the_31(target, shape, steps):
    """Views whose elements lie further apart than an int32 can count; memory that is not touched costs nothing."""
    device, backend = target
    try:
        memory = torch.empty(shape, dtype=torch.uint8, device=device)
    except RuntimeError as error:
        pytest.skip(f"no room for {shape}: {error}")
    image = memory[..., :: steps[0], :: steps[1]]
    image.copy_(torch.randint(5, image.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))
    labels = image[:, -1]
    last = (image.shape[0] - 1) * image.stride(0) + (image.shape[1] - 1) * image.stride(1)
    assert last + (image.shape[2] - 1) * image.stride(2) + (image.shape[3] - 1) * image.stride(3) > 2**31
    boxes = torch.tensor([[7.5, 0.0, 0.5, 8.0]]).expand(shape[0], 4).to(device)
    for box, side in ((None, 4), (None, 2), (None, 1), (boxes, 4)):
        actual = ts.crop_resize_pair(image, labels, box, (side, side), 5, dtype=torch.float32, backend=backend)
        expected = ts.crop_resize_pair(
            image.cpu().clone(),
            labels.cpu().clone(),
            None if box is None else box.cpu(),
            (side, side),
            5,
            dtype=torch.float32,
            backend="reference",
        )
        for got, want in zip(actual, expected, strict=True):
            assert_close(got, want, 64 * torch.finfo(torch.float32).eps, "far view")


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [(3, 4), (1024, 1024)])  # the second is past the size from which memory is NumPy's
def test_outputs_can_be_changed_in_place(target, size, channels_last):
    device, backend = target
    if size == (1024, 1024) and (device, backend) == ("cpu", "triton"):
        pytest.skip("a large output takes the interpreter minutes; its memory is not the backend's business")
    image, labels, boxes = _inputs(device, torch.float32)
    if channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    small, soft = ts.crop_resize_pair(image.requires_grad_(), labels, boxes, size, 5, backend=backend)
    expected = small.detach().clone()
    assert small.mul_(2).is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    assert torch.equal(small.detach(), 2 * expected)
    soft.mul_(2)
    torch.nn.functional.relu(small, inplace=True).sum().backward()
    assert image.grad is not None


@pytest.mark.parametrize("fill", [1e9, float("inf"), float("nan")])
def test_fill_stays_outside(target, fill):
    device, backend = target
    image = torch.ones(1, 1, 10, 14, device=device)
    assert ts.crop_resize(image, None, (3, 5), fill=fill, backend=backend).sub(1).abs().max() < 1e-6
    boxes = torch.tensor([[-12.0, 0.0, 12.0, 10.0]], device=device)
    out = ts.crop_resize(image, boxes, (3, 6), fill=fill, backend=backend)
    torch.testing.assert_close(out[..., :3], torch.full_like(out[..., :3], fill), equal_nan=True)
    assert out[..., 3:].sub(1).abs().max() < 1e-6
