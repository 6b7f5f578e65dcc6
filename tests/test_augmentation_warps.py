"""Rotation, affine, shear, translation, perspective and elastic transform: by themselves and in containers.

Three oracles. kornia: parameters, matrices, keypoints and boxes to the bit, and pixels where its one bilinear read
means the same. The float64 reference of `tritonsoft.warp` under kornia's own matrices, which decides on everything
else. And a picture whose colours are the classes, which a soft label must follow.
"""

import copy
import importlib.util
import inspect
import pathlib
import pickle

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import tritonsoft as ts
from tests.cases import RefusesUnsigned, assert_close, records_in_graphs
from tritonsoft.backends import reference_warping
from tritonsoft.geometry import FILTERS

K = pytest.importorskip("kornia.augmentation", reason="tritonsoft.augmentation builds on kornia")
TA = pytest.importorskip("tritonsoft.augmentation")
DataKey = pytest.importorskip("kornia.constants").DataKey
View = pytest.importorskip("tritonsoft.augmentation.view").View

pytestmark = pytest.mark.filterwarnings("ignore:Default grid_sample and affine_grid behavior")  # kornia's elastic

BATCH, HEIGHT, WIDTH, CLASSES = 3, 15, 22, 4
SIZE = (HEIGHT, WIDTH)
# Of values in [0, 1]: a few hundred taps, whose weights and positions each err by roundings of the working precision.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}

ALWAYS = {"p": 1.0}
MATRICES = {
    "rotation": ("RandomRotation", {"degrees": 40.0, **ALWAYS}),
    "affine": (
        "RandomAffine",
        {"degrees": 30.0, "translate": (0.1, 0.2), "scale": (0.5, 1.6), "shear": (-9.0, 9.0, -5.0, 5.0), **ALWAYS},
    ),
    "shear": ("RandomShear", {"shear": (-20.0, 20.0, -9.0, 9.0), **ALWAYS}),
    "translate": ("RandomTranslate", {"translate_x": (-0.3, 0.3), "translate_y": (-0.2, 0.2), **ALWAYS}),
    "perspective": ("RandomPerspective", {"distortion_scale": 0.6, **ALWAYS}),
}
ELASTIC = ("RandomElasticTransform", {"kernel_size": (5, 7), "sigma": (2.0, 3.0), "alpha": (0.4, 0.6), **ALWAYS})
WARPS = {**MATRICES, "elastic": ELASTIC}
over_matrices = pytest.mark.parametrize("warp", MATRICES)
over_warps = pytest.mark.parametrize("warp", WARPS)

OPTIONS = [
    ("RandomRotation", {"degrees": 40.0}),
    ("RandomRotation", {"degrees": (10.0, 20.0), "same_on_batch": True, **ALWAYS}),
    ("RandomRotation", {"degrees": torch.tensor([-5.0, 80.0]), "align_corners": False, **ALWAYS}),
    ("RandomAffine", {"degrees": 30.0}),
    MATRICES["affine"],
    ("RandomAffine", {"degrees": 0.0, "scale": (0.4, 0.6, 1.2, 1.9), "align_corners": True, **ALWAYS}),
    ("RandomAffine", {"degrees": 9.0, "padding_mode": "fill", "fill_value": 0.3, **ALWAYS}),
    ("RandomShear", {"shear": 20.0}),
    ("RandomShear", {"shear": (-20.0, 20.0, -9.0, 9.0), "same_on_batch": True, **ALWAYS}),
    ("RandomTranslate", {"translate_x": (-0.3, 0.3)}),
    ("RandomTranslate", {"translate_y": (0.1, 0.3), **ALWAYS}),
    ("RandomPerspective", {}),
    ("RandomPerspective", {"distortion_scale": 0.3, "sampling_method": "area_preserving", **ALWAYS}),
    ("RandomElasticTransform", {}),
    ("RandomElasticTransform", {"kernel_size": (3, 5), "same_on_batch": True, "align_corners": True, **ALWAYS}),
]
SAMPLINGS = [
    ("RandomRotation", {"degrees": 40.0, "resample": "nearest", **ALWAYS}),
    ("RandomAffine", {"degrees": 30.0, "padding_mode": "border", **ALWAYS}),
    ("RandomAffine", {"degrees": 9.0, "padding_mode": "fill", "fill_value": torch.tensor([0.1, 0.2, 0.3]), **ALWAYS}),
    ("RandomShear", {"shear": 20.0, "padding_mode": "reflection", **ALWAYS}),
    ("RandomTranslate", {"translate_x": (-0.3, 0.3), "resample": "nearest", "padding_mode": "border"}),
    ("RandomPerspective", {"resample": "nearest", **ALWAYS}),
    ("RandomElasticTransform", {"padding_mode": "reflection", "resample": "nearest", **ALWAYS}),
]


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def make(warp, library=TA, **options):
    name, kwargs = WARPS[warp]
    return getattr(library, name)(**{**kwargs, **options})


def picture(dtype=torch.float32, channels=3, batch=BATCH, size=SIZE):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, channels, *size, generator=generator, dtype=torch.float64).to(dtype)


def classes(dtype=torch.uint8, batch=BATCH, size=SIZE):
    """Label maps ``(B, 1, H, W)`` in blobs of 3 pixels, some pixels ignored."""
    generator = torch.Generator().manual_seed(2)
    blobs = torch.randint(CLASSES, (batch, 1, size[0] // 3 + 1, size[1] // 3 + 1), generator=generator)
    labels = blobs.repeat_interleave(3, 2).repeat_interleave(3, 3)[..., : size[0], : size[1]]
    return labels.masked_fill(torch.rand(labels.shape, generator=generator) < 0.1, 255).to(dtype)


def one_hot(labels):
    return ts.to_soft(labels.long(), CLASSES, dtype=torch.float64)


def some_points(batch=BATCH):
    return torch.tensor([[[3.0, 2.0], [17.5, 11.25]]]).repeat(batch, 1, 1)


def some_boxes(batch=BATCH):
    return torch.tensor([[[3.0, 2.0, 9.0, 7.0], [10.0, 5.0, 20.0, 12.0]]]).repeat(batch, 1, 1)


def mask_of(module, mask, **kwargs):
    return module.transform_masks(mask, module._params, module.flags, **kwargs)


def shift(by):
    return torch.tensor([[1.0, 0.0, by], [0.0, 1.0, by], [0.0, 0.0, 1.0]], dtype=torch.float64)


def elastic_field(params, flags, size=SIZE):
    """The noise under a Gaussian window in two dimensions, as positions of pixel edges."""
    noise = params["noise"].double()
    profiles = []
    for length, sigma in zip(flags["kernel_size"], flags["sigma"], strict=True):
        offsets = torch.arange(length).double() - length // 2
        profiles.append((-(offsets**2) / (2 * sigma**2)).exp())
    kernel = profiles[0][:, None] * profiles[1]
    padding = [length // 2 for length in flags["kernel_size"]]
    moved = nn.functional.conv2d(noise.flatten(0, 1)[:, None], (kernel / kernel.sum())[None, None], padding=padding)
    extent = torch.tensor([size[1], size[0]]).double() - (1 if flags["align_corners"] else 0)
    moved = moved.view_as(noise).permute(0, 2, 3, 1) * torch.tensor(flags["alpha"]).double() * extent / 2
    ys, xs = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
    return torch.stack([xs, ys], dim=-1) + moved


def transform_of(warp, params, flags, size=SIZE):
    """What `ts.warp` must be given, of kornia's module and the parameters alone: a matrix or a field, float64."""
    if warp == "elastic":
        return elastic_field(params, flags, size)
    image = torch.empty((), dtype=torch.float64).expand(params["batch_prob"].numel(), 1, *size)
    matrix = make(warp, K).generate_transformation_matrix(image, params, flags)
    return shift(0.5) @ torch.linalg.inv(matrix) @ shift(-0.5)


def expected_image(warp, module, image, filter="area", fill=0.0):
    transform = transform_of(warp, module._params, module.flags, image.shape[2:])
    return reference_warping.warp(image.double(), transform, image.shape[2:], filter, fill, torch.float64)


def expected_soft(warp, module, labels, filter="area"):
    transform, size = transform_of(warp, module._params, module.flags, labels.shape[2:]), labels.shape[2:]
    return reference_warping.soft_warp(labels[:, 0], transform, size, CLASSES, 255, filter, torch.float64)


class Work(TorchDispatchMode):
    """Every tritonsoft operator that runs."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        namespace, name = func.name().split("::")
        if namespace == "tritonsoft":
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def work(call):
    with Work() as record:
        call()
    return record.names


# --- what stays kornia's ---------------------------------------------------------------------------------------------


@over_warps
def test_constructor_is_kornias_with_four_more_arguments(warp):
    name = WARPS[warp][0]
    theirs, ours = (
        {key: value.default for key, value in inspect.signature(getattr(package, name)).parameters.items()}
        for package in (K, TA)
    )
    more = {"num_classes": None, "ignore_index": None, "filter": "area", "top_k": None}
    assert list(ours.items()) == [*theirs.items(), *more.items()]
    assert issubclass(getattr(TA, name), getattr(K, name))


@pytest.mark.parametrize("batch", [0, BATCH])
@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_same_seed_draws_kornias_parameters(name, options, batch):
    drawn = []
    for package in (K, TA):
        torch.manual_seed(5)
        params = getattr(package, name)(**options).forward_parameters((batch, 3, *SIZE))
        drawn.append({**params, "next number": torch.rand(1)})
    theirs, ours = drawn
    assert ours.keys() == theirs.keys()
    for key in theirs:
        assert torch.equal(ours[key], theirs[key]), key
        assert ours[key].dtype == theirs[key].dtype, key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "options"), [each for each in OPTIONS if each[0] != "RandomElasticTransform"])
def test_matrices_keypoints_and_boxes_are_kornias_to_the_bit(name, options, dtype):
    results = []
    for library, package in ((K, K), (K, TA), (TA, TA)):
        torch.manual_seed(6)
        module = getattr(package, name)(**options)
        container = library.AugmentationSequential(module, data_keys=["image", "keypoints", "bbox_xyxy"])
        _, *moved = container(picture(dtype), some_points(), some_boxes())
        results.append([*moved, module.transform_matrix, container.transform_matrix])
    for each in results[1:]:
        for value, their in zip(each, results[0], strict=True):
            assert torch.equal(value, their)
            assert value.dtype == their.dtype


@pytest.mark.parametrize(("name", "options"), OPTIONS + SAMPLINGS)
def test_filter_none_is_kornia_bit_for_bit(name, options):
    results = []
    for library, package, ours in ((K, K, {}), (K, TA, {"filter": None}), (TA, TA, {"filter": None})):
        torch.manual_seed(7)
        module = getattr(package, name)(**options, **ours)
        keys = ["image", "mask", "keypoints", "bbox_xyxy"]
        container = library.AugmentationSequential(module, data_keys=keys)
        there = container(picture(), classes(), some_points(), some_boxes())
        back = container.inverse(*there)
        results.append([*there, *back, *([] if name == "RandomElasticTransform" else [container.transform_matrix])])
    for each in results[1:]:
        for value, their in zip(each, results[0], strict=True):
            assert torch.equal(value, their)
            assert value.dtype == their.dtype


# --- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filter", FILTERS)
@over_warps
def test_image_is_the_reference_of_its_transform(warp, filter):
    module, image = make(warp, filter=filter), picture(torch.float64)
    # A field is smoothed in the noise's type, float32; what is nearest may hang on its last bit.
    tolerance = 1e-4 if warp == "elastic" else TOLERANCE[torch.float64]
    difference = (module(image) - expected_image(warp, module, image, filter)).abs()
    assert (difference > tolerance).float().mean() <= (0.005 if (warp, filter) == ("elastic", "nearest") else 0)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("resample", ["bilinear", "nearest"])
@over_warps
def test_pixels_are_kornias_where_one_read_means_the_same(warp, resample, align_corners):
    """Everywhere inside, whatever `align_corners`: at the image's edge kornia fades to zero half a pixel earlier."""
    image, results = picture(torch.float64), []
    ones = torch.ones(BATCH, 1, *SIZE, dtype=torch.float64)
    options = {"align_corners": align_corners}
    theirs, ours = make(warp, K, resample=resample, **options), make(warp, filter=resample, **options)
    for module in (theirs, ours):
        torch.manual_seed(8)
        results.append(module(image))
    inside = make(warp, K, **options)(ones, params=theirs._params) > 1 - 1e-9
    assert inside.float().mean() > 0.3
    difference = torch.where(inside, (results[0] - results[1]).abs(), 0)
    ties = 0.01 if resample == "nearest" else 0
    assert (difference > (1e-4 if warp == "elastic" else 1e-9)).float().mean() <= ties


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@over_warps
def test_image_keeps_its_type(warp, dtype):
    module, image = make(warp), picture(dtype)
    out = module(image)
    assert out.dtype == dtype
    assert_close(out, expected_image(warp, module, image), TOLERANCE[dtype], "image")
    if warp != "elastic":
        assert module.transform_matrix.dtype == torch.float32


def test_quarter_turns_are_exact():
    image, labels = picture(size=(16, 16)), classes(size=(16, 16))
    for turns in range(1, 4):
        module = TA.RandomRotation((90.0 * turns, 90.0 * turns), p=1.0, num_classes=CLASSES)
        assert_close(module(image), image.rot90(turns, (2, 3)), 1e-6, "image")
        assert_close(mask_of(module, labels), one_hot(labels).rot90(turns, (2, 3)), 1e-6, "soft label")


@pytest.mark.parametrize("fill_value", [0.25, torch.tensor(0.25), torch.tensor([0.25]), torch.tensor([0.1, 0.2, 0.3])])
def test_an_affine_warp_may_fill_the_outside(fill_value):
    module = make("affine", padding_mode="fill", fill_value=fill_value, num_classes=CLASSES)
    image = picture(torch.float64)
    out = module(image)
    fills = torch.as_tensor(fill_value).expand(3).tolist()
    for channel, fill in enumerate(fills):
        one = image[:, channel : channel + 1]
        assert_close(out[:, channel : channel + 1], expected_image("affine", module, one, fill=fill), 1e-6, "image")
    assert_close(
        mask_of(module, classes()), expected_soft("affine", module, classes()), TOLERANCE[torch.float32], "mass"
    )


def test_a_fill_value_without_its_padding_is_kornias_zeros():
    filled, plain = make("affine", fill_value=0.5), make("affine")
    out = filled(picture())
    assert torch.equal(plain(picture(), params=filled._params), out)


@pytest.mark.parametrize("shape", [SIZE, (1, *SIZE), (3, *SIZE), (1, 3, *SIZE)])
@over_warps
def test_keepdim_restores_the_rank_of_an_image(warp, shape):
    module = make(warp, keepdim=True)
    assert module(torch.rand(shape)).shape == shape


# --- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filter", FILTERS)
@over_warps
def test_label_map_becomes_the_soft_label_of_its_transform(warp, filter):
    module = make(warp, filter=filter, num_classes=CLASSES)
    image = module(one_hot(classes()))
    soft = mask_of(module, classes())
    assert soft.dtype == torch.float32
    difference = (soft - expected_soft(warp, module, classes(), filter)).abs()
    ties = 0.005 if (warp, filter) == ("elastic", "nearest") else 0
    assert (difference > TOLERANCE[torch.float32]).float().mean() <= ties
    assert_close(soft, image, TOLERANCE[torch.float32], "the image of the classes")
    assert (soft.sum(1) <= 1 + 1e-5).all()


@over_warps
def test_soft_labels_are_warped_like_images(warp):
    module = make(warp, num_classes=CLASSES)
    image = module(one_hot(classes()))
    assert_close(mask_of(module, one_hot(classes())), image, 1e-12, "soft label")


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.int8, torch.uint8, torch.uint16, torch.int64, torch.uint64, torch.float32]
)
@over_warps
def test_hard_mask_holds_the_pixel_under_each_centre(warp, dtype):
    """And the ignore_index outside; whatever the type, these are the pixels that the image's nearest takes."""
    module = make(warp, ignore_index=99)
    module(picture())
    numbers = torch.arange(HEIGHT * WIDTH, dtype=torch.float64).reshape(1, 1, *SIZE).expand(BATCH, 1, -1, -1)
    numbers = make(warp, filter="nearest")(numbers + 1, params=module._params).long() - 1
    labels = (classes() % 2 if dtype == torch.bool else classes() % 50).to(dtype)
    with RefusesUnsigned():
        out = mask_of(module, labels)
    assert out.dtype == dtype
    wanted = labels.long().flatten(2).gather(2, numbers.clamp(min=0).flatten(2)).view_as(numbers)
    outside = 0 if dtype == torch.bool else 99
    assert torch.equal(out.long(), torch.where(numbers >= 0, wanted, outside))
    assert (numbers < 0).any()


def test_extra_args_may_name_what_lies_outside_of_a_hard_mask():
    module = make("rotation")
    module(picture())
    for name in ("fill", "fill_value"):
        assert mask_of(module, torch.zeros(BATCH, 1, *SIZE).long(), **{name: 7}).unique().tolist() == [0, 7]
        container = TA.AugmentationSequential(
            make("rotation"), data_keys=["image", "mask"], extra_args={DataKey.MASK: {name: 7}}
        )
        _, hard = container(picture(), torch.zeros(BATCH, *SIZE).long())
        assert hard.unique().tolist() == [0, 7]


@over_warps
def test_float_masks_stay_soft_in_kornias_container(warp):
    modules = [make(warp, num_classes=CLASSES), TA.RandomHorizontalFlip(p=1.0), make(warp)]
    theirs = K.AugmentationSequential(*modules, data_keys=["image", "mask"])
    image, soft = theirs(one_hot(classes()).float(), classes(torch.float32))
    assert type(soft) is torch.Tensor
    assert_close(soft, image, TOLERANCE[torch.float32], "soft label")
    with pytest.raises(TypeError, match="soft label cannot become"):
        theirs(picture(), classes())


# --- probabilities ---------------------------------------------------------------------------------------------------


@over_warps
def test_p_gates_single_samples(warp):
    module, always = make(warp, p=0.5, num_classes=CLASSES), make(warp, num_classes=CLASSES)
    params = module.forward_parameters((BATCH, 3, *SIZE))
    params["batch_prob"] = torch.tensor([1.0, 0.0, 1.0])
    image, labels = picture(), classes()
    out, soft = module(image, params=params), module.transform_masks(labels, params, module.flags)
    assert torch.equal(out[1], image[1])
    assert torch.equal(soft[1], one_hot(labels)[1].float())
    assert torch.equal(out[::2], always(image, params=params)[::2])
    assert torch.equal(soft[::2], always.transform_masks(labels, params, always.flags)[::2])
    if warp != "elastic":
        assert torch.equal(module.transform_matrix[1], torch.eye(3))
        assert torch.equal(module.inverse(out)[1], image[1])


@over_warps
def test_an_empty_batch_passes(warp):
    for p in (1.0, 0.5):
        module = make(warp, p=p, num_classes=CLASSES)
        image, soft = module(picture(batch=0)), mask_of(module, classes(batch=0))
        assert image.shape == (0, 3, *SIZE)
        assert soft.shape == (0, CLASSES, *SIZE)
        container = TA.AugmentationSequential(module, TA.RandomVerticalFlip(), data_keys=["image", "mask"])
        image, soft = container(picture(batch=0), classes(batch=0))
        assert soft.shape == (0, CLASSES, *SIZE)
        if warp != "elastic":
            assert module.inverse(image).shape == (0, 3, *SIZE)


# --- inverse ---------------------------------------------------------------------------------------------------------


def centres_shown(warp, module, margin=0.0):
    """``(B, 1, H, W)``: the pixels of the image whose centres the module showed, so far from the output's edges."""
    image = torch.empty((), dtype=torch.float64).expand(BATCH, 1, *SIZE)
    matrix = make(warp, K).generate_transformation_matrix(image, module._params, module.flags)
    ys, xs = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    points = torch.stack([xs, ys, torch.ones_like(xs)], dim=-1).double()
    x, y, depth = torch.einsum("bij,hwj->bihw", matrix, points).unbind(1)
    x, y = x / depth + 0.5, y / depth + 0.5
    across, down = (margin <= x) & (x <= WIDTH - margin), (margin <= y) & (y <= HEIGHT - margin)
    return (across & down)[:, None]


@over_matrices
def test_inverse_covers_what_was_shown_and_nothing_else(warp):
    module = make(warp, num_classes=CLASSES)
    module(picture())
    inside = centres_shown(warp, module)
    assert inside.any()
    assert warp == "perspective" or not inside.all()  # which moves the corners inwards
    back = module.inverse(torch.ones(BATCH, 3, *SIZE, dtype=torch.float64))
    assert_close(back, inside.expand_as(back), 1e-9, "image")
    mass = module.inverse_masks(torch.full((BATCH, CLASSES, *SIZE), 0.25), module._params, module.flags)
    assert_close(mass.sum(1, keepdim=True), inside, 1e-4, "mass")
    hard = make(warp, ignore_index=9).inverse_masks(classes().clamp(max=3), module._params, module.flags)
    assert (hard[~inside] == 9).all()
    assert (hard[inside] <= 3).all()


@over_matrices
def test_inverse_puts_the_content_back_where_it_was(warp):
    """A linear ramp survives every filter that averages, but for what the edges hide."""
    ramp = (torch.arange(WIDTH) + 2.0 * torch.arange(HEIGHT)[:, None]).double().expand(BATCH, 1, -1, -1)
    module = make(warp, scale=(0.9, 1.2)) if warp == "affine" else make(warp)
    back = module.inverse(module(ramp))
    inside = centres_shown(warp, module, margin=2.0)[..., 3:-3, 3:-3]
    assert inside.float().mean() > 0.2
    assert (back - ramp)[..., 3:-3, 3:-3][inside].abs().max() < 0.5


@over_matrices
def test_containers_invert_image_soft_label_keypoints_and_boxes(warp):
    module = make(warp, num_classes=CLASSES)
    keys = ["image", "mask", "keypoints"]
    for library, dtype in ((K, torch.float32), (TA, torch.uint8)):
        container = library.AugmentationSequential(module, data_keys=keys)
        out = container(picture(), classes(dtype), some_points())
        image, soft, points = container.inverse(*out)
        assert torch.equal(image, module.inverse(out[0]))
        assert torch.equal(soft, module.inverse_masks(out[1], module._params, module.flags))
        assert_close(points, some_points(), 1e-4, "keypoints")


def test_the_inverse_of_a_quarter_turn_is_exact():
    module = TA.RandomRotation((90.0, 90.0), p=1.0)
    image, labels = picture(size=(16, 16)), classes(size=(16, 16))
    assert_close(module.inverse(module(image)), image, 1e-6, "image")
    assert torch.equal(module.inverse_masks(mask_of(module, labels), module._params, module.flags), labels)


def test_an_elastic_transform_has_no_inverse_as_in_kornia():
    assert not hasattr(K.RandomElasticTransform, "inverse")
    assert not hasattr(TA.RandomElasticTransform, "inverse")
    container = TA.AugmentationSequential(make("elastic", num_classes=CLASSES), data_keys=["image", "mask"])
    out = container(picture(), classes())
    for value, other in zip(container.inverse(*out), out, strict=True):
        assert torch.equal(value, other)


# --- one resample ----------------------------------------------------------------------------------------------------

RUNS = {
    "rotation, crop, flip": lambda: [make("rotation"), TA.CenterCrop((9, 13)), TA.RandomHorizontalFlip(p=1.0)],
    "rotation, perspective, crop, flip": lambda: [
        make("rotation"),
        make("perspective", distortion_scale=0.3),
        TA.RandomResizedCrop((8, 12), scale=(0.5, 0.9)),
        TA.RandomHorizontalFlip(p=0.5),
    ],
    "crop, rotation": lambda: [TA.RandomCrop((10, 14)), make("rotation")],
    "flip, affine, resize": lambda: [TA.RandomVerticalFlip(p=1.0), make("affine"), TA.Resize((7, 9))],
    "resize, shear": lambda: [TA.Resize((7, 9)), make("shear")],
    "scale crop, rotation, scale crop": lambda: [
        TA.RandomHorizontalFlip(p=0.5),
        make("rotation", p=0.5),
        TA.RandomScaleCrop((9, 9), scale=(0.4, 0.8)),
    ],
    "two warps": lambda: [make("translate"), make("perspective")],
    "crop, flip, elastic": lambda: [TA.RandomCrop((10, 14)), TA.RandomVerticalFlip(p=0.5), make("elastic")],
    "resize, rotation, elastic": lambda: [TA.Resize((9, 11)), make("rotation"), make("elastic", p=0.5)],
}


def augment(*modules, keys=("image", "mask"), **options):
    return TA.AugmentationSequential(*modules, data_keys=list(keys), **options)


def composed(container, size=SIZE):
    """The transform, float64, and the size that the last call's modules come to, of kornia's matrices alone."""
    matrix, batch = torch.eye(3, dtype=torch.float64), BATCH
    for item in container._params:
        module, params = container.get_submodule(item.name), item.data
        warp = next((warp for warp, (name, _) in WARPS.items() if name == type(module).__name__), None)
        if warp == "elastic":
            field = elastic_field(params, module.flags, size)
            ys, xs = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
            gate = params["batch_prob"][:, None, None, None] > 0.5
            field = torch.where(gate, field, torch.stack([xs, ys], dim=-1).double())
            ones = torch.cat([field, torch.ones_like(field[..., :1])], dim=-1)
            x, y, depth = torch.einsum("bij,bhwj->bihw", matrix.expand(batch, 3, 3), ones).unbind(1)
            return torch.stack([x / depth, y / depth], dim=-1), size
        if warp is not None:
            step = transform_of(warp, params, module.flags, size)
            gate = params["batch_prob"][:, None, None] > 0.5
            matrix = matrix @ torch.where(gate, step, torch.eye(3, dtype=torch.float64))
            continue
        out = module(torch.zeros(batch, 1, *size, dtype=torch.float64), params=dict(params))
        matrix = matrix @ shift(0.5) @ torch.linalg.inv(module.transform_matrix) @ shift(-0.5)
        size = (out.shape[2], out.shape[3])
    return matrix, size


@pytest.mark.parametrize("num_classes", [CLASSES, None], ids=["soft", "hard"])
@pytest.mark.parametrize("run", RUNS)
def test_a_run_with_warps_is_one_resample_of_the_original_pixels(run, num_classes):
    modules = RUNS[run]()
    modules[-1].num_classes = num_classes
    container = augment(*modules)
    image, labels = picture(torch.float64), classes()
    ran = work(lambda: container(image, labels))
    assert ran == (["warp", "warp"] if num_classes is None else ["warp_pair"])
    shown, mask = container(image, labels)
    transform, size = composed(container)
    tolerance = 1e-4 if "elastic" in run else 1e-9
    wanted = reference_warping.warp(image, transform, size, "area", 0.0, torch.float64)
    assert_close(shown, wanted, tolerance, "image")
    if num_classes is not None:
        soft = reference_warping.soft_warp(labels[:, 0], transform, size, CLASSES, 255, "area", torch.float64)
        assert mask.dtype == torch.float64  # beside an image of float64
        assert_close(mask, soft, tolerance, "soft label")
    else:
        hard = reference_warping.warp(labels.double(), transform, size, "nearest", 255.0, torch.float64)
        assert mask.dtype == torch.uint8
        assert (mask != hard).float().mean() <= (0.01 if "elastic" in run else 0)


def test_a_run_of_boxes_alone_stays_a_box():
    container = augment(
        TA.RandomHorizontalFlip(p=1.0),
        TA.CenterCrop((9, 13)),
        K.RandomGamma(p=1.0),
        make("rotation", num_classes=CLASSES),
    )
    ran = work(lambda: container(picture(), classes()))
    assert ran == ["crop_resize", "crop_resize", "warp_pair"]


@pytest.mark.parametrize(
    ("modules", "operators"),
    [
        (["elastic", TA.RandomHorizontalFlip(p=1.0)], ["warp_pair", "crop_resize", "crop_resize"]),
        (["elastic", "rotation"], ["warp_pair", "warp", "warp"]),
        (["rotation", K.RandomGamma(p=1.0), TA.Resize((5, 5))], ["warp_pair", "crop_resize", "crop_resize"]),
        (["rotation", TA.Resize((5, 5), filter="triangle")], ["warp_pair", "crop_resize", "crop_resize"]),
        (["rotation", TA.RandomScaleCrop((5, 5), fill=0.5)], ["warp_pair", "crop_resize", "crop_resize"]),
        ([TA.CenterCrop((9, 9)), "rotation", TA.RandomCrop((9, 9), padding=2)], ["warp_pair", *["crop_resize"] * 2]),
        (["rotation", TA.RandomCrop(SIZE, padding=2)], ["warp_pair"]),
        (["rotation", K.RandomAffine(5.0, p=1.0)], ["warp_pair"]),
    ],
    ids=["field", "field, matrix", "colour", "filters", "fills", "pad after crop", "pad after warp", "kornia's own"],
)
def test_runs_end_where_one_resample_cannot_say_it(modules, operators):
    modules = [make(each, num_classes=CLASSES) if isinstance(each, str) else each for each in modules]
    container = augment(*modules)
    assert work(lambda: container(picture(), classes())) == operators
    shown, soft = container(one_hot(classes()).float(), classes())
    assert soft.shape == (BATCH, CLASSES, *shown.shape[2:])


def test_what_one_module_moves_out_of_sight_another_may_show_again():
    """As one warp there and back shows it; kornia, module by module, has forgotten it."""
    there, back = TA.RandomTranslate((0.5, 0.5), p=1.0), TA.RandomTranslate((-0.5, -0.5), p=1.0)
    container = augment(there, back, keys=["image"])
    assert torch.equal(container(picture()), picture())
    assert (K.AugmentationSequential(K.RandomTranslate((0.5, 0.5), p=1.0), back)(picture())[..., 12:] == 0).all()


def test_keypoints_and_boxes_of_a_run_are_kornias():
    def build(lib):
        torch.manual_seed(3)
        warps = [make(warp, lib) for warp in ("rotation", "perspective", "affine")]
        keys = ["image", "keypoints", "bbox_xyxy"]
        return lib.AugmentationSequential(*warps, lib.RandomHorizontalFlip(p=0.5), data_keys=keys)

    ours, theirs = build(TA), build(K)
    results = []
    for container in (ours, theirs):
        torch.manual_seed(4)
        out = container(picture(), some_points(), some_boxes())
        results.append([*out[1:], container.transform_matrix, *container.inverse(*out)[1:]])
    for value, their in zip(*results, strict=True):
        torch.testing.assert_close(value, their, rtol=1e-4, atol=1e-4)


@over_matrices
def test_keypoints_land_on_the_content(warp):
    """A round spot's centre of weight is where its keypoint goes."""
    points = torch.tensor([[[8.0, 6.0], [12.0, 8.0]]]).repeat(BATCH, 1, 1)
    ys, xs = torch.arange(HEIGHT), torch.arange(WIDTH)
    down = (-((ys - points[..., 1:]) ** 2) / 2.0).exp()
    across = (-((xs - points[..., :1]) ** 2) / 2.0).exp()
    container = augment(make(warp), TA.RandomHorizontalFlip(p=1.0), keys=["image", "keypoints"])
    out, moved = container(down[..., :, None] * across[..., None, :], points)
    total = out.sum((2, 3))
    centre = torch.stack([(out * xs).sum((2, 3)) / total, (out * ys[:, None]).sum((2, 3)) / total], dim=-1)
    visible = ((moved > 4) & (moved < torch.tensor([WIDTH - 5, HEIGHT - 5]))).all(-1)
    assert visible.any()
    assert (centre - moved)[visible].abs().max() < 0.3


def test_views_compose_where_the_parameters_are():
    """Modules may draw on a GPU, beside others that draw nothing; the meta device stands for it."""
    turn = View((4, 6), (4, 6), torch.eye(3, dtype=torch.float64, device="meta")[None], pads=True)
    halve, enlarge = View((8, 12), (4, 6)), View((4, 6), (8, 12))
    assert turn.compose(halve).transform.device.type == "meta"
    assert enlarge.compose(turn).transform.device.type == "meta"


# --- matrices --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [run for run in RUNS if "elastic" not in run])
def test_matrices_give_the_label_that_the_container_gives(run):
    modules = RUNS[run]()
    modules[0].num_classes = CLASSES
    container = augment(*modules, K.RandomGamma(p=1.0))
    with pytest.raises(ValueError, match="call the container first"):
        _ = container.matrices
    for _ in range(2):  # the second call's, not both calls'
        _, soft = container(picture(), classes())
        matrices, size = composed(container)
        assert container.matrices.shape == (BATCH, 3, 3)
        torch.testing.assert_close(container.matrices, matrices, rtol=0, atol=1e-9)
        made = ts.soft_warp(classes()[:, 0], container.matrices, size, CLASSES)
        torch.testing.assert_close(made, soft, rtol=0, atol=1e-6)
        with pytest.raises(ValueError, match="boxes need modules that show a box of the picture"):
            _ = container.boxes


def test_matrices_of_boxes_are_their_matrices():
    container = augment(TA.RandomHorizontalFlip(), TA.RandomResizedCrop((7, 9)), keys=["image"])
    container(picture())
    assert torch.equal(container.matrices, ts.box_to_matrix(container.boxes, (7, 9)))
    still = augment(K.RandomGamma(p=1.0), keys=["image"])
    still(picture())
    assert torch.equal(still.matrices, torch.eye(3).double().repeat(BATCH, 1, 1))


def test_a_training_step_with_rotations_needs_no_soft_label():
    container = augment(make("rotation"), TA.RandomResizedCrop((6, 8), num_classes=CLASSES), TA.RandomHorizontalFlip())
    _, soft = container(picture(), classes())
    logits = torch.rand(BATCH, CLASSES, 6, 8)
    loss = ts.area_cross_entropy(logits, classes()[:, 0], transform=container.matrices)
    torch.testing.assert_close(loss, ts.soft_cross_entropy(logits, soft))


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (lambda: [make("elastic")], "matrices need modules that have one, which RandomElasticTransform has not"),
        (lambda: [make("rotation"), K.RandomAffine(10.0)], "RandomAffine"),
        (lambda: [make("rotation", filter=None)], "RandomRotation"),
        (lambda: [make("rotation"), K.RandomGamma(p=1.0), TA.Resize((4, 4))], "did not fold into one"),
    ],
)
def test_matrices_are_refused_where_there_is_no_one_matrix(modules, message):
    container = augment(*modules(), keys=["image"])
    container(picture())
    with pytest.raises(ValueError, match=message):
        _ = container.matrices


# --- the container's other ways --------------------------------------------------------------------------------------


def test_a_replay_gives_the_same_bits_for_everything_and_for_each_alone():
    container = augment(make("rotation", p=0.5), make("elastic"), TA.CenterCrop((9, 9), num_classes=CLASSES))
    image, soft = container(picture(), classes())
    params = container._params
    again = container(picture(), classes(), params=params)
    assert torch.equal(again[0], image)
    assert torch.equal(again[1], soft)
    assert torch.equal(container(picture(), params=params, data_keys=["image"]), image)
    assert torch.equal(container(classes(), params=params, data_keys=["mask"]), soft)


def test_masks_come_as_lists_several_and_in_dictionaries():
    modules = [make("rotation", num_classes=CLASSES), TA.CenterCrop((9, 9)), make("elastic")]
    torch.manual_seed(3)
    image, soft = augment(*modules)(picture(), classes())
    torch.manual_seed(3)
    _, listed = augment(*modules)(picture(), list(classes()))
    assert torch.equal(torch.cat(listed), soft)
    torch.manual_seed(3)
    _, first, second = augment(*modules, keys=["image", "mask", "mask"])(picture(), one_hot(classes()), classes())
    assert torch.equal(second, soft)
    assert_close(first, soft, 1e-5, "soft label")
    torch.manual_seed(3)
    out = TA.AugmentationSequential(*modules, data_keys=None)({"mask": classes(), "image": picture()})
    assert torch.equal(out["image"], image)
    assert torch.equal(out["mask"], soft)


@pytest.mark.parametrize("inner", ["AugmentationSequential", "ImageSequential"])
def test_a_run_goes_on_through_nested_containers(inner):
    modules = [make("rotation"), TA.CenterCrop((9, 9)), make("shear", num_classes=CLASSES)]
    torch.manual_seed(3)
    flat = augment(*modules)(picture(), classes())
    nested = augment(modules[0], getattr(TA if inner[0] == "A" else K, inner)(*modules[1:]))
    torch.manual_seed(3)
    out = nested(picture(), classes())
    for value, other in zip(out, flat, strict=True):
        assert torch.equal(value, other)
    assert work(lambda: nested(picture(), classes())) == ["warp_pair"]


def test_videos_are_batches_of_their_frames():
    clip, masks = picture(batch=4).view(2, 2, 3, *SIZE), classes(batch=4).view(2, 2, 1, *SIZE)
    for warp in WARPS:
        video = K.VideoSequential(make(warp, num_classes=CLASSES), data_format="BTCHW", same_on_frame=False)
        shown, soft = augment(video)(clip, masks)
        assert shown.shape == clip.shape
        assert soft.shape == (2, 2, CLASSES, *SIZE)
        coloured, soft = augment(video)(one_hot(masks.flatten(0, 1)).float().view(2, 2, CLASSES, *SIZE), masks)
        assert_close(soft, coloured, 1e-4, "soft label")


def test_an_elastic_transform_is_not_rigid_as_in_kornia():
    rigid = {"transformation_matrix_mode": "rigid", "keys": ["image"]}
    with pytest.raises(RuntimeError, match="rigid"):
        augment(make("rotation"), make("elastic"), **rigid)(picture())
    container = augment(make("rotation"), make("elastic"), keys=["image", "keypoints"])
    _, moved = container(picture(), some_points())
    _, turned = augment(container[0], keys=["image", "keypoints"])(
        picture(), some_points(), params=container._params[:1]
    )
    assert torch.equal(moved, turned)  # points stay where they are
    assert torch.equal(container.transform_matrix, container[0].transform_matrix)


def test_a_rotation_turns_every_picture_about_its_own_middle():
    small = picture(size=(9, 11))
    container = augment(TA.RandomRotation((90.0, 90.0), p=1.0), keys=["image", "image"])
    large, little = container(picture(size=(16, 16)), picture(size=(8, 8)))
    assert_close(large, picture(size=(16, 16)).rot90(1, (2, 3)), 1e-6, "large")
    assert_close(little, picture(size=(8, 8)).rot90(1, (2, 3)), 1e-6, "small")
    for warp in set(WARPS) - {"rotation"}:
        with pytest.raises(ValueError, match=r"size that \w+ drew its warps for, \(15, 22\), got \(9, 11\)"):
            augment(make(warp), keys=["image", "image"])(picture(), small)
        module = make(warp)
        module(picture())
        with pytest.raises(ValueError, match="a warp does not carry over to another size"):
            mask_of(module, classes(size=(9, 11)))


def test_random_apply_draws_kornias_modules_and_folds_them():
    modules = [make("rotation"), make("shear"), TA.RandomHorizontalFlip(), TA.CenterCrop((9, 9))]
    for module in modules:
        module.num_classes = CLASSES
    container = augment(*modules, random_apply=2)
    for seed in range(4):
        torch.manual_seed(seed)
        ran = work(lambda: container(picture(), classes()))
        warped = {container.get_submodule(item.name) for item in container._params} & set(modules[:2])
        assert ran == ["warp_pair" if warped else "crop_resize_pair"]


@over_warps
def test_modules_can_be_copied_and_say_what_they_are(warp):
    module = make(warp, num_classes=CLASSES, ignore_index=7, filter="triangle")
    out = module(picture())
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(again(picture(), params=module._params), out)
        assert repr(again) == repr(module)
    assert repr(module).startswith(WARPS[warp][0] + "(")
    assert repr(module).endswith("num_classes=4, ignore_index=7, filter='triangle')")
    assert module.state_dict().keys() == make(warp, K).state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@over_warps
def test_moving_a_module_to_a_type_changes_how_it_draws_alone(warp, dtype):
    module = make(warp).to(dtype)
    out = module(picture())
    assert out.dtype == torch.float32
    assert_close(out, expected_image(warp, module, picture()), 1e-3 if warp == "elastic" else 1e-4, "image")


# --- gradients, graphs and devices -----------------------------------------------------------------------------------


@over_warps
def test_the_gradient_in_the_image_is_the_adjoint_of_the_warp(warp):
    module, image = make(warp), picture(torch.float64).requires_grad_()
    out = module(image)
    grad = torch.rand_like(out)
    (found,) = torch.autograd.grad(out, image, grad)
    back = torch.einsum("bkhw,bkhw->", found, picture(torch.float64) + 1)
    there = torch.einsum("bkhw,bkhw->", module(picture(torch.float64) + 1, params=module._params), grad)
    torch.testing.assert_close(back, there)


@records_in_graphs
@pytest.mark.parametrize("warp", ["perspective", "elastic"])
def test_compiles_to_one_graph(warp):
    torch._dynamo.reset()
    module = make(warp, num_classes=CLASSES)

    def step(image, labels):
        return module(image), mask_of(module, labels)

    out, soft = torch.compile(step, fullgraph=True, backend="aot_eager")(picture(), classes())
    assert_close(out, module(picture(), params=module._params), 1e-5, "image")
    assert_close(soft, mask_of(module, classes()), 1e-5, "soft label")


@records_in_graphs
def test_a_container_compiles_to_one_graph():
    torch._dynamo.reset()
    container = augment(make("rotation", p=0.5), make("affine", num_classes=CLASSES), TA.CenterCrop((9, 9)))
    out = torch.compile(container, fullgraph=True, backend="aot_eager")(picture(), classes())
    for value, other in zip(out, container(picture(), classes(), params=container._params), strict=True):
        assert_close(value, other, 1e-5, "container")


@pytest.mark.parametrize("warp", ["affine", "perspective", "elastic"])
def test_function_transforms_go_through_a_container(warp):
    """Forward and reverse mode, and a batch of batches; the parameters are drawn outside, as `vmap` wants it."""
    container = augment(make(warp, num_classes=CLASSES), TA.CenterCrop((9, 9)))
    params, image, labels = container.forward_parameters((BATCH, 3, *SIZE)), picture(torch.float64), classes()

    def show(image, labels=labels):
        return tuple(container(image, labels, params=params))

    towards, step = image.flip(3), 1e-6
    _, tangents = torch.func.jvp(lambda image: show(image)[0], (image,), (towards,))
    difference = show(image + step * towards)[0] - show(image - step * towards)[0]
    assert_close(tangents, difference / (2 * step), 1e-6, "tangent")
    leaf = image.clone().requires_grad_()
    (wanted,) = torch.autograd.grad((show(leaf)[0] ** 2).sum(), leaf)
    assert_close(torch.func.grad(lambda image: (show(image)[0] ** 2).sum())(image), wanted, 1e-9, "gradient")
    stacks = [torch.stack([each, each.flip(0)]) for each in (image, labels)]
    batches = torch.func.vmap(show)(*stacks)
    for index in range(2):
        for value, other in zip(batches, show(*(stack[index] for stack in stacks)), strict=True):
            assert_close(value[index], other, 1e-9, "batch of batches")


def test_no_value_on_the_images_device_is_read():
    """On the meta device there are no values: whoever waited for one on a GPU fails here."""
    container = augment(
        *(make(warp, p=0.5) for warp in MATRICES),
        TA.CenterCrop((9, 9), num_classes=CLASSES),
        make("elastic"),
        keys=["image", "mask", "mask", "keypoints"],
    )
    args = [value.to("meta") for value in (picture(), classes(), classes(torch.int64), some_points())]
    out = container(*args)
    assert [tuple(value.shape) for value in out[1:3]] == [(BATCH, CLASSES, 9, 9)] * 2
    hard = augment(make("rotation"), TA.CenterCrop((9, 9)))(args[0], args[2].bool())[1]
    assert (hard.dtype, hard.device.type) == (torch.bool, "meta")
    back = augment(make("rotation"), keys=["image", "mask"])
    assert back.inverse(*back(args[0], args[1]))[0].device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_on_a_gpu_nothing_synchronises_and_everything_equals_the_cpu():
    modules = [
        make("rotation", p=0.5),
        make("perspective"),
        TA.CenterCrop((9, 9), num_classes=CLASSES),
        make("elastic"),
    ]
    container = augment(*modules, keys=["image", "mask", "keypoints"])
    args = picture(), classes(), some_points()
    here = container(*args)
    params = copy.deepcopy(container._params)
    there = [value.cuda() for value in args]
    container(*there)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = container(*there, params=params)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for value, other in zip(out, here, strict=True):
        assert_close(value.cpu(), other, 1e-3, "on a GPU")


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["RandomAffine", "RandomShear", "RandomTranslate", "RandomElasticTransform"])
@pytest.mark.parametrize("mode", ["border", "reflection"])
def test_other_paddings_are_refused_by_name(name, mode):
    first = {
        "RandomAffine": (9.0,),
        "RandomShear": (9.0,),
        "RandomTranslate": ((0.1, 0.2),),
        "RandomElasticTransform": (),
    }
    with pytest.raises(ValueError, match=f"padding_mode must be 'zeros'.* beside filter='area', got '{mode}'"):
        getattr(TA, name)(*first[name], padding_mode=mode)
    assert getattr(TA, name)(*first[name], padding_mode=mode, filter=None).filter is None
    module = getattr(TA, name)(*first[name], p=1.0)
    with pytest.raises(ValueError, match=f"padding_mode must be .*got '{mode}'"):
        augment(module, keys=["image"], extra_args={DataKey.INPUT: {"padding_mode": mode}})(picture())
    with pytest.raises(ValueError, match=f"padding_mode must be .*got '{mode}'"):
        augment(module, extra_args={DataKey.MASK: {"padding_mode": mode}})(picture(), classes())
    module(picture())
    with pytest.raises(ValueError, match=f"padding_mode must be .*got '{mode}'"):
        mask_of(module, classes(), padding_mode=mode)


@over_matrices
def test_other_paddings_of_an_inverse_are_refused_by_name(warp):
    module = make(warp)
    with pytest.raises(ValueError, match="padding_mode of an inverse must be 'zeros', got 'border'"):
        module.inverse(module(picture()), padding_mode="border")


@pytest.mark.parametrize("fill_value", [torch.zeros(1, 3, 1, 1), torch.zeros(0)])
def test_a_fill_that_is_no_value_per_channel_is_refused(fill_value):
    with pytest.raises(ValueError, match="fill_value must hold one value or one per channel"):
        make("affine", padding_mode="fill", fill_value=fill_value)


def test_a_fill_for_other_channels_is_refused():
    module = make("affine", padding_mode="fill", fill_value=torch.tensor([0.1, 0.2]))
    with pytest.raises(ValueError, match=r"fill must hold one value or one per channel \(3\), got \(0.1"):
        module(picture())


@pytest.mark.parametrize("resample", ["nearest", "bicubic"])
@over_warps
def test_resample_beside_a_filter_is_refused(warp, resample):
    with pytest.raises(ValueError, match=f"resample='{resample}' has no effect beside filter='area'"):
        make(warp, resample=resample)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"filter": "cubic"}, ValueError, "filter must be one of"),
        ({"num_classes": 0}, ValueError, "num_classes must be at least 1"),
        ({"num_classes": 2.0}, TypeError, "num_classes must be an int"),
        ({"num_classes": 3, "filter": None}, ValueError, "num_classes must be None"),
        ({"ignore_index": 0.5}, TypeError, "ignore_index"),
    ],
)
@over_warps
def test_bad_options_are_named(warp, options, error, message):
    with pytest.raises(error, match=message):
        make(warp, **options)


def test_members_that_disagree_on_the_labels_are_refused():
    with pytest.raises(ValueError, match="num_classes must be the same"):
        augment(make("rotation", num_classes=3), make("elastic", num_classes=4))


@over_warps
def test_parameters_that_say_nothing_are_refused_by_name(warp):
    """Of NaN, and of what shows no area: by `ts.warp`, which names its transform."""
    module = make(warp, num_classes=CLASSES)
    params = module.forward_parameters((BATCH, 3, *SIZE))
    for name in ("degrees", "angle", "shear_x", "translate_x", "end_points", "noise"):
        if name in params:
            params[name] = torch.full_like(params[name], torch.nan)
    with pytest.raises(ValueError, match="transform must"):
        module(picture(), params=params)
    with pytest.raises(ValueError, match="transform must"):
        module.transform_masks(classes(), params, module.flags)


def test_an_image_of_no_area_is_refused_by_name():
    module = TA.RandomAffine(0.0, scale=(0.0, 0.0), p=1.0)
    with pytest.raises(ValueError, match="transform must"):
        module(picture())


def test_an_image_of_another_batch_is_refused_by_name():
    module = make("rotation")
    module(picture())
    with pytest.raises(ValueError, match="image or mask must have the batch of its parameters, 3, got 2"):
        module(picture(batch=2), params=module._params)
    with pytest.raises(ValueError, match="mask must have the batch of its parameters, 3"):
        mask_of(module, classes(batch=2))


def test_labels_out_of_range_are_named():
    with pytest.raises(ValueError, match="labels"):
        augment(make("rotation", num_classes=CLASSES))(picture(), torch.full((BATCH, *SIZE), 77))


def test_what_lies_behind_the_camera_carries_no_mass():
    """kornia divides by a depth of either sign, and mirrors it back into view."""
    torch.manual_seed(1)
    options = {"distortion_scale": 1.0, "sampling_method": "area_preserving"}
    module, ones = make("perspective", num_classes=1, **options), torch.ones(8, 1, *SIZE)
    shown = module(ones)
    mass = mask_of(module, torch.zeros_like(ones).long())
    matrix = transform_of("perspective", module._params, module.flags)
    ys, xs = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    depth = torch.einsum("bj,hwj->bhw", matrix[:, 2], torch.stack([xs, ys, torch.ones_like(xs)], dim=-1).double())
    behind = (depth <= 0)[:, None]
    assert (make("perspective", K, **options)(ones, params=module._params)[behind] == 1).any()
    assert (shown[behind] == 0).all()
    assert (mass[behind] == 0).all()
    assert (mass > 0).any()


@pytest.mark.parametrize("distortion", [0.95, 1.0])
def test_the_strongest_perspective_is_finite_and_carries_no_more_mass_than_there_is(distortion):
    module = TA.RandomPerspective(distortion, sampling_method="area_preserving", p=1.0, num_classes=1)
    shown, mass = augment(module)(torch.ones(6, 1, 8, 9), torch.zeros(6, 8, 9).long())
    assert shown.isfinite().all()
    assert (mass >= 0).all()
    assert (mass <= 1 + 1e-5).all()
    assert_close(shown, mass, 1e-5, "mass")


# --- the page and its figure -----------------------------------------------------------------------------------------

ROOT = pathlib.Path(__file__).parents[1]


def test_the_figure_shows_a_thin_class_kept_in_place(tmp_path):
    pytest.importorskip("matplotlib", reason="the example draws with matplotlib, which is not installed")
    spec = importlib.util.spec_from_file_location("examples_warps", ROOT / "examples" / "warps.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    there, here = example.main(tmp_path / "figure.png")
    assert there < 0.6
    assert here > 0.98
    assert (tmp_path / "figure.png").stat().st_size > 10_000
