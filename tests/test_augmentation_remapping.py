"""`RemapLabels` alone, in our container and in kornia's: ids become classes, and nothing else moves."""

import copy
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tritonsoft as ts

K = pytest.importorskip("kornia.augmentation", reason="the augmentations need kornia")
TA = pytest.importorskip("tritonsoft.augmentation")

TABLE = {-1: 255, 7: 0, 8: 1, 33: 2}
KEYS = ["image", "mask", "bbox_xyxy", "keypoints"]


def _inputs():
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([-1, 7, 8, 33, 50])[torch.randint(5, (2, 16, 24), generator=generator)].to(torch.int16)
    image = torch.rand(2, 3, 16, 24, generator=generator)
    box = torch.tensor([[[1.0, 2.0, 5.0, 6.0]]]).repeat(2, 1, 1)
    return image, ids, box, 10 * torch.rand(2, 3, 2, generator=generator)


def _seeded(container, *inputs, **options):
    torch.manual_seed(3)
    return container(*inputs, **options)


class _Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "tritonsoft":
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def _around(*between):
    """A run of modules with others in the middle of it."""
    flip, rotation = TA.RandomHorizontalFlip(p=0.5), TA.RandomRotation(20.0, p=0.7)
    return flip, rotation, *between, TA.RandomResizedCrop((8, 8), num_classes=3)


@pytest.mark.parametrize("modules", [_around, lambda *between: (*between, *_around()), lambda *b: _around(*b)[::-1]])
def test_a_run_around_it_stays_one_resample(modules):
    image, ids, box, keypoints = _inputs()
    ids = ids.clamp(min=0).to(torch.uint8)
    remap = TA.RemapLabels(TABLE)
    if modules(remap)[0] is not remap and modules(remap)[0].num_classes is not None:
        with pytest.raises(ValueError, match="RemapLabels needs ids, got a soft label: it must stand before"):
            _seeded(TA.AugmentationSequential(*modules(remap), data_keys=KEYS), image, ids, box, keypoints)
        return
    container = TA.AugmentationSequential(*modules(remap), data_keys=KEYS)
    plain = TA.AugmentationSequential(*modules(), data_keys=KEYS)
    with _Operators() as operators:
        out = _seeded(container, image, ids, box, keypoints)
    assert [name for name in operators.names if name != "remap_labels"] == ["warp_pair"]
    expected = _seeded(plain, image, ts.remap_labels(ids, TABLE), box, keypoints)
    for ours, wanted in zip(out, expected, strict=True):
        assert torch.equal(ours, wanted)
    assert torch.equal(container.transform_matrix, plain.transform_matrix)
    assert torch.equal(container.matrices, plain.matrices)
    again = container(image, ids, box, keypoints, params=container._params)
    assert all(torch.equal(*pair) for pair in zip(out, again, strict=True))


def test_what_lies_outside_is_not_looked_up():
    image, ids, *_ = _inputs()
    container = TA.AugmentationSequential(
        TA.RandomCrop((16, 24), padding=4),
        TA.RemapLabels({**TABLE, 255: 1}, ignore_index=9),
        data_keys=["image", "mask"],
    )
    _, mask = _seeded(container, image, ids)
    plain = TA.AugmentationSequential(TA.RandomCrop((16, 24), padding=4), data_keys=["image", "mask"])
    _, expected = _seeded(plain, image, ts.remap_labels(ids, TABLE, ignore_index=9).to(torch.int16))
    assert torch.equal(mask, expected)
    assert 255 in mask


@pytest.mark.parametrize("container", [TA.AugmentationSequential, K.AugmentationSequential])
@pytest.mark.parametrize("dtype", [torch.int16, torch.int64, torch.float32, torch.float64], ids=str)
def test_containers(container, dtype):
    image, ids, box, keypoints = _inputs()
    classes = ts.remap_labels(ids, TABLE).to(dtype)
    alone = container(TA.RemapLabels(TABLE), data_keys=KEYS)
    shown, mask, shown_box, shown_keypoints = alone(image, ids.to(dtype), box, keypoints)
    assert torch.equal(shown, image)
    assert torch.equal(mask, classes)
    assert torch.equal(shown_box, box)
    assert torch.equal(shown_keypoints, keypoints)
    assert torch.equal(alone.transform_matrix, torch.eye(3).expand(2, 3, 3))
    pipeline = container(K.RandomHorizontalFlip(p=1.0), TA.RemapLabels(TABLE), data_keys=KEYS)
    _, mask, *_ = pipeline(image, ids.to(dtype), box, keypoints)
    assert mask.dtype == dtype
    assert torch.equal(mask.squeeze(1), classes.flip(2))


def test_inverse_moves_masks_back_and_leaves_them_classes():
    image, ids, *_ = _inputs()
    container = TA.AugmentationSequential(
        TA.RandomHorizontalFlip(p=1.0), TA.RemapLabels(TABLE), data_keys=["image", "mask"]
    )
    back, mask = container.inverse(*container(image, ids))
    assert torch.equal(back, image)
    assert torch.equal(mask.squeeze(1), ts.remap_labels(ids, TABLE).to(torch.int16))


def test_nested_and_listed_and_unbatched():
    image, ids, *_ = _inputs()
    classes = ts.remap_labels(ids, TABLE).to(torch.int16)
    remap = TA.RemapLabels(ts.LabelTable(TABLE))
    nested = TA.AugmentationSequential(
        K.ImageSequential(remap, TA.RandomVerticalFlip(p=1.0)), data_keys=["image", "mask"]
    )
    assert torch.equal(nested(image, ids)[1].squeeze(1), classes.flip(1))
    alone = TA.AugmentationSequential(remap, data_keys=["image", "mask"])
    assert torch.equal(torch.stack(alone(image, list(ids))[1]).view(2, 16, 24), classes)
    one_image, one_mask = alone(image[0], ids[0])
    assert (one_image.shape, one_mask.shape) == ((3, 16, 24), (16, 24))
    assert torch.equal(one_mask, classes[0])


@pytest.mark.parametrize("nested", [lambda module: module, K.ImageSequential])
def test_compact_soft_labels_have_no_ids(nested):
    image, ids, *_ = _inputs()
    sparse = ts.soft_resize(ids.clamp(0, 2), (16, 24), 3, top_k=1, backend="reference")
    container = TA.AugmentationSequential(nested(TA.RemapLabels(TABLE)), data_keys=["image", "mask"])
    with pytest.raises(ValueError, match="RemapLabels needs ids, got a soft label"):
        container(image, sparse)


def test_alone_it_draws_nothing():
    image, ids, *_ = _inputs()
    remap = TA.RemapLabels(torch.tensor([5, 6]))
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(remap(image), image)
    assert torch.equal(torch.rand(1), expected)
    mask = remap.transform_masks(ids.clamp(0, 2), remap._params, remap.flags)
    assert mask.unique().tolist() == [5, 255]
    for other in (copy.deepcopy(remap), pickle.loads(pickle.dumps(remap))):
        assert torch.equal(other.remap(ids), remap.remap(ids))
    assert repr(remap) == (
        "RemapLabels(LabelTable(2 ids from 0 to 1, classes from 5 to 6), ignore_index=255, unknown='ignore')"
    )


def test_bool_masks_and_half_precision():
    mask = torch.tensor([[[True, False]]])
    assert torch.equal(TA.RemapLabels({0: 1, 1: 0}, ignore_index=0).remap(mask), ~mask)
    half = torch.tensor([[[7.0, 8.0, 200.0]]], dtype=torch.bfloat16)
    assert TA.RemapLabels({7: 256, 8: 1}, ignore_index=0).remap(half).tolist() == [[[256.0, 1.0, 0.0]]]


@pytest.mark.parametrize(
    ("table", "options", "mask", "error", "message"),
    [
        ({0: 300}, {"ignore_index": -1}, torch.zeros(1, 2, 2).byte(), ValueError, "mask must have a type .*uint8"),
        (
            {0: 1},
            {},
            torch.zeros(1, 2, 2).bool(),
            ValueError,
            "ignore_index=255, got torch.bool, which goes from 0 to 1",
        ),
        ({0: 257}, {"ignore_index": 0}, torch.zeros(1, 2, 2).bfloat16(), ValueError, "bfloat16, which goes from -256"),
        ({0: 1}, {}, torch.zeros(1, 2, 2, dtype=torch.uint64), TypeError, "uint64"),
        ({0: 1}, {}, torch.full((1, 2, 2), 0.5), ValueError, "mask must hold whole numbers, ids, got 0.5"),
        ({0: 1}, {}, torch.zeros(1, 3, 2, 2).byte(), ValueError, r"mask must be a label map .* got \(1, 3, 2, 2\)"),
        ({0: 1}, {}, torch.zeros(1, 1, 2, 2).as_subclass(TA.SoftLabel), ValueError, "needs ids, got a soft label"),
        ({0: 1}, {"unknown": "error"}, torch.ones(1, 2, 2).byte(), ValueError, "ids that the table has, got 4 others"),
    ],
)
def test_bad_masks(table, options, mask, error, message):
    with pytest.raises(error, match=message):
        TA.RemapLabels(table, **options).remap(mask)


@pytest.mark.parametrize(
    ("table", "options", "error", "message"),
    [
        ({}, {}, ValueError, "at least one id"),
        ([1], {}, TypeError, "mapping"),
        (torch.tensor([0.5]), {}, TypeError, "table must be integers"),
        (torch.tensor([[1]]), {}, TypeError, "table must be integers"),
        ({0: 300}, {}, ValueError, "ignore_index must be given"),
        ({0: 1}, {"unknown": "drop"}, ValueError, "unknown must be"),
    ],
)
def test_bad_constructor_arguments(table, options, error, message):
    with pytest.raises(error, match=message):
        TA.RemapLabels(table, **options)
