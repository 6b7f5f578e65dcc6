"""RandomClassCrop: what it promises of classes and shares, and that nobody waits for the labels it looks at."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import tritonsoft as ts

K = pytest.importorskip("kornia.augmentation", reason="kornia is not installed")
import tritonsoft.augmentation as TA  # noqa: E402

CLASSES, HEIGHT, WIDTH = 6, 96, 160
KEYS = ["image", "mask"]


def scenes(batch: int = 8, seed: int = 0) -> Tensor:
    """Large regions of classes 0 to 2, a small one of 3, a single pixel of 4, no 5, and some that are ignored."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(batch, HEIGHT, WIDTH, dtype=torch.uint8)
    labels[:, :, WIDTH // 2 :] = 1
    labels[:, HEIGHT // 2 :, WIDTH // 4 :] = 2
    labels[:, :10, :20] = 255
    for sample in range(batch):
        for label, side in ((3, 6), (4, 1)):
            y, x = (int(torch.randint(size - side, (), generator=generator)) for size in (HEIGHT, WIDTH))
            labels[sample, y : y + side, x : x + side] = label
    return labels


def image_of(labels: Tensor) -> Tensor:
    return torch.rand(len(labels), 3, *labels.shape[1:], generator=torch.Generator().manual_seed(1))


def chosen_boxes(params: dict[str, Tensor]) -> Tensor:
    corners = params["src"].double()
    return torch.cat([corners[:, 0], corners[:, 2] + 1], 1)


def choose(crop: Any, labels: Tensor) -> dict[str, Tensor]:
    params: dict[str, Tensor] = crop.choose(crop.forward_parameters((len(labels), 3, *labels.shape[1:])), labels)
    return params


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# --- what it promises ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "weights", [None, "inverse_area", torch.tensor([0.0, 0, 0, 1, 3, 5])], ids=["even", "rare", "own"]
)
@pytest.mark.parametrize("size", [(24, 40), (6, 6), (200, 80)])
def test_a_class_that_was_drawn_is_in_the_crop(weights, size):
    labels = scenes(200)
    crop = TA.RandomClassCrop(size, num_classes=CLASSES, class_weights=weights)
    params = choose(crop, labels)
    areas = ts.class_areas(labels, chosen_boxes(params), CLASSES)
    drawn = params["drawn_class"]
    held = ts.class_areas(labels, None, CLASSES).gather(1, drawn[:, None])
    assert (held > 0).all()  # among the classes of the sample
    shown = areas.gather(1, drawn[:, None])[:, 0]
    assert (shown > 0.99).all()  # a pixel of it at least
    soft = ts.soft_crop_resize(labels, chosen_boxes(params), size, CLASSES)
    assert (soft.sum((2, 3)).gather(1, drawn[:, None]) > 0).all()
    assert set(params["chosen"].tolist()) <= set(range(14))


def test_classes_are_drawn_as_asked():
    labels = scenes(1).expand(3000, -1, -1)[:, ::2, ::2].contiguous()  # the single pixel may be gone
    held = ts.class_areas(labels[:1], None, CLASSES)[0].double()
    own = torch.tensor([1.0, 0, 4, 2, 0, 9])
    for weights, expected in (
        (None, (held > 0).double()),
        ("inverse_area", torch.where(held > 0, 1 / held.clamp(min=1), 0)),
        (own, own.double() * (held > 0)),
    ):
        crop = TA.RandomClassCrop((8, 8), num_classes=CLASSES, class_weights=weights, candidates=1)
        drawn = choose(crop, labels)["drawn_class"].bincount(minlength=CLASSES) / 3000
        expected = expected / expected.sum()
        assert (drawn - expected).abs().max() < 0.04  # four deviations of 3000 draws


def test_rare_classes_become_frequent():
    """The distribution of classes in crops, before and after."""
    labels = scenes(300)
    before = ts.class_areas(labels, chosen_boxes(choose(crop_of("any", max_share=1), labels)), CLASSES) > 0
    after = ts.class_areas(labels, chosen_boxes(choose(crop_of(None), labels)), CLASSES) > 0
    assert before[:, 3].float().mean() < 0.3
    assert after[:, 3].float().mean() > before[:, 3].float().mean() + 0.1
    assert after[:, 4].float().mean() > 3 * before[:, 4].float().mean()


def crop_of(weights: Any, **options: Any) -> Any:
    return TA.RandomClassCrop((24, 40), num_classes=CLASSES, class_weights=weights, **options)


@pytest.mark.parametrize("weights", [None, "any"])
def test_no_class_covers_more_than_its_share_where_a_candidate_allows(weights):
    labels = scenes(200)
    crop = crop_of(weights, max_share=0.6)
    params = choose(crop, labels)
    boxes = TA.crops.windows(params, (24, 40), (HEIGHT, WIDTH))[:, :10]
    areas = ts.class_areas(labels, boxes.double(), CLASSES)  # (B, 10, C)
    share = areas.amax(2) / areas.sum(2).clamp(min=1e-6)
    wanted = params["drawn_class"]
    holds = torch.ones_like(share, dtype=torch.bool)
    if weights is None:
        holds = areas.gather(2, wanted[:, None, None].expand(-1, 10, 1))[..., 0] * params["scale"][:, :10] ** 2 > 30
    surely = (share < 0.57) & (share > 0) & holds  # cells that a box cuts are shared evenly
    can = surely.any(1)
    assert can.sum() > 20
    shown = ts.class_areas(labels, chosen_boxes(params), CLASSES)
    assert (shown.amax(1) / shown.sum(1))[can].max() < 0.63
    first = surely.long().argmax(1)
    assert (params["chosen"][can] <= first[can]).all() if weights == "any" else True  # the first that does


def test_without_a_wish_it_is_a_random_scale_crop():
    labels = scenes()
    params = choose(crop_of("any", max_share=1), labels)
    assert params["chosen"].tolist() == [0] * 8
    assert params["drawn_class"].tolist() == [-1] * 8
    first = {name: params[name][:, 0] for name in ("scale", "across", "down")}
    assert torch.allclose(chosen_boxes(params).float(), TA.crops.windows(first, (24, 40), (HEIGHT, WIDTH)), atol=1e-4)


def test_min_pixels_asks_for_more_of_a_class():
    labels = scenes(200)
    weights = torch.tensor([0.0, 0, 0, 1, 0, 0])
    few, many = (crop_of(weights, max_share=1, min_pixels=pixels) for pixels in (1.0, 36.0))
    for crop, least in ((few, 1.0), (many, 36.0)):
        params = choose(crop, labels)
        is_random = params["chosen"] < 10
        scale = params["scale"].gather(1, params["chosen"][:, None])[:, 0]
        pixels = ts.class_areas(labels, chosen_boxes(params), CLASSES)[:, 3] * scale**2
        assert is_random.any()
        assert pixels[is_random].min() > least * 0.99
        assert (pixels > 0).all()


@pytest.mark.parametrize("labels", [torch.full((4, 40, 60), 255), torch.full((4, 40, 60), 2)], ids=["ignored", "one"])
def test_a_wish_that_no_sample_can_grant(labels):
    crop = TA.RandomClassCrop((16, 16), num_classes=CLASSES, class_weights=torch.tensor([0.0, 0, 0, 1, 0, 0]))
    params = choose(crop, labels)
    assert params["drawn_class"].tolist() == [-1] * 4
    assert params["chosen"].tolist() == [0] * 4  # no share below 0.75 either


def test_a_crop_that_is_larger_than_the_image():
    labels = scenes(20)
    crop = TA.RandomClassCrop((400, 400), scale=(0.5, 1.0), num_classes=CLASSES)
    boxes = chosen_boxes(choose(crop, labels))
    assert (boxes[:, :2] < 1e-3).all()
    assert (boxes[:, 2:] > torch.tensor([WIDTH, HEIGHT]) - 1e-3).all()


def test_tiny_boxes_still_hold_the_class():
    labels = scenes(50)
    crop = TA.RandomClassCrop((4, 4), scale=(4.0, 8.0), num_classes=CLASSES)  # boxes of half a pixel to one
    params = choose(crop, labels)
    shown = ts.class_areas(labels, chosen_boxes(params), CLASSES).gather(1, params["drawn_class"][:, None])
    assert (shown > 0).all()


def test_all_samples_may_have_one_crop():
    labels = scenes()
    crop = crop_of(torch.tensor([0.0, 0, 0, 0, 1, 0]), same_on_batch=True)
    params = choose(crop, labels)
    for name in ("src", "chosen", "drawn_class"):
        assert torch.equal(params[name], params[name][:1].expand_as(params[name]))
    assert ts.class_areas(labels, chosen_boxes(params), CLASSES)[:, 4].sum() > 0  # in one sample at least


# --- in the container ------------------------------------------------------------------------------------------------


def test_it_folds_with_its_neighbours_into_one_resample(monkeypatch):
    calls = []
    for name in ("crop_resize", "soft_crop_resize", "crop_resize_pair", "warp_pair", "soft_warp"):
        plain = getattr(ts, name)
        monkeypatch.setattr(ts, name, lambda *a, plain=plain, name=name, **k: calls.append(name) or plain(*a, **k))
    labels = scenes()
    image = image_of(labels)
    flip, resize = TA.RandomHorizontalFlip(p=1.0), TA.Resize((12, 20), num_classes=CLASSES)
    TA.AugmentationSequential(flip, crop_of(None), resize, data_keys=KEYS)(image, labels)
    assert calls == ["soft_crop_resize", "crop_resize_pair"]  # the coarse label, and all else
    calls.clear()
    TA.AugmentationSequential(TA.RandomRotation(20.0, p=1.0), crop_of(None), data_keys=KEYS)(image, labels)
    assert calls == ["soft_warp", "warp_pair"]


BEFORE = {
    "nothing": (),
    "flip": (TA.RandomHorizontalFlip(p=1.0), TA.RandomVerticalFlip(p=1.0)),
    "resize": (TA.Resize((60, 90)),),
    "crop": (TA.RandomResizedCrop((80, 100), scale=(0.9, 1.0)),),
    "rotation": (TA.RandomRotation(20.0, p=1.0),),
    "elastic": (TA.RandomElasticTransform(p=1.0),),
    "kornia": (K.RandomVerticalFlip(p=1.0),),
}


@pytest.mark.parametrize("name", BEFORE)
def test_it_sees_the_image_as_it_is_by_then(name):
    labels = scenes(12)
    crop = crop_of(torch.tensor([0.0, 0, 0, 1, 0, 0]))
    container = TA.AugmentationSequential(*BEFORE[name], crop, data_keys=KEYS)
    image, soft = container(image_of(labels), labels)
    assert image.shape == (12, 3, 24, 40)
    assert soft.shape == (12, CLASSES, 24, 40)
    drawn = crop._params["drawn_class"]
    mass = soft[:, 3].sum((1, 2))
    assert (drawn == 3).sum() >= 6  # one that was cut away cannot be drawn
    assert (mass[drawn == 3] > 0.02).all()


def test_a_replay_needs_no_labels():
    labels = scenes()
    image = image_of(labels)
    container = TA.AugmentationSequential(TA.RandomHorizontalFlip(), crop_of(None), data_keys=KEYS)
    first, soft = container(image, labels)
    params = copy.deepcopy(container._params)
    again, soft_again = container(image, labels.flip(0), params=params)
    assert torch.equal(first, again)
    assert not torch.equal(soft, soft_again)
    assert torch.equal(first, container(image, data_keys=["image"], params=params))
    boxes = container.boxes
    assert torch.allclose(ts.soft_crop_resize(labels, boxes, (24, 40), CLASSES), soft, atol=1e-4)


def test_on_its_own_boxes_are_chosen_first():
    labels = scenes()
    image, crop = image_of(labels), crop_of(None)
    params = choose(crop, labels)
    out, soft = crop(image, params=params), crop.transform_masks(labels, params, crop.flags)
    expected = ts.crop_resize_pair(image, labels, crop.boxes((HEIGHT, WIDTH), params, crop.flags), (24, 40), CLASSES)
    assert torch.equal(out, expected[0])
    assert torch.equal(soft, expected[1])
    dense = ts.to_soft(labels, CLASSES)
    drawn = crop.forward_parameters(image.shape)
    assert torch.equal(crop.choose(drawn, labels)["src"], crop.choose(drawn, dense)["src"])
    assert "src" not in drawn


def test_masks_of_other_kinds():
    labels = scenes(3)
    image, crop = image_of(labels), crop_of(torch.tensor([0.0, 0, 0, 1, 0, 0]))
    container = TA.AugmentationSequential(crop, data_keys=KEYS)
    drawn = container.forward_parameters(image.shape)
    expected = container(image, labels, params=copy.deepcopy(drawn))[0]
    for mask in (
        labels[:, None],
        labels.long(),
        labels.float()[:, None],
        ts.to_soft(labels, CLASSES),
        list(labels[:, None]),
    ):
        assert torch.equal(container(image, mask, params=copy.deepcopy(drawn))[0], expected)
    boxes = torch.tensor([[[0.0, 0.0, 9.0, 9.0]]]).expand(3, 1, 4)
    both = TA.AugmentationSequential(crop, data_keys=["image", "mask", "bbox_xyxy"])
    assert both(image, labels, boxes)[2].shape == (3, 1, 4)
    nested = TA.AugmentationSequential(K.AugmentationSequential(crop, data_keys=KEYS), data_keys=KEYS)
    assert nested(image, labels)[1].shape == (3, CLASSES, 24, 40)


def test_it_may_keep_a_few_classes():
    labels = scenes()
    torch.manual_seed(3)
    dense = TA.AugmentationSequential(crop_of(None), data_keys=KEYS)
    sparse = TA.AugmentationSequential(crop_of(None, top_k=CLASSES), data_keys=KEYS)
    _, soft = dense(image_of(labels), labels)
    _, kept = sparse(image_of(labels), labels, params=dense._params)
    assert torch.allclose(kept.to_dense(), soft, atol=1e-6)
    drawn = sparse(image_of(labels), labels)[1]
    assert isinstance(drawn, ts.SparseLabels)


def test_skipped_and_empty_batches():
    labels = scenes()
    image = image_of(labels)
    skipped = TA.AugmentationSequential(crop_of(None, p=0.0), data_keys=KEYS)
    out, soft = skipped(image, labels)
    assert torch.equal(out, image)
    assert torch.equal(soft, ts.to_soft(labels, CLASSES))
    assert torch.equal(crop_of(None, p=0.0)(image), image)
    container = TA.AugmentationSequential(crop_of(None), data_keys=KEYS)
    out, soft = container(image[:0], labels[:0])
    assert out.shape == (0, 3, 24, 40)
    assert soft.shape == (0, CLASSES, 24, 40)
    same = TA.AugmentationSequential(crop_of(None), data_keys=KEYS, same_on_batch=True)
    assert same(image, labels)[1].shape == (8, CLASSES, 24, 40)


def test_under_autocast_boxes_are_the_same():
    labels = scenes()
    crop = crop_of(None)
    drawn = crop.forward_parameters((8, 3, HEIGHT, WIDTH))
    expected = crop.choose(drawn, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = crop.choose(drawn, labels)
    assert torch.equal(actual["src"], expected["src"])


@pytest.mark.parametrize(
    "convert", [torch.nn.Module.half, torch.nn.Module.bfloat16, lambda module: module.to(torch.half)]
)
def test_a_module_of_halves_draws_by_the_same_weights(convert):
    """A half holds no 1,000,000, as one over a frequency may be, and beside an infinity all others are lost."""
    labels = scenes()
    crop = crop_of(torch.tensor([1e6, 2e6, 0, 0, 3.0, 0]))
    drawn = crop.forward_parameters((8, 3, HEIGHT, WIDTH))
    expected = crop.choose(drawn, labels)
    both = convert(torch.nn.Sequential(crop, torch.nn.Conv2d(3, 3, 1)))
    assert both[1].weight.dtype != torch.float32
    assert crop.class_weights.dtype == torch.float64
    assert torch.equal(crop.choose(drawn, labels)["drawn_class"], expected["drawn_class"])
    assert set(expected["drawn_class"].tolist()) <= {0, 1}


@pytest.mark.parametrize("batch", [0, 1, 5])
@pytest.mark.parametrize("same_on_batch", [False, True])
@pytest.mark.parametrize("max_share", [0.6, 1.0])
@pytest.mark.parametrize(
    "weights", [None, "inverse_area", "any", torch.tensor([0.0, 0, 0, 1, 3, 5])], ids=["even", "rare", "any", "own"]
)
def test_numpy_and_pytorch_choose_the_same(weights, max_share, same_on_batch, batch, monkeypatch):
    labels = scenes(batch)[:, :-3, :-7]  # cells that are no whole pixels
    for size in ((24, 40), (4, 4), (200, 80)):
        crop = TA.RandomClassCrop(
            size, (0.5, 8.0), CLASSES, class_weights=weights, max_share=max_share, same_on_batch=same_on_batch
        )
        drawn = crop.forward_parameters((batch, 3, *labels.shape[1:]))
        by_numpy = crop.choose(drawn, labels)
        with monkeypatch.context() as patch:
            patch.setattr("tritonsoft.augmentation.class_crop.computes_by_numpy", lambda _: False)
            by_torch = crop.choose(drawn, labels)
        for name in ("src", "drawn_class", "chosen"):
            assert by_numpy[name].dtype == by_torch[name].dtype
            assert torch.equal(by_numpy[name], by_torch[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_parameters_of_other_types(dtype):
    labels, crop = scenes(), crop_of(None)
    drawn = crop.forward_parameters((8, 3, HEIGHT, WIDTH))
    numbers = {name: each.to(dtype) for name, each in drawn.items() if each.is_floating_point()}
    params = crop.choose({**drawn, **numbers}, labels)
    shown = ts.class_areas(labels, chosen_boxes(params), CLASSES).gather(1, params["drawn_class"][:, None])
    assert (shown > 0).all()


# --- nobody waits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("same_on_batch", [False, True])
def test_no_value_on_the_labels_device_is_read(same_on_batch):
    """On the meta device there are no values: whoever waited for one on a GPU fails here, as does who mixes devices."""
    labels = scenes()
    container = TA.AugmentationSequential(
        TA.RandomHorizontalFlip(),
        TA.RandomScaleCrop((90, 150), scale=(1.0, 1.0)),
        TA.RandomRotation(10.0),
        crop_of(torch.tensor([0.0, 0, 0, 1, 0, 0]), same_on_batch=same_on_batch),
        TA.RandomVerticalFlip(),
        TA.Resize((12, 20)),
        data_keys=KEYS,
    )
    boxes_alone = TA.AugmentationSequential(
        TA.RandomHorizontalFlip(), crop_of("any"), TA.Resize((12, 20)), data_keys=KEYS
    )
    for augment in (container, boxes_alone):
        out, soft = augment(image_of(labels).to("meta"), labels.to("meta"))
        assert out.shape == (8, 3, 12, 20)
        assert soft.shape == (8, CLASSES, 12, 20)
        crop = next(module for module in augment if isinstance(module, TA.RandomClassCrop))
        assert crop._params["src"].device.type == "meta"
        assert augment.transform_matrix.device.type == "meta"


def test_what_comes_back_to_the_cpu_is_waited_for():
    """PyTorch would copy it to pinned memory that is filled later: numbers of a GPU, replayed here."""
    waits = {}

    class Copies(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is Tensor.to:
                waits[args[1].type] = not kwargs.get("non_blocking", False)
            return func(*args, **(kwargs or {}))

    with Copies():
        for name in ("cpu", "meta"):
            TA.view.to_device(torch.ones(2), torch.device(name))
    assert waits == {"cpu": True, "meta": False}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_nothing_synchronises_and_everything_equals_the_cpu():
    labels = scenes()
    image, crop = image_of(labels), crop_of("inverse_area")
    container = TA.AugmentationSequential(TA.RandomHorizontalFlip(p=0.5), crop, TA.RandomVerticalFlip(), data_keys=KEYS)
    drawn = container.forward_parameters(image.shape)
    expected = container(image, labels, params=copy.deepcopy(drawn))
    there = image.cuda(), labels.cuda()
    container(*there)  # compiles
    params = copy.deepcopy(drawn)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        actual = container(*there, params=params)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for there_too, here in zip(actual, expected, strict=True):
        torch.testing.assert_close(there_too.cpu(), here, atol=1e-4, rtol=0)


def test_a_container_with_it_compiles_to_one_graph():
    labels = scenes(2)
    image = image_of(labels)
    container = TA.AugmentationSequential(TA.RandomHorizontalFlip(), crop_of("inverse_area"), data_keys=KEYS)
    torch._dynamo.reset()
    compiled = torch.compile(container, fullgraph=True, backend="aot_eager")
    out, soft = compiled(image, labels)
    assert out.shape == (2, 3, 24, 40)
    assert soft.shape == (2, CLASSES, 24, 40)
    rare = soft[:, 3:5].sum((1, 2, 3))
    assert (rare > 0).all()


# --- what bad input gets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_classes": None}, TypeError, "num_classes must be an int, got NoneType"),
        ({"max_share": 0}, ValueError, r"max_share must be a number in \(0, 1\], got 0"),
        ({"max_share": 1.5}, ValueError, r"max_share must be a number in \(0, 1\], got 1.5"),
        ({"max_share": float("nan")}, ValueError, "max_share must be .*got nan"),
        ({"candidates": 0}, ValueError, "candidates must be at least 1, got 0"),
        ({"candidates": 2.0}, TypeError, "candidates must be an int, got 2.0"),
        ({"min_pixels": -1}, ValueError, "min_pixels must be a finite number of at least 0, got -1"),
        ({"class_weights": "rare"}, ValueError, "class_weights must be None, a tensor or one of .*got 'rare'"),
        ({"class_weights": [1.0] * CLASSES}, TypeError, "class_weights must be .*got list"),
        ({"class_weights": torch.ones(3)}, ValueError, r"class_weights must have shape \(C,\) = \(6,\) .*got \(3,\)"),
        ({"class_weights": torch.zeros(CLASSES)}, ValueError, "class_weights must hold .*one of them above, got"),
        ({"class_weights": torch.tensor([1.0, 1, 1, 1, 1, -1])}, ValueError, "at least 0, .*-1.0"),
        ({"class_weights": torch.tensor([1.0, 1, 1, 1, 1, float("nan")])}, ValueError, "finite numbers .*nan"),
        ({"class_weights": torch.ones(CLASSES, dtype=torch.complex64)}, TypeError, "real numbers, got torch.complex64"),
        ({"size": (0, 4)}, ValueError, "size must be"),
        ({"size": 4}, ValueError, r"size must be \(height, width\), two ints of at least 1, got 4"),
        ({"p": 1.5}, ValueError, "p must be a number from 0 to 1, got 1.5"),
        ({"num_classes": 2**40}, ValueError, "num_classes must be at most 2147483647, got 1099511627776"),
        ({"filter": None}, ValueError, "filter must be a filter's name"),
    ],
)
def test_wrong_arguments(options, error, message):
    with pytest.raises(error, match=message):
        TA.RandomClassCrop(**{"size": (24, 40), "num_classes": CLASSES, **options})


def test_numbers_may_be_numpy_s_and_weights_may_have_no_values_yet():
    half = np.float32(0.5)
    crop = TA.RandomClassCrop((4, 4), (half, 1), CLASSES, max_share=half, min_pixels=half, fill=half, p=half)
    assert (crop.scale, crop.max_share, crop.min_pixels, crop.flags["fill"], crop.p_batch) == ((0.5, 1.0), *[0.5] * 4)
    with torch.device("meta"):
        crop = crop_of(torch.ones(CLASSES))
    assert crop.class_weights.is_meta
    assert crop.to_empty(device="cpu").class_weights.dtype == torch.float64


def test_parameters_of_another_module():
    labels = scenes()
    drawn = TA.RandomHorizontalFlip().forward_parameters((8, 3, HEIGHT, WIDTH))
    names = r"\['scale', 'across', 'down', 'cell', 'class'\]"
    crop = crop_of(None)
    with pytest.raises(ValueError, match=f"params must be those that RandomClassCrop draws, which have {names}, got"):
        crop.choose(drawn, labels)
    with pytest.raises(ValueError, match=f"params must be those that RandomClassCrop draws, which have {names}, got"):
        crop(image_of(labels), params=drawn)
    item = K.container.params.ParamItem("RandomClassCrop_0", drawn)
    with pytest.raises(ValueError, match=f"params must be those that RandomClassCrop draws, which have {names}, got"):
        TA.AugmentationSequential(crop, data_keys=KEYS)(image_of(labels), labels, params=[item])


def test_without_labels_the_error_says_what_to_do():
    labels = scenes()
    image, crop = image_of(labels), crop_of(None)
    advice = "RandomClassCrop needs labels .*AugmentationSequential with a mask.*crop.choose"
    with pytest.raises(ValueError, match=advice):
        crop(image)
    with pytest.raises(ValueError, match=advice):
        TA.AugmentationSequential(crop)(image)
    with pytest.raises(ValueError, match=advice):
        K.AugmentationSequential(crop, data_keys=KEYS)(image, labels[:, None].float())
    sparse = ts.SparseLabels.from_dense(ts.to_soft(labels, CLASSES), 2)
    with pytest.raises(TypeError, match="SparseLabels"):
        TA.AugmentationSequential(crop, data_keys=KEYS)(image, sparse)
    with pytest.raises(TypeError, match="labels must be a tensor, got SparseLabels: to_dense"):
        crop.choose(crop.forward_parameters(image.shape), sparse)
    with pytest.raises(
        ValueError, match=r"labels must have the batch and the size .*\(8, 96, 160\), got \(8, 95, 160\)"
    ):
        crop.choose(crop.forward_parameters(image.shape), labels[:, 1:])


def test_labels_out_of_range():
    labels = scenes()
    labels[0, 0, 0] = 77
    with pytest.raises(ValueError, match=r"labels must lie in 0..5"):
        TA.AugmentationSequential(crop_of(None), data_keys=KEYS)(image_of(labels), labels)
    with pytest.raises(ValueError, match="mask must have 1 channel of class ids"):
        TA.AugmentationSequential(crop_of(None), data_keys=KEYS)(image_of(labels), torch.zeros(8, 3, HEIGHT, WIDTH))


def test_masses_that_somebody_differentiates_choose_the_same() -> None:
    labels, crop = scenes(2), TA.RandomClassCrop((24, 40), num_classes=CLASSES)
    soft = ts.to_soft(labels, CLASSES)
    params = crop.forward_parameters((2, 3, HEIGHT, WIDTH))
    expected = crop.choose(params, soft)
    made = crop.choose(params, soft.clone().requires_grad_())
    assert torch.equal(made["src"], expected["src"])
    assert not made["src"].requires_grad


def test_vmap_may_draw_other_boxes_for_each_entry():
    labels = torch.randint(3, (2, 20, 30))
    crop, resized = TA.RandomClassCrop((4, 6), num_classes=3), TA.RandomResizedCrop((4, 6))

    def choose(image):
        return crop.choose(crop.forward_parameters(image.shape), labels)["src"]

    images = torch.arange(2 * 2 * 600.0).view(2, 2, 1, 20, 30)
    different = torch.func.vmap(choose, randomness="different")(images)
    assert different.shape == (2, 2, 4, 2)
    assert not torch.equal(different[0], different[1])
    assert torch.func.vmap(lambda image: resized(image), randomness="different")(images).shape == (2, 2, 1, 4, 6)
