"""`tritonsoft.augmentation.AugmentationSequential`: one resample per run, and kornia's contract around it.

Two oracles: the float64 reference on the box that the modules' own matrices multiply to, and kornia's own container
where both libraries mean the same (parameters always; pixels where nothing is resampled, or with ``filter=None``).
"""

import copy
import itertools
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.cases import RefusesUnsigned, assert_close, records_in_graphs
from tritonsoft.backends import reference

K = pytest.importorskip("kornia.augmentation", reason="the augmentations need kornia")

from kornia.constants import DataKey  # noqa: E402
from kornia.geometry.boxes import Boxes  # noqa: E402
from kornia.geometry.keypoints import Keypoints  # noqa: E402

import tritonsoft as ts  # noqa: E402
import tritonsoft.augmentation as TA  # noqa: E402

BATCH, HEIGHT, WIDTH, CLASSES = 2, 24, 40, 3
TOLERANCE = 2e-5  # float32 sums of a few dozen taps of values in [0, 1]
LABEL_DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Default grid_sample and affine_grid behavior"),  # kornia's elastic
    pytest.mark.filterwarnings("ignore:RandomCutMixV2 currently uses the old"),
]


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


_ON_CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=_ON_CUDA)])
def device(request):
    return request.param


@pytest.fixture
def image():
    return torch.rand(BATCH, 3, HEIGHT, WIDTH)


@pytest.fixture
def labels():
    """Blobs of three classes with ignored pixels in them, uint8 ``(B, H, W)``."""
    blobs = torch.randint(CLASSES, (BATCH, HEIGHT // 4, WIDTH // 4)).repeat_interleave(4, 1).repeat_interleave(4, 2)
    return blobs.masked_fill(torch.rand(blobs.shape) < 0.1, 255).to(torch.uint8)


def augment(*modules, keys=("input", "mask"), **options):
    return TA.AugmentationSequential(*modules, data_keys=list(keys), **options)


def seeded(container, *args, seed=3, **kwargs):
    torch.manual_seed(seed)
    return container(*args, **kwargs)


# --- what a run must come to ------------------------------------------------------------------------------------------


def composed(container, params, size):
    """The box ``(B, 4)`` and the size that the modules of ``params`` come to, from the product of their matrices."""
    matrix = torch.eye(3, dtype=torch.float64)[None]
    for module, data in _leaves(container, params):
        out = module(torch.zeros(data["batch_prob"].numel(), 1, *size, dtype=torch.float64), params=dict(data))
        matrix, size = module.transform_matrix @ matrix, (out.shape[2], out.shape[3])
    scale, shift = matrix.diagonal(dim1=1, dim2=2)[:, None, :2], matrix[:, None, :2, 2]
    edges = torch.tensor([[0.0, 0.0], [size[1], size[0]]], dtype=torch.float64)  # of the output, x and y
    box = ((edges - 0.5 - shift) / scale + 0.5).flatten(1)
    # Rounding must not let a box touch the next pixel.
    return torch.where((box - box.round()).abs() < 1e-9, box.round(), box), size


def _leaves(container, params):
    for item in params:
        child = container.get_submodule(item.name)
        if isinstance(item.data, list):
            yield from _leaves(child, item.data)
        else:
            yield child, item.data


def expected(container, image, labels, num_classes=CLASSES, filter="area", **options):
    """What a container that is one run makes of image and ``(B, H, W)`` labels, in float64 by the reference."""
    box, size = composed(container, container._params, (image.shape[-2], image.shape[-1]))
    fill, ignore_index = options.get("fill", 0.0), options.get("ignore_index", 255)
    shown = reference.crop_resize(image.double(), box, size, filter, fill, torch.float64)
    if num_classes is None:
        hard = reference.crop_resize(labels[:, None].double(), box, size, "nearest", ignore_index, torch.float64)
        return shown, hard
    return shown, reference.soft_crop_resize(labels, box, size, num_classes, ignore_index, filter, torch.float64)


def assert_pair(actual, expected, tolerance=TOLERANCE):
    assert_close(actual[0].detach(), expected[0], tolerance, "image")
    assert_close(actual[1].detach(), expected[1], tolerance, "mask")


class Work(TorchDispatchMode):
    """Every tritonsoft operator that runs, and every other operator that makes a new tensor of picture size."""

    picture_size = 64  # elements; the boxes, matrices and gates of a batch of two have fewer

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        memory = {_memory(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and _memory(leaf) not in memory]
        namespace, name = func.name().split("::")
        if namespace == "tritonsoft":
            self.names.append(name)
        elif any(
            leaf.numel() >= self.picture_size and leaf.untyped_storage().nbytes() >= self.picture_size for leaf in made
        ):
            self.names.append(func.name())
        return out


def _memory(tensor):
    return tensor.untyped_storage()._cdata


def work(call):
    with Work() as record:
        call()
    return record.names


# --- label maps as they are ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", [False, True], ids=["BHW", "B1HW"])
@pytest.mark.parametrize("dtype", [*LABEL_DTYPES, torch.bool], ids=str)
def test_integer_label_maps_reach_the_one_operator_without_a_copy(image, labels, dtype, channel, device):
    container = augment(TA.RandomResizedCrop((12, 20), num_classes=CLASSES), TA.RandomHorizontalFlip())
    mask = (labels[:, None] if channel else labels).remainder(2).to(device, dtype)
    on_device = image.to(device)
    assert work(lambda: container(on_device, mask)) == ["crop_resize_pair"]
    assert_pair(container(on_device, mask), expected(container, image, labels % 2))


@pytest.mark.parametrize(
    "dtype",
    [torch.int8, torch.uint16, torch.uint32, torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64],
    ids=str,
)
def test_other_label_types_give_the_same_soft_label(image, labels, dtype):
    container = augment(TA.RandomResizedCrop((12, 20), num_classes=CLASSES, ignore_index=7))
    labels = labels.masked_fill(labels == 255, 7)
    shown, soft = container(image, labels.to(dtype))
    assert soft.dtype == (dtype if dtype.is_floating_point else torch.float32)
    want = expected(container, image, labels, ignore_index=7)
    assert_close(shown, want[0], TOLERANCE, "image")
    assert_close(soft, want[1], max(TOLERANCE, torch.finfo(soft.dtype).eps), "soft label")


@pytest.mark.parametrize(
    "dtype",
    [*LABEL_DTYPES, torch.bool, torch.int8, torch.uint16, torch.uint32, torch.uint64, torch.bfloat16, torch.float64],
    ids=str,
)
def test_hard_masks_of_any_type_keep_type_and_values(image, labels, dtype):
    container = augment(TA.RandomResizedCrop((12, 20)), TA.RandomHorizontalFlip())
    mask = (labels % 2 if dtype == torch.bool else labels % 100).to(dtype)
    shown, hard = container(image, mask)
    assert hard.dtype == dtype
    assert_pair((shown, hard), expected(container, image, mask, num_classes=None))


@pytest.mark.parametrize("dtype", RefusesUnsigned.types, ids=str)
@pytest.mark.parametrize("num_classes", [None, CLASSES], ids=["hard", "soft"])
@pytest.mark.parametrize("listed", [False, True], ids=["tensor", "list"])
def test_unsigned_masks_need_no_arithmetic_of_their_type(image, labels, listed, num_classes, dtype):
    container = augment(
        TA.RandomCrop((30, 44), padding=5, num_classes=num_classes),
        TA.RandomHorizontalFlip(p=1.0),
        K.RandomBrightness((0.8, 1.2), p=1.0),
        K.RandomAffine(10.0, p=1.0),
        TA.RandomCrop((20, 30), padding=4, padding_mode="replicate", num_classes=num_classes),
    )
    expected = seeded(container, image, labels[:, None].long())[1]
    mask = labels.to(dtype)[:, None]
    with RefusesUnsigned():
        shown, out = seeded(container, image, list(mask) if listed else mask)
        back = container.inverse(shown, out)[1]
    if listed:
        out, back = torch.cat(out), torch.cat(back)
    assert out.dtype == back.dtype == (dtype if num_classes is None else torch.float32)
    assert torch.equal(out.double(), expected.double())
    assert back.shape[-2:] == (HEIGHT, WIDTH)


@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (1, HEIGHT, WIDTH), (1, 1, HEIGHT, WIDTH)], ids=str)
@pytest.mark.parametrize("num_classes", [None, CLASSES], ids=["hard", "soft"])
def test_a_single_mask_is_repeated_and_goes_through_every_sample_s_own_box(image, labels, shape, num_classes):
    container = augment(TA.RandomResizedCrop((12, 20), num_classes=num_classes))
    out = container(image, labels[0].reshape(shape))
    assert out[1].shape[0] == BATCH
    assert_pair(out, expected(container, image, labels[:1].expand(BATCH, -1, -1), num_classes))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("label_dtype", [torch.int16, torch.int64, torch.float32], ids=str)
def test_a_half_precision_image_on_the_cpu_does_not_round_its_label_ids(dtype, label_dtype):
    ids = torch.tensor([[[257, 259], [2049, 3001]]])
    image = torch.rand(1, 3, 2, 2).to(dtype)
    shown, soft = augment(TA.RandomHorizontalFlip(p=1.0, num_classes=3002, ignore_index=-100))(
        image, ids.to(label_dtype)
    )
    assert shown.dtype == dtype
    assert soft.dtype == torch.float32
    assert torch.equal(soft.argmax(1), ids.flip(2))
    _, hard = augment(TA.RandomHorizontalFlip(p=1.0), K.RandomAffine(0.0, p=1.0))(image, ids.to(label_dtype))
    assert hard.dtype == label_dtype
    assert torch.equal(hard[:, 0].long(), ids.flip(2))


def test_a_half_precision_image_does_not_round_the_masses_beside_it(image, labels):
    shrink, nudge = TA.Resize((7, 9), num_classes=CLASSES), K.RandomAffine(0.0, p=1.0)
    _, plain = augment(shrink)(image.bfloat16(), labels)
    _, nudged = augment(shrink, nudge)(image.bfloat16(), labels)
    assert_close(nudged, plain, TOLERANCE, "soft label")


# --- runs ------------------------------------------------------------------------------------------------------------

# Runs of modules that both libraries have, as functions of the library.
RUNS = {
    "crop resize flip": lambda lib: [lib.CenterCrop((16, 20)), lib.Resize((7, 9)), lib.RandomHorizontalFlip(p=1.0)],
    "flip resize crop": lambda lib: [lib.RandomVerticalFlip(p=1.0), lib.Resize((16, 24)), lib.CenterCrop((6, 10))],
    "resize crop flip": lambda lib: [lib.Resize((16, 24)), lib.RandomCrop((6, 10)), lib.RandomHorizontalFlip(p=1.0)],
    "random resized, both flips": lambda lib: [
        lib.RandomResizedCrop((12, 20)),
        lib.RandomHorizontalFlip(p=0.5),
        lib.RandomVerticalFlip(p=0.5),
    ],
    "flips between crops": lambda lib: [
        lib.RandomHorizontalFlip(p=0.5),
        lib.RandomCrop((17, 23)),
        lib.RandomVerticalFlip(p=0.5),
        lib.CenterCrop((11, 12)),
    ],
    "enlarge, then crop": lambda lib: [lib.Resize((56, 88)), lib.RandomCrop((31, 37)), lib.RandomVerticalFlip(p=1.0)],
    "shrink, then enlarge": lambda lib: [lib.Resize((8, 8)), lib.Resize((19, 33))],
    "two random boxes": lambda lib: [
        lib.RandomResizedCrop((31, 33), scale=(0.3, 0.9)),
        lib.RandomResizedCrop((9, 14)),
    ],
    "stretched crop": lambda lib: [lib.CenterCrop((10, 12)), lib.RandomCrop((20, 30)), lib.RandomVerticalFlip(p=1.0)],
    "one side": lambda lib: [lib.Resize(16, side="short"), lib.CenterCrop(12), lib.RandomHorizontalFlip(p=1.0)],
    "one pixel": lambda lib: [lib.CenterCrop((5, 3)), lib.Resize((1, 1))],
    "pad, resize, flip": lambda lib: [
        lib.RandomCrop((32, 48), padding=(4, 4), fill=0.5),
        lib.Resize((12, 20)),
        lib.RandomHorizontalFlip(p=1.0),
    ],
    "pad, then crop": lambda lib: [
        lib.RandomCrop((30, 50), pad_if_needed=True, fill=0.5),
        lib.CenterCrop((28, 44)),
    ],
    "flip, then pad": lambda lib: [lib.RandomHorizontalFlip(p=1.0), lib.RandomCrop((24, 40), padding=6, fill=0.5)],
    "resize, then pad": lambda lib: [lib.Resize((8, 24)), lib.RandomCrop((16, 32), pad_if_needed=True, fill=0.5)],
}


def soft_members(name):
    """Our modules of a run, the last one of them with ``num_classes``."""
    modules = RUNS[name](TA)
    modules[-1].num_classes = CLASSES
    return modules


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_one_resample_of_the_original_pixels(image, labels, name, device):
    container = augment(*soft_members(name))
    args = image.to(device), labels.to(device)
    assert work(lambda: container(*args)) == ["crop_resize_pair"]
    assert_pair(container(*args), expected(container, image, labels, fill=0.5))


def test_a_scale_crop_folds_with_what_follows_it(image, labels):
    container = augment(
        TA.RandomHorizontalFlip(p=1.0),
        TA.RandomScaleCrop((20, 24), fill=0.25, num_classes=CLASSES),
        TA.CenterCrop((18, 20)),
        TA.RandomVerticalFlip(p=1.0),
    )
    for seed in range(4):
        out = seeded(container, image, labels, seed=seed)
        assert_pair(out, expected(container, image, labels, fill=0.25))
    assert work(lambda: container(image, labels)) == ["crop_resize_pair"]


@pytest.mark.parametrize("filter", ["area", "triangle", "bilinear", "nearest"])
def test_a_run_resamples_with_the_filter_of_its_members(image, labels, filter):
    container = augment(
        TA.RandomHorizontalFlip(p=1.0),  # moves pixels only, so its own filter does not count
        TA.RandomResizedCrop((11, 19), filter=filter, num_classes=CLASSES),
        TA.Resize((7, 9), filter=filter),
    )
    out = container(image, labels)
    assert_pair(out, expected(container, image, labels, filter=filter))


# Without "one side": there footprints are centred on pixel edges, where the last bit of a box picks the pixel.
@pytest.mark.parametrize("name", [name for name in RUNS if name != "one side"])
def test_without_num_classes_the_mask_is_the_nearest_pixels_of_the_same_box(image, labels, name, device):
    container = augment(*RUNS[name](TA))
    out = container(image.to(device), labels.to(device))
    assert out[1].dtype == torch.uint8
    assert_pair(out, expected(container, image, labels, num_classes=None, fill=0.5))


@pytest.mark.parametrize("position", [0, 1, 2])
def test_one_member_with_num_classes_makes_the_whole_run_soft(image, labels, position):
    modules = [TA.RandomHorizontalFlip(p=0.5), TA.RandomResizedCrop((12, 20)), TA.RandomVerticalFlip(p=0.5)]
    modules[position].num_classes = CLASSES
    container = augment(*modules)
    assert_pair(container(image, labels), expected(container, image, labels))


@pytest.mark.parametrize(
    ("modules", "operators"),
    [
        ([TA.CenterCrop((20, 30), num_classes=CLASSES), K.RandomBrightness(p=1.0), TA.Resize((9, 9))], 3),
        ([TA.CenterCrop((20, 30)), K.RandomAffine(10.0, p=1.0), TA.Resize((9, 9), num_classes=CLASSES)], 3),
        ([TA.CenterCrop((20, 30), num_classes=CLASSES), nn.Identity(), TA.Resize((9, 9))], 3),
        ([TA.Resize((20, 30), num_classes=CLASSES), TA.Resize((9, 9), filter="triangle")], 3),
        ([TA.Resize((20, 30)), TA.Resize((9, 9), filter="triangle", num_classes=CLASSES)], 3),
        ([TA.CenterCrop((20, 30)), TA.RandomCrop((24, 40), padding=4, num_classes=CLASSES)], 3),
        ([TA.CenterCrop((20, 30), num_classes=CLASSES), K.RandomHorizontalFlip(p=1.0), TA.Resize((9, 9))], 3),
        ([TA.CenterCrop((20, 30), num_classes=CLASSES), TA.Resize((9, 9)), K.RandomBrightness(p=1.0)], 1),
    ],
    ids=["colour", "affine", "plain module", "filters", "filters, soft last", "pad after crop", "kornia flip", "end"],
)
def test_runs_end_where_something_else_needs_the_pixels(image, labels, modules, operators):
    container = augment(*modules)
    with Work() as record:
        shown, soft = container(image, labels % 3)
    ours = [name for name in record.names if "::" not in name]
    assert len(ours) == operators  # one for the pair, and one each where image and mask go apart
    assert soft.shape == (BATCH, CLASSES, *shown.shape[2:])
    assert soft.sum(1).max() <= 1 + TOLERANCE


def test_split_runs_equal_their_parts_one_after_the_other(image, labels):
    first = [TA.RandomResizedCrop((17, 29), num_classes=CLASSES), TA.RandomHorizontalFlip(p=0.5)]
    second = [TA.CenterCrop((12, 20)), TA.Resize((7, 9), num_classes=CLASSES)]
    colour = K.RandomBrightness((1.2, 1.2), p=1.0)
    out = seeded(augment(*first, colour, *second), image, labels)
    torch.manual_seed(3)
    halfway = augment(*first)(image, labels)
    bright = augment(colour)(*halfway)
    assert torch.equal(bright[1], halfway[1])
    assert_pair(out, augment(*second)(*bright))


def test_padding_after_a_crop_shows_nothing_that_the_crop_hid(image, labels):
    container = augment(
        TA.CenterCrop((8, 8)), TA.RandomCrop((16, 16), padding=4, fill=-1.0, num_classes=CLASSES, p=1.0)
    )
    shown, soft = container(image + 10, (labels % 3))
    border = torch.ones(16, 16, dtype=torch.bool)
    border[4:12, 4:12] = False
    assert (shown[:, :, border] == -1).all()
    assert (soft[:, :, border] == 0).all()
    assert torch.equal(shown[:, :, 4:12, 4:12], (image + 10)[:, :, 8:16, 16:24])
    assert (soft[:, :, 4:12, 4:12].sum(1) == 1).all()


@pytest.mark.parametrize("given", ["label map", "soft label"])
def test_padding_a_soft_label_adds_no_mass(image, labels, given):
    pad = TA.RandomCrop((HEIGHT + 8, WIDTH + 8), padding=4, fill=0.5)
    soften = TA.RandomHorizontalFlip(p=1.0, num_classes=CLASSES)
    container = augment(soften, K.RandomBrightness(p=1.0), pad)
    _, soft = container(image, labels if given == "label map" else one_hot(labels))
    assert torch.equal(soft, nn.functional.pad(one_hot(labels).flip(3), (4, 4, 4, 4)))


@pytest.mark.parametrize("position", ["padding module first", "flip first", "resize last"])
def test_a_hard_mask_s_padding_holds_the_ignore_index_of_the_module_that_pads(image, labels, position):
    pad = TA.RandomCrop((HEIGHT + 8, WIDTH + 8), padding=4, ignore_index=7)
    modules = {
        "padding module first": [pad, TA.RandomHorizontalFlip(p=1.0)],
        "flip first": [TA.RandomHorizontalFlip(p=1.0), pad],
        "resize last": [pad, TA.Resize((HEIGHT + 8, WIDTH + 8))],
    }[position]
    _, hard = augment(*modules)(image, torch.zeros_like(labels))
    assert (hard[:, :, 4:-4, 4:-4] == 0).all()
    assert (hard[:, :, :4] == 7).all()
    assert (hard[:, :, :, -4:] == 7).all()


def test_a_run_that_shows_the_whole_picture_copies_no_pixel(image, labels):
    container = augment(TA.Resize((HEIGHT, WIDTH), num_classes=CLASSES), TA.Resize((HEIGHT, WIDTH)))
    shown, soft = container(image, labels)
    assert torch.equal(shown, image)
    assert torch.equal(soft, reference.soft_crop_resize(labels, None, (HEIGHT, WIDTH), 3, 255, "area", torch.float32))
    assert work(lambda: container(image, labels)) == ["soft_crop_resize"]


def test_a_flip_there_and_back_gives_the_same_bits(image, labels):
    shown, soft = augment(*[TA.RandomHorizontalFlip(p=1.0, num_classes=CLASSES) for _ in range(2)])(image, labels)
    assert torch.equal(shown, image)
    assert torch.equal(soft, reference.soft_crop_resize(labels, None, (HEIGHT, WIDTH), 3, 255, "area", torch.float32))


def test_fill_may_hold_one_value_per_channel(image, labels):
    pad = TA.RandomCrop((HEIGHT + 8, WIDTH + 8), padding=4, fill=(0.1, 0.2, 0.3), num_classes=CLASSES)
    shown, soft = augment(pad, TA.Resize((HEIGHT // 2 + 4, WIDTH // 2 + 4)))(image, labels)
    assert_close(shown[0, :, 0, 0], torch.tensor([0.1, 0.2, 0.3]), TOLERANCE, "padding")
    assert (soft[:, :, :2] == 0).all()
    assert_close(shown[:, :, 2:-2, 2:-2], nn.functional.avg_pool2d(image, 2), TOLERANCE, "inside")


# --- what masks may be -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [None, CLASSES], ids=["hard", "soft"])
def test_a_list_of_masks_goes_sample_by_sample_and_may_mix_channels(image, labels, num_classes):
    container = augment(TA.RandomResizedCrop((12, 20), num_classes=num_classes), TA.RandomHorizontalFlip(p=0.5))
    _, whole = seeded(container, image, labels)
    _, listed = seeded(container, image, [labels[0], labels[1:2]])
    assert [mask.shape[0] for mask in listed] == [1, 1]
    assert torch.equal(torch.cat(listed), whole)
    stacked = torch.stack([labels[0], labels[0], labels[0]])
    if num_classes is None:
        _, listed = seeded(container, image, [stacked, labels[1]])
        assert [mask.shape[1] for mask in listed] == [3, 1]
        assert torch.equal(listed[0], whole[:1].expand(1, 3, -1, -1))


def test_several_masks_are_each_what_they_would_be_alone(image, labels):
    modules = [TA.RandomResizedCrop((12, 20), num_classes=CLASSES), TA.RandomHorizontalFlip(p=0.5)]
    other = (labels == 1).long()
    soft = torch.rand(BATCH, CLASSES, HEIGHT, WIDTH)
    container = augment(*modules, keys=["input", "mask", "mask", "mask"])
    shown, *masks = seeded(container, image, labels, other, soft)
    for mask, out in zip((labels, other, soft), masks, strict=True):
        alone = seeded(augment(*modules), image, mask)
        assert torch.equal(shown, alone[0])
        assert torch.equal(out, alone[1])


def test_several_images_all_go_through_the_run(image, labels):
    container = augment(
        TA.RandomResizedCrop((12, 20), num_classes=CLASSES), TA.RandomHorizontalFlip(), keys=["input", "input", "mask"]
    )
    left, right, soft = container(image, image + 1, labels)
    assert_close(right, left + 1, TOLERANCE, "second image")
    assert soft.shape == (BATCH, CLASSES, 12, 20)


@pytest.mark.parametrize("num_classes", [None, CLASSES], ids=["hard", "soft"])
def test_a_mask_with_c_channels_is_filtered_like_the_image_only_where_it_is_soft(image, num_classes):
    container = augment(TA.RandomResizedCrop((12, 20), num_classes=num_classes))
    shown, mask = container(image, image)
    if num_classes is None:
        box, size = composed(container, container._params, (HEIGHT, WIDTH))
        assert_close(mask, reference.crop_resize(image, box, size, "nearest", 0.0, torch.float32), 0.0, "hard mask")
    else:
        assert_close(mask, shown, TOLERANCE, "soft label")


def test_a_dictionary_may_have_suffixes_foreign_keys_and_the_mask_first(image, labels):
    modules = [TA.RandomResizedCrop((12, 20), num_classes=CLASSES), TA.RandomHorizontalFlip(p=0.5)]
    boxes, points = some_boxes(), some_points()
    container = TA.AugmentationSequential(*modules, data_keys=None)
    data = {"mask_a": labels, "image": image, "name": "a file", "bbox_xyxy": boxes, "mask-b": labels.long()}
    out = seeded(container, {**data, "keypoints_eyes": points})
    assert list(out) == ["mask_a", "image", "bbox_xyxy", "mask-b", "keypoints_eyes", "name"]
    keys = ["input", "mask", "bbox_xyxy", "mask", "keypoints"]
    listed = seeded(augment(*modules, keys=keys), image, labels, boxes, labels.long(), points)
    for name, value in zip(["image", "mask_a", "bbox_xyxy", "mask-b", "keypoints_eyes"], listed, strict=True):
        assert torch.equal(out[name], value), name
    assert out["name"] == "a file"


def some_boxes():
    return torch.tensor([[[3.0, 2.0, 17.0, 11.0], [20.0, 5.0, 30.0, 20.0]]]).repeat(BATCH, 1, 1)


def some_points():
    return torch.tensor([[[3.0, 2.0], [17.5, 11.25]]]).repeat(BATCH, 1, 1)


def test_data_keys_may_stand_in_any_order_and_come_with_the_call(image, labels):
    modules = [TA.RandomResizedCrop((12, 20), num_classes=CLASSES), TA.RandomHorizontalFlip(p=0.5)]
    boxes, points = some_boxes(), some_points()
    keys = ["input", "keypoints", "bbox_xyxy", "mask"]
    shown, moved, boxed, soft = seeded(augment(*modules, keys=keys), image, points, boxes, labels)
    container = augment(*modules, keys=["input"])
    out = seeded(container, labels, boxes, image, points, data_keys=["mask", "bbox_xyxy", "input", "keypoints"])
    for value, other in zip(out, (soft, boxed, shown, moved), strict=True):
        assert torch.equal(value, other)
    assert torch.equal(seeded(container, image), shown)  # the container's own keys are back


def test_classes_and_kornia_s_box_and_keypoint_objects_pass(image, labels):
    container = augment(
        TA.RandomHorizontalFlip(p=1.0), keys=["input", "mask", "class", "bbox_xyxy", "keypoints", "bbox_xywh"]
    )
    classes = torch.tensor([4, 5])
    boxes, points = Boxes.from_tensor(some_boxes(), mode="xyxy_plus"), Keypoints(some_points())
    tensors = container(image, labels, classes, boxes, points, some_boxes())
    assert torch.equal(tensors[2], classes)
    assert torch.equal(tensors[3].to_tensor("xyxy_plus")[0, 0], torch.tensor([22.0, 2.0, 36.0, 11.0]))
    assert torch.equal(tensors[4].to_tensor()[0, 0], torch.tensor([36.0, 2.0]))


# --- extra_args ------------------------------------------------------------------------------------------------------


def test_extra_args_may_ask_for_averaged_hard_masks_of_floats_only(image, labels):
    container = augment(TA.Resize((12, 20)), extra_args={DataKey.MASK: {"resample": "bilinear"}})
    weights = torch.rand(BATCH, 1, HEIGHT, WIDTH)
    assert_close(container(image, weights)[1], nn.functional.avg_pool2d(weights, 2), TOLERANCE, "float mask")
    hard = container(image, labels)[1]
    assert torch.equal(hard, augment(TA.Resize((12, 20)))(image, labels)[1])  # no averages of class ids


@pytest.mark.parametrize("resample", ["nearest", "bilinear"])
def test_extra_args_do_not_turn_softening_off(image, labels, resample):
    container = augment(TA.Resize((12, 20), num_classes=CLASSES), extra_args={DataKey.MASK: {"resample": resample}})
    assert_pair(container(image, labels), expected(container, image, labels))


def test_extra_args_may_name_what_lies_outside_a_hard_mask_but_no_mass(image, labels):
    modules = [TA.RandomCrop((HEIGHT + 8, WIDTH + 8), padding=4), TA.RandomHorizontalFlip(p=1.0)]
    extra = {DataKey.MASK: {"fill": 9}}
    _, hard = augment(*modules, extra_args=extra)(image, labels)
    assert (hard[:, :, :4] == 9).all()
    assert torch.equal(hard[:, 0, 4:-4, 4:-4], labels.flip(2))
    modules[1].num_classes = CLASSES
    _, soft = augment(*modules, extra_args=extra)(image, labels)
    assert (soft[:, :, :4] == 0).all()


def test_extra_args_for_the_image_change_its_fill(image, labels):
    pad = TA.RandomCrop((HEIGHT + 8, WIDTH + 8), padding=4, num_classes=CLASSES)
    shown, soft = augment(pad, extra_args={DataKey.INPUT: {"fill": 0.5}})(image, labels)
    assert (shown[:, :, :4] == 0.5).all()
    assert (soft[:, :, :4] == 0).all()


def test_extra_args_that_would_change_nothing_are_refused(image, labels):
    """`resample` beside a filter is an error in the modules; given by extra_args it must not be dropped silently."""
    container = augment(TA.Resize((12, 20)), extra_args={DataKey.INPUT: {"resample": "nearest"}})
    with pytest.raises(ValueError, match="resample"):
        container(image, labels)


# --- kornia's modules around ours ------------------------------------------------------------------------------------


def one_hot(labels):
    """The picture whose channels are the classes: whatever happens to it must happen to the soft label."""
    return (labels[:, None] == torch.arange(CLASSES)[:, None, None]).float()


@pytest.mark.parametrize(
    "module",
    [
        K.RandomAffine(30.0, translate=(0.2, 0.2), p=1.0),
        K.RandomAffine(30.0, resample="nearest", p=1.0),
        K.RandomAffine(30.0, padding_mode="border", p=0.5),
        K.RandomPerspective(0.5, p=1.0),
        K.RandomRotation(45.0, p=1.0),
        K.RandomElasticTransform(p=1.0),
        K.RandomErasing(p=1.0),
        K.PadTo((28, 30)),
        K.RandomHorizontalFlip(p=0.5),
        K.Resize((9, 11), align_corners=False),
    ],
    ids=lambda module: type(module).__name__,
)
def test_a_soft_label_goes_through_kornia_s_modules_like_its_image(labels, module):
    container = augment(TA.RandomResizedCrop((20, 24), num_classes=CLASSES), module, TA.RandomHorizontalFlip(p=0.5))
    shown, soft = container(one_hot(labels), labels)
    assert_close(soft, shown, TOLERANCE, "soft label")
    assert soft.std() > 0.1


@pytest.mark.parametrize(
    "module",
    [
        K.RandomAffine(30.0, p=1.0),
        K.RandomPerspective(0.5, p=1.0),
        K.RandomElasticTransform(p=1.0),
        K.RandomErasing(p=1.0),
        K.RandomBrightness(p=1.0),
    ],
    ids=lambda module: type(module).__name__,
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.float32], ids=str)
def test_a_hard_mask_goes_through_kornia_s_modules_as_in_kornia_s_container(image, labels, module, dtype):
    mask = (labels % 2).to(dtype)
    ours = seeded(augment(TA.CenterCrop((20, 24)), module), image, mask)
    theirs = seeded(K.AugmentationSequential(K.CenterCrop((20, 24)), module, data_keys=["input", "mask"]), image, mask)
    assert ours[1].dtype == dtype
    assert torch.equal(ours[1], theirs[1])
    assert torch.equal(ours[0], theirs[0])


@pytest.mark.parametrize(
    "module",
    [
        K.RandomAffine((30.0, 30.0), padding_mode="fill", fill_value=0.5, p=1.0),
        K.RandomRotation((30.0, 30.0), p=1.0),
        K.PadTo((40, 40), pad_value=0.5),
        K.RandomCrop((40, 40), padding=10, fill=0.5),
        K.RandomCrop((40, 40), padding=10, fill=[0.5, 0.5, 0.5]),
        K.RandomErasing(value=0.5, p=1.0),
    ],
    ids=["affine", "rotation", "pad to", "crop", "crop, per channel", "erasing"],
)
def test_what_kornia_s_modules_fill_in_an_image_is_no_mass(image, labels, module):
    container = augment(TA.CenterCrop((20, 20), num_classes=CLASSES), module)
    _, soft = container(image, labels % CLASSES)
    assert soft.sum(1).max() <= 1 + TOLERANCE
    assert (soft.sum(1) < 0.5).any()


def test_bicubic_modules_make_no_negative_mass(labels):
    container = augment(TA.CenterCrop((20, 20), num_classes=CLASSES), K.RandomAffine(30.0, resample="bicubic", p=1.0))
    _, soft = container(one_hot(labels), labels)
    assert soft.min() >= 0
    assert soft.sum(1).max() <= 1 + TOLERANCE


@pytest.mark.parametrize(
    "module",
    [nn.Identity(), K.RandomBrightness(p=1.0), K.Normalize(0.5, 0.5)],
    ids=lambda module: type(module).__name__,
)
@pytest.mark.parametrize("container_of", [lambda module: module, K.ImageSequential], ids=["direct", "nested"])
def test_modules_that_move_nothing_leave_label_maps_in_their_memory(image, module, container_of):
    labels = torch.full((BATCH, HEIGHT, WIDTH), 2**24 + 1)  # no float32 holds this id
    _, mask = augment(container_of(module))(image, labels)
    assert torch.equal(mask.reshape(labels.shape), labels)
    assert mask.data_ptr() == labels.data_ptr()


@pytest.mark.parametrize("policy", [K.auto.AutoAugment, K.auto.TrivialAugment, lambda: K.auto.RandAugment(2, 9)])
@pytest.mark.parametrize("seed", range(3))
def test_auto_augment_policies_work_as_in_kornia_s_container(image, labels, policy, seed):
    keys = ["input", "mask", "keypoints"]
    theirs = K.AugmentationSequential(K.CenterCrop((20, 20)), policy(), data_keys=keys)
    ours = augment(TA.CenterCrop((20, 20)), policy(), keys=keys)
    args = image, labels, some_points()
    for value, other in zip(seeded(ours, *args, seed=seed), seeded(theirs, *args, seed=seed), strict=True):
        torch.testing.assert_close(value, other)
    torch.testing.assert_close(ours.transform_matrix, theirs.transform_matrix)
    soft = seeded(augment(TA.CenterCrop((20, 20), num_classes=CLASSES), policy()), image, labels, seed=seed)[1]
    assert soft.min() >= 0
    assert soft.sum(1).max() <= 1 + TOLERANCE


@pytest.mark.parametrize("mix", [K.RandomMixUpV2, K.RandomCutMixV2, K.RandomMosaic, K.RandomJigsaw])
def test_mixing_images_works_after_a_run_and_masks_are_refused_as_in_kornia(image, labels, mix):
    keys = ["input", "bbox_xyxy"] if mix is K.RandomMosaic else ["input"]
    args = [image, some_boxes()][: len(keys)]
    modules = lambda lib: [lib.CenterCrop((20, 20)), lib.RandomHorizontalFlip(p=1.0), mix(p=1.0)]  # noqa: E731
    ours = seeded(augment(*modules(TA), keys=keys), *args)
    torch.testing.assert_close(ours, seeded(K.AugmentationSequential(*modules(K), data_keys=keys), *args))
    with pytest.raises(NotImplementedError):
        augment(*modules(TA))(image, labels)


@pytest.mark.parametrize(
    "first", [lambda lib: [], lambda lib: [lib.CenterCrop((20, 20))]], ids=["first", "after a run"]
)
def test_transplantation_takes_integer_masks_as_in_kornia(image, labels, first):
    modules = lambda lib: [*first(lib), K.RandomTransplantation(p=1.0)]  # noqa: E731
    theirs = seeded(K.AugmentationSequential(*modules(K), data_keys=["input", "mask"]), image, labels)
    ours = seeded(augment(*modules(TA)), image, labels)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


# --- one class -------------------------------------------------------------------------------------------------------


def padded_crop(num_classes):
    """It folds with nothing, so that its mask has been sampled before."""
    return TA.RandomCrop((HEIGHT, WIDTH), padding=3, padding_mode="replicate", num_classes=num_classes)


def flip(num_classes):
    return TA.RandomHorizontalFlip(p=0.5, num_classes=num_classes)


SOFT_TWICE = {
    "flat": lambda n: [flip(n), padded_crop(n)],
    "softens in the middle": lambda n: [flip(None), padded_crop(n), padded_crop(None)],
    "kornia's between": lambda n: [flip(n), K.RandomAffine((20.0, 20.0), p=1.0), padded_crop(n)],
    "a policy between": lambda n: [flip(n), K.auto.RandAugment(2, 9), padded_crop(n)],
    "ours inside": lambda n: [TA.AugmentationSequential(flip(n), padded_crop(n)), padded_crop(n)],
    "kornia's inside": lambda n: [K.AugmentationSequential(flip(n), padded_crop(n)), padded_crop(n)],
    "image sequential inside": lambda n: [K.ImageSequential(flip(n), padded_crop(n)), padded_crop(n)],
}


@pytest.mark.parametrize("mask_as", ["uint8", "int64", "float32", "list"])
@pytest.mark.parametrize("chain", SOFT_TWICE)
def test_the_mass_of_one_class_is_no_class_id(image, labels, chain, mask_as, device):
    """The same label map with two classes, of which the second never occurs, cannot be mistaken."""
    mask = torch.where(labels == 0, 0, 255).to(getattr(torch, mask_as if mask_as != "list" else "uint8")).to(device)
    mask = list(mask) if mask_as == "list" else mask
    one, two = (augment(*SOFT_TWICE[chain](n)) for n in (1, 2))
    outs = [seeded(container, image.to(device), mask) for container in (one, two)]
    backs = [container.inverse(*out) for container, out in zip((one, two), outs, strict=True)]
    for single, double in ([out[1] for out in outs], [back[1] for back in backs]):
        for mass, masses in zip(single, double, strict=True) if mask_as == "list" else [(single, double)]:
            assert type(mass) is TA.SoftLabel  # the next container knows
            assert mass.is_floating_point()
            assert torch.equal(mass, masses[:, :1])
            assert mass.std() > 0.1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32], ids=str)
@pytest.mark.parametrize("nested", [False, True])
def test_the_mass_of_one_class_is_no_class_id_in_a_video(labels, dtype, nested):
    mask = torch.where(labels == 0, 0, 255).to(dtype)[None, :, None]
    video = one_hot(labels)[None]

    def build(n):
        members = (
            [K.ImageSequential(flip(n), padded_crop(n)), flip(n)] if nested else [flip(n), padded_crop(n), flip(n)]
        )
        return augment(K.VideoSequential(*members, same_on_frame=False))

    one, two = build(1), build(2)
    outs = [seeded(container, video, mask) for container in (one, two)]
    backs = [container.inverse(*out) for container, out in zip((one, two), outs, strict=True)]
    for mass, masses in ([out[1] for out in outs], [back[1] for back in backs]):
        assert torch.equal(mass, masses[:, :, :1])
        assert mass.std() > 0.1


@pytest.mark.parametrize("label_dtype", [torch.float32, torch.uint8], ids=str)
def test_masks_of_one_list_are_each_of_their_own_kind(image, labels, label_dtype):
    """A soft label beside a label map: kornia's modules average the one and pick nearest ids of the other."""
    soft, ids = one_hot(labels), labels.to(label_dtype)
    container = augment(K.RandomAffine((20.0, 20.0), p=1.0), padded_crop(CLASSES), TA.Resize((9, 11)))
    pure = [seeded(container, image, list(masks))[1] for masks in (soft, ids)]
    for first in (0, 1):
        mixed = [(soft, ids)[first][0], (soft, ids)[1 - first][1]]
        out = seeded(container, image, mixed)[1]
        assert torch.equal(out[0], pure[first][0])
        assert torch.equal(out[1], pure[1 - first][1])


@pytest.mark.parametrize("num_classes", [1, 2])
def test_softness_comes_out_of_modules_that_call_others_by_themselves(image, labels, num_classes):
    turn = TA.RandomVerticalFlip(p=1.0, num_classes=num_classes)
    operation = K.auto.operations.OperationBase(turn, None)
    mask = torch.where(labels == 0, 0, 255).to(torch.uint8)
    _, soft = augment(K.auto.operations.PolicySequential(operation, operation), flip(num_classes))(image, mask)
    _, expected = augment(flip(num_classes))(image, mask)
    assert soft.is_floating_point()
    assert torch.equal(soft.sum((2, 3)), expected.sum((2, 3)))
    assert soft.sum() == (mask == 0).sum()


def test_a_soft_label_of_one_class_may_come_in_marked(image):
    mass = torch.rand(BATCH, 1, HEIGHT, WIDTH)
    _, out = augment(TA.RandomHorizontalFlip(p=1.0, num_classes=1))(image, mass.as_subclass(TA.SoftLabel))
    assert type(out) is TA.SoftLabel
    assert torch.equal(out, mass.flip(3))


def test_the_mass_of_one_class_goes_on_into_another_container(image):
    """As where a data set crops and the training loop flips: unknown pixels must not come out as class 0."""
    container = augment(TA.RandomHorizontalFlip(p=1.0, num_classes=1))
    for ids in (torch.full((BATCH, HEIGHT, WIDTH), 255), torch.zeros(BATCH, HEIGHT, WIDTH, dtype=torch.long)):
        once = container(image, ids)
        _, twice = container(*once)
        assert torch.equal(twice, (ids == 0).float()[:, None])
        ts.soft_cross_entropy(torch.zeros(BATCH, 1, HEIGHT, WIDTH), once[1])  # a loss takes it for its data


# --- a few classes of each pixel as a mask ----------------------------------------------------------------------------


@pytest.fixture
def sparse():
    soft = torch.rand(BATCH, CLASSES, HEIGHT, WIDTH).pow(4)
    soft = (soft / soft.sum(1, keepdim=True)).masked_fill(torch.rand(BATCH, 1, HEIGHT, WIDTH) < 0.1, 0.0)
    return ts.SparseLabels.from_dense(soft, 2)


def planes_of(sparse):
    """The dense label with the rest as one more plane: what modules without ``num_classes`` take for any planes."""
    dense = torch.cat([sparse.to_dense(torch.float32), sparse.rest.float().unsqueeze(-3)], dim=-3)
    return dense if dense.ndim == 4 else dense[None]


def many_classes(sparse):
    return ts.SparseLabels(sparse.index.to(torch.int16), sparse.mass, sparse.rest, 300)


MOVING = {
    "flips": lambda: [TA.RandomHorizontalFlip(), TA.RandomVerticalFlip()],
    "middle": lambda: [TA.CenterCrop((11, 18)), TA.RandomHorizontalFlip(), TA.CenterCrop(9)],
    "window": lambda: [TA.RandomCrop((13, 17))],
    "padded": lambda: [TA.RandomCrop((30, 20), padding=9), TA.RandomHorizontalFlip(), TA.RandomVerticalFlip()],
    "pad if needed": lambda: [
        TA.RandomVerticalFlip(),
        TA.RandomCrop((50, 20), pad_if_needed=True, fill=(0.1, 0.2, 0.3)),
    ],
    "padded twice": lambda: [TA.RandomCrop((20, 30), padding=4), TA.RandomCrop((20, 30), padding=4)],
    "repeated": lambda: [TA.RandomHorizontalFlip(), TA.RandomCrop((20, 30), padding=7, padding_mode="reflect")],
    "colours": lambda: [TA.RandomCrop((13, 17)), K.ColorJiggle(0.1, 0.1, 0.1, 0.1), TA.RandomHorizontalFlip()],
    "nested": lambda: [K.ImageSequential(TA.RandomHorizontalFlip(), K.RandomBrightness(p=1.0)), TA.CenterCrop(12)],
    "no module of kornia's": lambda: [TA.RandomCrop((13, 17)), nn.Identity(), TA.RandomHorizontalFlip()],
    "the same size": lambda: [TA.Resize((HEIGHT, WIDTH), filter="triangle"), TA.RandomCrop((13, 17))],
    "one for all": lambda: [TA.RandomCrop((13, 17), same_on_batch=True), TA.RandomHorizontalFlip(same_on_batch=True)],
    "policy": lambda: [
        K.auto.operations.PolicySequential(K.auto.operations.OperationBase(TA.RandomVerticalFlip(p=1.0), None))
    ],
}


@pytest.mark.parametrize("options", [{}, {"random_apply": 1}, {"same_on_batch": True}], ids=str)
@pytest.mark.parametrize("name", MOVING)
def test_sparse_labels_move_as_the_dense_label_does(image, sparse, name, options):
    container = augment(*MOVING[name](), **options)
    for label in (sparse, many_classes(sparse).to(torch.float32)):
        planes = planes_of(label)
        shown, made = container(image, label)
        expected_image, expected = container(image, planes, params=container._params)
        assert torch.equal(shown, expected_image)
        assert isinstance(made, ts.SparseLabels)
        assert (made.index.dtype, made.dtype, made.num_classes) == (label.index.dtype, label.dtype, label.num_classes)
        assert torch.equal(planes_of(made), expected)
        if name not in ("repeated", "policy"):  # whose inverse kornia has for no mask
            _, back = container.inverse(shown, made)
            assert torch.equal(planes_of(back), container.inverse(expected_image, expected)[1])
        (again,) = [container(label, data_keys=["mask"], params=container._params)]
        assert torch.equal(planes_of(again), expected)


def test_an_image_beside_sparse_labels_is_copied(image, sparse):
    """Each pixel of the image keeps its label: both show the same source pixels."""
    numbers = torch.arange(BATCH * HEIGHT * WIDTH).reshape(BATCH, 1, HEIGHT, WIDTH).float()
    container = augment(
        TA.RandomCrop((13, 17), padding=3, fill=-1.0), TA.RandomHorizontalFlip(), TA.RandomVerticalFlip()
    )
    shown, made = container(numbers, sparse)
    source = planes_of(sparse).transpose(0, 1).flatten(1)
    inside = shown >= 0
    expected = torch.where(
        inside, source[:, shown.long().clamp(min=0).flatten()].unflatten(1, shown.shape)[:, :, 0].transpose(0, 1), 0
    )
    assert not inside.all()
    assert torch.equal(planes_of(made), expected)


def test_single_samples_of_sparse_labels(image, sparse):
    flip = TA.RandomHorizontalFlip(p=1.0)
    mirrored = planes_of(sparse).flip(-1)
    assert torch.equal(planes_of(augment(flip)(image, sparse[0])[1]), mirrored[:1].expand(BATCH, -1, -1, -1))
    assert torch.equal(planes_of(augment(flip)(image, sparse[1:])[1]), mirrored[1:].expand(BATCH, -1, -1, -1))
    assert torch.equal(
        planes_of(augment(flip, TA.CenterCrop((HEIGHT, WIDTH), num_classes=CLASSES))(image, sparse)[1]), mirrored
    )
    for keepdim, shape in ((False, (1, CLASSES, HEIGHT, WIDTH)), (True, (CLASSES, HEIGHT, WIDTH))):
        container = augment(TA.RandomHorizontalFlip(p=1.0, keepdim=keepdim), keepdim=keepdim)
        shown, made = container(image[0], sparse[0])
        assert made.shape == shape
        assert shown.ndim == made.ndim
        assert torch.equal(planes_of(made), mirrored[:1])
        assert container.inverse(shown, made)[1].shape == shape
    named = TA.AugmentationSequential(flip, data_keys=None)({"image": image, "mask": sparse})
    assert torch.equal(planes_of(named["mask"]), mirrored)


@pytest.mark.parametrize(
    "module",
    [
        K.RandomAffine(20.0, p=0.0),
        K.RandomHorizontalFlip(),
        K.RandomErasing(p=1.0),
        K.RandomCutMixV2(data_keys=["input", "mask"], use_correct_lambda=True),
        K.RandomTransplantation(),
        K.ImageSequential(K.RandomAffine(20.0)),
        K.auto.operations.PolicySequential(K.auto.operations.ShearX()),
        TA.RandomHorizontalFlip(filter=None),
        TA.RandomRotation(20.0, p=0.0),
        TA.RandomElasticTransform(),
        TA.RandomCrop((HEIGHT + 1, WIDTH)),
        TA.RandomResizedCrop((HEIGHT, WIDTH), p=0.0),
        TA.RandomScaleCrop((HEIGHT, WIDTH)),
        TA.Resize((HEIGHT, 2 * WIDTH)),
    ],
    ids=lambda module: type(module).__name__,
)
def test_sparse_labels_are_refused_by_what_resamples(image, sparse, module):
    """Whatever is drawn: by the module, and not by the sample that it first turns."""
    name = "ShearX|RandomShear" if "Policy" in type(module).__name__ else type(module).__name__
    name = "RandomAffine" if isinstance(module, K.ImageSequential) else name
    with pytest.raises(TypeError, match=rf"mask must be a tensor for the ({name}) of \w+, got SparseLabels.*to_dense"):
        augment(TA.RandomHorizontalFlip(), module)(image, sparse)


def test_sparse_labels_that_do_not_fit_are_refused(image, sparse):
    container = augment(TA.RandomHorizontalFlip(), TA.RandomCrop((13, 17)))
    with pytest.raises(ValueError, match=r"mask must have the modules' num_classes=2, got SparseLabels of 3 classes"):
        augment(TA.CenterCrop(9, num_classes=2))(image, sparse)
    with pytest.raises(ValueError, match="Image and mask must have matching"):
        container(image, sparse.crop(0, 0, 9, 9))
    with pytest.raises(ValueError, match="Image and mask must have matching"):
        container(image[:1], sparse)
    with pytest.raises((TypeError, ValueError), match="got SparseLabels"):
        container(image, [sparse[0], sparse[1]])
    container(image, sparse)
    container._params[1].data["src"] += 0.5
    with pytest.raises(ValueError, match="params must show whole pixels"):
        container(image, sparse, params=container._params)


def test_what_moves_whole_pixels_fuses_with_any_filter(image):
    calls = [TA.RandomCrop((16, 24)), TA.Resize((16, 24)), TA.Resize((8, 12), filter="triangle")]
    container = TA.AugmentationSequential(*calls)
    out = container(image)
    assert torch.equal(out, ts.crop_resize(image, container.boxes, (8, 12), filter="triangle"))


@pytest.mark.gpu
@_ON_CUDA[1]
def test_on_a_gpu_sparse_labels_move_without_a_synchronisation(image, sparse):
    container = augment(TA.RandomCrop((28, 44), padding=4), TA.RandomHorizontalFlip(), TA.RandomVerticalFlip())
    shown, expected = container(image, sparse)
    params = copy.deepcopy(container._params)
    there = image.cuda(), sparse.cuda()
    container(*there)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        out, made = container(*there, params=params)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(out.cpu(), shown)
    assert torch.equal(planes_of(made.cpu()), planes_of(expected))


# --- pictures of several sizes ---------------------------------------------------------------------------------------


def sizes_of(values):
    return [tuple(value.shape[2:]) for value in values]


@pytest.fixture
def low():
    """A second picture of half the size."""
    return torch.rand(BATCH, 1, HEIGHT // 2, WIDTH // 2)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_a_flip_mirrors_every_picture_about_its_own_middle(image, low, p):
    modules = lambda lib: [lib.RandomHorizontalFlip(p=p), lib.RandomVerticalFlip(p=p)]  # noqa: E731
    keys = ["input", "input"]
    container = augment(*modules(TA), keys=keys)
    outs = seeded(container, image, low)
    theirs = seeded(K.AugmentationSequential(*modules(K), data_keys=keys), image, low)
    for value, other in zip(outs, theirs, strict=True):
        assert torch.equal(value, other)
    for value, other in zip(container.inverse(*outs), (image, low), strict=True):
        assert torch.equal(value, other)
    named = seeded(TA.AugmentationSequential(*modules(TA), data_keys=None), {"image": image, "image_low": low})
    assert torch.equal(named["image"], outs[0])
    assert torch.equal(named["image_low"], outs[1])


def test_a_resize_gives_every_picture_the_size_that_its_own_asks_for(image, labels, low):
    tall = torch.rand(BATCH, 2, 40, 10)
    container = augment(
        TA.RandomHorizontalFlip(p=1.0), TA.Resize(6, num_classes=CLASSES), keys=["input", "input", "input", "mask"]
    )
    *shown, soft = container(image, low, tall, labels)
    assert sizes_of(shown) == [(6, 10), (6, 10), (24, 6)]
    for value, picture in zip(shown, (image, low, tall), strict=True):
        assert_close(value, ts.resize(picture, value.shape[2:]).flip(3), TOLERANCE, "image")
    assert_close(soft, ts.soft_resize(labels, (6, 10), CLASSES).flip(3), TOLERANCE, "soft label")
    # From then on all have one size.
    container = augment(TA.Resize((8, 10)), TA.CenterCrop((4, 6)), keys=["input", "input"])
    for value, picture in zip(container(image, low), (image, low), strict=True):
        assert_close(value, ts.resize(picture, (8, 10))[:, :, 2:6, 2:8], TOLERANCE, "image")


CROPS = {
    "center": lambda p: TA.CenterCrop((8, 10), p=p),
    "random": lambda p: TA.RandomCrop((8, 10), p=p),
    "random, same size": lambda p: TA.RandomCrop((HEIGHT, WIDTH), padding=2, p=p),
    "repeating": lambda p: TA.RandomCrop((8, 10), padding=2, padding_mode="reflect", p=p),
    "resized": lambda p: TA.RandomResizedCrop((8, 10), p=p),
    "scale": lambda p: TA.RandomScaleCrop((8, 10), p=p),
}


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("nest", [lambda *m: m, lambda *m: [K.ImageSequential(*m)]], ids=["flat", "nested"])
def test_a_crop_is_refused_to_pictures_of_another_size_and_skips_each_as_it_is(image, low, crop, nest):
    keys = ["input", "input"]
    with pytest.raises(ValueError, match=r"must have the size that \w+ drew its crops for, \(24, 40\), got \(12, 20\)"):
        augment(*nest(TA.RandomVerticalFlip(), CROPS[crop](1.0)), keys=keys)(image, low)
    container = augment(*nest(TA.RandomVerticalFlip(p=1.0), CROPS[crop](0.0)), keys=keys)
    for value, picture in zip(container(image, low), (image, low), strict=True):
        assert torch.equal(value, picture.flip(2))


def test_a_replay_gives_masks_of_several_sizes_each_their_own(image, labels, low):
    small = (low[:, 0] * CLASSES).to(torch.uint8)
    container = augment(TA.RandomHorizontalFlip(p=1.0), TA.Resize(6), keys=["input"])
    container(image)
    one, two = container(labels, small, data_keys=["mask", "mask"], params=container._params)
    alone = container(small, data_keys=["mask"], params=container._params)
    assert torch.equal(one, container(labels, data_keys=["mask"], params=container._params))
    assert torch.equal(two, alone)
    listed = container([labels[0], small[1]], data_keys=["mask"], params=container._params)
    assert torch.equal(listed[0], one[:1])
    assert torch.equal(listed[1], two[1:])
    crop = augment(TA.RandomCrop((8, 10)), keys=["input"])
    crop(image)
    params = crop._params
    for masks in ([labels, small], [small, labels], [small]):
        with pytest.raises(ValueError, match="drew its crops for"):
            crop(*masks, data_keys=["mask"] * len(masks), params=params)


def test_points_and_boxes_belong_to_the_first_of_several_pictures(image, low):
    for between in ([], [K.RandomVerticalFlip(p=1.0)]):
        modules = [TA.RandomHorizontalFlip(p=1.0), *between]
        points = seeded(augment(*modules, keys=["input", "input", "keypoints"]), image, low, some_points())[2]
        alone = seeded(augment(*modules, keys=["input", "keypoints"]), image, some_points())[1]
        assert torch.equal(points, alone)
    container = augment(TA.RandomHorizontalFlip(p=1.0), keys=["input", "input"])
    container(image, image)
    assert container.boxes.tolist() == [[WIDTH, 0, 0, HEIGHT]] * BATCH
    container(image, low)
    assert container.boxes.tolist() == [[WIDTH, 0, 0, HEIGHT]] * BATCH


def test_points_of_a_replay_move_with_the_picture_of_the_replay(image, low):
    container = augment(TA.RandomHorizontalFlip(p=1.0), TA.Resize((6, 10)), keys=["input", "keypoints"])
    container(image, some_points())
    _, points = container(low, some_points(), params=container._params)
    _, fresh = container(low, some_points())
    torch.testing.assert_close(points, fresh)


def test_an_image_of_another_batch_is_refused_by_name(image):
    container = augment(TA.RandomHorizontalFlip(p=1.0), keys=["input", "input"])
    with pytest.raises(ValueError, match="must have the batch of its parameters, 2, got 1"):
        container(image, image[:1])


def test_an_inverse_takes_what_the_module_makes_and_no_other_size(image, labels):
    container = augment(TA.CenterCrop((12, 20), num_classes=CLASSES))
    shown, soft = container(image, labels)
    with pytest.raises(
        ValueError, match=r"must have the size that CenterCrop makes, \(12, 20\), to go back, got \(6, 10\)"
    ):
        container.inverse(soft[:, :, ::2, ::2], data_keys=["mask"])
    with pytest.raises(ValueError, match="must have the size that CenterCrop makes"):
        container.inverse(shown[:, :, ::2, ::2], data_keys=["input"])


# --- containers in containers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inner", [TA.AugmentationSequential, K.AugmentationSequential, K.ImageSequential], ids=["ours", "kornia's", "image"]
)
def test_a_run_goes_on_through_nested_containers(image, labels, inner):
    modules = [
        TA.RandomHorizontalFlip(p=0.5),
        TA.RandomResizedCrop((17, 21), num_classes=CLASSES),
        TA.RandomVerticalFlip(p=0.5),
        TA.Resize((9, 11)),
    ]
    keys = ["input", "mask", "bbox_xyxy", "keypoints"]
    args = image, labels, some_boxes(), some_points()
    flat, nested = augment(*modules, keys=keys), augment(modules[0], inner(*modules[1:3]), modules[3], keys=keys)
    out = seeded(flat, *args)
    for value, other in zip(seeded(nested, *args), out, strict=True):
        assert torch.equal(value, other)
    if inner is not K.ImageSequential:  # kornia leaves its matrix out
        torch.testing.assert_close(nested.transform_matrix, flat.transform_matrix)
    for value, other in zip(nested.inverse(*out), flat.inverse(*out), strict=True):
        assert torch.equal(value, other)
    assert work(lambda: augment(modules[0], inner(*modules[1:3]), modules[3])(image, labels)) == ["crop_resize_pair"]


@pytest.mark.parametrize("inner", ["AugmentationSequential", "ImageSequential"])
def test_a_nested_container_keeps_kornia_s_books(image, inner):
    def build(lib):
        modules = [lib.CenterCrop((20, 30)), lib.RandomHorizontalFlip(p=0.5)]
        outer = lib.AugmentationSequential if lib is TA else K.AugmentationSequential
        return outer(getattr(K, inner)(*modules), lib.CenterCrop((10, 12)), data_keys=["input", "mask"])

    ours, theirs = build(TA), build(K)
    mask = torch.zeros(BATCH, 1, HEIGHT, WIDTH)
    for container in (ours, theirs):
        seeded(container, image, mask)
    torch.testing.assert_close(ours.transform_matrix, theirs.transform_matrix)
    assert_same_params(ours._params, theirs._params)
    assert_same_params(getattr(ours[0], "_params", None) or [], getattr(theirs[0], "_params", None) or [])


def test_ours_in_kornia_s_container_is_right_with_float_masks_and_clear_with_integers(labels):
    inner = augment(
        TA.CenterCrop((16, 20), num_classes=CLASSES), TA.Resize((9, 11)), TA.RandomCrop((12, 14), padding=2)
    )
    container = K.AugmentationSequential(inner, K.RandomAffine(20.0, p=1.0), data_keys=["input", "mask"])
    with pytest.raises(TypeError, match=r"tritonsoft\.augmentation\.AugmentationSequential"):
        container(one_hot(labels), labels)
    shown, soft = K.AugmentationSequential(inner, data_keys=["input", "mask"])(one_hot(labels), labels.float())
    assert_close(soft.as_subclass(Tensor), shown, TOLERANCE, "soft label")
    hard = K.AugmentationSequential(augment(TA.CenterCrop((16, 20))), data_keys=["input", "mask"])(
        one_hot(labels), labels
    )
    assert torch.equal(hard[1][:, 0], labels[:, 4:20, 10:30])


@pytest.mark.parametrize("data_format", ["BTCHW", "BCTHW"])
@pytest.mark.parametrize("same_on_frame", [True, False])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32], ids=str)
def test_videos_in_ours(labels, data_format, same_on_frame, dtype):
    clip = torch.stack([labels, labels.flip(0)], dim=1)  # (B, T, H, W)
    video = torch.stack([one_hot(frame) for frame in clip.unbind(1)], dim=1)  # (B, T, C, H, W)
    mask, dim = clip[:, :, None].to(dtype), 1
    if data_format == "BCTHW":
        video, mask, dim = video.transpose(1, 2), mask.transpose(1, 2), 2
    modules = [TA.RandomResizedCrop((12, 20), num_classes=CLASSES), TA.RandomHorizontalFlip(p=0.5)]
    container = augment(K.VideoSequential(*modules, data_format=data_format, same_on_frame=same_on_frame))
    shown, soft = container(video, mask)
    if data_format == "BTCHW":
        assert torch.equal(container(video, clip.to(dtype), params=container._params)[1], soft)
    assert shown.shape == ((2, 2, 3, 12, 20) if dim == 1 else (2, 3, 2, 12, 20))
    assert_close(soft, shown, TOLERANCE, "soft label")
    same = container(video.select(dim, 0).unsqueeze(dim).expand_as(video), mask)[0]
    assert torch.equal(*same.unbind(dim)) == same_on_frame


@pytest.mark.parametrize(
    "module",
    [TA.Resize((9, 11)), TA.RandomCrop((24, 24), padding=4), K.RandomAffine(30.0, p=1.0)],
    ids=["resize", "padded crop", "affine"],
)
def test_in_a_video_a_soft_label_goes_through_later_modules_like_its_frames(labels, module):
    container = augment(K.VideoSequential(TA.CenterCrop((20, 20), num_classes=CLASSES), module))
    shown, soft = container(one_hot(labels)[None], labels[None])
    assert_close(soft, shown, TOLERANCE, "soft label")


def test_in_a_video_what_kornia_s_modules_fill_in_is_no_mass(labels):
    turn = K.RandomAffine((30.0, 30.0), padding_mode="fill", fill_value=0.5, p=1.0)
    container = augment(K.VideoSequential(TA.CenterCrop((20, 20), num_classes=CLASSES), turn))
    _, soft = container(one_hot(labels)[None], labels[None])
    assert soft.sum(2).max() <= 1 + TOLERANCE


def test_videos_with_points_and_their_inverse_are_kornia_s():
    points, corners = torch.rand(2, 2, 4, 2) * 20, torch.tensor([[1.0, 1.0], [4.0, 1.0], [4.0, 6.0], [1.0, 6.0]])
    data = (
        torch.rand(2, 2, 3, HEIGHT, WIDTH),
        torch.randint(3, (2, 2, 1, HEIGHT, WIDTH)).byte(),
        points,
        corners.expand(2, 2, 1, 4, 2).contiguous(),
    )
    outs, backs = [], []
    for lib in (TA, K):
        video = K.VideoSequential(lib.RandomCrop((16, 20)), lib.RandomHorizontalFlip(p=0.5))
        container = lib.AugmentationSequential(video, data_keys=["input", "mask", "keypoints", "bbox"])
        outs.append(seeded(container, *data))
        backs.append(container.inverse(*outs[-1]))
    for value, other in zip(*outs, strict=True):
        assert torch.equal(value, other)
    for value, other in zip(backs[0][2:], backs[1][2:], strict=True):
        torch.testing.assert_close(value, other)


def test_the_inverse_of_a_video_s_soft_label_has_no_mass_outside(labels):
    members = TA.RandomCrop((16, 20)), TA.RandomHorizontalFlip(p=0.5, num_classes=CLASSES)
    container = augment(K.VideoSequential(*members))
    shown, soft = container(torch.ones(1, 2, 3, HEIGHT, WIDTH), labels[None] % CLASSES)
    shown, soft = container.inverse(shown, soft)
    assert_close(soft.sum(2), shown[:, :, 0], TOLERANCE, "mass")


def test_a_video_s_soft_labels_have_the_soft_dtype(labels):
    video = torch.rand(1, 2, 3, HEIGHT, WIDTH)
    container = augment(K.VideoSequential(TA.Resize((12, 20), num_classes=CLASSES)), soft_dtype=torch.float16)
    assert container(video, labels[None])[1].dtype == torch.float16


def test_a_video_whose_soft_member_was_not_drawn_keeps_its_mask(labels):
    """The member that would soften is never selected, so the mask stays what it was."""
    members = TA.RandomHorizontalFlip(p=1.0), TA.Resize((12, 20), num_classes=CLASSES)
    container = augment(K.VideoSequential(*members, random_apply=1, random_apply_weights=[1.0, 0.0]))
    _, mask = container(torch.rand(1, 2, 3, HEIGHT, WIDTH), labels[None])
    assert mask.dtype == torch.uint8
    assert torch.equal(mask[0, :, 0], labels.flip(2))


# --- kornia's numbers ------------------------------------------------------------------------------------------------


def assert_same_params(ours, theirs):
    assert [item.name for item in ours] == [item.name for item in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        if isinstance(mine.data, list):
            assert_same_params(mine.data, other.data)
        elif mine.data is not None:
            assert list(mine.data) == list(other.data)
            for name, value in mine.data.items():
                assert torch.equal(value, other.data[name]), name
        else:
            assert other.data is None


ALL_KEYS = ("input", "mask", "bbox", "bbox_xyxy", "bbox_xywh", "keypoints")


def all_data(image, labels):
    vertices = Boxes.from_tensor(some_boxes(), mode="xyxy_plus").to_tensor("vertices_plus")
    return image, labels, vertices, some_boxes(), some_boxes(), some_points()


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("same_on_batch", [None, True])
def test_the_same_seed_draws_kornia_s_parameters(image, labels, name, same_on_batch):
    ours = augment(*RUNS[name](TA), same_on_batch=same_on_batch)
    theirs = K.AugmentationSequential(*RUNS[name](K), data_keys=["input", "mask"], same_on_batch=same_on_batch)
    seeded(ours, image, labels)
    seeded(theirs, image, labels)
    assert_same_params(ours._params, theirs._params)


EXACT = {
    "flips": lambda lib: [lib.RandomHorizontalFlip(p=0.5), lib.RandomVerticalFlip(p=0.5)],
    "centre": lambda lib: [lib.CenterCrop((20, 31)), lib.RandomHorizontalFlip(p=0.5), lib.CenterCrop(11)],
    "random crops": lambda lib: [lib.RandomCrop((20, 30)), lib.RandomVerticalFlip(p=0.5), lib.RandomCrop((11, 17))],
    "gated": lambda lib: [lib.CenterCrop((20, 30), p=0.5), lib.RandomCrop((11, 17), p=0.5)],
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("seed", range(3))
def test_flips_and_crops_do_exactly_what_kornia_s_do(image, labels, name, seed):
    ours = augment(*EXACT[name](TA), keys=ALL_KEYS)
    theirs = K.AugmentationSequential(*EXACT[name](K), data_keys=list(ALL_KEYS))
    data = all_data(image, labels)
    out, other = seeded(ours, *data, seed=seed), seeded(theirs, *data, seed=seed)
    for value, their in zip(out, other, strict=True):
        assert torch.equal(value, their)
    assert torch.equal(ours.transform_matrix, theirs.transform_matrix)
    for key, value, their in zip(ALL_KEYS[2:], ours.inverse(*out)[2:], theirs.inverse(*other)[2:], strict=True):
        torch.testing.assert_close(value, their, msg=key)


class Kornian:
    """Our modules with ``filter=None``."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: getattr(TA, name)(*args, **kwargs, filter=None)


# Not for "one pixel": kornia's own matrix of it is not finite.
@pytest.mark.parametrize("name", [*(name for name in RUNS if name != "one pixel"), *EXACT])
def test_without_a_filter_everything_is_kornia_s_to_the_bit(image, labels, name):
    build = {**RUNS, **EXACT}[name]
    ours = augment(*build(Kornian()), K.RandomAffine(10.0, p=0.5), keys=ALL_KEYS)
    theirs = K.AugmentationSequential(*build(K), K.RandomAffine(10.0, p=0.5), data_keys=list(ALL_KEYS))
    data = all_data(image, labels)
    out, other = seeded(ours, *data), seeded(theirs, *data)
    for mine, their in (
        (out, other),
        (ours(*data, params=theirs._params), other),
        (ours.inverse(*out), theirs.inverse(*other)),
        ([ours.transform_matrix], [theirs.transform_matrix]),
    ):
        for value, expected_value in zip(mine, their, strict=True):
            assert value.dtype == expected_value.dtype
            assert torch.equal(value, expected_value)


@pytest.mark.parametrize("name", ["pad, resize, flip", "enlarge, then crop", "resize, then pad", "one side"])
def test_boxes_and_keypoints_land_where_the_picture_lands(name):
    picture = torch.zeros(1, 1, HEIGHT, WIDTH)
    x, y = 21, 11
    picture[:, :, y - 1 : y + 2, x - 1 : x + 2] = 1.0
    container = augment(*RUNS[name](TA), keys=["input", "bbox_xyxy", "keypoints"])
    for module in container.children():
        if "fill" in module.flags:
            module.flags["fill"] = 0.0
    corners = torch.tensor([[[x - 1.0, y - 1.0, x + 1.0, y + 1.0]]])
    shown, box, point = container(picture, corners, torch.tensor([[[float(x), float(y)]]]))
    mass = shown[0, 0]
    rows, columns = torch.arange(mass.shape[0]), torch.arange(mass.shape[1])
    centre = torch.stack([(mass.sum(0) * columns).sum(), (mass.sum(1) * rows).sum()]) / mass.sum()
    assert mass.sum() > 0.5
    assert (point[0, 0] - centre).abs().max() < 0.2
    assert ((box[0, 0, :2] + box[0, 0, 2:]) / 2 - centre).abs().max() < 0.2
    moved = torch.tensor([[x, y, 1.0]]) @ container.transform_matrix[0].T
    torch.testing.assert_close(moved[0, :2], point[0, 0])


def test_the_matrix_can_be_recomputed_from_parameters(image, labels):
    container = augment(TA.CenterCrop((16, 16)), TA.Resize((8, 8)), TA.RandomHorizontalFlip(p=1.0))
    container(image, labels)
    again = container.get_transformation_matrix(image, params=container._params, recompute=True)
    torch.testing.assert_close(again, container.transform_matrix)


def test_the_matrix_is_that_of_the_call_whenever_it_is_read(image, labels):
    container = augment(TA.RandomResizedCrop((16, 16)), TA.Resize((8, 8)))
    seeded(container, image, labels)
    expected = container.transform_matrix.clone()
    seeded(container, image, labels)
    container._params[0].data["src"] += 3
    container[1].flags["size"] = (4, 4)
    assert torch.equal(container.transform_matrix, expected)


@pytest.mark.parametrize("mode", ["silent", "rigid", "skip"])
def test_matrix_modes_are_kornia_s(image, labels, mode):
    def build(lib, *extra):
        options = {"data_keys": ["input", "mask"], "transformation_matrix_mode": mode}
        return lib.AugmentationSequential(lib.CenterCrop((20, 20)), lib.RandomHorizontalFlip(p=0.5), *extra, **options)

    ours, theirs = build(TA), build(K)
    seeded(ours, image, labels)
    seeded(theirs, image, labels)
    if mode == "skip":
        assert ours.transform_matrix is theirs.transform_matrix is None
    else:
        assert torch.equal(ours.transform_matrix, theirs.transform_matrix)
    bent = build(TA, K.RandomElasticTransform(p=1.0))
    if mode == "rigid":
        with pytest.raises(RuntimeError, match="rigid"):
            bent(image, labels)
    else:
        assert bent(image, labels)[1].shape == (BATCH, 1, 20, 20)


@pytest.mark.parametrize("random_apply", [1, 2, 5, (1, 3), (2,), True])
@pytest.mark.parametrize("weights", [None, [0.5, 0.3, 0.2]])
def test_random_apply_draws_kornia_s_modules_and_folds_them(image, labels, random_apply, weights):
    def build(lib, **options):
        modules = (
            lib.RandomHorizontalFlip(p=1.0, **options),
            lib.RandomResizedCrop((12, 20), **options),
            lib.CenterCrop((10, 10), **options),
        )
        chosen = {"random_apply": random_apply, "random_apply_weights": weights, "data_keys": ["input", "mask"]}
        return lib.AugmentationSequential(*modules, **chosen)

    ours, theirs = build(TA, num_classes=CLASSES), build(K)
    for seed in range(3):
        out = seeded(ours, image, labels, seed=seed)
        seeded(theirs, image, labels, seed=seed)
        assert_same_params(ours._params, theirs._params)
        assert_pair(out, expected(ours, image, labels))


def test_corners_drawn_in_half_precision_stay_inside_of_the_picture():
    options = {"scale": torch.tensor([0.1, 1.0]), "ratio": torch.tensor([0.75, 1.33])}
    halves = {name: value.to(torch.bfloat16) for name, value in options.items()}
    container = augment(
        TA.RandomResizedCrop((12, 14), **halves, num_classes=1), TA.RandomHorizontalFlip(), TA.CenterCrop((11, 12))
    )
    image = torch.ones(64, 1, 396, 700)
    shown, soft = container(image, torch.zeros_like(image))
    assert_close(shown, torch.ones_like(shown), TOLERANCE, "image")
    assert_close(soft, torch.ones_like(soft), TOLERANCE, "mass")
    assert container.boxes.min() >= 0
    assert (container.boxes.amax(0) <= torch.tensor([700, 396, 700, 396])).all()


# --- replay and inverse ----------------------------------------------------------------------------------------------


def mixed_pipeline(**options):
    return augment(
        TA.RandomHorizontalFlip(p=0.5),
        TA.RandomResizedCrop((16, 20), num_classes=CLASSES),
        K.RandomBrightness((0.8, 1.2), p=1.0),
        TA.RandomCrop((18, 22), padding=2),
        K.RandomAffine(10.0, p=0.5),
        **options,
    )


def test_a_replay_gives_the_same_bits_for_everything_and_for_each_alone(image, labels):
    container = mixed_pipeline(keys=["input", "mask", "bbox_xyxy", "keypoints"])
    args = {"input": image, "mask": labels, "bbox_xyxy": some_boxes(), "keypoints": some_points()}
    out = dict(zip(args, container(*args.values()), strict=True))
    params = copy.deepcopy(container._params)
    container(*args.values())  # other parameters in between
    for value, other in zip(container(*args.values(), params=params), out.values(), strict=True):
        assert torch.equal(value, other)
    for key in args:
        container(*args.values())
        torch.testing.assert_close(container(args[key], data_keys=[key], params=params), out[key])
    listed = container([labels[0], labels[1]], data_keys=["mask"], params=params)
    torch.testing.assert_close(torch.cat(listed), out["mask"])


def test_a_replay_keeps_the_padding_that_was_drawn(image, labels):
    container = augment(TA.RandomHorizontalFlip(), TA.RandomCrop((22, 38), padding=(3, 1, 4, 2), num_classes=CLASSES))
    out = container(image, labels)
    params, boxes, matrix = container._params, container.boxes, container.transform_matrix
    container[1].flags["padding"] = 1
    for value, other in zip(container(image, labels, params=params), out, strict=True):
        assert torch.equal(value, other)
    assert torch.equal(container.boxes, boxes)
    assert torch.equal(container.transform_matrix, matrix)
    container(image, labels)
    assert container._params[1].data["padding_size"].unique().tolist() == [1]


def test_parameters_may_be_drawn_ahead_of_the_data(image, labels):
    container = mixed_pipeline()
    torch.manual_seed(3)
    params = container.forward_parameters(image.shape)
    out = container(image, labels, params=params)
    for value, other in zip(out, seeded(container, image, labels), strict=True):
        assert torch.equal(value, other)


def test_parameters_without_a_gate_apply_to_every_sample(image, labels):
    """kornia's contract: where `batch_prob` is absent, all samples are transformed."""
    container = augment(TA.RandomHorizontalFlip(p=0.5), TA.CenterCrop((16, 16), num_classes=CLASSES))
    container(image, labels)
    params = copy.deepcopy(container._params)
    for item in params:
        del item.data["batch_prob"]
    shown, _ = container(image, labels, params=params)
    assert torch.equal(shown, image[:, :, 4:20, 12:28].flip(3))


def window_of(container):
    """Which pixels of the picture the integer crop shows, ``(B, 1, H, W)``."""
    box, _ = composed(container, container._params, (HEIGHT, WIDTH))
    ys, xs = torch.arange(HEIGHT)[:, None] + 0.5, torch.arange(WIDTH) + 0.5
    low, high = box[:, :2].minimum(box[:, 2:]), box[:, :2].maximum(box[:, 2:])
    inside = [(l[0] < xs) & (xs < h[0]) & (l[1] < ys) & (ys < h[1]) for l, h in zip(low, high, strict=True)]  # noqa: E741
    return torch.stack(inside)[:, None]


@pytest.mark.parametrize("softens", [(), (0,), (2,), (0, 1, 2)], ids=["hard", "first soft", "last soft", "all soft"])
def test_an_inverse_puts_back_what_was_shown_and_nothing_else(image, labels, softens):
    modules = [TA.RandomCrop((16, 20)), TA.RandomHorizontalFlip(p=0.5), TA.CenterCrop((12, 14))]
    for index in softens:
        modules[index].num_classes = CLASSES
    container = augment(*modules, keys=["input", "mask", "bbox_xyxy", "keypoints"])
    out = container(image, labels, some_boxes(), some_points())
    shown, mask, boxes, points = container.inverse(*out)
    window = window_of(container)
    assert window.sum() == BATCH * 12 * 14
    assert torch.equal(shown, torch.where(window, image, 0.0))
    if not softens:
        assert torch.equal(mask, torch.where(window, labels[:, None], 255))
    else:
        assert torch.equal(mask, torch.where(window, one_hot(labels), 0.0))
    torch.testing.assert_close(boxes, some_boxes())
    torch.testing.assert_close(points, some_points())


def test_an_inverse_of_resampled_pictures_has_no_mass_outside_and_full_mass_inside(image, labels):
    container = augment(TA.RandomResizedCrop((16, 20), scale=(0.2, 0.5), num_classes=CLASSES), TA.Resize((11, 13)))
    _, soft = container(torch.ones_like(image), labels % CLASSES)
    shown, back = container.inverse(torch.ones(BATCH, 3, 11, 13), soft)
    window = window_of(container)
    assert (shown[~window.expand_as(shown)] == 0).all()
    assert_close(shown[window.expand_as(shown)], torch.ones(3 * int(window.sum())), TOLERANCE, "image inside")
    assert (back[~window.expand_as(back)] == 0).all()
    assert_close(back.sum(1, keepdim=True)[window], torch.ones(int(window.sum())), TOLERANCE, "mass inside")


def test_an_inverse_takes_explicit_parameters_any_keys_lists_and_dictionaries(image, labels):
    modules = [TA.RandomCrop((16, 20), num_classes=CLASSES), TA.RandomVerticalFlip(p=0.5)]
    container = TA.AugmentationSequential(*modules, data_keys=None)
    out = container({"image": image, "mask": labels, "keypoints": some_points(), "name": 7})
    params = copy.deepcopy(container._params)
    back = container.inverse(out)
    assert back["name"] == 7
    container({"image": image, "mask": labels})  # other parameters in between
    torch.testing.assert_close(container.inverse(out["mask"], params=params, data_keys=["mask"]), back["mask"])
    torch.testing.assert_close(
        container.inverse(out["keypoints"], params=params, data_keys=["keypoints"]), some_points()
    )
    listed = container.inverse([mask[None] for mask in out["mask"]], params=params, data_keys=["mask"])
    torch.testing.assert_close(torch.cat(listed), back["mask"])


def test_an_inverse_gives_class_ids_of_a_prediction_their_type_and_place_back(image, labels):
    container = augment(TA.RandomHorizontalFlip(p=1.0, num_classes=CLASSES), TA.CenterCrop((12, 14)))
    _, soft = container(image, labels % CLASSES)
    back = container.inverse(soft.argmax(1, keepdim=True), data_keys=["mask"])
    assert back.dtype == torch.int64
    assert torch.equal(back[:, 0, 6:18, 13:27], (labels % CLASSES)[:, 6:18, 13:27].long())
    assert (back[:, 0, :6] == 255).all()


def test_an_inverse_does_not_average_class_ids_where_the_batch_is_as_large_as_the_classes():
    labels = torch.randint(CLASSES, (CLASSES, HEIGHT, WIDTH))
    container = augment(TA.CenterCrop((12, 14), num_classes=CLASSES), TA.Resize((24, 28)))
    _, soft = container(torch.rand(CLASSES, 3, HEIGHT, WIDTH), labels)
    back = container.inverse(soft.argmax(1).float(), data_keys=["mask"])
    assert set(back.unique().tolist()) == {0.0, 1.0, 2.0, 255.0}


def test_an_inverse_takes_soft_labels_back_through_kornia_s_modules_like_their_image(labels):
    container = augment(TA.CenterCrop((20, 24), num_classes=CLASSES), K.RandomAffine((20.0, 20.0), p=1.0))
    shown, soft = container(one_hot(labels), labels)
    shown, soft = container.inverse(shown, soft)
    assert_close(soft, shown, TOLERANCE, "soft label")


# --- shapes and gates ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keepdim", [True, False, None])
def test_ranks_of_listed_masks_come_out_as_from_kornia_s_container(image, keepdim):
    for shapes in ([(), (1,)], [(3,), (1, 3)]):
        masks = [torch.randint(3, (*shape, HEIGHT, WIDTH)).byte() for shape in shapes]
        ours, theirs = (
            lib.AugmentationSequential(
                lib.CenterCrop((20, 20)), K.RandomBrightness(p=1.0), data_keys=["input", "mask"], keepdim=keepdim
            )(image, masks)[1]
            for lib in (TA, K)
        )
        for value, other in zip(ours, theirs, strict=True):
            assert torch.equal(value, other)


IMAGE_RANKS, MASK_RANKS = [(2, 3), (1, 3), (3,), ()], [(), (1,), (2,), (3,), (1, 1), (2, 1)]


@pytest.mark.parametrize("keepdim", [True, False, None])
@pytest.mark.parametrize(
    ("image_shape", "mask_shape"),
    # Batches of 2 go with images of a batch of 2 alone.
    [pair for pair in itertools.product(IMAGE_RANKS, MASK_RANKS) if pair[1] != (2, 1) or pair[0] == (2, 3)],
    ids=str,
)
def test_ranks_come_out_as_from_kornia_s_container(keepdim, image_shape, mask_shape):
    image, mask = torch.rand(*image_shape, HEIGHT, WIDTH), torch.randint(3, (*mask_shape, HEIGHT, WIDTH)).byte()
    outs = [
        lib.AugmentationSequential(
            lib.CenterCrop((20, 20)), lib.RandomHorizontalFlip(p=1.0), data_keys=["input", "mask"], keepdim=keepdim
        )(image, mask)
        for lib in (TA, K)
    ]
    for value, other in zip(*outs, strict=True):
        assert torch.equal(value, other)


@pytest.mark.parametrize(
    ("image_shape", "mask_shape", "soft_shape"),
    [
        ((2, 3), (2,), (2, CLASSES)),
        ((2, 3), (2, 1), (2, CLASSES)),
        ((2, 3), (), (2, CLASSES)),
        ((1, 3), (1,), (1, CLASSES)),
        ((3,), (), (CLASSES,)),
        ((3,), (1,), (CLASSES,)),
        ((), (), (CLASSES,)),
    ],
    ids=str,
)
def test_keepdim_keeps_as_many_dimensions_of_a_soft_label_as_its_classes_allow(image_shape, mask_shape, soft_shape):
    image, mask = torch.rand(*image_shape, HEIGHT, WIDTH), torch.randint(3, (*mask_shape, HEIGHT, WIDTH)).byte()
    modules = [TA.RandomResizedCrop((12, 20), num_classes=CLASSES), TA.RandomHorizontalFlip(p=0.5)]
    shown, soft = seeded(augment(*modules, keepdim=True), image, mask)
    assert shown.shape == (*image_shape, 12, 20)
    assert soft.shape == (*soft_shape, 12, 20)
    full = seeded(augment(*modules, keepdim=False), image, mask)
    assert torch.equal(soft.reshape(full[1].shape), full[1])
    assert torch.equal(shown.reshape(full[0].shape), full[0])


def test_same_on_batch_shows_every_sample_the_same(image, labels):
    container = augment(
        TA.RandomResizedCrop((12, 20), num_classes=CLASSES), TA.RandomHorizontalFlip(p=0.5), same_on_batch=True
    )
    shown, soft = container(image[:1].expand(4, -1, -1, -1), labels[:1].expand(4, -1, -1))
    assert torch.equal(shown, shown[:1].expand_as(shown))
    assert torch.equal(soft, soft[:1].expand_as(soft))


def test_flips_are_gated_sample_by_sample_and_crops_batch_by_batch(labels):
    labels = labels.repeat(4, 1, 1)
    container = augment(
        TA.RandomCrop((20, 30), p=0.5), TA.RandomHorizontalFlip(p=0.5, num_classes=CLASSES), TA.Resize((12, 20), p=0.5)
    )
    sizes, mixed = set(), False
    for seed in range(12):
        shown, soft = seeded(container, one_hot(labels), labels, seed=seed)
        crop, flip, resize = (item.data["batch_prob"] for item in container._params)
        assert crop.unique().numel() == resize.unique().numel() == 1
        size = (12, 20) if resize[0] else (20, 30) if crop[0] else (HEIGHT, WIDTH)
        assert shown.shape[2:] == size
        assert_pair((shown, soft), expected(container, one_hot(labels), labels))
        sizes.add(size)
        mixed = mixed or flip.unique().numel() == 2
    assert mixed
    assert len(sizes) == 3


def test_skipped_modules_give_the_image_itself_and_the_one_hot_mass(image, labels):
    container = augment(
        TA.RandomCrop((20, 30), p=0.0), TA.RandomHorizontalFlip(p=0.0, num_classes=CLASSES), TA.CenterCrop(8, p=0.0)
    )
    shown, soft = container(image, labels)
    assert torch.equal(shown, image)
    assert torch.equal(soft, one_hot(labels))
    assert torch.equal(container.transform_matrix, torch.eye(3).expand(BATCH, 3, 3))


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_an_empty_batch_passes_with_everything(p):
    modules = [
        TA.RandomHorizontalFlip(p=p),
        TA.RandomCrop((32, 48), padding=6, p=p),
        TA.RandomResizedCrop((16, 20), p=p, num_classes=CLASSES),
        TA.RandomScaleCrop((12, 14), p=p),
    ]
    container = augment(*modules, keys=["input", "mask", "mask", "bbox_xyxy", "keypoints"])
    out = container(
        torch.rand(0, 3, HEIGHT, WIDTH),
        torch.zeros(0, HEIGHT, WIDTH, dtype=torch.uint8),
        torch.zeros(0, 1, HEIGHT, WIDTH, dtype=torch.int64),
        torch.zeros(0, 2, 4),
        torch.zeros(0, 2, 2),
    )
    assert [tuple(value.shape) for value in out] == [(0, 3, 12, 14), *[(0, CLASSES, 12, 14)] * 2, (0, 2, 4), (0, 2, 2)]


def test_only_an_image_needs_no_mask(image):
    container = augment(*RUNS["crop resize flip"](TA), keys=["input"])
    shown = container(image)
    box, size = composed(container, container._params, (HEIGHT, WIDTH))
    assert_close(shown, reference.crop_resize(image, box, size, "area", 0.0, torch.float64), TOLERANCE, "image")
    assert work(lambda: container(image)) == ["crop_resize"]


def test_memory_formats_and_inference_mode_change_no_bit(image, labels):
    container = augment(TA.RandomResizedCrop((12, 20), num_classes=CLASSES), TA.RandomHorizontalFlip(p=0.5))
    plain = seeded(container, image, labels)
    with torch.inference_mode():
        other = seeded(container, image.contiguous(memory_format=torch.channels_last), labels.mT.contiguous().mT)
    assert other[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(other[1], plain[1])
    assert_close(other[0], plain[0], TOLERANCE, "image")


# --- types and gradients ---------------------------------------------------------------------------------------------

UNFOLDABLE = TA.RandomCrop((20, 30), padding=4, padding_mode="reflect", num_classes=CLASSES)


@pytest.mark.parametrize(
    "module", [TA.RandomResizedCrop((12, 20), num_classes=CLASSES), UNFOLDABLE], ids=["run", "alone"]
)
def test_soft_labels_follow_soft_dtype_or_a_float64_image(image, labels, module):
    soft = {dtype: seeded(augment(module), image.to(dtype), labels)[1] for dtype in (torch.float32, torch.float64)}
    assert [value.dtype for value in soft.values()] == [torch.float32, torch.float64]
    assert_close(soft[torch.float32], soft[torch.float64], TOLERANCE, "soft label")
    half = seeded(augment(module, soft_dtype=torch.float16), image, labels)[1]
    assert half.dtype == torch.float16
    assert_close(half, soft[torch.float64], 1e-3, "soft label")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_images_keep_their_type_and_their_labels_theirs(image, labels, dtype):
    container = augment(TA.RandomResizedCrop((12, 20), num_classes=CLASSES), TA.RandomHorizontalFlip(p=0.5))
    shown, soft = container(image.to(dtype), labels)
    assert (shown.dtype, soft.dtype) == (dtype, torch.float32)
    want = expected(container, image.to(dtype), labels)
    assert_close(shown, want[0], torch.finfo(dtype).eps, "image")
    assert_close(soft, want[1], TOLERANCE, "soft label")


def test_the_gradient_in_the_image_is_the_adjoint_of_the_run(image, labels):
    container = augment(*soft_members("random resized, both flips"))
    shown, soft = container(image.requires_grad_(), labels)
    assert not soft.requires_grad
    weight = torch.rand_like(shown)
    (shown * weight).sum().backward()
    box, _ = composed(container, container._params, (HEIGHT, WIDTH))
    adjoint = reference.crop_resize_adjoint(weight.double(), box, (HEIGHT, WIDTH), "area", torch.float64)
    assert_close(image.grad, adjoint, TOLERANCE * 10, "gradient")


def test_gradcheck_in_the_image_and_in_a_soft_label_through_a_container():
    image, soft = (torch.rand(2, 2, 6, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    container = augment(
        TA.RandomResizedCrop((5, 4), num_classes=2),
        TA.RandomHorizontalFlip(p=0.5),
        K.RandomBrightness((1.01, 1.02), clip_output=False, p=1.0),
        TA.RandomCrop((4, 4), padding=1),
    )
    container(image, soft)
    params = copy.deepcopy(container._params)
    assert torch.autograd.gradcheck(lambda *args: tuple(container(*args, params=params)), (image, soft), fast_mode=True)
    labels = torch.randint(2, (2, 6, 8))
    alone = lambda image: container(image, labels, params=params)[0]  # noqa: E731
    assert torch.autograd.gradcheck(alone, (image,), fast_mode=True)


def test_autocast_changes_no_bit_of_pictures(image, labels):
    container = augment(*soft_members("pad, resize, flip"), TA.CenterCrop(8))
    plain = container(image, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = container(image, labels, params=container._params)
    for value, other in zip(mixed, plain, strict=True):
        assert value.dtype == other.dtype
        assert torch.equal(value, other)


# --- compiled, and on devices ----------------------------------------------------------------------------------------


@records_in_graphs
def test_a_container_compiles_to_one_graph(image, labels):
    torch._dynamo.reset()
    modules = [
        TA.RandomHorizontalFlip(p=0.5),
        TA.RandomCrop((28, 44), padding=4),
        TA.RandomResizedCrop((12, 20), num_classes=CLASSES),
        K.RandomBrightness((0.8, 1.2), p=1.0),
    ]
    keys = ["input", "mask", "keypoints", "bbox_xyxy"]
    container = augment(*modules, keys=keys)
    compiled = torch.compile(container, fullgraph=True, backend="aot_eager")
    args = image, labels, some_points(), some_boxes()
    first, second = ([value.clone() for value in compiled(*args)] for _ in range(2))
    for value, other in zip(second, container(*args, params=container._params), strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=TOLERANCE)
    assert not torch.equal(first[0], second[0])  # the parameters were not compiled in
    with pytest.raises(ValueError, match="labels"):
        compiled(image, labels.masked_fill(labels == 0, 77), *args[2:])


def test_no_value_on_the_images_device_is_read(image, labels):
    """On the meta device there are no values: whoever waited for one on a GPU fails here."""
    container = augment(
        TA.RandomHorizontalFlip(p=0.5),
        TA.RandomScaleCrop((30, 40)),
        TA.RandomResizedCrop((12, 20), num_classes=CLASSES),
        K.RandomBrightness(p=1.0),
        TA.RandomCrop((16, 24), padding=2),
        keys=["input", "mask", "mask", "mask", "keypoints"],
    )
    masks = labels, labels.bool(), labels.float()
    args = [value.to("meta") for value in (image, *masks, some_points())]
    out = container(*args)
    assert [tuple(value.shape) for value in out[:4]] == [(BATCH, CLASSES, 16, 24)] * 4
    back = container.inverse(*out)
    assert [tuple(value.shape) for value in back[:4]] == [(BATCH, CLASSES, HEIGHT, WIDTH)] * 4
    assert container.transform_matrix.device.type == "meta"
    hard = augment(TA.RandomCrop((28, 44), padding=4), TA.RandomHorizontalFlip(p=0.5))
    assert hard(image.to("meta"), labels.long().to("meta"))[1].dtype == torch.int64


@pytest.mark.gpu
@_ON_CUDA[1]
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.float32], ids=str)
@pytest.mark.parametrize("num_classes", [None, CLASSES], ids=["hard", "soft"])
def test_on_a_gpu_nothing_synchronises_and_everything_equals_the_cpu(image, labels, dtype, num_classes):
    container = augment(
        TA.RandomHorizontalFlip(p=0.5),
        TA.RandomCrop((28, 44), padding=4, num_classes=num_classes),
        TA.RandomResizedCrop((12, 20)),
        K.RandomBrightness((0.8, 1.2), p=1.0),
        TA.RandomVerticalFlip(p=0.5),
        keys=["input", "mask", "keypoints"],
    )
    args = image, (labels % 2).to(dtype), some_points()
    here = container(*args)
    params = copy.deepcopy(container._params)
    there = [value.cuda() for value in args]
    container(*there)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = container(*there, params=params)
        matrix = container.transform_matrix
        container(*there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert matrix.is_cuda
    for value, other in zip(out, here, strict=True):
        assert value.dtype == other.dtype
        torch.testing.assert_close(value.cpu(), other, rtol=0, atol=TOLERANCE)


# --- what kornia converts --------------------------------------------------------------------------------------------


def as_arrays(image, labels):
    return (image[0].permute(1, 2, 0) * 255).byte().numpy(), labels[0].numpy()


def as_pictures(image, labels):
    pil = pytest.importorskip("PIL.Image", reason="Pillow makes the pictures")
    return tuple(pil.fromarray(array) for array in as_arrays(image, labels))


@pytest.mark.parametrize("convert", [as_arrays, as_pictures])
def test_numpy_arrays_and_pil_images_are_taken(image, labels, convert):
    container = augment(TA.RandomResizedCrop((12, 20), num_classes=CLASSES), TA.RandomHorizontalFlip(p=0.5))
    shown, soft = container(*convert(image, labels))
    tensor = torch.from_numpy(as_arrays(image, labels)[0]).permute(2, 0, 1)[None] / 255
    assert_pair((shown, soft), expected(container, tensor, labels[:1]))


def test_numpy_comes_out_where_it_is_asked_for(image, labels):
    container = augment(TA.RandomResizedCrop((12, 20), num_classes=CLASSES))
    shown, soft = seeded(container, image, labels)
    arrays = seeded(container, image, labels, output_type="numpy")
    for array, tensor in zip(arrays, (shown, soft), strict=True):
        assert isinstance(array, np.ndarray)
        assert torch.equal(torch.from_numpy(array).permute(0, 3, 1, 2), tensor)


# --- errors, and what a container remembers --------------------------------------------------------------------------


@pytest.mark.parametrize("nest", [lambda module: module, K.ImageSequential, TA.AugmentationSequential])
@pytest.mark.parametrize("name", ["num_classes", "ignore_index"])
def test_members_that_disagree_on_the_labels_are_refused(nest, name):
    first = TA.CenterCrop(8, num_classes=3, ignore_index=255)
    other = TA.RandomHorizontalFlip(**{"num_classes": 3, "ignore_index": 255, name: 4})
    with pytest.raises(ValueError, match=rf"{name} .*4"):
        augment(first, nest(other))
    augment(first, TA.RandomHorizontalFlip(ignore_index=4))  # it makes no soft labels


def test_soft_dtype_must_be_a_floating_type():
    with pytest.raises(TypeError, match="soft_dtype"):
        augment(TA.CenterCrop(8), soft_dtype=torch.int64)


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        (torch.full((2, HEIGHT, WIDTH), 77), ValueError, "0..2.*77"),
        (torch.full((2, HEIGHT, WIDTH), -1), ValueError, "0..2.*-1"),
        (torch.full((2, HEIGHT, WIDTH), 77.0), ValueError, "0..2.*77"),
        (torch.full((2, HEIGHT, WIDTH), 0.5), ValueError, "mask.*0.5"),
        (torch.zeros(2, 2, HEIGHT, WIDTH), ValueError, "mask.*num_classes=3.*2 channels"),
        (torch.zeros(2, 3, HEIGHT, WIDTH, dtype=torch.uint8), ValueError, "mask.*num_classes=3.*3 channels"),
        (torch.zeros(2, HEIGHT, WIDTH, dtype=torch.complex64), TypeError, "mask.*complex64"),
        ([torch.zeros(HEIGHT, WIDTH).long(), torch.full((HEIGHT, WIDTH), 5)], ValueError, "0..2.*5"),
    ],
    ids=["too large", "negative", "float", "fraction", "channels", "integer one-hot", "complex", "list"],
)
def test_bad_masks_are_named_and_leave_the_container_usable(image, labels, mask, error, words):
    container = augment(TA.RandomResizedCrop((12, 20), num_classes=CLASSES), TA.RandomHorizontalFlip(p=0.5))
    before = seeded(container, image, labels)
    with pytest.raises(error, match=words):
        container(image, mask)
    for value, other in zip(seeded(container, image, labels), before, strict=True):
        assert torch.equal(value, other)


def test_padding_that_a_hard_mask_cannot_hold_is_refused(image, labels):
    container = augment(TA.RandomCrop((28, 44), padding=4, ignore_index=1000), TA.RandomHorizontalFlip(p=0.5))
    with pytest.raises(ValueError, match=r"ignore_index=1000 .*uint8"):
        container(image, labels)
    assert (container(image, labels.short())[1] == 1000).any()


def test_an_integer_image_is_refused_as_in_kornia(image, labels):
    with pytest.raises(TypeError, match="float"):
        augment(TA.CenterCrop(8))(labels[:, None], labels)


def test_a_second_call_leaves_the_first_result_alone(image, labels):
    container = mixed_pipeline()
    image_before, labels_before = image.clone(), labels.clone()
    first = container(image, labels)
    copies = [value.clone() for value in first]
    second = container(image + 1, labels)
    assert not torch.equal(first[0], second[0])
    for value, other in zip((*first, image, labels), (*copies, image_before, labels_before), strict=True):
        assert torch.equal(value, other)


def test_two_containers_may_share_a_module(image, labels):
    shared = TA.RandomResizedCrop((12, 20), num_classes=CLASSES)
    left, right = augment(shared, TA.RandomHorizontalFlip(p=0.5)), augment(TA.RandomVerticalFlip(p=1.0), shared)
    out = left(image, labels)
    matrix, params = left.transform_matrix.clone(), copy.deepcopy(left._params)
    right(image[:1], labels[:1])
    assert torch.equal(left.transform_matrix, matrix)
    for value, other in zip(left(image, labels, params=params), out, strict=True):
        assert torch.equal(value, other)


def test_a_module_may_be_drawn_several_times_in_a_run(image, labels):
    modules = [TA.RandomHorizontalFlip(p=0.5), TA.RandomResizedCrop((20, 30)), TA.RandomVerticalFlip(p=0.5)]
    for module in modules:
        module.num_classes = CLASSES
    container = augment(*modules, random_apply=7, keys=["input", "mask", "keypoints"])
    for seed in range(4):
        shown, soft, points = seeded(container, image, labels, some_points(), seed=seed)
        names = [item.name for item in container._params]
        assert len(names) == 7
        assert len(set(names)) < 7
        matrix = container.transform_matrix
        assert_pair((shown, soft), expected(container, image, labels))
        moved = torch.cat([some_points(), torch.ones(BATCH, 2, 1)], 2) @ matrix.mT
        torch.testing.assert_close(points, moved[..., :2], atol=1e-4, rtol=0)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda container: pickle.loads(pickle.dumps(container))])
def test_a_container_can_be_copied_and_pickled_before_and_after_a_call(image, labels, duplicate):
    container = mixed_pipeline(soft_dtype=torch.float16)
    fresh = duplicate(container)
    out = seeded(container, image, labels)
    for other in (fresh, duplicate(container)):
        for value, again in zip(out, seeded(other, image, labels), strict=True):
            assert value.dtype == again.dtype
            assert torch.equal(value, again)
    for value, again in zip(container.inverse(*out), duplicate(container).inverse(*out), strict=True):
        assert torch.equal(value, again)


def test_ours_is_a_drop_in_for_kornia_s_container_without_our_modules(image, labels):
    modules = [K.RandomResizedCrop((12, 20)), K.RandomHorizontalFlip(p=0.5), K.RandomAffine(10.0, p=1.0)]
    data = all_data(image, labels)
    theirs = seeded(K.AugmentationSequential(*modules, data_keys=list(ALL_KEYS)), *data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = seeded(augment(*modules, keys=ALL_KEYS), *data)
    for value, other in zip(ours, theirs, strict=True):
        assert value.dtype == other.dtype
        assert torch.equal(value, other)


# --- what a user met -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ignore_index", [255, -1, 3])
@pytest.mark.parametrize(
    "module",
    [
        K.RandomAffine((30.0, 30.0), padding_mode="fill", fill_value=0.5, p=1.0),
        K.RandomPerspective(0.5, p=1.0),
        K.PadTo((40, 60)),
        K.RandomErasing(p=1.0),
        K.RandomElasticTransform(alpha=(9.0, 9.0), p=1.0),
        K.VideoSequential(K.RandomAffine((30.0, 30.0), p=1.0)),
    ],
    ids=["affine", "perspective", "pad to", "erasing", "elastic", "video"],
)
def test_what_kornia_s_modules_fill_in_before_softening_is_no_class(module, ignore_index):
    labels = torch.randint(1, 3, (BATCH, HEIGHT, WIDTH))  # class 0 is nowhere
    container = augment(module, TA.Resize((20, 30), num_classes=CLASSES, ignore_index=ignore_index))
    image = torch.ones(BATCH, 3, HEIGHT, WIDTH)
    if isinstance(module, K.VideoSequential):
        container = augment(K.VideoSequential(*module.children(), *list(container.children())[1:]))
        image, labels = image[None], labels[None]
    _, soft = seeded(container, image, labels)
    soft = soft.flatten(0, -4)
    assert (soft[:, 0] == 0).all()
    assert (soft.sum(1) < 0.5).any()
    assert (soft.sum(1) > 0.9).any()


def test_an_explicit_fill_of_masks_is_a_class(image):
    labels = torch.ones(BATCH, HEIGHT, WIDTH, dtype=torch.uint8)
    extra = {"mask": {"resample": "nearest", "pad_value": 2}}
    container = augment(K.PadTo((40, 60)), TA.Resize((20, 30), num_classes=CLASSES), extra_args=extra)
    _, soft = container(image, labels)
    assert soft[:, 2].sum() > 0
    assert_close(soft.sum(1), torch.ones(BATCH, 20, 30), TOLERANCE, "mass")


@pytest.mark.parametrize("extra_args", [{"mask": {"resample": "nearest"}}, {DataKey.MASK: {"fill": 255}}], ids=str)
def test_extra_args_never_blend_class_ids(image, extra_args):
    labels = torch.randint(2, (BATCH, HEIGHT, WIDTH)) * 3 + 1
    _, hard = augment(K.RandomElasticTransform(p=1.0), extra_args=extra_args)(image, labels)
    assert set(hard.unique().tolist()) <= {0, 1, 4}


def test_hard_padding_before_softening_holds_the_ignore_index_of_the_container(image, labels):
    modules = [TA.RandomCrop((40, 60), pad_if_needed=True), TA.Resize((20, 30), num_classes=CLASSES, ignore_index=0)]
    folded = seeded(augment(*modules), image, labels % CLASSES)[1]
    apart = seeded(augment(modules[0], K.RandomBrightness(p=1.0), modules[1]), image, labels % CLASSES)[1]
    assert (folded.sum(1) < 0.5).any()
    assert_close(apart.sum(1).mean(), folded.sum(1).mean(), 0.1, "mass")


def test_a_soft_label_that_comes_in_stays_soft_through_kornia_s_modules(image, labels):
    soft = one_hot(labels)
    _, out = augment(K.RandomAffine((30.0, 30.0), p=1.0), TA.Resize((20, 30), num_classes=CLASSES))(image, soft)
    assert out.min() >= 0
    assert out.sum(1).max() <= 1 + TOLERANCE


# --- boxes -----------------------------------------------------------------------------------------------------------


def test_boxes_give_the_label_that_the_container_gives() -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 5, (3, 64, 96)).to(torch.uint8)
    augment = TA.AugmentationSequential(
        TA.RandomHorizontalFlip(),
        K.ColorJiggle(0.1, 0.1, 0.1, 0.1),
        TA.RandomScaleCrop((16, 24), scale=(0.2, 0.6), num_classes=5),
        K.Normalize(0.5, 0.5),
        data_keys=["image", "mask"],
    )
    with pytest.raises(ValueError, match="call the container first"):
        _ = augment.boxes
    for _ in range(2):  # the second call's, not both calls'
        _, soft = augment(torch.rand(3, 3, 64, 96), labels)
        assert augment.boxes.shape == (3, 4)
        made = ts.soft_crop_resize(labels, augment.boxes, (16, 24), 5)
        torch.testing.assert_close(made, soft, rtol=0, atol=1e-6)


def test_boxes_of_a_container_that_moves_nothing_are_the_whole_picture() -> None:
    augment = TA.AugmentationSequential(K.ColorJiggle(0.1, 0.1, 0.1, 0.1), data_keys=["image"])
    augment(torch.rand(2, 3, 8, 12))
    assert augment.boxes.tolist() == [[0, 0, 12, 8]] * 2


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ((TA.CenterCrop(8), K.RandomAffine(10.0)), "RandomAffine"),
        ((TA.Resize((8, 8)), K.ColorJiggle(0.1, 0.1, 0.1, 0.1), TA.Resize((4, 4))), "did not fold into one"),
        ((TA.CenterCrop(8), TA.RandomCrop((8, 8), padding=2)), "RandomCrop|did not fold into one"),
        ((TA.Resize((8, 8), filter=None),), "Resize"),
    ],
)
def test_boxes_are_refused_where_there_is_no_one_box(modules: tuple[torch.nn.Module, ...], message: str) -> None:
    augment = TA.AugmentationSequential(*modules, data_keys=["image"])
    augment(torch.rand(2, 3, 16, 16))
    with pytest.raises(ValueError, match=message):
        _ = augment.boxes


@pytest.fixture
def eager_operators(monkeypatch):
    """The operators as plain PyTorch, so that what the container does around them is all there is."""

    def crop_resize(image, boxes, size, *, filter="area", fill=0.0):
        return reference.crop_resize(image, boxes, size, filter, fill, image.dtype)

    def crop_resize_pair(image, labels, boxes, size, num_classes, *, ignore_index, filter, fill, soft_dtype):
        soft = reference.soft_crop_resize(labels, boxes, size, num_classes, ignore_index, filter, soft_dtype)
        return crop_resize(image, boxes, size, filter=filter, fill=fill), soft

    monkeypatch.setattr(ts, "crop_resize", crop_resize)
    monkeypatch.setattr(ts, "crop_resize_pair", crop_resize_pair)


@pytest.mark.usefixtures("eager_operators")
@pytest.mark.parametrize("keys", [("input",), ("input", "mask")], ids=["image", "image and label map"])
def test_function_transforms_go_through_the_container(image, labels, keys):
    """Forward and reverse mode, and a batch of batches; the parameters are drawn outside, as `vmap` wants it."""
    container = augment(
        TA.RandomResizedCrop((16, 20), num_classes=CLASSES),
        TA.RandomHorizontalFlip(),
        K.RandomGamma((1.5, 2.0), p=1.0),
        TA.RandomCrop((22, 24), padding=4, padding_mode="reflect", num_classes=CLASSES),
        keys=keys,
    )
    params, image = container.forward_parameters(image.shape), image.double()
    others = [labels] if len(keys) == 2 else []

    def show(image, *others):
        out = container(image, *others, params=params)
        return out if others else [out]

    def energy(image):
        return sum((each.double() ** 2).sum() for each in show(image, *others))

    towards, step = image.flip(3), 1e-6
    _, tangents = torch.func.jvp(lambda image: show(image, *others)[0], (image,), (towards,))
    difference = show(image + step * towards, *others)[0] - show(image - step * towards, *others)[0]
    assert_close(tangents, difference / (2 * step), 1e-6, "tangent")
    leaf = image.clone().requires_grad_()
    assert_close(torch.func.grad(energy)(image), *torch.autograd.grad(energy(leaf), leaf), 1e-9, "gradient")
    stacks = [torch.stack([each, each.flip(0)]) for each in (image, *others)]
    batches = torch.func.vmap(show)(*stacks)
    for index in range(2):
        for value, other in zip(batches, show(*(stack[index] for stack in stacks)), strict=True):
            assert_close(value[index], other, 1e-6, "batch of batches")
    torch.func.vmap(show)(*stacks)
    assert container.transform_matrix.shape == (BATCH, 3, 3)  # of the last call, and no tensor of a transform's
