"""The modules by themselves and in kornia's own containers, against the reference and against kornia.

Most tests run over `GEOMETRIES`, one entry for each thing that a module can do to a picture. What must come out follows
from kornia's parameters alone: `boxes_of` reads them without asking the module.
"""

import contextlib
import copy
import inspect
import io
import itertools
import pickle
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import tritonsoft as ts
from tests.cases import RefusesUnsigned, assert_close, records_in_graphs
from tritonsoft.backends import reference
from tritonsoft.geometry import FILTERS

K = pytest.importorskip("kornia.augmentation", reason="tritonsoft.augmentation builds on kornia")
TA = pytest.importorskip("tritonsoft.augmentation")
DataKey = pytest.importorskip("kornia.constants").DataKey

on_devices = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="no cuda device on this machine"),
            ],
        ),
    ],
)

BATCH, HEIGHT, WIDTH, CLASSES = 3, 24, 40, 5
INTEGERS = (torch.bool, torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

GEOMETRIES = {
    "resize-smaller": ("Resize", {"size": (10, 28)}),
    "resize-larger": ("Resize", {"size": (33, 70)}),
    "resize-long-side": ("Resize", {"size": 20, "side": "long"}),
    "resized-crop": ("RandomResizedCrop", {"size": (10, 28)}),
    "crop": ("RandomCrop", {"size": (16, 20)}),
    "crop-padded": ("RandomCrop", {"size": (22, 44), "padding": (3, 7, 9, 5), "fill": 0.25}),
    "crop-pad-if-needed": ("RandomCrop", {"size": (30, 30), "pad_if_needed": True, "fill": 0.25}),
    "crop-negative-padding": ("RandomCrop", {"size": (16, 20), "padding": (-3, 4, 6, -2), "fill": 0.25}),
    "crop-stretched": ("RandomCrop", {"size": (30, 50)}),
    "crop-padded-and-stretched": ("RandomCrop", {"size": (30, 50), "padding": (2, 1), "fill": 0.25}),
    "center-crop": ("CenterCrop", {"size": (13, 20)}),
    "horizontal-flip": ("RandomHorizontalFlip", {}),
    "vertical-flip": ("RandomVerticalFlip", {}),
    "scale-crop": ("RandomScaleCrop", {"size": (20, 22), "fill": 0.25}),
}
over_geometries = pytest.mark.parametrize("geometry", GEOMETRIES)
SHAPE_CHANGING = ("resize-smaller", "resized-crop", "crop", "center-crop", "scale-crop")
FLIPS = ("horizontal-flip", "vertical-flip")
WITHOUT_CHANCE = (
    "resize-smaller",
    "resize-larger",
    "resize-long-side",
    "crop-stretched",
    "crop-padded-and-stretched",
    "center-crop",
)


def make(geometry, **options):
    name, kwargs = GEOMETRIES[geometry]
    torch.manual_seed(13)  # of the three samples it flips two, shrinks one into padding and enlarges two
    return getattr(TA, name)(**{**kwargs, **options})


def picture(device="cpu", dtype=torch.float32, channels=3, batch=BATCH, size=(HEIGHT, WIDTH)):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, channels, *size, generator=generator, dtype=torch.float64).to(device, dtype)


def classes(device="cpu", dtype=torch.uint8, ignored=0.1, batch=BATCH, size=(HEIGHT, WIDTH)):
    """Label maps ``(B, 1, H, W)`` in blobs of 3 pixels, some of them ignored where the type has a 255."""
    generator = torch.Generator().manual_seed(1)
    blocks = torch.randint(CLASSES, (batch, 1, size[0] // 3 + 1, size[1] // 3 + 1), generator=generator)
    labels = blocks.repeat_interleave(3, 2).repeat_interleave(3, 3)[..., : size[0], : size[1]]
    if dtype.is_floating_point or torch.iinfo(dtype).max >= 255:
        labels = labels.masked_fill(torch.rand(labels.shape, generator=generator) < ignored, 255)
    return labels.to(device, dtype)


def one_hot(labels):
    """The picture whose colours are the classes: what holds for its image must hold for the soft label."""
    return ts.to_soft(labels.long(), CLASSES, dtype=torch.float64)


def boxes_of(module, params, size=(HEIGHT, WIDTH)):
    """The boxes and the output size that kornia's parameters mean, in pixel edges of the picture."""
    height, width = size
    batch = params["batch_prob"].numel()
    whole = torch.tensor([[0.0, 0.0, width, height]], dtype=torch.float64).repeat(batch, 1)
    if isinstance(module, K.RandomHorizontalFlip | K.RandomVerticalFlip):
        flipped = whole[:, [2, 1, 0, 3] if isinstance(module, K.RandomHorizontalFlip) else [0, 3, 2, 1]]
        return torch.where(params["batch_prob"][:, None] > 0.5, flipped, whole), size
    output_size = tuple(params["output_size"][0].tolist())
    if isinstance(module, K.Resize):
        return whole, output_size
    first, last = params["src"][:, 0].double(), params["src"][:, 2].double()  # (x, y) of the corner pixels
    boxes = torch.cat([first, last + 1], dim=1)
    if isinstance(module, K.RandomCrop):
        canvas_height, canvas_width = params["forward_input_shape"][-2:].tolist()
        boxes[:, 2].clamp_(max=canvas_width)
        boxes[:, 3].clamp_(max=canvas_height)
        boxes -= params["padding_size"][:, [0, 2, 0, 2]]
    return boxes, output_size


def expected_image(module, image, filter="area"):
    boxes, size = boxes_of(module, module._params, image.shape[-2:])
    fill = module.flags.get("fill", 0.0)
    return reference.crop_resize(image.double().cpu(), boxes, size, filter, fill, torch.float64)


def expected_soft(module, labels, filter="area"):
    boxes, size = boxes_of(module, module._params, labels.shape[-2:])
    return reference.soft_crop_resize(labels[:, 0].cpu(), boxes, size, CLASSES, 255, filter, torch.float64)


def expected_pixels(module):
    """The index into a flattened picture of the pixel at each footprint's centre, -1 outside: ``(B, 1, h, w)``."""
    boxes, size = boxes_of(module, module._params)
    index = torch.arange(HEIGHT * WIDTH, dtype=torch.float64).reshape(1, 1, HEIGHT, WIDTH).expand(BATCH, 1, -1, -1)
    return reference.crop_resize(index, boxes, size, "nearest", -1.0, torch.float64).long()


def tolerance(dtype):
    """Of values in [0, 1]: 4 (n + 4) roundings of the working precision for n < 96 taps, and one of the output."""
    working = torch.float64 if dtype == torch.float64 else torch.float32
    return 400 * torch.finfo(working).eps + torch.finfo(dtype).eps / 2


def mask_of(module, mask, **kwargs):
    return module.transform_masks(mask, module._params, module.flags, **kwargs)


def inverse_mask_of(module, mask, **kwargs):
    return module.inverse_masks(mask, module._params, module.flags, **kwargs)


class Calls(TorchDispatchMode):
    """What is dispatched to tensors, and which of it is this library's."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))

    @property
    def ours(self):
        return [name for name in self.names if name.startswith("tritonsoft.")]


@contextlib.contextmanager
def no_synchronisation(device):
    """On a GPU, an error where the host waits for it."""
    if device != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- what stays kornia's ---------------------------------------------------------------------------------------------

NAMES = ("Resize", "RandomResizedCrop", "RandomCrop", "CenterCrop", "RandomHorizontalFlip", "RandomVerticalFlip")

OPTIONS = [
    ("Resize", {"size": (10, 28)}),
    *[("Resize", {"size": 20, "side": side}) for side in ("short", "long", "vert", "horz")],
    ("Resize", {"size": (10, 28), "p": 0.5}),
    ("Resize", {"size": (10, 28), "align_corners": False, "antialias": True}),
    ("RandomResizedCrop", {"size": (10, 28)}),
    ("RandomResizedCrop", {"size": (10, 28), "scale": (0.5, 0.6), "ratio": (1.0, 1.0)}),
    ("RandomResizedCrop", {"size": (10, 28), "scale": torch.tensor([0.5, 0.6]), "ratio": torch.tensor([0.5, 2.0])}),
    ("RandomResizedCrop", {"size": (10, 28), "same_on_batch": True}),
    ("RandomResizedCrop", {"size": (10, 28), "p": 0.5}),
    ("RandomResizedCrop", {"size": (10, 28), "cropping_mode": "resample", "align_corners": False}),
    ("RandomCrop", {"size": (16, 20)}),
    ("RandomCrop", {"size": (16, 20), "same_on_batch": True}),
    ("RandomCrop", {"size": (16, 20), "p": 0.5}),
    ("RandomCrop", {"size": (16, 20), "padding": 2}),
    ("RandomCrop", {"size": (16, 20), "padding": (3, 2), "fill": 0.5}),
    ("RandomCrop", {"size": (16, 20), "padding": (1, 2, 3, 4), "fill": (0.1, 0.2, 0.3)}),
    ("RandomCrop", {"size": (16, 20), "padding": (-1, 2, 3, -4), "fill": [0.1, 0.2, 0.3]}),
    ("RandomCrop", {"size": (30, 50), "pad_if_needed": True}),
    ("RandomCrop", {"size": (30, 50)}),
    ("RandomCrop", {"size": (16, 20), "padding": 5, "padding_mode": "reflect"}),
    ("RandomCrop", {"size": (16, 20), "padding": 5, "padding_mode": "replicate"}),
    ("RandomCrop", {"size": (16, 20), "padding": 5, "cropping_mode": "resample"}),
    ("CenterCrop", {"size": 11}),
    ("CenterCrop", {"size": (13, 20), "p": 0.5}),
    ("CenterCrop", {"size": (13, 20), "cropping_mode": "resample"}),
    *itertools.product(
        ("RandomHorizontalFlip", "RandomVerticalFlip"), ({}, {"p": 1.0}, {"p": 0.0}, {"same_on_batch": True})
    ),
]
RESAMPLED = [
    ("Resize", {"size": (10, 28), "resample": "nearest"}),
    ("Resize", {"size": (10, 28), "resample": "bicubic"}),
    ("RandomResizedCrop", {"size": (10, 28), "resample": "nearest"}),
    ("RandomCrop", {"size": (16, 20), "resample": "nearest", "cropping_mode": "resample"}),
    ("CenterCrop", {"size": (13, 20), "resample": "bicubic", "cropping_mode": "resample"}),
]


@pytest.mark.parametrize("name", NAMES)
def test_constructor_is_kornias_with_four_more_arguments(name):
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
    image = picture(batch=batch)
    drawn = []
    for package in (K, TA):
        torch.manual_seed(5)
        module = getattr(package, name)(**options)
        module(image)
        drawn.append({**module._params, "next number": torch.rand(1)})
    theirs, ours = drawn
    assert ours.keys() == theirs.keys()
    for key in theirs:
        assert torch.equal(ours[key], theirs[key]), key
        assert ours[key].dtype == theirs[key].dtype, key


@pytest.mark.parametrize(("name", "options"), OPTIONS + RESAMPLED)
def test_filter_none_is_kornia_bit_for_bit(name, options):
    points = torch.rand(BATCH, 4, 2) * torch.tensor([WIDTH, HEIGHT])
    boxes = torch.tensor([[[3.0, 4.0, 12.0, 9.0]]]).repeat(BATCH, 1, 1)
    results = []
    for package, ours in ((K, {}), (TA, {"filter": None})):
        torch.manual_seed(6)
        module = getattr(package, name)(**options, **ours)
        container = K.AugmentationSequential(module, data_keys=["image", "mask", "keypoints", "bbox_xyxy"])
        there = container(picture(), classes(), points, boxes)
        back = container.inverse(*there)
        results.append([*there, *back, container.transform_matrix])
    for theirs, ours in zip(*results, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.dtype == theirs.dtype


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Resize", {"size": (10, 28), "align_corners": False, "antialias": True}),
        ("RandomResizedCrop", {"size": (10, 28), "align_corners": False, "cropping_mode": "resample"}),
        ("RandomCrop", {"size": (30, 50), "align_corners": False, "cropping_mode": "resample"}),
        ("CenterCrop", {"size": (13, 20), "align_corners": False, "cropping_mode": "resample"}),
    ],
)
def test_kornias_sampling_options_change_nothing_beside_a_filter(name, options):
    results = []
    for kwargs in (options, {"size": options["size"]}):
        torch.manual_seed(7)
        module = getattr(TA, name)(**kwargs)
        results.append([module(picture()), mask_of(module, classes()), module.transform_matrix])
    for with_options, without in zip(*results, strict=True):
        assert torch.equal(with_options, without)


@over_geometries
def test_parameters_name_the_size_of_the_output(geometry):
    """Or the next child of a container would draw its parameters for the old shape."""
    module = make(geometry)
    out = module(picture())
    size = module._params.get("output_size", torch.tensor([[HEIGHT, WIDTH]])).unique(dim=0)
    assert size.tolist() == [list(out.shape[-2:])]


# --- images ----------------------------------------------------------------------------------------------------------


@on_devices
@pytest.mark.parametrize("filter", FILTERS)
@over_geometries
def test_image_is_the_reference_of_its_box(geometry, filter, device):
    module, image = make(geometry, filter=filter), picture(device, torch.float64)
    with no_synchronisation(device):
        out = module(image)
    assert out.dtype == torch.float64
    assert_close(out, expected_image(module, image, filter), tolerance(torch.float64), "image")


@on_devices
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("geometry", ["resized-crop", "crop-padded", "scale-crop"])
def test_image_keeps_its_type(geometry, dtype, device):
    module, image = make(geometry), picture(device, dtype)
    out = module(image)
    assert out.dtype == dtype
    assert out.device == image.device
    assert_close(out, expected_image(module, image), tolerance(dtype), "image")


@pytest.mark.parametrize("geometry", ["crop", "center-crop", *FLIPS])
def test_a_view_that_only_moves_pixels_is_kornias_image(geometry):
    name, kwargs = GEOMETRIES[geometry]
    outs = []
    for package in (K, TA):
        torch.manual_seed(8)
        outs.append(getattr(package, name)(**kwargs)(picture()))
    assert torch.equal(*outs)


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate"])
@pytest.mark.parametrize("padding", [5, (3, 2), (1, 2, 3, 4), (-3, 4, 6, -2)])
def test_padding_is_kornias(mode, padding):
    for fill in (0.5, (0.1, 0.2, 0.3), [0.1, 0.2, 0.3]) if mode == "constant" else (0,):
        outs = []
        for package in (K, TA):
            torch.manual_seed(9)
            module = package.RandomCrop((20, 38), padding=padding, padding_mode=mode, fill=fill)
            outs.append(module(picture(dtype=torch.float64)))
        assert_close(outs[1], outs[0], tolerance(torch.float64), f"image with fill={fill}")


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_repeated_padding_around_a_stretched_window(mode):
    module = TA.RandomCrop((40, 60), padding=(3, 4, 5, 6), padding_mode=mode)
    image = picture(dtype=torch.float64)
    padded = F.pad(image, (3, 5, 4, 6), mode=mode)  # 34 x 48, less than the window: all of it is stretched
    expected = reference.crop_resize(padded, None, (40, 60), "area", 0.0, torch.float64)
    assert_close(module(image), expected, tolerance(torch.float64), "image")


@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (1, HEIGHT, WIDTH), (3, HEIGHT, WIDTH), (1, 3, HEIGHT, WIDTH)])
@over_geometries
def test_keepdim_restores_the_rank_of_an_image(geometry, shape):
    image = picture()[0].mean(0).expand(shape)
    module, plain = make(geometry, keepdim=True), make(geometry)
    out = module(image)
    assert out.ndim == len(shape)
    batched = plain(image, params=module._params)
    assert batched.ndim == 4
    assert torch.equal(out.reshape(batched.shape), batched)


# --- masks -----------------------------------------------------------------------------------------------------------


@on_devices
@pytest.mark.parametrize("filter", FILTERS)
@over_geometries
def test_label_map_becomes_the_soft_label_of_its_box(geometry, filter, device):
    """Padding and ignored pixels carry no mass: the reference pads and ignores by itself."""
    module, image, labels = make(geometry, filter=filter, num_classes=CLASSES), picture(device), classes(device)
    with no_synchronisation(device):
        module(image)
        soft = mask_of(module, labels)
    assert soft.dtype == torch.float32
    assert_close(soft, expected_soft(module, labels, filter), tolerance(torch.float32), "soft label")


@on_devices
@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
@pytest.mark.parametrize("geometry", ["resize-smaller", "crop-padded"])
def test_label_map_of_any_type_becomes_soft(geometry, dtype, device):
    labels = classes(device, torch.uint8, ignored=0.1 if dtype in (torch.uint8, *FLOATS) else 0)
    labels = (labels % 2 if dtype == torch.bool else labels).to(dtype)
    module = make(geometry, num_classes=CLASSES)
    module(picture(device))
    soft = mask_of(module, labels)
    assert soft.dtype == (dtype if dtype.is_floating_point else torch.float32)
    assert_close(soft, expected_soft(module, labels.long()), tolerance(soft.dtype), "soft label")


@pytest.mark.parametrize("dtype", [torch.int16, torch.int64, torch.float64])
def test_any_integer_may_be_ignored(dtype):
    labels = classes(dtype=torch.int64)
    labels = torch.where(labels == 255, -7, labels).to(dtype)
    module = make("resize-smaller", num_classes=CLASSES, ignore_index=-7)
    module(picture())
    expected = expected_soft(module, torch.where(labels == -7, 255, labels).long())
    assert_close(mask_of(module, labels), expected, tolerance(torch.float32), "soft label")


@over_geometries
def test_mask_with_a_channel_per_class_is_filtered_as_an_image(geometry):
    module, soft = make(geometry, num_classes=CLASSES), picture(channels=CLASSES, dtype=torch.float64)
    module(picture())
    boxes, size = boxes_of(module, module._params)
    expected = reference.crop_resize(soft, boxes, size, "area", 0.0, torch.float64)  # 0, whatever the image's fill
    assert_close(mask_of(module, soft), expected, tolerance(torch.float64), "soft label")


@over_geometries
def test_soft_label_is_the_image_of_the_classes(geometry):
    module, labels = make(geometry, num_classes=CLASSES), classes()
    if "fill" in module.flags:
        module.flags["fill"] = 0.0
    image = module(one_hot(labels))
    assert_close(mask_of(module, labels), image, tolerance(torch.float32), "soft label")


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_repeated_padding_repeats_labels_with_their_pixels(mode):
    module = TA.RandomCrop((30, 50), padding=6, padding_mode=mode, num_classes=CLASSES)
    labels = classes()
    image = module(one_hot(labels))
    soft = mask_of(module, labels)
    assert_close(soft, image, tolerance(torch.float32), "soft label")
    hard = TA.RandomCrop((30, 50), padding=6, padding_mode=mode)
    assert torch.equal(
        hard.transform_masks(labels, module._params, hard.flags),
        hard(labels.double(), params=module._params).to(torch.uint8),
    )


@pytest.mark.parametrize("channels", [2, CLASSES])
def test_integer_mask_with_several_channels_is_refused(channels):
    module = make("resize-smaller", num_classes=CLASSES)
    module(picture())
    with pytest.raises(ValueError, match=r"mask must have 1 channel .* num_classes=5"):
        mask_of(module, torch.zeros(BATCH, channels, HEIGHT, WIDTH, dtype=torch.long))


@on_devices
@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
@pytest.mark.parametrize("geometry", ["resize-smaller", "resize-larger", "resized-crop", "crop-padded", *FLIPS])
def test_hard_mask_holds_the_pixel_under_each_footprints_centre(geometry, dtype, device):
    generator = torch.Generator().manual_seed(2)
    if dtype.is_floating_point or dtype == torch.bool:
        mask = (torch.rand(BATCH, 1, HEIGHT, WIDTH, generator=generator) * 2).to(dtype)
    else:
        info = torch.iinfo(dtype)  # every bit counts
        low, high = max(info.min, -(2**62)), min(info.max, 2**62)
        mask = torch.randint(low, high, (BATCH, 1, HEIGHT, WIDTH), generator=generator).to(dtype)
    module = make(geometry, ignore_index=101)
    module(picture(device))
    out = mask_of(module, mask.to(device))
    assert out.dtype == dtype
    index = expected_pixels(module)
    values = mask.cpu().flatten(1)[torch.arange(BATCH)[:, None], index.clamp(min=0).flatten(1)].reshape(index.shape)
    outside = torch.tensor(False if dtype == torch.bool else 101).to(dtype)
    if not dtype.is_floating_point:  # PyTorch 2.11's torch.where lacks uint16 and uint32
        values, outside = values.long(), outside.long()
    expected = torch.where(index.cpu() >= 0, values, outside).to(dtype)
    assert torch.equal(out.cpu(), expected)
    assert bool((index == -1).any()) == (geometry == "crop-padded")


UNSIGNED = [
    *GEOMETRIES.values(),
    ("RandomCrop", {"size": (30, 50), "padding": 6, "padding_mode": "reflect"}),
    ("RandomCrop", {"size": (30, 50), "padding": 6, "padding_mode": "replicate"}),
    ("RandomHorizontalFlip", {"p": 1.0, "keepdim": True}),
]


@pytest.mark.parametrize("dtype", RefusesUnsigned.types)
@pytest.mark.parametrize("num_classes", [None, CLASSES])
@pytest.mark.parametrize(("name", "kwargs"), UNSIGNED)
def test_unsigned_masks_need_no_arithmetic_of_their_type(name, kwargs, num_classes, dtype):
    # What no signed type of as many bits holds, but ignore_index is an int64.
    far = min(2 ** (8 * dtype.itemsize - 1), 2**62)
    module, signed = (getattr(TA, name)(**kwargs, num_classes=num_classes, ignore_index=each) for each in (far, 77))
    if num_classes is not None:
        module = signed
    labels = classes(dtype=torch.int64, ignored=0)
    params = module.forward_parameters((BATCH, 3, HEIGHT, WIDTH))
    expected = signed.transform_masks(labels, params, signed.flags)
    expected_back = signed.inverse_masks(expected, params, signed.flags)
    with RefusesUnsigned():
        out = module.transform_masks(labels.to(dtype), params, module.flags)
        back = module.inverse_masks(out, params, module.flags)
    for actual, wanted in ((out, expected), (back, expected_back)):
        assert actual.dtype == (dtype if num_classes is None else torch.float32)
        assert torch.equal(actual.double(), wanted.double().masked_fill(wanted == 77, far))


def test_hard_mask_of_several_channels_is_sampled_at_the_same_pixels():
    mask = torch.randint(0, 2**40, (BATCH, 4, HEIGHT, WIDTH))
    module = make("resized-crop")
    module(picture())
    for channel, out in enumerate(mask_of(module, mask).unbind(1)):
        assert torch.equal(out, mask_of(module, mask[:, channel : channel + 1])[:, 0])


@pytest.mark.skipif(ts.backend_info()["cpu"][0] == "reference", reason="the reference is for finite pictures")
def test_hard_mask_holds_whatever_a_float_can():
    odd = torch.tensor([float("nan"), float("inf"), -3.0e38, 1e-42])
    mask = odd.repeat(HEIGHT * WIDTH // 4).reshape(1, 1, HEIGHT, WIDTH)
    module = TA.RandomHorizontalFlip(p=1.0)
    module(picture(batch=1))
    assert torch.equal(mask_of(module, mask).view(torch.int32), mask.flip(3).view(torch.int32))


@pytest.mark.parametrize("geometry", ["crop-padded", "crop-pad-if-needed", "scale-crop"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_padding_of_a_hard_mask_is_what_the_caller_names(geometry, dtype):
    module = make(geometry, ignore_index=9)
    module(picture())
    mask = torch.full((BATCH, 1, HEIGHT, WIDTH), 1, dtype=dtype)
    outside = expected_pixels(module) < 0
    assert outside.any()
    for kwargs, fill in (({}, 9), ({"fill": 7}, 7), ({"fill": 0}, 0)):
        out = mask_of(module, mask, **kwargs)
        assert torch.equal(out, torch.where(outside, fill, 1).to(dtype))


def test_a_fill_for_masks_gives_soft_labels_no_mass():
    module = make("crop-padded", num_classes=CLASSES)
    module(picture())
    assert torch.equal(mask_of(module, classes(), fill=1.0), mask_of(module, classes()))


@pytest.mark.parametrize("fill", [0.5, (0.1, 0.2, 0.3)])
def test_kornias_container_pads_hard_masks_with_ignore_index(fill):
    """Beside one fill per channel it asks for a mask padded with 0: nobody wanted class 0 there."""
    container = K.AugmentationSequential(
        TA.RandomCrop((30, 50), pad_if_needed=True, fill=fill), data_keys=["image", "mask"]
    )
    _, mask = container(picture(), torch.ones(BATCH, 1, HEIGHT, WIDTH, dtype=torch.uint8))
    assert mask.unique().tolist() == [1, 255]
    assert (mask == 1).sum() == BATCH * HEIGHT * WIDTH
    chosen = K.AugmentationSequential(
        TA.RandomCrop((30, 50), pad_if_needed=True, fill=fill),
        data_keys=["image", "mask"],
        extra_args={DataKey.MASK: {"fill": 3}},
    )
    assert chosen(picture(), torch.ones(BATCH, 1, HEIGHT, WIDTH, dtype=torch.uint8))[1].unique().tolist() == [1, 3]


@pytest.mark.parametrize("keys", [{"resample": "bilinear"}, {"antialias": True}])
def test_float_mask_is_filtered_where_the_caller_asks_for_interpolation(keys):
    mask = picture(channels=1, dtype=torch.float64)
    module = make("resized-crop")
    module(picture())
    boxes, size = boxes_of(module, module._params)
    expected = reference.crop_resize(mask, boxes, size, "area", 0.0, torch.float64)
    assert_close(mask_of(module, mask, **keys), expected, tolerance(torch.float64), "mask")


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize(
    ("batch", "shape"),
    [
        (1, (HEIGHT, WIDTH)),
        (1, (1, HEIGHT, WIDTH)),
        (1, (1, 1, HEIGHT, WIDTH)),
        (BATCH, (BATCH, HEIGHT, WIDTH)),
        (BATCH, (BATCH, 1, HEIGHT, WIDTH)),
    ],
)
def test_keepdim_restores_the_rank_of_a_mask(batch, shape, keepdim, soft):
    """A batch of label maps without channels is the exception: its soft labels need both."""
    module = TA.Resize((10, 28), keepdim=keepdim, num_classes=CLASSES if soft else None)
    module(picture(batch=batch))
    channels = CLASSES if soft else 1
    labels = classes(batch=batch)
    out, full = mask_of(module, labels.reshape(shape)), mask_of(module, labels)
    assert full.shape == (batch, channels, 10, 28)
    if not keepdim or len(shape) == 4 or (soft and batch > 1):
        assert out.shape == full.shape
    elif soft:
        assert out.shape == (CLASSES, 10, 28)
    else:
        assert out.shape == (*shape[:-2], 10, 28)
    assert torch.equal(out.reshape(full.shape), full)


def test_rank_three_mask_with_other_than_b_planes_is_one_mask_of_channels():
    module = TA.Resize((10, 28), num_classes=CLASSES)
    module(picture(batch=1))
    soft = picture(channels=CLASSES, batch=1)
    assert torch.equal(mask_of(module, soft[0]), mask_of(module, soft))


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# --- drawn corners ---------------------------------------------------------------------------------------------------

HALVES = (torch.float16, torch.bfloat16)
DRAWN = {
    "resized-crop": ("RandomResizedCrop", {"size": (12, 12)}),
    "tiny-resized-crop": ("RandomResizedCrop", {"size": (12, 12), "scale": (1e-5, 1e-4)}),
    "crop": ("RandomCrop", {"size": (37, 35)}),
    "tiny-crop": ("RandomCrop", {"size": (3, 3)}),
    "crop-padded": ("RandomCrop", {"size": (37, 35), "padding": 6, "padding_mode": "replicate"}),
    "crop-stretched": ("RandomCrop", {"size": (404, 710)}),
    "center-crop": ("CenterCrop", {"size": (37, 35)}),
    "scale-crop": ("RandomScaleCrop", {"size": (12, 12), "scale": (0.0304, 0.032)}),
}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("drawn", "as_tensors"),
    [*((drawn, False) for drawn in DRAWN), ("resized-crop", True), ("tiny-resized-crop", True)],
)
def test_what_is_drawn_in_half_precision_shows_nothing_outside_of_the_picture(drawn, as_tensors, dtype):
    """Beyond 256 a bfloat16 counts in twos and fours, and rounds corners past the picture's edge."""
    name, kwargs = DRAWN[drawn]
    if as_tensors:
        kwargs = {"scale": (0.08, 1.0), "ratio": (0.75, 1.33), **kwargs}
        kwargs.update({key: torch.tensor(kwargs[key], dtype=dtype) for key in ("scale", "ratio")})
    ones = torch.ones(32, 1, 396, 700)
    torch.manual_seed(0)
    with default_dtype(torch.float32 if as_tensors else dtype):
        module, hard = (getattr(TA, name)(**kwargs, num_classes=count) for count in (1, None))
        image, mass = module(ones), mask_of(module, torch.zeros_like(ones, dtype=torch.uint8))
        held = hard.transform_masks(ones.byte(), module._params, hard.flags)
        if hasattr(K, name) and not drawn.startswith("tiny"):  # a slice that begins past the edge is an error there
            theirs = getattr(K, name)(**kwargs)(ones)
            assert_close(theirs, torch.ones_like(theirs), tolerance(torch.float32), "kornia's image")
    assert_close(image, torch.ones_like(image), tolerance(torch.float32), "image")
    assert_close(mass, torch.ones_like(mass), tolerance(torch.float32), "mass")
    assert held.unique().tolist() == [1]


@pytest.mark.parametrize("dtype", HALVES)
def test_a_window_placed_in_half_precision_is_not_stretched(dtype):
    image = torch.arange(393 * 602, dtype=torch.float64).reshape(1, 1, 393, 602).expand(16, 1, -1, -1)
    with default_dtype(dtype):
        module = TA.RandomCrop((37, 35), padding=5, padding_mode="replicate")
        out = module(image)
    padded = F.pad(image, (5, 5, 5, 5), mode="replicate")
    for sample, (x, y) in enumerate(module._params["src"][:, 0].long().tolist()):
        x, y = min(x, 612 - 35), min(y, 403 - 37)
        assert torch.equal(out[sample], padded[sample, :, y : y + 37, x : x + 35])


def test_a_corner_rounded_past_the_edge_shows_the_last_pixel():
    image = picture(size=(20, 700))
    corner = torch.tensor([699.0, 19.0]).to(torch.bfloat16)
    assert corner[0] == 700
    for module in (TA.RandomCrop((1, 1)), TA.RandomResizedCrop((1, 1))):
        params = module.forward_parameters(image.shape)
        params["src"] = corner.expand(BATCH, 4, 2)
        assert torch.equal(module(image, params=params), image[..., -1:, -1:])


@pytest.mark.parametrize("dtype", FLOATS)
def test_scale_crop_draws_in_single_precision_at_least(dtype):
    with default_dtype(dtype):
        params = TA.RandomScaleCrop((20, 22)).forward_parameters((BATCH, 3, HEIGHT, WIDTH))
    assert params["src"].dtype == params["scale"].dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("move", [-3.0, 5.0])
def test_corners_that_reach_beyond_the_picture_show_kornias_part_of_it(move):
    kwargs = GEOMETRIES["resized-crop"][1]
    module, theirs = TA.RandomResizedCrop(**kwargs, filter="nearest"), K.RandomResizedCrop(**kwargs, resample="nearest")
    image = picture()
    params = module.forward_parameters(image.shape)
    params["src"] = params["src"] + move
    clipped = {**params, "src": params["src"].clamp(min=0)}  # Python's slices count negative numbers from the end
    assert torch.equal(module(image, params=params), theirs(image, params=clipped))


def test_a_window_that_reaches_beyond_the_picture_is_stretched():
    """kornia's way, by its own interpolation."""
    module, image = TA.RandomCrop((16, 20)), picture(dtype=torch.float64)
    params = module.forward_parameters(image.shape)
    params["src"] = torch.tensor([[[30.0, 13.0], [49.0, 13.0], [49.0, 28.0], [30.0, 28.0]]]).repeat(BATCH, 1, 1)
    expected = reference.crop_resize(image[..., 13:, 30:], None, (16, 20), "area", 0.0, torch.float64)
    assert_close(module(image, params=params), expected, tolerance(torch.float64), "image")


def test_a_center_crop_larger_than_the_picture_is_named():
    module = TA.CenterCrop((20, 30))
    params = module.forward_parameters((BATCH, 3, HEIGHT, WIDTH))
    module.flags["size"] = (25, 30)
    with pytest.raises(ValueError, match=r"size must not be larger than the picture \(24, 40\), got \(25, 30\)"):
        module(picture(), params=params)


# --- replay: what the parameters hold counts, not what has become of the flags ----------------------------------------

REPLAYS = {
    "padding": ("RandomCrop", {"size": (20, 38), "padding": (3, 7, 9, 5)}, {"padding": 1}),
    "padding-gone": ("RandomCrop", {"size": (20, 38), "padding": 4}, {"padding": None}),
    "padding-come": ("RandomCrop", {"size": (20, 38)}, {"padding": 4}),
    "reflect": ("RandomCrop", {"size": (20, 38), "padding": 4, "padding_mode": "reflect"}, {"padding": 2}),
    "replicate": ("RandomCrop", {"size": (20, 38), "padding": 4, "padding_mode": "replicate"}, {"padding": 2}),
    "pad-if-needed": ("RandomCrop", {"size": (30, 50), "pad_if_needed": True}, {"pad_if_needed": False}),
    "fill": ("RandomCrop", {"size": (20, 38), "padding": 4}, {"fill": 0.5}),
    "padding-mode": ("RandomCrop", {"size": (20, 38), "padding": 4}, {"padding_mode": "replicate"}),
    "center": ("CenterCrop", {"size": (13, 20)}, {"size": (11, 8)}),
}


@pytest.mark.parametrize("container", ["kornia's", "ours"])
@pytest.mark.parametrize("replay", REPLAYS)
def test_a_replay_after_flags_have_changed_is_kornias(replay, container):
    name, kwargs, flags = REPLAYS[replay]
    image, mask = picture(dtype=torch.float64), classes(dtype=torch.float64, ignored=0)
    results = []
    for package in (K, TA):
        library = TA if package is TA and container == "ours" else K
        module = getattr(package, name)(**kwargs, **({"ignore_index": 0} if package is TA else {}))
        augment = library.AugmentationSequential(module, data_keys=["image", "mask"])
        torch.manual_seed(3)
        params = augment.forward_parameters(image.shape)
        module.flags.update(flags)
        shown = augment(image, mask, params=params)
        results.append({"image": shown[0], "mask": shown[1], "matrix": augment.transform_matrix})
        if not {"padding_mode", "size"} & (flags.keys() | kwargs.keys() - {"size"}):
            back = augment.inverse(*shown, params=params)
            results[-1].update({"inverse": back[0], "inverse of the mask": back[1]})
    if replay == "fill":  # kornia pads masks with the image's
        del results[0]["mask"], results[0]["inverse of the mask"]
    if replay == "center":  # whose matrix is of the old size, beside pixels of the new one
        del results[0]["matrix"]
    for what, theirs in results[0].items():
        assert_close(results[1][what], theirs, 1e-6, what)


@pytest.mark.parametrize("flags", [{"size": 9}, {"side": "short"}, {"size": 30, "side": "vert"}])
def test_one_side_is_resized_as_it_was_drawn(flags):
    """In kornia the flags never decide that size, at a replay or not; the next module is told the same."""
    for package in (K, TA):
        module = package.Resize(20, side="long")
        first = module(picture())
        params, matrix = module._params, module.transform_matrix
        module.flags.update(flags)
        assert torch.equal(module(picture(), params=params), first)
        assert torch.equal(module.transform_matrix, matrix)
        assert torch.equal(module(picture()), first)
        augment = package.AugmentationSequential(module, package.RandomCrop((4, 4)))
        assert augment.forward_parameters(picture().shape)[1].data["forward_input_shape"].tolist()[-2:] == [12, 20]


def test_parameters_need_not_be_real_to_know_the_shapes():
    from torch._subclasses.fake_tensor import FakeTensorMode

    for module, size in ((TA.RandomCrop((16, 20), padding=2), (16, 20)), (TA.Resize(12), (12, 20))):
        with FakeTensorMode(allow_non_fake_inputs=True):  # the samplers' ranges are real
            assert module(torch.empty(BATCH, 3, HEIGHT, WIDTH)).shape == (BATCH, 3, *size)


# --- the matrix: what kornia moves boxes and keypoints by -------------------------------------------------------------


def blobs(points, size, dtype=torch.float32, sigma=1.25):
    """A picture ``(B, N, H, W)`` with one round spot per channel at ``points (B, N, 2)``, in pixel centres."""
    ys, xs = torch.arange(size[0]), torch.arange(size[1])
    down = (-((ys - points[..., 1:]) ** 2) / (2 * sigma**2)).exp()
    across = (-((xs - points[..., :1]) ** 2) / (2 * sigma**2)).exp()
    return (down[..., :, None] * across[..., None, :]).to(dtype)


def centroids(image):
    """``(B, K, 2)``: where the weight of each channel lies, in pixel centres."""
    weight = image.double()
    ys, xs = torch.arange(image.shape[-2]), torch.arange(image.shape[-1])
    total = weight.sum((2, 3))
    return torch.stack([(weight * xs).sum((2, 3)) / total, (weight * ys[:, None]).sum((2, 3)) / total], dim=-1)


def grid_points(batch, size, across, down):
    xs, ys = ((torch.arange(count) + 0.5) * side / count for count, side in ((across, size[1]), (down, size[0])))
    return torch.cartesian_prod(xs, ys).repeat(batch, 1, 1)


def assert_keypoints_land_on_their_spots(module, size, points, dtype=torch.float32):
    container = K.AugmentationSequential(module, data_keys=["image", "keypoints"])
    image = blobs(points, size, dtype)
    if "fill" in module.flags:
        module.flags["fill"] = 0.0
    out, moved = container(image, points)
    spot = 4 * container.transform_matrix.diagonal(dim1=1, dim2=2)[:, None, :2].abs().clamp(min=0.75)
    last = torch.tensor([out.shape[3], out.shape[2]]) - 1
    visible = ((moved > spot) & (moved < last - spot)).all(-1)
    assert visible.any()
    assert (centroids(out)[visible] - moved[visible]).abs().max() <= 0.5


@over_geometries
def test_keypoints_land_on_the_content(geometry):
    assert_keypoints_land_on_their_spots(
        make(geometry), (HEIGHT, WIDTH), grid_points(BATCH, (HEIGHT, WIDTH), across=9, down=5)
    )


@pytest.mark.parametrize(
    "module",
    [
        TA.RandomHorizontalFlip(p=1.0),
        TA.Resize((16, 2900)),
        TA.RandomCrop((16, 2000)),
        TA.RandomResizedCrop((16, 1500), scale=(0.5, 0.9), ratio=(100.0, 200.0)),
        TA.RandomScaleCrop((16, 1200), scale=(0.5, 1.5)),
    ],
    ids=lambda module: type(module).__name__,
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_keypoints_land_on_the_content_of_wide_half_precision_images(module, dtype):
    """float16 counts pixels up to 2048, bfloat16 up to 256: a matrix of the image's type would lose them."""
    torch.manual_seed(10)
    assert_keypoints_land_on_their_spots(module, (16, 3000), grid_points(1, (16, 3000), across=61, down=1), dtype)


@pytest.mark.parametrize("key", ["bbox", "bbox_xyxy", "bbox_xywh"])
@over_geometries
def test_boxes_land_on_the_content(geometry, key):
    """A drawn rectangle has the box's centre, and the box's size plus a source pixel: kornia's corners are centres."""
    module = make(geometry)
    if "fill" in module.flags:
        module.flags["fill"] = 0.0
    x0, y0, x1, y1, batch = 16, 9, 22, 14, 8  # the corner pixels
    image = torch.zeros(batch, 1, HEIGHT, WIDTH)
    image[..., y0 : y1 + 1, x0 : x1 + 1] = 1
    corners = torch.tensor([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=torch.float32)
    given = {
        "bbox": corners,
        "bbox_xyxy": torch.tensor([x0, y0, x1, y1], dtype=torch.float32),
        "bbox_xywh": torch.tensor([x0, y0, x1 - x0 + 1, y1 - y0 + 1], dtype=torch.float32),
    }[key]
    container = K.AugmentationSequential(module, data_keys=["image", key])
    out, box = container(image, given.repeat(batch, 1, *[1] * given.ndim))
    if key == "bbox":
        low, high = box[:, 0].amin(1), box[:, 0].amax(1)
    elif key == "bbox_xyxy":
        low, high = box[:, 0, :2], box[:, 0, 2:]
    else:
        low, high = box[:, 0, :2], box[:, 0, :2] + box[:, 0, 2:] - 1
    size = torch.tensor([out.shape[3], out.shape[2]])
    visible = ((low > 1) & (high < size - 2)).all(-1)
    assert visible.any()
    assert ((centroids(out)[:, 0] - (low + high) / 2)[visible].abs() <= 0.5).all()
    pixel = container.transform_matrix.diagonal(dim1=1, dim2=2)[:, :2].abs()
    profile = torch.stack([out.amax(2).sum(2)[:, 0], out.amax(3).sum(2)[:, 0]], dim=-1) / out.amax((2, 3))
    assert ((profile - (high - low + pixel))[visible].abs() <= 0.5).all()


@over_geometries
def test_matrix_is_the_half_pixel_map_of_the_box(geometry):
    """An output pixel's centre comes from the centre of its footprint."""
    module = make(geometry)
    out = module(picture())
    boxes, (h, w) = boxes_of(module, module._params)
    i, j = torch.meshgrid(torch.arange(h).double(), torch.arange(w).double(), indexing="ij")
    x0, y0, x1, y1 = boxes[:, :, None, None].unbind(1)
    source = torch.stack([x0 + (x1 - x0) * (j + 0.5) / w - 0.5, y0 + (y1 - y0) * (i + 0.5) / h - 0.5])
    homogeneous = torch.cat([source, torch.ones_like(source[:1])])
    moved = torch.einsum("bij,jbyx->ibyx", module.transform_matrix.double(), homogeneous)
    assert out.shape[-2:] == (h, w)
    assert (moved[0] - j).abs().max() < 1e-4
    assert (moved[1] - i).abs().max() < 1e-4
    assert torch.equal(moved[2], torch.ones_like(moved[2]))


@pytest.mark.parametrize(("image", "matrix"), [(dtype, torch.float32) for dtype in FLOATS[:3]] + [(torch.float64,) * 2])
def test_matrix_has_at_least_single_precision(image, matrix):
    module = make("resized-crop")
    module(picture(dtype=image))
    assert module.transform_matrix.dtype == matrix


@over_geometries
def test_inverse_matrix_undoes_the_matrix(geometry):
    module = make(geometry)
    module(picture(dtype=torch.float64))
    matrix = module.transform_matrix
    product = module.compute_inverse_transformation(matrix) @ matrix
    assert (product - torch.eye(3, dtype=torch.float64)).abs().max() < 1e-12


# --- probabilities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", [*SHAPE_CHANGING, "crop-padded"])
def test_a_skipped_batch_stays_as_it_is(geometry):
    module = make(geometry, p=0.0, num_classes=CLASSES)
    image, labels = picture(), classes()
    assert torch.equal(module(image), image)
    assert torch.equal(mask_of(module, labels), ts.to_soft(labels.long(), CLASSES))
    assert torch.equal(module.transform_matrix, torch.eye(3).repeat(BATCH, 1, 1))
    hard = make(geometry, p=0.0)
    hard(image)
    assert torch.equal(mask_of(hard, labels), labels)
    assert torch.equal(hard.inverse(image), image)
    assert torch.equal(inverse_mask_of(hard, labels), labels)


@pytest.mark.parametrize("geometry", [*SHAPE_CHANGING, "crop-padded"])
def test_p_gates_whole_batches(geometry):
    module = make(geometry, p=0.5, num_classes=CLASSES)
    image, labels = picture(), classes()
    applied = set()
    for seed in range(8):
        torch.manual_seed(seed)
        out = module(image)
        soft = mask_of(module, labels)
        gate = module._params["batch_prob"]
        applied.add(gate.unique().item())
        if gate[0]:
            assert_close(out, expected_image(module, image), tolerance(torch.float32), "image")
            assert_close(soft, expected_soft(module, labels), tolerance(torch.float32), "soft label")
        else:
            assert torch.equal(out, image)
            assert torch.equal(soft, ts.to_soft(labels.long(), CLASSES))
    assert applied == {0.0, 1.0}


@pytest.mark.parametrize("num_classes", [None, CLASSES])
@pytest.mark.parametrize("geometry", FLIPS)
def test_p_gates_single_flips(geometry, num_classes):
    module = make(geometry, num_classes=num_classes)
    image, labels = picture(), classes()
    gate = torch.tensor([1.0, 0.0, 1.0])
    out = module(image, params={**module.forward_parameters(image.shape), "batch_prob": gate})
    mask = mask_of(module, labels)
    axis = 3 if geometry == "horizontal-flip" else 2
    masks = labels if num_classes is None else ts.to_soft(labels.long(), CLASSES)
    for before, after in ((image, out), (masks, mask)):
        assert torch.equal(after, torch.where(gate[:, None, None, None] == 1, before.flip(axis), before))
    assert torch.equal(module.transform_matrix[1], torch.eye(3))


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate"])
def test_a_crop_that_keeps_the_size_may_skip_samples(mode):
    module = TA.RandomCrop((HEIGHT, WIDTH), padding=4, padding_mode=mode, p=0.5, num_classes=CLASSES)
    params = module.forward_parameters((BATCH, 3, HEIGHT, WIDTH))
    params["batch_prob"] = torch.tensor([1.0, 0.0, 1.0])
    image, labels = picture(), classes()
    out, soft = module(image, params=params), module.transform_masks(labels, params, module.flags)
    always = TA.RandomCrop((HEIGHT, WIDTH), padding=4, padding_mode=mode, num_classes=CLASSES)
    assert torch.equal(out[1], image[1])
    assert torch.equal(soft[1], ts.to_soft(labels.long(), CLASSES)[1])
    assert torch.equal(out[::2], always(image, params=params)[::2])
    assert torch.equal(soft[::2], always.transform_masks(labels, params, always.flags)[::2])


@pytest.mark.parametrize("geometry", SHAPE_CHANGING)
def test_a_gate_that_would_mix_sizes_is_named(geometry):
    module = make(geometry, p=0.5, num_classes=CLASSES)
    params = module.forward_parameters((BATCH, 3, HEIGHT, WIDTH))
    params["batch_prob"] = torch.tensor([1.0, 0.0, 1.0])
    with pytest.raises(ValueError, match="batch_prob"):
        module(picture(), params=params)
    with pytest.raises(ValueError, match="batch_prob"):
        module.transform_masks(classes(), params, module.flags)


def test_apply_non_transform_mask_is_the_one_hot_mass():
    labels = classes()
    for geometry in GEOMETRIES:
        module = make(geometry, num_classes=CLASSES)
        soft = module.apply_non_transform_mask(labels, {}, module.flags)
        assert torch.equal(soft, ts.to_soft(labels.long(), CLASSES)), geometry
        assert make(geometry).apply_non_transform_mask(labels, {}, {}) is labels


# --- cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1.0, 0.5])
@over_geometries
def test_one_operation_for_an_image_and_one_for_a_mask(geometry, p):
    """In particular nothing is computed for samples that might have been skipped."""
    for mask, options in ((classes(), {}), (classes(), {"num_classes": CLASSES}), (classes(dtype=torch.float32), {})):
        module = make(geometry, p=p, **options)
        params = module.forward_parameters((BATCH, 3, HEIGHT, WIDTH))
        params["batch_prob"] = torch.ones(BATCH)
        with Calls() as calls:
            module(picture(), params=params)
        assert calls.ours == ["tritonsoft.crop_resize.default"]
        with Calls() as calls:
            module.transform_masks(mask, params, module.flags)
        assert len(calls.ours) == 1


@pytest.mark.parametrize("num_classes", [None, CLASSES])
@over_geometries
def test_work_does_not_loop_over_the_batch(geometry, num_classes):
    counts = []
    for batch in (2, 16):
        module = make(geometry, num_classes=num_classes)
        image, mask = picture(batch=batch), classes(batch=batch, dtype=torch.int64)
        with Calls() as calls:
            out, masks = module(image), mask_of(module, mask)
            _ = module.transform_matrix, module.inverse(out), inverse_mask_of(module, masks)
        counts.append(len(calls.names))
    assert counts[0] == counts[1]


@over_geometries
def test_matrix_is_made_when_it_is_read(geometry):
    module = make(geometry)
    module(picture())
    assert module._transform_matrix is None
    assert module.transform_matrix is not None


@on_devices
@pytest.mark.parametrize("num_classes", [None, CLASSES])
@over_geometries
def test_nothing_waits_for_the_device(geometry, num_classes, device):
    """Inverses read the recorded shape, which is on the host; a value on the device they never read."""
    module = make(geometry, p=1.0, num_classes=num_classes)
    image, mask = picture(device), classes(device)
    float_mask = mask.float()
    container = K.AugmentationSequential(make(geometry, p=1.0, num_classes=num_classes), data_keys=["image", "mask"])
    with no_synchronisation(device):
        out, masks = module(image), mask_of(module, mask)
        matrix = module.transform_matrix
        back, masks_back = module.inverse(out), inverse_mask_of(module, masks)
        container(image, float_mask)
    assert {each.device.type for each in (out, masks, matrix, back, masks_back)} == {device}


# --- inverse ---------------------------------------------------------------------------------------------------------


def centres_in_box(module):
    """``(B, 1, H, W)``: the pixels of the picture whose centres the module showed."""
    x0, y0, x1, y1 = boxes_of(module, module._params)[0][:, :, None, None].unbind(1)
    ys, xs = torch.arange(HEIGHT)[:, None] + 0.5, torch.arange(WIDTH) + 0.5
    across = (torch.minimum(x0, x1) <= xs) & (xs <= torch.maximum(x0, x1))
    return (across & (torch.minimum(y0, y1) <= ys) & (ys <= torch.maximum(y0, y1)))[:, None]


@pytest.mark.parametrize("filter", FILTERS)
@over_geometries
def test_inverse_covers_what_was_shown_and_nothing_else(geometry, filter):
    """Of a picture of ones it makes ones to the very edge of the box, and zeros outside."""
    module = make(geometry, filter=filter, num_classes=CLASSES)
    ones = torch.ones(BATCH, 3, HEIGHT, WIDTH, dtype=torch.float64)
    shown = module(ones)
    if "fill" in module.flags:  # padding would have mixed with the pixels at the border
        shown = torch.ones_like(shown)
    back = module.inverse(shown)
    inside = centres_in_box(module)
    assert back.shape == ones.shape
    assert_close(back, inside.expand_as(back), tolerance(torch.float64), "image")
    mass = inverse_mask_of(module, mask_of(module, torch.zeros(BATCH, 1, HEIGHT, WIDTH))).sum(1, keepdim=True)
    assert mass.shape == inside.shape
    assert (mass[~inside] == 0).all()
    assert (mass <= 1 + tolerance(torch.float32)).all()
    if "fill" not in module.flags:
        assert_close(mass, inside, tolerance(torch.float32), "mass")


@pytest.mark.parametrize("geometry", ["crop", "crop-padded", "crop-negative-padding", "center-crop", *FLIPS])
def test_inverse_of_moved_pixels_is_exact(geometry):
    image, labels = picture(), classes()
    module = make(geometry, num_classes=CLASSES)
    back, soft = module.inverse(module(image)), inverse_mask_of(module, mask_of(module, labels))
    inside = centres_in_box(module)
    assert torch.equal(back, torch.where(inside, image, 0.0))
    assert torch.equal(soft, torch.where(inside, ts.to_soft(labels.long(), CLASSES), 0.0))
    hard = make(geometry)
    hard(image, params=module._params)
    assert torch.equal(inverse_mask_of(hard, mask_of(hard, labels)), torch.where(inside, labels, 255))


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_inverse_drops_repeated_padding(mode):
    image, labels = picture(), classes()
    module = TA.RandomCrop((20, 38), padding=6, padding_mode=mode, num_classes=CLASSES)
    back, soft = module.inverse(module(image)), inverse_mask_of(module, mask_of(module, labels))
    inside = centres_in_box(module)
    assert torch.equal(back, torch.where(inside, image, 0.0))
    assert torch.equal(soft, torch.where(inside, ts.to_soft(labels.long(), CLASSES), 0.0))


@pytest.mark.parametrize("filter", FILTERS)
def test_inverse_where_the_edge_of_the_box_is_the_centre_of_a_pixel(filter):
    module = TA.RandomScaleCrop((21, 21), scale=(2.0, 2.0), filter=filter, num_classes=CLASSES)
    params = module.forward_parameters((1, 1, HEIGHT, WIDTH))
    x0, y0, x1, y1 = 0.0, 3.5, 10.5, 14.0
    params["src"] = torch.tensor([[[x0, y0], [x1 - 1, y0], [x1 - 1, y1 - 1], [x0, y1 - 1]]])
    back = module.inverse(module(torch.ones(1, 1, HEIGHT, WIDTH), params=params), params=params)
    assert back.unique().tolist() == [0.0, 1.0]
    soft = module.transform_masks(torch.zeros(1, 1, HEIGHT, WIDTH), params, module.flags)
    assert module.inverse_masks(soft, params, module.flags).unique().tolist() == [0.0, 1.0]


@pytest.mark.parametrize("geometry", ["resize-smaller", "resize-larger", "resized-crop", "crop-stretched"])
def test_inverse_puts_the_content_back_where_it_was(geometry):
    """A linear ramp survives every filter that averages, but for what the edges hide."""
    ramp = (torch.arange(WIDTH) + 2.0 * torch.arange(HEIGHT)[:, None]).double().expand(BATCH, 1, -1, -1)
    module = make(geometry)
    back = module.inverse(module(ramp))
    boxes, (h, w) = boxes_of(module, module._params)
    for sample, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        across, down = max((x1 - x0) / w, 1) * 1.5, max((y1 - y0) / h, 1) * 1.5
        rows = slice(int(y0 + down) + 1, int(y1 - down))
        columns = slice(int(x0 + across) + 1, int(x1 - across))
        difference = (back - ramp)[sample, 0, rows, columns]
        assert difference.numel() > 0
        assert difference.abs().max() < 0.5, sample


@pytest.mark.parametrize("mode", ["border", "reflection"])
@pytest.mark.parametrize("geometry", ["resize-smaller", "resized-crop", "crop", "center-crop"])
def test_inverse_refuses_kornias_other_paddings(geometry, mode):
    """kornia's own examples call ``inverse(out, padding_mode="border")``: zeros instead would be a silent surprise."""
    module = make(geometry)
    image = module(picture())
    with pytest.raises(ValueError, match=f"padding_mode of an inverse must be 'zeros', got '{mode}'"):
        module.inverse(image, padding_mode=mode)
    with pytest.raises(ValueError, match=f"padding_mode of an inverse must be 'zeros', got '{mode}'"):
        inverse_mask_of(module, image, padding_mode=mode)
    assert torch.equal(module.inverse(image, padding_mode="zeros"), module.inverse(image))


@on_devices
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int64, torch.float32])
def test_inverse_of_a_hard_mask_keeps_its_type_and_knows_nothing_outside(dtype, device):
    module = make("resized-crop", ignore_index=99)
    module(picture(device))
    back = inverse_mask_of(module, torch.ones(BATCH, 1, 10, 28, dtype=dtype, device=device))
    assert back.dtype == dtype
    outside = 0 if dtype == torch.bool else 99
    assert torch.equal(back.cpu(), torch.where(centres_in_box(module), 1, outside).to(dtype))


def test_kornias_container_inverts_hard_masks():
    container = K.AugmentationSequential(TA.CenterCrop((12, 20)), data_keys=["image", "mask"])
    labels = classes(ignored=0)
    _, back = container.inverse(*container(picture(), labels))
    assert back.dtype == torch.uint8
    assert torch.equal(back, F.pad(labels[..., 6:18, 10:30], (10, 10, 6, 6), value=255))


@over_geometries
def test_kornias_container_inverts_image_soft_label_keypoints_and_boxes(geometry):
    module = make(geometry, num_classes=CLASSES)
    container = K.AugmentationSequential(module, data_keys=["image", "mask", "keypoints", "bbox_xyxy"])
    points = grid_points(BATCH, (HEIGHT, WIDTH), across=3, down=3)
    boxes = torch.tensor([[[14.0, 8.0, 21.0, 14.0]]]).repeat(BATCH, 1, 1)
    out = container(picture(), classes(dtype=torch.float32), points, boxes)
    image, soft, points_back, boxes_back = container.inverse(*out)
    assert_close(image, module.inverse(out[0]), 0.0, "image")
    assert_close(soft, inverse_mask_of(module, out[1]), 0.0, "soft label")
    assert_close(points_back, points, 1e-4, "keypoints")
    assert_close(boxes_back, boxes, 1e-4, "boxes")


# --- kornia's containers ---------------------------------------------------------------------------------------------


def chain(num_classes=(CLASSES, CLASSES, CLASSES)):
    first, second, third = num_classes
    return (
        TA.RandomResizedCrop((20, 30), num_classes=first),
        TA.RandomHorizontalFlip(num_classes=second),
        TA.RandomCrop((26, 28), pad_if_needed=True, num_classes=third),
    )


CONTAINERS = {
    "flat": lambda *modules, **options: K.AugmentationSequential(*modules, **options),
    "image sequential inside": lambda *modules, **options: K.AugmentationSequential(
        K.ImageSequential(*modules[:2]), *modules[2:], **options
    ),
    "nested": lambda *modules, **options: K.AugmentationSequential(
        modules[0], K.AugmentationSequential(*modules[1:], data_keys=options["data_keys"]), **options
    ),
    "random order": lambda *modules, **options: K.AugmentationSequential(*modules, random_apply=3, **options),
    "two of three": lambda *modules, **options: K.AugmentationSequential(*modules, random_apply=(1, 2), **options),
    "same on batch": lambda *modules, **options: K.AugmentationSequential(*modules, same_on_batch=True, **options),
}


@on_devices
@pytest.mark.parametrize("container", CONTAINERS)
def test_soft_label_follows_the_image_of_the_classes_through_kornias_containers(container, device):
    """Float masks become soft labels, and no default of the container makes them hard again."""
    augment = CONTAINERS[container](*chain(), data_keys=["image", "mask"])
    labels = classes(device, torch.float32)
    planes = one_hot(labels)
    for seed in range(4):
        torch.manual_seed(seed)
        with no_synchronisation(device):
            image, soft = augment(planes, labels.double())
        assert soft.shape == image.shape
        assert_close(soft, image, tolerance(torch.float64), "soft label")


@pytest.mark.parametrize("num_classes", [(CLASSES, None, None), (None, CLASSES, None), (None, None, CLASSES)])
def test_a_soft_label_stays_soft_in_modules_without_num_classes(num_classes):
    """What pads such a module's hard masks, `ignore_index`, is no mass."""
    augment = K.AugmentationSequential(*chain(num_classes), data_keys=["image", "mask"])
    torch.manual_seed(0)
    _, soft = augment(picture(), classes(dtype=torch.float32, ignored=0))
    assert soft.shape == (BATCH, CLASSES, 26, 28)
    assert soft.min() >= 0
    assert soft.sum(1).max() <= 1 + tolerance(torch.float32)


def test_dictionaries_and_several_masks():
    augment = K.AugmentationSequential(TA.CenterCrop((12, 20), num_classes=CLASSES), data_keys=None)
    labels = classes(dtype=torch.float32)
    out = augment({"image": picture(), "mask": labels, "mask-2": labels.flip(3), "name": "kept"})
    soft = ts.to_soft(labels.long(), CLASSES)
    assert torch.equal(out["mask"], soft[..., 6:18, 10:30])
    assert torch.equal(out["mask-2"], soft.flip(3)[..., 6:18, 10:30])
    assert out["name"] == "kept"


def test_lists_of_masks():
    augment = K.AugmentationSequential(TA.RandomResizedCrop((10, 28), num_classes=CLASSES), data_keys=["image", "mask"])
    labels = classes(dtype=torch.float32)
    planes = one_hot(labels)
    image, softs = augment(planes, list(labels.double()))
    assert len(softs) == BATCH
    for sample, soft in enumerate(softs):
        assert_close(soft, image[sample : sample + 1], tolerance(torch.float64), "soft label")
    with pytest.raises(TypeError, match="a soft label cannot become"):
        augment(planes, list(labels.long()))


def test_hard_masks_follow_the_image_through_kornias_container():
    modules = [TA.RandomResizedCrop((20, 30), filter="nearest"), TA.RandomHorizontalFlip(), TA.RandomCrop((16, 16))]
    augment = K.AugmentationSequential(*modules, data_keys=["image", "mask", "mask"])
    for dtype in (torch.uint8, torch.bool, torch.int64):
        mask = classes(dtype=torch.int64, ignored=0).to(dtype)
        image, hard, again = augment(mask.float(), mask, mask[:, 0])
        assert hard.dtype == dtype
        assert torch.equal(hard, image.to(dtype))
        assert torch.equal(again, hard)


def test_one_class_is_a_mass_after_the_first_module():
    """One channel could be class ids again: mass 0 is not class 0."""
    augment = K.AugmentationSequential(*chain((1, 1, 1)), data_keys=["image", "mask"])
    labels = torch.full((BATCH, 1, HEIGHT, WIDTH), 255.0)
    assert torch.equal(augment(picture(), labels)[1], torch.zeros(BATCH, 1, 26, 28))


def test_replay_with_params():
    augment = K.AugmentationSequential(*chain(), data_keys=["image", "mask"])
    labels = classes(dtype=torch.float32)
    first = augment(picture(), labels)
    again = augment(picture(), labels, params=augment._params)
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("same_on_frame", [True, False])
@pytest.mark.parametrize("layout", ["BTCHW", "BCTHW"])
@over_geometries
def test_videos(geometry, layout, same_on_frame):
    """Every frame is one picture: its soft label is the image of its classes, in either layout."""
    frames = 4
    module = make(geometry, num_classes=CLASSES)
    if "fill" in module.flags:
        module.flags["fill"] = 0.0
    video = K.VideoSequential(module, data_format=layout, same_on_frame=same_on_frame)
    augment = K.AugmentationSequential(video, data_keys=["image", "mask"])
    labels = classes(dtype=torch.float32)
    planes, masks = (each[:, None].repeat(1, frames, 1, 1, 1) for each in (one_hot(labels), labels.double()))
    if layout == "BCTHW":
        planes, masks = planes.transpose(1, 2), masks.transpose(1, 2)
    torch.manual_seed(0)
    image, soft = augment(planes, masks)
    assert_close(soft, image, tolerance(torch.float64), "soft label")

    time = layout.index("T")
    first = image.select(time, 0)
    same = all(torch.equal(image.select(time, frame), first) for frame in range(frames))
    assert same == (same_on_frame or geometry in WITHOUT_CHANCE)
    expected = expected_image(module, one_hot(labels).repeat_interleave(frames, 0))
    assert_close(image.movedim(time, 1).flatten(0, 1), expected, tolerance(torch.float64), "image")

    back, soft_back = augment.inverse(image, soft)
    assert back.shape == planes.shape
    assert_close(soft_back, back, tolerance(torch.float64), "inverse")


def test_video_masks_without_channels():
    video = K.VideoSequential(TA.CenterCrop((12, 20), num_classes=CLASSES))
    augment = K.AugmentationSequential(video, data_keys=["image", "mask"])
    labels = classes(dtype=torch.float32)[:, 0][:, None].repeat(1, 2, 1, 1)  # (B, T, H, W)
    _, soft = augment(picture()[:, None].repeat(1, 2, 1, 1, 1), labels)
    expected = ts.to_soft(classes().long(), CLASSES)[..., 6:18, 10:30]
    assert torch.equal(soft, expected[:, None].repeat(1, 2, 1, 1, 1))


FOLLOWERS = {
    "nothing": lambda: [],
    "a flip of ours": lambda: [TA.RandomHorizontalFlip()],
    "an affine map": lambda: [K.RandomAffine(10.0, p=1.0)],
    "a colour": lambda: [K.ColorJiggle(0.1, 0.1, 0.1, 0.1, p=1.0)],
    "an erased part": lambda: [K.RandomErasing(p=1.0)],
    "kornia's own crop": lambda: [K.RandomCrop((8, 8))],
    "kornia's own resize": lambda: [K.Resize((8, 8))],
    "a container": lambda: [K.ImageSequential(K.RandomVerticalFlip(p=0.5), K.RandomRotation(10.0))],
}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("follower", FOLLOWERS)
def test_kornias_container_cannot_make_soft_labels_integers_in_silence(follower, dtype):
    """It casts every mask back to the type it came in, which would round each mass to 0 or 1."""
    labels = classes(dtype=torch.uint8, ignored=0)
    augment = K.AugmentationSequential(
        TA.Resize((12, 20), num_classes=CLASSES), *FOLLOWERS[follower](), data_keys=["image", "mask"]
    )
    torch.manual_seed(0)
    with pytest.raises(TypeError, match=f"a soft label cannot become {dtype}"):
        augment(picture(), (labels % 2).bool() if dtype == torch.bool else labels.to(dtype))
    _, soft = augment(picture(), labels.float())
    assert soft.shape[1] == CLASSES
    assert 0.5 < soft.sum(1).mean() <= 1 + tolerance(torch.float32)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_kornias_crops_that_would_forget_what_is_soft_are_refused(dtype):
    """Where its slices have several sizes, kornia writes them into a tensor that it makes first."""
    augment = K.AugmentationSequential(
        TA.Resize((12, 20), num_classes=CLASSES), K.RandomResizedCrop((8, 8)), data_keys=["image", "mask"]
    )
    torch.manual_seed(0)
    with pytest.raises(TypeError, match=r"tritonsoft\.augmentation\.AugmentationSequential"):
        augment(picture(), classes(dtype=dtype))


@pytest.mark.parametrize("num_classes", [1, CLASSES])
def test_a_callers_tensor_stays_what_it_is(num_classes):
    module = make("resize-smaller", num_classes=num_classes)
    module(picture())
    soft = mask_of(module, classes(dtype=torch.float32) * 0)
    marked = module.transform_masks(classes(dtype=torch.float32) * 0, module._params, module.flags, torch.eye(3)[None])
    assert type(soft) is (TA.SoftLabel if num_classes == 1 else torch.Tensor)
    assert type(marked) is TA.SoftLabel
    for mask in (soft, marked):
        buffer, parameter = torch.zeros(mask.shape), torch.nn.Parameter(torch.zeros(mask.shape))
        if type(mask) is TA.SoftLabel:
            with pytest.raises(TypeError, match="as_subclass"):
                buffer[:] = mask
        buffer[:] = mask.as_subclass(torch.Tensor)
        buffer.copy_(mask)
        with torch.no_grad():
            parameter[:] = mask.as_subclass(torch.Tensor)
            torch.add(mask, 1, out=buffer)
        assert type(buffer) is torch.Tensor
        assert type(parameter) is torch.nn.Parameter
        assert buffer.long().dtype == torch.int64


@pytest.mark.parametrize("num_classes", [None, 1, CLASSES])
def test_a_module_may_be_told_what_its_mask_is(num_classes):
    module = TA.RandomHorizontalFlip(p=1.0, num_classes=num_classes)
    module(picture())
    masses = picture(channels=num_classes or 1)
    out = module.transform_masks(masses, module._params, module.flags, is_soft=True)
    assert type(out) is torch.Tensor
    assert torch.equal(out, masses.flip(3))
    assert torch.equal(module.inverse_masks(out, module._params, module.flags, is_soft=True), masses)
    ids = torch.zeros(BATCH, 1, HEIGHT, WIDTH)
    out = module.transform_masks(ids, module._params, module.flags, is_soft=False)
    assert type(out) is torch.Tensor
    assert torch.equal(out, ids if num_classes is None else ts.to_soft(ids.long(), num_classes))


def test_kornias_container_inverts_masses_of_one_class_through_modules_without_num_classes():
    container = K.AugmentationSequential(
        TA.CenterCrop((12, 20)), TA.RandomHorizontalFlip(num_classes=1), data_keys=["image", "mask"]
    )
    labels = torch.zeros(BATCH, 1, HEIGHT, WIDTH)
    _, back = container.inverse(*container(picture(), labels))
    assert type(back) is torch.Tensor
    assert torch.equal(back, F.pad(torch.ones(BATCH, 1, 12, 20), (10, 10, 6, 6)))


@over_geometries
def test_sparse_labels_go_through_what_only_moves_pixels(geometry):
    module = make(geometry, num_classes=CLASSES)
    module(picture())
    sparse = ts.SparseLabels.from_dense(picture(channels=CLASSES), 2, torch.float32)
    if geometry.startswith(("resize", "scale")) or geometry.endswith("stretched"):
        with pytest.raises(
            TypeError, match=r"mask must be a tensor for the .* of tritonsoft, got SparseLabels.*to_dense"
        ):
            module.transform_masks(sparse, module._params, module.flags)
        return
    made = module.transform_masks(sparse, module._params, module.flags)
    dense = module.transform_masks(sparse.to_dense(), module._params, module.flags)
    assert torch.equal(made.to_dense(), dense)
    back = module.inverse_masks(made, module._params, module.flags)
    assert torch.equal(back.to_dense(), module.inverse_masks(dense, module._params, module.flags))
    with pytest.raises(ValueError, match="mask must have the batch of its parameters"):
        module.transform_masks(sparse[:1], module._params, module.flags)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_kornias_container_refuses_integers_whatever_the_gate_says(p):
    augment = K.AugmentationSequential(TA.Resize((12, 20), p=p, num_classes=CLASSES), data_keys=["image", "mask"])
    with pytest.raises(TypeError, match=r"a soft label cannot become torch\.uint8"):
        augment(picture(), classes())


def test_compiled_kornia_container_refuses_integers_as_well():
    """kornia's container breaks the graph, so that soft labels travel from one compiled part to the next."""
    torch._dynamo.reset()
    modules = TA.Resize((12, 20), num_classes=CLASSES), K.RandomAffine(10.0, p=1.0)
    compiled = torch.compile(K.AugmentationSequential(*modules, data_keys=["image", "mask"]), backend="eager")
    with pytest.raises(TypeError, match=r"a soft label cannot become torch\.uint8"):
        compiled(picture(), classes())


# --- soft labels as tensors ------------------------------------------------------------------------------------------


def soft_from_kornias_container():
    augment = K.AugmentationSequential(TA.Resize((12, 20), num_classes=CLASSES), data_keys=["image", "mask"])
    return augment(picture(), classes(dtype=torch.float32))[1]


def test_integer_masks_become_ordinary_tensors():
    module = make("resize-smaller", num_classes=CLASSES)
    module(picture())
    assert type(mask_of(module, classes())) is torch.Tensor


def test_kornias_container_hands_out_ordinary_tensors():
    """Only these may enter compiled functions, where PyTorch 2.13 stumbles over subclasses."""
    augment = K.AugmentationSequential(TA.Resize((12, 20), num_classes=CLASSES), data_keys=["image", "mask"])
    labels = classes(dtype=torch.float32)
    image, soft = augment(picture(), labels)
    softs = augment(picture(), list(labels))[1]
    back = augment.inverse(image, soft)[1]
    named = K.AugmentationSequential(TA.CenterCrop((12, 20), num_classes=CLASSES), data_keys=None)
    by_name = named({"image": picture(), "mask": labels})["mask"]
    assert {type(each) for each in (soft, *softs, back, by_name)} == {torch.Tensor}


@pytest.mark.parametrize("source", ["module", "container"])
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_a_soft_label_can_be_copied_and_saved(way, source):
    if source == "container":
        soft = soft_from_kornias_container()
    else:
        module = make("resize-smaller", num_classes=CLASSES)
        module(picture())
        soft = mask_of(module, classes(dtype=torch.float32))
    if way == "deepcopy":
        again = copy.deepcopy(soft)
    elif way == "pickle":
        again = pickle.loads(pickle.dumps(soft))
    else:
        file = io.BytesIO()
        torch.save(soft, file)
        file.seek(0)
        again = torch.load(file)
    assert torch.equal(again, soft)


def test_a_soft_label_enters_compiled_functions():
    torch._dynamo.reset()
    soft = soft_from_kornias_container()
    compiled = torch.compile(lambda soft: ts.crop_resize(soft, None, (5, 5)), backend="aot_eager")
    assert torch.equal(compiled(soft), ts.crop_resize(soft, None, (5, 5)))


def test_a_soft_label_works_as_a_tensor():
    module = make("resize-smaller", num_classes=CLASSES)
    module(picture())
    soft = mask_of(module, classes(dtype=torch.float32))
    assert soft.argmax(1).dtype == torch.int64
    assert (soft > 0.5).dtype == torch.bool
    assert soft.to(torch.float16).dtype == torch.float16
    assert torch.equal(soft.to("cpu"), soft)
    assert torch.utils.data.default_collate([soft, soft]).shape == (2, *soft.shape)
    parameter = torch.nn.Parameter(torch.zeros(soft.shape))
    with torch.no_grad():
        parameter[:] = soft
    assert type(parameter) is torch.nn.Parameter
    loss = torch.nn.functional.cross_entropy(torch.zeros(soft.shape, requires_grad=True), soft)
    loss.backward()
    assert torch.isfinite(loss)


# --- PyTorch ---------------------------------------------------------------------------------------------------------


@over_geometries
def test_gradcheck(geometry):
    module = make(geometry, num_classes=2)
    image = picture(dtype=torch.float64, channels=1).requires_grad_()
    soft = picture(dtype=torch.float64, channels=2).requires_grad_()
    shown = module(image)
    params, flags = module._params, module.flags
    masses = mask_of(module, soft).detach().requires_grad_()
    shown = shown.detach().requires_grad_()
    check = torch.autograd.gradcheck
    assert check(lambda image: module(image, params=params), image, fast_mode=True)
    assert check(lambda soft: module.transform_masks(soft, params, flags), soft, fast_mode=True)
    assert check(lambda shown: module.inverse(shown, params=params), shown, fast_mode=True)
    assert check(lambda masses: module.inverse_masks(masses, params, flags), masses, fast_mode=True)


@pytest.fixture
def eager_operators(monkeypatch):
    """The operators as plain PyTorch, so that what the modules do around them is all there is."""

    def crop_resize(image, boxes, size, *, filter="area", fill=0.0, dtype=None):
        return reference.crop_resize(image, boxes, size, filter, fill, image.dtype if dtype is None else dtype)

    monkeypatch.setattr(ts, "crop_resize", crop_resize)


FUNCTIONAL = [
    *GEOMETRIES.values(),
    ("RandomCrop", {"size": (30, 50), "padding": 6, "padding_mode": "reflect"}),
    ("RandomCrop", {"size": (30, 50), "pad_if_needed": True, "fill": (0.1, 0.2, 0.3)}),
]


@pytest.mark.usefixtures("eager_operators")
@pytest.mark.parametrize("what", ["image", "soft label", "inverse", "inverse of the soft label"])
@pytest.mark.parametrize(("name", "kwargs"), FUNCTIONAL)
def test_function_transforms_go_through_the_modules(name, kwargs, what):
    """Forward and reverse mode, and a batch of batches; the parameters are drawn outside, as `vmap` wants it."""
    module, at = getattr(TA, name)(**kwargs, num_classes=3), picture(dtype=torch.float64)
    params, flags = module.forward_parameters(at.shape), module.flags
    functions = {
        "image": lambda x: module(x, params=params),
        "soft label": lambda x: module.transform_masks(x, params, flags).as_subclass(torch.Tensor),
        "inverse": lambda x: module.inverse(x, params=params),
        "inverse of the soft label": lambda x: module.inverse_masks(x, params, flags).as_subclass(torch.Tensor),
    }
    function = functions[what]
    if what.startswith("inverse"):
        at = functions["image"](at)
    towards = at.flip(3)

    def energy(x):
        return (function(x) ** 2).sum()

    _, tangent = torch.func.jvp(function, (at,), (towards,))
    assert_close(tangent, function(at + towards) - function(at), 1e-9, "tangent")
    leaf = at.clone().requires_grad_()
    assert_close(torch.func.grad(energy)(at), *torch.autograd.grad(energy(leaf), leaf), 1e-9, "gradient")
    both = torch.stack([at, towards])
    assert_close(torch.func.vmap(function)(both), torch.stack([*map(function, both)]), 1e-9, "batch of batches")
    torch.func.vmap(functions["image"])(picture(dtype=torch.float64)[None])
    assert module.transform_matrix.shape == (BATCH, 3, 3)  # of the last call, and no tensor of a transform's


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_gradcheck_of_repeated_padding(mode):
    module = TA.RandomCrop((30, 50), padding=6, padding_mode=mode, num_classes=2)
    image = picture(dtype=torch.float64, channels=2).requires_grad_()
    params = module.forward_parameters(image.shape)
    assert torch.autograd.gradcheck(lambda image: module(image, params=params), image, fast_mode=True)
    masks = module.transform_masks
    assert torch.autograd.gradcheck(lambda soft: masks(soft, params, module.flags), image, fast_mode=True)


COMPILED = (
    "resize-smaller",
    "resize-long-side",
    "resized-crop",
    "crop-pad-if-needed",
    "center-crop",
    "horizontal-flip",
    "vertical-flip",
    "scale-crop",
)


@records_in_graphs
@pytest.mark.parametrize(
    ("geometry", "backend"), [*itertools.product(COMPILED, ["aot_eager"]), ("crop-padded", "inductor")]
)
def test_compiles_to_one_graph(geometry, backend):
    """It draws its own parameters in there; an eager replay of these gives the same image, mask and matrix."""
    torch._dynamo.reset()
    module = make(geometry, num_classes=CLASSES)

    def step(image, labels):
        return module(image), mask_of(module, labels), module.transform_matrix

    image, labels = picture(), classes()
    out, soft, matrix = torch.compile(step, fullgraph=True, backend=backend)(image, labels)
    params = module._params
    assert_close(out, module(image, params=params), tolerance(torch.float32), "image")
    assert_close(soft, mask_of(module, labels), tolerance(torch.float32), "soft label")
    assert_close(matrix, module.transform_matrix, 1e-4, "matrix")


@pytest.mark.parametrize("mask", ["float label map", "hard", "reflected"])
def test_other_masks_compile_to_one_graph(mask):
    torch._dynamo.reset()
    if mask == "reflected":
        module = TA.RandomCrop((30, 50), padding=6, padding_mode="reflect", num_classes=CLASSES)
    else:
        module = make("crop-padded", num_classes=CLASSES if mask == "float label map" else None)
    labels = classes(dtype=torch.float32 if mask == "float label map" else torch.int64)
    params = module.forward_parameters((BATCH, 3, HEIGHT, WIDTH))

    def step(labels):
        return module.transform_masks(labels, params, module.flags)

    assert torch.equal(torch.compile(step, fullgraph=True, backend="aot_eager")(labels), step(labels))


@pytest.mark.parametrize("geometry", ["resize-smaller", "resize-long-side", "center-crop"])
def test_export(geometry):
    module = make(geometry, num_classes=CLASSES)

    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, image, labels):
            params = self.module.forward_parameters(image.shape)
            return self.module(image, params=params), self.module.transform_masks(labels, params, self.module.flags)

    image, labels = picture(), classes()
    exported = torch.export.export(Both(), (image, labels)).module()
    for actual, expected in zip(exported(image, labels), Both()(image, labels), strict=True):
        assert torch.equal(actual, expected)
    alone = torch.export.export(module, (image,)).module()
    assert torch.equal(alone(image), module(image))


@pytest.mark.parametrize("num_classes", [None, CLASSES])
@pytest.mark.parametrize("p", [1.0, 0.5])
@over_geometries
def test_an_empty_batch_gets_the_size_of_a_full_one(geometry, p, num_classes):
    module = make(geometry, p=p, num_classes=num_classes)
    if isinstance(module, K.Resize) and isinstance(module.flags["size"], int):
        size = (12, 20)
    else:
        size = module.flags.get("size", (HEIGHT, WIDTH))
    channels = CLASSES if num_classes else 1
    image, mask = module(picture(batch=0)), mask_of(module, classes(batch=0))
    assert image.shape == (0, 3, *size)
    assert mask.shape == (0, channels, *size)
    assert module.transform_matrix.shape == (0, 3, 3)
    assert module.inverse(image).shape == (0, 3, HEIGHT, WIDTH)
    assert inverse_mask_of(module, mask).shape == (0, channels, HEIGHT, WIDTH)
    container = K.AugmentationSequential(module, TA.RandomVerticalFlip(), data_keys=["image", "mask"])
    image, mask = container(picture(batch=0), classes(dtype=torch.float32, batch=0))
    assert image.shape == (0, 3, *size)
    assert mask.shape == (0, channels, *size)


@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
@over_geometries
def test_modules_can_be_copied(geometry, way):
    module = make(geometry, num_classes=CLASSES)
    image, labels = picture(), classes()
    module(image)
    again = pickle.loads(pickle.dumps(module)) if way == "pickle" else copy.deepcopy(module)
    assert torch.equal(again(image, params=module._params), module(image, params=module._params))
    assert torch.equal(again.transform_masks(labels, module._params, again.flags), mask_of(module, labels))
    torch.manual_seed(0)
    one = again(image)
    torch.manual_seed(0)
    assert torch.equal(one, module(image))
    assert repr(again) == repr(module)


@over_geometries
def test_repr_names_what_is_new(geometry):
    text = repr(make(geometry, num_classes=CLASSES, ignore_index=7, filter="triangle"))
    assert text.startswith(GEOMETRIES[geometry][0] + "(")
    assert text.endswith("num_classes=5, ignore_index=7, filter='triangle')")


def test_repr_of_scale_crop_is_that_of_kornias_crops():
    """The range of what is drawn, then kornia's own and the flags."""
    assert repr(TA.RandomScaleCrop((20, 22), scale=[0.5, 2])) == (
        "RandomScaleCrop(scale=(0.5, 2), p=1.0, p_batch=1.0, same_on_batch=False, size=(20, 22), fill=0.0, "
        "num_classes=None, ignore_index=255, filter='area')"
    )
    theirs = repr(K.RandomResizedCrop((20, 22)))
    assert theirs.startswith("RandomResizedCrop(scale=(0.08, 1.0), ")
    assert ", p=1.0, p_batch=1.0, same_on_batch=False, size=(20, 22), " in theirs


@over_geometries
def test_state_dict_is_kornias_and_loads(geometry):
    name, kwargs = GEOMETRIES[geometry]
    module = make(geometry, num_classes=CLASSES)
    module.load_state_dict(module.state_dict())
    # What kornia lacks holds what its crops hold.
    theirs = getattr(K, name)(**kwargs) if name in NAMES else K.RandomResizedCrop((20, 22))
    assert module.state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize("dtype", FLOATS)
@over_geometries
def test_moving_a_module_to_a_type_changes_how_it_draws_alone(geometry, dtype):
    module = make(geometry, num_classes=CLASSES).to(dtype)
    image, labels = picture(), classes()
    out = module(image)
    assert out.dtype == torch.float32
    assert_close(out, expected_image(module, image), tolerance(torch.float32), "image")
    assert_close(mask_of(module, labels), expected_soft(module, labels), tolerance(torch.float32), "soft label")


def test_autocast_leaves_types_alone():
    module = make("resized-crop", num_classes=CLASSES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, soft = module(picture()), mask_of(module, classes())
    assert out.dtype == soft.dtype == torch.float32
    assert_close(out, expected_image(module, picture()), tolerance(torch.float32), "image")


# --- RandomScaleCrop -------------------------------------------------------------------------------------------------


def test_scale_crop_lies_inside_the_picture_or_around_it():
    size, scale = (20, 22), (0.25, 2.0)
    module = TA.RandomScaleCrop(size, scale=scale)
    params = module.forward_parameters((400, 3, HEIGHT, WIDTH))
    boxes, output_size = boxes_of(module, params)
    assert output_size == size
    factor = params["scale"].double()
    assert factor.min() >= scale[0]
    assert factor.max() <= scale[1]
    assert abs(factor.mean() - sum(scale) / 2) < 0.1  # evenly; the mean of 400 such numbers errs by 0.025
    for axis, (length, side) in enumerate(((WIDTH, size[1]), (HEIGHT, size[0]))):
        low, high = boxes[:, axis], boxes[:, axis + 2]
        assert torch.allclose(high - low, side / factor, atol=1e-4)
        inside = high - low <= length
        assert 0 < inside.sum() < 400
        assert (low[inside] > -1e-4).all()
        assert (high[inside] < length + 1e-4).all()
        assert (low[~inside] < 1e-4).all()
        assert (high[~inside] > length - 1e-4).all()
        place = (low / (length - (high - low)))[(length - (high - low)).abs() > 1]
        assert place.min() < 0.05  # anywhere
        assert place.max() > 0.95


def test_scale_crop_may_be_the_same_on_the_whole_batch():
    module = TA.RandomScaleCrop((20, 22), same_on_batch=True)
    module(picture())
    for value in (module._params["src"], module._params["scale"]):
        assert torch.equal(value, value[:1].expand_as(value))


@pytest.mark.parametrize("scale", [(1.0, 1.0), (2, 2), [0.5, 0.5]])
def test_scale_crop_may_have_one_factor(scale):
    module = TA.RandomScaleCrop((20, 22), scale=scale)
    module(picture())
    assert module._params["scale"].tolist() == [scale[0]] * BATCH


@pytest.mark.parametrize(("side", "factor"), [(110, 1.8), (30, 1.3), (50, 0.7), (90, 1.1), (64, 1.5)])
def test_a_window_as_large_as_the_scaled_picture_shows_no_padding(side, factor):
    """Rounding must not push the window over the picture's edge: linear interpolation would show half a pixel of it."""
    window = round(side * factor)
    module = TA.RandomScaleCrop((window, window), scale=(factor, factor), num_classes=1)
    worst = module(torch.ones(1, 1, side, side)).min()
    mass = mask_of(module, torch.zeros(1, 1, side, side, dtype=torch.uint8)).min()
    assert worst > 1 - 1e-3
    assert mass > 1 - 1e-3


# --- what bad input gets ---------------------------------------------------------------------------------------------

EVERY = {
    "Resize": ((8, 8),),
    "RandomResizedCrop": ((8, 8),),
    "RandomCrop": ((8, 8),),
    "CenterCrop": ((8, 8),),
    "RandomHorizontalFlip": (),
    "RandomVerticalFlip": (),
    "RandomScaleCrop": ((8, 8),),
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_classes": 0}, ValueError, "num_classes must be at least 1, .* got 0"),
        ({"num_classes": -3}, ValueError, "num_classes must be at least 1, .* got -3"),
        ({"num_classes": True}, TypeError, "num_classes must be an int or None, got True"),
        ({"num_classes": 1.5}, TypeError, "num_classes must be an int or None, got 1.5"),
        ({"num_classes": "19"}, TypeError, "num_classes must be an int or None, got '19'"),
        ({"ignore_index": 255.0}, TypeError, "ignore_index must be an int, got float"),
        ({"ignore_index": False}, TypeError, "ignore_index must be an int, got bool"),
        ({"num_classes": 256}, ValueError, "ignore_index must be given .* more than 255, .* got num_classes=256"),
        ({"num_classes": 300, "ignore_index": None}, ValueError, "ignore_index must be given .* got num_classes=300"),
        ({"filter": "bicubic"}, ValueError, "filter must be one of .*'area'.* got 'bicubic'"),
        ({"filter": None, "num_classes": 19}, ValueError, "filter"),
    ],
)
def test_bad_options_are_named(name, options, error, message):
    with pytest.raises(error, match=message):
        getattr(TA, name)(*EVERY[name], **options)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("options", "ignore_index"),
    [
        ({}, 255),
        ({"ignore_index": None, "num_classes": 255}, 255),
        ({"ignore_index": 255, "num_classes": 300}, 255),
        ({"ignore_index": -100, "num_classes": 300}, -100),
        ({"ignore_index": 300, "num_classes": 300}, 300),
    ],
)
def test_ignore_index_is_255_unless_that_would_be_a_class(name, options, ignore_index):
    module = getattr(TA, name)(*EVERY[name], **options)
    assert module.ignore_index == ignore_index
    assert f"ignore_index={ignore_index}, " in repr(module)


def test_class_255_is_kept_where_another_label_is_ignored():
    labels = torch.tensor([[[[255, 299], [7, 0]]]])
    for ignore_index, kept in ((-100, 4), (255, 3)):
        module = TA.RandomHorizontalFlip(p=1.0, num_classes=300, ignore_index=ignore_index)
        module(picture(batch=1, size=(2, 2)))
        assert mask_of(module, labels).sum() == kept


@pytest.mark.parametrize("name", ["Resize", "RandomResizedCrop", "RandomCrop", "CenterCrop"])
@pytest.mark.parametrize("resample", ["nearest", "bicubic"])
def test_resample_beside_a_filter_is_refused(name, resample):
    with pytest.raises(ValueError, match=f"resample='{resample}' has no effect beside filter='area'"):
        getattr(TA, name)((8, 8), resample=resample)
    getattr(TA, name)((8, 8), resample=resample, filter=None)


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((8,), {}, "size"),
        (((8,),), {}, "size"),
        (((8, 0),), {}, "size"),
        (((8, 8, 8),), {}, "size"),
        (((8.5, 8),), {}, "size"),
        (((True, 8),), {}, "size"),
        ((("8", 8),), {}, "size"),
        (((8, 8), 2.0), {}, "scale"),
        (((8, 8), (2.0,)), {}, "scale"),
        (((8, 8), (0.0, 1.0)), {}, "scale"),
        (((8, 8), (-1.0, 1.0)), {}, "scale"),
        (((8, 8), (2.0, 1.0)), {}, "scale"),
        (((8, 8), (float("nan"), 1.0)), {}, "scale"),
        (((8, 8), (1.0, float("inf"))), {}, "scale"),
        (((8, 8), ("1", 2.0)), {}, "scale"),
        (((8, 8),), {"filter": None}, "filter"),
        (((8, 8),), {"fill": None}, "fill"),
        (((8, 8),), {"fill": "black"}, "fill"),
    ],
)
def test_bad_arguments_of_scale_crop_are_named(args, options, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}|If {message}"):
        TA.RandomScaleCrop(*args, **options)


def test_one_fill_per_channel_or_one_for_all():
    with pytest.raises(ValueError, match="fill must hold one value or one per channel"):
        TA.RandomCrop((30, 50), pad_if_needed=True, fill=(0.1, 0.2))(picture())


def test_unknown_padding_is_named():
    with pytest.raises(ValueError, match="padding_mode must be one of"):
        TA.RandomCrop((8, 8), padding_mode="circular")
    with pytest.raises(ValueError, match=r"padding .*'reflect' must be smaller than the picture's 24"):
        TA.RandomCrop((8, 8), padding=24, padding_mode="reflect")(picture())


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (lambda: classes() + 3, ValueError, "labels must lie in 0..4 .num_classes=5."),
        (lambda: classes(dtype=torch.int64) - 1, ValueError, "labels must lie in 0..4 .num_classes=5."),
        (lambda: classes(dtype=torch.float32) + 0.5, ValueError, "mask .* class ids in 0..4 .num_classes=5., got "),
        (lambda: classes(dtype=torch.float32) * torch.nan, ValueError, "mask .* class ids in 0..4 .* got nan"),
        (lambda: classes(dtype=torch.float64) + 1e30, ValueError, "mask .* class ids in 0..4 .* got 1e"),
        (lambda: classes(dtype=torch.float32) + 2**31, ValueError, "mask|labels"),
        (lambda: classes(dtype=torch.float16) + torch.inf, ValueError, "mask .* class ids in 0..4 .* got inf"),
        (lambda: picture(channels=2), ValueError, "mask must have 1 channel .* num_classes=5 .* got 2 channels"),
        (lambda: classes() + 0j, TypeError, "mask must hold class ids as integers or floats, got torch.complex64"),
        (lambda: torch.zeros(WIDTH), ValueError, r"mask must be \(H, W\)"),
        (lambda: torch.zeros(1, 1, 1, HEIGHT, WIDTH), ValueError, r"mask must be \(H, W\)"),
    ],
)
def test_bad_masks_are_named(mask, error, message):
    module = make("resize-smaller", num_classes=CLASSES)
    module(picture())
    with pytest.raises(error, match=message):
        mask_of(module, mask())


@pytest.mark.parametrize(
    ("dtype", "num_classes"), [(torch.bfloat16, 258), (torch.bfloat16, 300), (torch.float16, 2050)]
)
def test_a_half_precision_mask_that_cannot_tell_its_classes_apart_is_refused(dtype, num_classes):
    module = TA.Resize((10, 28), num_classes=num_classes, ignore_index=-1)
    module(picture())
    with pytest.raises(TypeError, match=f"mask in {dtype} cannot tell num_classes={num_classes} labels apart"):
        mask_of(module, classes(dtype=dtype, ignored=0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_images_beside_many_classes(dtype):
    """kornia's container gives integer masks at least float32, whatever the image's type; ids beyond 256 stay exact."""
    labels = torch.randint(0, 1000, (BATCH, 1, HEIGHT, WIDTH), dtype=torch.int32)
    hard = K.AugmentationSequential(TA.CenterCrop((12, 20)), data_keys=["image", "mask"])
    image, mask = hard(picture(dtype=dtype), labels)
    assert image.dtype == dtype
    assert torch.equal(mask, labels[..., 6:18, 10:30])
    soft = TA.CenterCrop((12, 20), num_classes=1000, ignore_index=-1)
    soft(picture(dtype=dtype))
    assert torch.equal(mask_of(soft, labels).argmax(1), labels[:, 0, 6:18, 10:30].long())


@pytest.mark.parametrize(
    ("dtype", "options", "kwargs", "message"),
    [
        (torch.int8, {}, {}, "ignore_index=255 must fit the mask's torch.int8"),
        (torch.uint8, {"ignore_index": -1}, {}, "ignore_index=-1 must fit the mask's torch.uint8"),
        (torch.uint8, {}, {"fill": 300}, "fill=300.* must fit the mask's torch.uint8"),
        (torch.int64, {}, {"fill": 2.5}, "fill"),
        (torch.float16, {"ignore_index": 70000}, {}, "ignore_index=70000 must fit the mask's torch.float16"),
        (torch.bfloat16, {"ignore_index": 999}, {}, "ignore_index=999 must fit the mask's torch.bfloat16"),
    ],
)
def test_padding_that_a_hard_mask_cannot_hold_is_named(dtype, options, kwargs, message):
    module = make("crop-padded", **options)
    module(picture())
    with pytest.raises(ValueError, match=message):
        mask_of(module, torch.zeros(BATCH, 1, HEIGHT, WIDTH, dtype=dtype), **kwargs)


def test_importing_without_kornia_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "kornia" or "tritonsoft.augmentation" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'kornia>="):
        import tritonsoft.augmentation  # noqa: F401
