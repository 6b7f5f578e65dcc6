"""Augmentations with ``top_k``: a few classes of each pixel of the label that they would make without it."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.cases import assert_close

K = pytest.importorskip("kornia.augmentation", reason="the augmentations need kornia")

import tritonsoft as ts  # noqa: E402
import tritonsoft.augmentation as TA  # noqa: E402

BATCH, HEIGHT, WIDTH, CLASSES, TOP_K = 2, 24, 40, 300, 3
SIZE = (HEIGHT, WIDTH)
KEPT = {"num_classes": CLASSES, "ignore_index": -1, "top_k": TOP_K}
ALL = {**KEPT, "top_k": None}
TOLERANCE = 2e-5  # float32 sums of a few dozen taps of values in [0, 1]

pytestmark = pytest.mark.filterwarnings("ignore:Default grid_sample and affine_grid behavior")  # kornia's elastic


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def image():
    return torch.rand(BATCH, 3, *SIZE)


@pytest.fixture
def labels():
    """Blobs of a few classes with noise and ignored pixels in them, int16 ``(B, H, W)``."""
    blobs = torch.randint(CLASSES, (BATCH, HEIGHT // 4, WIDTH // 4)).repeat_interleave(4, 1).repeat_interleave(4, 2)
    noisy = torch.where(torch.rand(blobs.shape) < 0.2, torch.randint(CLASSES, blobs.shape), blobs)
    return noisy.masked_fill(torch.rand(blobs.shape) < 0.1, -1).to(torch.int16)


def augment(*modules, **options):
    return TA.AugmentationSequential(*modules, data_keys=["image", "mask"], **options)


def assert_largest(sparse, dense, k=TOP_K, tolerance=TOLERANCE):
    """That a label holds the k largest masses of a dense one, whichever of masses that rounding makes equal."""
    assert isinstance(sparse, ts.SparseLabels)
    assert (tuple(sparse.shape), sparse.k) == (tuple(dense.shape), k)
    dense = dense.double()
    mass = sparse.mass.double()
    assert_close(mass, dense.topk(k, dim=1).values, tolerance, "largest masses")
    assert_close(mass, dense.gather(1, sparse.index.long()).where(mass > 0, 0.0), tolerance, "masses of the classes")
    assert_close(sparse.rest, dense.sum(1) - mass.sum(1), CLASSES * 1e-6 + tolerance, "rest")


MODULES = {
    "CenterCrop": lambda **options: TA.CenterCrop((16, 20), **options),
    "RandomAffine": lambda **options: TA.RandomAffine(20.0, scale=(0.5, 2.0), p=1.0, **options),
    "RandomCrop": lambda **options: TA.RandomCrop((16, 50), pad_if_needed=True, padding=3, **options),
    "RandomCrop, reflected": lambda **options: TA.RandomCrop((20, 30), padding=4, padding_mode="reflect", **options),
    "RandomElasticTransform": lambda **options: TA.RandomElasticTransform((9, 9), (3.0, 3.0), p=1.0, **options),
    "RandomHorizontalFlip": lambda **options: TA.RandomHorizontalFlip(**options),
    "RandomPerspective": lambda **options: TA.RandomPerspective(0.4, p=1.0, **options),
    "RandomResizedCrop": lambda **options: TA.RandomResizedCrop((10, 14), **options),
    "RandomRotation": lambda **options: TA.RandomRotation(30.0, p=1.0, **options),
    "RandomScaleCrop": lambda **options: TA.RandomScaleCrop((20, 30), (0.3, 2.0), **options),
    "RandomShear": lambda **options: TA.RandomShear(20.0, p=1.0, **options),
    "RandomTranslate": lambda **options: TA.RandomTranslate((-0.3, 0.3), (-0.3, 0.3), p=1.0, **options),
    "RandomVerticalFlip": lambda **options: TA.RandomVerticalFlip(**options),
    "Resize": lambda **options: TA.Resize((7, 11), **options),
    "skipped": lambda **options: TA.RandomResizedCrop((10, 14), p=0.0, **options),
}


@pytest.mark.parametrize("name", MODULES)
def test_every_module_keeps_the_largest_classes(image, labels, name):
    """Alone and in a container; what it does to the image is what it does without."""
    some, every = MODULES[name](**KEPT), MODULES[name](**ALL)
    shown = some(image)
    dense = every.transform_masks(labels, some._params, some.flags)
    assert_largest(some.transform_masks(labels, some._params, some.flags), dense)
    assert torch.equal(every(image, params=some._params), shown)
    container, dense_container = augment(some), augment(every)
    both = container(image, labels)
    expected = dense_container(image, labels, params=container._params)
    assert_close(both[0], expected[0], TOLERANCE, "image")
    assert_largest(both[1], expected[1])
    again = container(image, labels, params=container._params)
    assert torch.equal(again[1].mass, both[1].mass)


CHAINS = {
    "boxes": lambda **o: [TA.RandomScaleCrop((20, 30), **o), TA.RandomHorizontalFlip(), TA.Resize((9, 13))],
    "matrices": lambda **o: [TA.RandomRotation(20.0), TA.RandomPerspective(0.3), TA.RandomResizedCrop((10, 14), **o)],
    "field": lambda **o: [TA.RandomHorizontalFlip(**o), TA.RandomElasticTransform((9, 9), (3.0, 3.0), p=1.0)],
    "nested": lambda **o: [
        K.ImageSequential(TA.RandomVerticalFlip()),
        TA.AugmentationSequential(TA.RandomCrop((16, 20)), TA.Resize((8, 10), **o)),
    ],
    "ids": lambda **o: [
        TA.RandomCrop((16, 20)),
        TA.RemapLabels({5: 7, 7: 5, 0: 3}, ignore_index=-1),
        TA.Resize(9, **o),
    ],
    "moved after": lambda **o: [
        TA.RandomResizedCrop((20, 30), **o),
        K.ColorJiggle(0.2, 0.2, 0.2, 0.1),
        TA.RandomHorizontalFlip(**o),
        TA.CenterCrop((10, 14)),
    ],
}


@pytest.mark.parametrize("options", [{}, {"random_apply": 2}, {"same_on_batch": True}], ids=str)
@pytest.mark.parametrize("name", CHAINS)
def test_a_run_keeps_the_largest_classes_of_its_one_resample(image, labels, name, options):
    if "random_apply" in options and name in ("ids", "moved after"):
        pytest.skip("kornia puts the modules in another order, which these do not take")
    container, dense_container = augment(*CHAINS[name](**KEPT), **options), augment(*CHAINS[name](**ALL), **options)
    shown, sparse = container(image, labels)
    expected_image, dense = dense_container(image, labels, params=container._params)
    assert_close(shown, expected_image, TOLERANCE, "image")
    if dense.shape[1] == 1:  # the member with num_classes was not drawn
        assert torch.equal(sparse, dense)
    else:
        assert_largest(sparse, dense)
    again = container(labels, data_keys=["mask"], params=container._params)
    assert torch.equal(getattr(again, "mass", again), getattr(sparse, "mass", sparse))


class _Largest(TorchDispatchMode):
    """The operators of tritonsoft that run, and the elements of the largest tensor that any operator makes."""

    def __init__(self):
        super().__init__()
        self.elements, self.names = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.elements = max(self.elements, *[leaf.numel() for leaf in tree_leaves(out) if hasattr(leaf, "numel")], 0)
        if func.namespace == "tritonsoft":
            self.names.append(func.overloadpacket.__name__)
        return out


def test_no_dense_label_is_made(image, labels):
    container = augment(TA.RandomScaleCrop((20, 30), **KEPT), TA.RandomHorizontalFlip(p=1.0))
    with _Largest() as record:
        container(image, labels)
    assert record.names == ["crop_resize", "soft_crop_resize_top"]
    assert record.elements <= image.numel()
    container = augment(TA.RandomRotation(20.0, p=1.0, **KEPT), TA.RandomHorizontalFlip(p=1.0))
    with _Largest() as record:
        container(image, labels)
    assert record.names == ["warp", "soft_warp_top"]
    assert record.elements <= image.numel()


# --- over modules that leave masks alone ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "colours",
    [K.ColorJiggle(0.2, 0.2, 0.2, 0.1, p=1.0), K.Normalize(0.5, 0.5, keepdim=True), nn.Identity()],
    ids=lambda module: type(module).__name__,
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_label_map_waits_over_what_leaves_masks_alone(image, labels, colours, nested):
    """It is resampled once, as if the colours were not changed between; the image is, where they are."""
    first = [TA.RandomResizedCrop((20, 30), **KEPT), TA.RandomHorizontalFlip()]
    last = [TA.RandomResizedCrop((10, 14), **KEPT), TA.RandomVerticalFlip()]
    middle = K.ImageSequential(colours) if nested else colours
    container = augment(*first, middle, *last)
    with _Largest() as record:
        shown, sparse = container(image, labels)
    assert record.names.count("soft_crop_resize_top") == 1
    kept = [param for param in container._params if "Random" in param.name]
    boxes_only = augment(*first, *last)
    expected = boxes_only(labels, data_keys=["mask"], params=_renamed([*first, *last], kept))
    assert torch.equal(sparse.index, expected.index)
    assert torch.equal(sparse.mass, expected.mass)
    halves = augment(*first, middle)(image, params=container._params[:3], data_keys=["image"])
    assert torch.equal(augment(*last)(halves, params=_renamed(last, container._params[3:]), data_keys=["image"]), shown)


def _renamed(modules, params):
    return [
        type(param)(f"{type(module).__name__}_{index}", param.data)
        for index, (module, param) in enumerate(zip(modules, params, strict=True))
    ]


@pytest.mark.parametrize(
    "after",
    [
        lambda: TA.RandomScaleCrop((10, 14)),
        lambda: TA.RandomRotation(20.0),
        lambda: TA.RandomCrop((10, 14), padding=2),
        lambda: TA.Resize((10, 14), filter="triangle"),
        lambda: K.RandomAffine(20.0),
        lambda: K.RandomHorizontalFlip(),
    ],
    ids=["RandomScaleCrop", "RandomRotation", "RandomCrop", "filter", "kornia's RandomAffine", "kornia's flip"],
)
def test_what_would_show_more_than_the_image_has_is_refused(image, labels, after):
    """The crop before the colours has cut the image for good: padding must not bring back the label map's pixels."""
    container = augment(TA.RandomResizedCrop((20, 30), **KEPT), K.ColorJiggle(0.1, 0.1, 0.1, 0.1), after())
    if isinstance(container[2], TA.RandomCrop):  # which moves whole pixels
        assert container(image, labels)[1].shape == (BATCH, CLASSES, 10, 14)
        return
    with pytest.raises(TypeError, match="top_k resample a label map once: put those that resample or pad side by side"):
        container(image, labels)


def test_a_warp_after_a_flip_and_colours_pads_nothing_that_is_lost(image, labels):
    container = augment(TA.RandomHorizontalFlip(p=1.0, **KEPT), K.Normalize(0.5, 0.5), TA.RandomRotation(20.0, p=1.0))
    sparse = container(image, labels)[1]
    turned = augment(TA.RandomRotation(20.0, p=1.0, **ALL))
    expected = turned(labels.flip(-1), data_keys=["mask"], params=_renamed([turned[0]], container._params[2:]))
    assert_largest(sparse, expected)


def test_colours_may_end_the_run_of_a_label_map(image, labels):
    crop = TA.RandomResizedCrop((20, 30), **KEPT)
    for last in ([], [K.ImageSequential(K.RandomBrightness(p=1.0))], [nn.Identity(), K.RandomGaussianNoise(p=1.0)]):
        container = augment(crop, K.ColorJiggle(0.2, 0.2, 0.2, 0.1), *last)
        shown, sparse = container(image, labels)
        expected = augment(crop)(labels, data_keys=["mask"], params=container._params[:1])
        assert torch.equal(sparse.mass, expected.mass)
        assert shown.shape[2:] == sparse.shape[2:]


# --- masks of every kind ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint16, torch.int32, torch.int64, torch.float32, torch.float64])
def test_label_maps_of_every_type(image, labels, dtype):
    options = {**KEPT, "ignore_index": 777}
    labels = labels.masked_fill(labels == -1, 777).to(dtype)
    container = augment(TA.RandomScaleCrop((20, 30), **options), TA.RandomHorizontalFlip())
    for given in (labels, labels[:, None]):
        _, sparse = container(image, given)
        assert sparse.dtype == torch.float32
        assert sparse.index.dtype == torch.int16
        expected = container(image, labels.int(), params=container._params)[1]
        assert torch.equal(sparse.index, expected.index)
        assert torch.equal(sparse.mass, expected.mass)


@pytest.mark.parametrize("soft_dtype", [None, torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("module", ["RandomRotation", "RandomResizedCrop", "RandomCrop, reflected"])
def test_masses_have_the_soft_dtype(image, labels, module, soft_dtype):
    container = augment(MODULES[module](**KEPT), soft_dtype=soft_dtype)
    _, sparse = container(image.double(), labels)
    assert sparse.dtype == (soft_dtype or torch.float32)
    few = (labels % 5).half()
    options = {"num_classes": 5, "top_k": 2}
    assert augment(MODULES[module](**options), soft_dtype=soft_dtype)(image, few)[1].dtype == torch.float16
    alone = MODULES[module](**options)
    alone(image)
    assert alone.transform_masks(few, alone._params, alone.flags).dtype == torch.float16
    assert alone.transform_masks(few.double(), alone._params, alone.flags).dtype == torch.float32


@pytest.mark.parametrize("layout", ["transposed", "stepped", "window"])
def test_label_maps_of_every_layout(image, labels, layout):
    given = {
        "transposed": lambda: labels.mT.contiguous().mT,
        "stepped": lambda: labels.repeat_interleave(2, 2)[:, :, ::2],
        "window": lambda: torch.nn.functional.pad(labels, (1, 4, 2, 1))[:, 2 : 2 + HEIGHT, 1 : 1 + WIDTH],
    }[layout]()
    container = augment(TA.RandomScaleCrop((20, 30), **KEPT))
    expected = container(image, labels)[1]
    sparse = container(image.to(memory_format=torch.channels_last), given, params=container._params)[1]
    assert torch.equal(sparse.index, expected.index)
    assert torch.equal(sparse.mass, expected.mass)


def test_sparse_labels_that_come_in_keep_their_classes(image, labels):
    sparse = ts.soft_crop_resize(labels, None, SIZE, CLASSES, ignore_index=-1, top_k=2)
    container = augment(TA.RandomHorizontalFlip(p=1.0, **KEPT), TA.CenterCrop((10, 14), **KEPT))
    moved = container(image, sparse)[1]
    assert torch.equal(moved.index, sparse.flip(-1).crop(7, 13, 10, 14).index)


def test_ranks_and_single_samples(image, labels):
    for keepdim, shape in ((False, (1, CLASSES, 7, 11)), (True, (CLASSES, 7, 11))):
        container = augment(TA.Resize((7, 11), keepdim=keepdim, **KEPT), keepdim=keepdim)
        for mask in (labels[0], labels[:1]):
            shown, sparse = container(image[0], mask)
            assert sparse.shape == shape
            assert shown.ndim == sparse.ndim
        alone = TA.Resize((7, 11), keepdim=keepdim, **KEPT)
        alone(image[:1])
        assert alone.transform_masks(labels[0], alone._params, alone.flags).shape == shape
        assert alone.transform_masks(labels[:1, None], alone._params, alone.flags).shape == (1, *shape[-3:])
    container = augment(TA.Resize((7, 11), keepdim=True, **KEPT), keepdim=True)
    assert container(image, labels)[1].shape == (BATCH, CLASSES, 7, 11)
    named = TA.AugmentationSequential(TA.Resize((7, 11), **KEPT), data_keys=None)({"image": image, "mask": labels})
    assert named["mask"].shape == (BATCH, CLASSES, 7, 11)


@pytest.mark.parametrize("name", ["boxes", "field", "moved after"])
def test_an_empty_batch(name):
    container = augment(*CHAINS[name](**KEPT))
    shown, sparse = container(torch.rand(0, 3, *SIZE), torch.zeros(0, *SIZE, dtype=torch.int16))
    assert sparse.shape == (0, CLASSES, *shown.shape[2:])
    assert sparse.k == TOP_K


def test_an_inverse_takes_whole_pixels_and_label_maps(image, labels):
    container = augment(TA.RandomHorizontalFlip(p=1.0, **KEPT), TA.RandomCrop((16, 20), **KEPT))
    shown, sparse = container(image, labels)
    back = container.inverse(shown, sparse)[1]
    assert back.shape == (BATCH, CLASSES, *SIZE)
    inside = back.mass.sum(1) + back.rest > 0
    assert_largest(
        back, ts.to_soft(labels.masked_fill(~inside, -1), CLASSES, ignore_index=-1).masked_fill(~inside[:, None], 0.0)
    )
    hard = sparse.argmax(ignore_index=-1)
    assert container.inverse(shown, hard)[1].dtype == hard.dtype
    container = augment(TA.RandomResizedCrop((10, 14), **KEPT))
    with pytest.raises(TypeError, match="RandomResizedCrop of tritonsoft, got SparseLabels"):
        container.inverse(*container(image, labels))


def test_one_class(image, labels):
    container = augment(TA.RandomResizedCrop((10, 14), num_classes=1, top_k=1), TA.RandomHorizontalFlip())
    _, sparse = container(image, torch.where(labels < 0, 255, 0))
    assert sparse.shape == (BATCH, 1, 10, 14)
    assert container(image, sparse.crop(0, 0, 10, 14).to_dense().flatten(1).new_zeros(BATCH, *SIZE).long())[1].k == 1


def test_losses_take_what_comes_out(image, labels):
    _, sparse = augment(TA.RandomScaleCrop((20, 30), **KEPT))(image, labels)
    logits = torch.randn(BATCH, CLASSES, 20, 30)
    assert_close(
        ts.soft_cross_entropy(logits, sparse), ts.soft_cross_entropy(logits, sparse.to_dense()), TOLERANCE, "loss"
    )


def test_copies_and_what_is_printed(image, labels):
    container = augment(TA.RandomResizedCrop((10, 14), **KEPT))
    for twin in (copy.deepcopy(container), pickle.loads(pickle.dumps(container))):
        assert isinstance(twin(image, labels)[1], ts.SparseLabels)
    assert repr(container[0]).endswith(f"top_k={TOP_K})")
    assert "top_k" not in repr(TA.RandomResizedCrop((10, 14)))


def test_compiles_to_one_graph(image, labels):
    container = augment(TA.RandomRotation(20.0), TA.RandomResizedCrop((10, 14), **KEPT), TA.RandomHorizontalFlip())

    def step(image, labels):
        return container(image, labels)

    _, sparse = torch.compile(step, fullgraph=True, backend="aot_eager")(image, labels)
    assert isinstance(sparse, ts.SparseLabels)
    assert sparse.shape == (BATCH, CLASSES, 10, 14)
    total = sparse.mass.sum(1) + sparse.rest
    assert 0 < total.max() <= 1 + TOLERANCE


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"top_k": 4}, ValueError, r"top_k must be None where num_classes is, got 4"),
        ({"num_classes": 3, "top_k": 4}, ValueError, r"top_k must lie in 1..3 \(num_classes=3\), got 4"),
        ({"num_classes": 3, "top_k": 0}, ValueError, r"top_k must lie in 1..3 \(num_classes=3\), got 0"),
        ({"num_classes": 3, "top_k": 2.0}, TypeError, r"top_k must be an int, got float"),
        ({"num_classes": 3, "top_k": True}, TypeError, r"top_k must be an int, got bool"),
        (
            {"num_classes": 40_000, "ignore_index": -1, "top_k": 2},
            ValueError,
            r"num_classes must be at most 32768 in a SparseLabels, got 40000",
        ),
        ({"num_classes": 3, "top_k": 2, "filter": None}, ValueError, r"num_classes must be None with it"),
    ],
)
@pytest.mark.parametrize("make", [TA.RandomHorizontalFlip, lambda **o: TA.RandomRotation(20.0, **o)])
def test_bad_options_of_a_module(make, options, error, words):
    with pytest.raises(error, match=words):
        make(**options)


def test_modules_must_agree():
    with pytest.raises(ValueError, match=r"top_k must be the same in all modules .* got \[3, None\]"):
        augment(TA.RandomHorizontalFlip(**KEPT), TA.Resize((10, 14), **ALL))
    with pytest.raises(ValueError, match=r"top_k must be the same in all modules .* got \[2, 3\]"):
        augment(TA.RandomHorizontalFlip(**KEPT), K.ImageSequential(TA.Resize((10, 14), **{**KEPT, "top_k": 2})))


def test_masses_are_never_float64():
    with pytest.raises(TypeError, match=r"soft_dtype must be float16, bfloat16 or float32 for .*top_k, got .*float64"):
        augment(TA.RandomHorizontalFlip(**KEPT), soft_dtype=torch.float64)


@pytest.mark.parametrize("name", ["RandomResizedCrop", "RandomCrop, reflected"])
def test_bad_masks(image, labels, name):
    container = augment(MODULES[name](**KEPT))
    soft = torch.rand(BATCH, CLASSES, *SIZE)
    with pytest.raises(ValueError, match=r"mask must be a label map or a SparseLabels .* top_k=3, got a soft label"):
        container(image, soft)
    with pytest.raises(TypeError, match=r"mask must be one tensor for modules with top_k=3, got a list"):
        container(image, list(labels))
    module = container[0]
    module(image)
    with pytest.raises(ValueError, match=r"mask must be a label map or a SparseLabels .* top_k=3, got a soft label"):
        module.transform_masks(soft, module._params, module.flags)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.299 .* from 300 to 300"):
        container(image, labels.masked_fill(labels == -1, CLASSES))
    assert container(image, labels)[1].k == TOP_K


def test_videos_are_refused(labels):
    container = TA.AugmentationSequential(
        K.VideoSequential(TA.RandomHorizontalFlip(**KEPT), data_format="BTCHW"), data_keys=["image", "mask"]
    )
    with pytest.raises(TypeError, match=r"top_k must be None in the modules of a VideoSequential, got 3"):
        container(torch.rand(BATCH, 2, 3, *SIZE), labels[:, None, None].expand(-1, 2, -1, -1, -1))


def test_kornia_s_container_is_told_apart(labels):
    container = K.AugmentationSequential(TA.Resize((7, 11), **KEPT), data_keys=["input", "mask"])
    image, labels = torch.rand(BATCH, 3, *SIZE), labels[:, None].clamp(min=0)
    assert isinstance(container(image, labels.float())[1], ts.SparseLabels)
    with pytest.raises(TypeError, match="kornia's AugmentationSequential casts masks back"):
        container(image, labels)
