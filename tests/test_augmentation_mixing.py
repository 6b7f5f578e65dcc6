"""`RandomCutMix`, `RandomMixUp` and `RandomClassMix`: alone, in our container and in kornia's.

The oracles are written by hand: a loop over samples and classes that reads the drawn parameters.
"""

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

import tritonsoft as ts
from tests.cases import RefusesUnsigned, records_in_graphs

K = pytest.importorskip("kornia.augmentation", reason="the augmentations need kornia")
TA = pytest.importorskip("tritonsoft.augmentation")

BATCH, HEIGHT, WIDTH, CLASSES = 4, 24, 40, 5
ROUNDING = 4 * torch.finfo(torch.float32).eps  # a product and a sum of numbers up to 1, and the same of the oracle


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def labels():
    """Blobs of five classes with ignored pixels in them, uint8 ``(B, H, W)``."""
    blobs = torch.randint(CLASSES, (BATCH, HEIGHT // 4, WIDTH // 4)).repeat_interleave(4, 1).repeat_interleave(4, 2)
    return blobs.masked_fill(torch.rand(blobs.shape) < 0.1, 255).to(torch.uint8)


@pytest.fixture
def image():
    return torch.rand(BATCH, 3, HEIGHT, WIDTH)


def augment(*modules, keys=("input", "mask"), **options):
    return TA.AugmentationSequential(*modules, data_keys=list(keys), **options)


def seeded(module, *args, seed=3, **kwargs):
    torch.manual_seed(seed)
    return module(*args, **kwargs)


def every_mix(**options):
    return [
        TA.RandomCutMix(**options),
        TA.RandomMixUp(num_classes=CLASSES, **options),
        TA.RandomClassMix(CLASSES, **options),
    ]


MIXES = pytest.mark.parametrize("index", range(3), ids=["cut", "mixup", "class"])


def pictures_of(labels: Tensor, dtype=torch.float32) -> Tensor:
    """Images that show their labels: one plane for each class, of ignored pixels none."""
    return ts.to_soft(labels, CLASSES, dtype=dtype)


def box_of(params, sample):
    side = math.sqrt(params["area"][sample].item())
    height, width = round(side * HEIGHT), round(side * WIDTH)
    y0 = math.floor(params["down"][sample].item() * (HEIGHT - height + 1))
    x0 = math.floor(params["across"][sample].item() * (WIDTH - width + 1))
    return slice(y0, y0 + height), slice(x0, x0 + width)


def selected_by_hand(mix, params, labels) -> Tensor:
    """The pixels ``(B, H, W)`` that are pasted, by loops."""
    selected = torch.zeros(labels.shape, dtype=torch.bool)
    for sample, partner in enumerate(params["mix_pairs"].tolist()):
        if params["batch_prob"][sample] < 0.5:
            continue
        if isinstance(mix, TA.RandomCutMix):
            selected[sample][box_of(params, sample)] = True
            continue
        there = [c for c in range(CLASSES) if (labels[partner] == c).any()]
        by_order = sorted(there, key=lambda c: params["class_order"][sample, c].item())
        for chosen in by_order[: max(1, math.floor(len(there) / 2 + 0.5))]:
            selected[sample] |= labels[partner] == chosen
    return selected


# --- whole pixels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [TA.RandomCutMix, TA.RandomClassMix])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64])
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_whole_pixels_of_any_type_are_pasted_as_by_hand(module, dtype, p, image, labels):
    mix = module(p=p) if module is TA.RandomCutMix else module(CLASSES, p=p)
    with RefusesUnsigned():
        shown, mixed = mix(image, labels.to(dtype))
    params = mix._params
    selected, partners = selected_by_hand(mix, params, labels), params["mix_pairs"]
    assert mixed.dtype == dtype
    assert torch.equal(mixed[:, 0].long(), torch.where(selected, labels[partners], labels).long())
    assert torch.equal(shown, torch.where(selected[:, None], image[partners], image))
    assert selected.any() == (p > 0)


@pytest.mark.parametrize("module", [TA.RandomCutMix, TA.RandomClassMix])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_images_keep_their_type_and_their_memory_format(module, channels_last, dtype, labels):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    image = (200 * torch.rand(BATCH, 3, HEIGHT, WIDTH)).to(dtype).contiguous(memory_format=layout)
    mix = module() if module is TA.RandomCutMix else module(CLASSES)
    shown, _ = mix(image, labels)
    assert shown.dtype == dtype
    assert shown.stride() == image.stride()
    selected = selected_by_hand(mix, mix._params, labels)
    assert torch.equal(shown, torch.where(selected[:, None], image[mix._params["mix_pairs"]], image))


def test_a_sparse_label_is_cut_like_its_dense_one(image, labels):
    sparse = ts.soft_resize(labels, (HEIGHT, WIDTH), CLASSES, top_k=2)
    mix = TA.RandomCutMix()
    _, dense = mix(image, sparse.to_dense())
    container = augment(mix)
    _, mixed = container(image, sparse, params=[K.container.params.ParamItem("RandomCutMix_0", mix._params)])
    assert torch.equal(mixed.to_dense(), dense)
    for other in every_mix()[1:]:
        with pytest.raises(TypeError, match=f"for {type(other).__name__}.*SparseLabels.*to_dense"):
            augment(other)(image, sparse)


# --- masses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_blended_masses_and_colours_are_as_by_hand(dtype, labels):
    rounding = 4 * torch.finfo(dtype).eps
    image, soft = pictures_of(labels, dtype), ts.soft_resize(labels, (HEIGHT, WIDTH), CLASSES, dtype=dtype)
    mix = TA.RandomMixUp(alpha=0.4, p=0.5, num_classes=CLASSES)
    shown, mixed = mix(image, soft)
    params = mix._params
    weight = (params["weight"] * params["batch_prob"]).to(torch.float64)[:, None, None, None]
    wanted = (1 - weight) * soft.double() + weight * soft[params["mix_pairs"]].double()
    assert mixed.dtype == dtype
    torch.testing.assert_close(mixed.double(), wanted, rtol=0, atol=rounding)
    torch.testing.assert_close(shown.double(), mixed.double(), rtol=0, atol=rounding)


@pytest.mark.parametrize("of_floats", [False, True])
def test_a_label_map_that_is_blended_becomes_its_one_hot_mass(of_floats, image, labels):
    mix = TA.RandomMixUp(num_classes=CLASSES)
    _, soft = mix(image, labels.float() if of_floats else labels)
    again = mix(pictures_of(labels), data_keys=["mask"], params=mix._params)
    assert torch.equal(soft, again)
    weight, partners = mix._params["weight"], mix._params["mix_pairs"]
    known = (labels != 255).double()
    mass = (1 - weight[:, None, None]) * known + weight[:, None, None] * known[partners]
    torch.testing.assert_close(soft.sum(1).double(), mass, rtol=0, atol=ROUNDING)


def test_a_soft_label_gets_the_chosen_masses_and_gives_up_as_much(labels):
    soft = ts.soft_resize(labels, (HEIGHT // 3, WIDTH // 3), CLASSES)
    mix = TA.RandomClassMix(CLASSES)
    shown, mixed = mix(soft, soft)  # the image shows the masses
    chosen, partners = mix._params["classes"], mix._params["mix_pairs"]
    theirs = soft[partners].double() * chosen[:, :, None, None]
    pasted = theirs.sum(1, keepdim=True)
    torch.testing.assert_close(mixed.double(), theirs + (1 - pasted) * soft, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(
        shown.double(), pasted * soft[partners] + (1 - pasted) * soft, rtol=0, atol=ROUNDING
    )  # colours of mixed pixels, of all that the partner's pixel shows
    assert (mixed.sum(1) <= 1 + ROUNDING).all()
    assert (mixed >= 0).all()
    assert (chosen.sum(1) == 3).all()  # of five


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_one_hot_masses_are_pasted_like_label_maps(dtype, labels):
    """Where no footprint is shared, linearity is pasting: to the bit."""
    mix = TA.RandomClassMix(CLASSES)
    image = torch.rand(BATCH, 3, HEIGHT, WIDTH)
    shown, hard = mix(image, labels)
    params = mix._params
    soft_shown, soft = mix(image, pictures_of(labels, dtype), params=params)
    assert torch.equal(soft, pictures_of(hard[:, 0], dtype))
    torch.testing.assert_close(soft_shown, shown, rtol=0, atol=ROUNDING)
    del params["classes"]
    mix(image, pictures_of(labels, dtype), params=params)
    assert (params["classes"].sum(1) == 3).all()


def test_ignored_pixels_are_never_pasted_by_class_and_always_by_box(labels):
    labels[:] = 255
    labels[0, :4] = 2
    for dtype in (torch.uint8, torch.float32):
        masks = labels if dtype == torch.uint8 else pictures_of(labels)
        mix = TA.RandomClassMix(CLASSES)
        image = torch.rand(BATCH, 3, HEIGHT, WIDTH)
        shown, mixed = mix(image, masks)
        for sample, partner in enumerate(mix._params["mix_pairs"].tolist()):
            if partner != 0:
                assert torch.equal(shown[sample], image[sample])
                assert torch.equal(mixed[sample], masks.reshape(mixed.shape)[sample])
    _, mixed = TA.RandomCutMix(area=(1.0, 1.0))(image, labels)
    assert (mixed[0] == 255).all()


# --- what is drawn ---------------------------------------------------------------------------------------------------


def test_partners_are_others_and_all_alike():
    mix, counts = TA.RandomCutMix(), torch.zeros(5, 5)
    for _ in range(2000):
        partners = mix.forward_parameters((5, 3, 8, 8))["mix_pairs"]
        assert sorted(partners.tolist()) == list(range(5))
        counts[torch.arange(5), partners] += 1
    assert (counts.diagonal() == 0).all()
    expected = 2000 / 4
    deviation = math.sqrt(2000 * 0.25 * 0.75)
    assert ((counts - expected).abs()[~torch.eye(5, dtype=torch.bool)] < 5 * deviation).all()


@pytest.mark.parametrize(("alpha", "area"), [(1.0, (0.0, 1.0)), (1.0, (0.25, 0.75)), (0.3, (0.0, 1.0)), (8.0, (0, 1))])
def test_areas_are_distributed_as_they_say(alpha, area):
    count = 4000
    mix = TA.RandomCutMix(alpha=alpha, area=area)
    params = mix.forward_parameters((count, 3, 100, 100))
    x0, y0, x1, y1 = TA.mixing_generators.boxes_of(params, (100, 200)).double().unbind(1)
    assert (x0 >= 0).all()
    assert (y0 >= 0).all()
    assert (x1 <= 200).all()
    assert (y1 <= 100).all()
    shares = (x1 - x0) * (y1 - y0) / (100 * 200)
    spread = area[1] - area[0]
    mean, variance = (area[0] + area[1]) / 2, spread**2 / (4 * (2 * alpha + 1))
    rounding = 0.01  # sides are rounded by half a pixel of 100
    assert abs(shares.mean() - mean) < 5 * math.sqrt(variance / count) + rounding
    assert abs(shares.var() - variance) < 0.1 * variance + rounding**2
    middle = ((x0 + x1) / 2).mean() / 200  # anywhere: the middle is the mean
    assert abs(middle - 0.5) < 5 * 0.5 / math.sqrt(count)


def test_classes_are_chosen_alike_and_as_many_as_asked_for():
    labels = torch.tensor([0, 1, 2, 4, 4, 255]).repeat(2, 1, 1)
    counts = torch.zeros(CLASSES)
    mix = TA.RandomClassMix(CLASSES)
    for _ in range(1000):
        mix(labels[:, None].float(), labels)
        assert (mix._params["classes"].sum(1) == 2).all()
        counts += mix._params["classes"].sum(0)
    assert counts[3] == 0
    deviation = math.sqrt(2000 * 0.25)
    assert ((counts[[0, 1, 2, 4]] - 1000).abs() < 5 * deviation).all()
    for share, wanted in ((0.01, 1), (0.3, 1), (0.4, 2), (0.9, 4), (1.0, 4)):
        mix = TA.RandomClassMix(CLASSES, share=share)
        mix(labels[:, None].float(), labels)
        assert (mix._params["classes"].sum(1) == wanted).all()


@MIXES
def test_same_on_batch_shares_the_numbers(index, image, labels):
    mix = every_mix(same_on_batch=True)[index]
    mix(image, labels)
    drawn = {name: value for name, value in mix._params.items() if name in ("area", "across", "down", "weight")}
    drawn["order"] = mix._params.get("class_order", torch.zeros(BATCH, 1))
    assert all(torch.equal(value, value[:1].expand_as(value)) for value in drawn.values())


# --- in a container --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 2], ids=["cut", "class"])
def test_before_the_resample_it_is_mixing_by_hand_and_one_resample_after(index, image, labels):
    mix = every_mix()[index]
    rest = [TA.RandomHorizontalFlip(p=0.5), TA.RandomResizedCrop((12, 20), num_classes=CLASSES), TA.RandomRotation(9.0)]
    container, after = augment(mix, *rest), augment(*rest)
    shown, soft = container(image, labels)
    params = container._params
    by_hand = mix(image, labels, params=dict(params[0].data))
    names = [name for name, _ in after.named_children()]
    wanted = after(*by_hand, params=[item._replace(name=name) for item, name in zip(params[1:], names, strict=True)])
    assert torch.equal(shown, wanted[0])
    assert torch.equal(soft, wanted[1])


@MIXES
def test_image_and_label_agree_after_mixing_and_a_crop_in_any_order(index, labels):
    """The image shows its labels, so that it must be its soft label in the end.

    Of what `RandomClassMix` pastes of a shared pixel the image shows all of its partner's colour.
    """
    image = pictures_of(labels)
    for modules in ([0, 1], [1, 0]):
        if index == 2 and modules == [1, 0]:
            continue
        pair = every_mix()[index], TA.RandomResizedCrop((11, 17), num_classes=CLASSES)
        shown, soft = augment(*(pair[k] for k in modules))(image, labels)
        assert soft.shape == (BATCH, CLASSES, 11, 17)
        torch.testing.assert_close(shown, soft, rtol=0, atol=2e-5)  # of sums over some dozen taps


@MIXES
@pytest.mark.parametrize("mixes_first", [True, False])
def test_parameters_replay_to_the_bit_on_other_data_too(index, mixes_first, image, labels):
    modules = [every_mix()[index], TA.RandomResizedCrop((12, 20), num_classes=CLASSES)]
    container = augment(*modules if mixes_first else modules[::-1])
    out = container(image, labels)
    params = copy.deepcopy(container._params)
    for value, again in zip(out, container(image, labels, params=params), strict=True):
        assert torch.equal(value, again)
    other = container(1 - image, labels.roll(1, 1), params=params)
    assert not torch.equal(other[1], out[1])
    if index == 2:
        place = 0 if mixes_first else 1
        assert torch.equal(container._params[place].data["classes"], params[place].data["classes"])


def test_num_classes_are_those_of_the_container(image, labels):
    crop = TA.RandomResizedCrop((12, 20), num_classes=CLASSES)
    _, soft = augment(TA.RandomMixUp(), crop)(image, labels)
    assert soft.shape == (BATCH, CLASSES, 12, 20)
    with pytest.raises(ValueError, match="num_classes must be given to RandomMixUp, or to a module of its container"):
        augment(TA.RandomMixUp())(image, labels)
    with pytest.raises(ValueError, match="num_classes must be the same in all modules"):
        augment(TA.RandomClassMix(4), crop)
    _, soft = augment(TA.RandomMixUp(num_classes=CLASSES), soft_dtype=torch.float16)(image, labels)
    assert soft.dtype == torch.float16
    with pytest.raises(ValueError, match="ignore_index must be the same"):
        augment(TA.RandomClassMix(CLASSES, ignore_index=-1), crop)


@MIXES
def test_several_images_and_masks_of_a_call(index, image, labels):
    mix = every_mix()[index]
    container = augment(mix, keys=["image", "image", "mask", "mask"])
    first, second, _, other = container(image, 1 - image, labels, labels.flip(0))
    again = mix(1 - image, labels.flip(0) if index < 2 else labels, params=container._params[0].data)
    torch.testing.assert_close(first, 1 - second, rtol=0, atol=ROUNDING)
    assert torch.equal(second, again[0])
    if index < 2:
        assert torch.equal(other, again[1])
    else:
        selected = selected_by_hand(mix, container._params[0].data, labels)
        partners = container._params[0].data["mix_pairs"]
        assert torch.equal(other[:, 0], torch.where(selected, labels.flip(0)[partners], labels.flip(0)))


@MIXES
def test_nested_containers_dictionaries_and_random_order(index, image, labels):
    container = augment(augment(every_mix()[index], TA.RandomHorizontalFlip(p=0.5)), keys=("image", "mask"))
    out = container(image, labels)
    flat = augment(*container.children().__next__().children(), keys=("image", "mask"))
    for value, wanted in zip(out, flat(image, labels, params=container._params[0].data), strict=True):
        assert torch.equal(value, wanted)
    named = augment(every_mix()[index], keys=("image", "mask"))
    named.transform_op.data_keys = named.data_keys = None
    result = seeded(named, {"image": image, "mask": labels})
    wanted = seeded(augment(every_mix()[index], keys=("image", "mask")), image, labels)
    assert torch.equal(result["image"], wanted[0])
    assert torch.equal(result["mask"], wanted[1])
    both = augment(*every_mix()[:2], keys=("image", "mask"))  # kornia lets one of its own into a call
    both(image, labels)
    assert [item.name for item in both._params] == ["RandomCutMix_0", "RandomMixUp_1"]
    some = augment(*every_mix(), K.RandomBrightness(), random_apply=2, keys=("image", "mask"))
    some(image, labels)
    assert len(some._params) == 2
    with pytest.raises(ValueError, match="Multiple mix augmentation is prohibited"):
        augment(K.RandomMixUpV2(), K.RandomJigsaw(), keys=["image"])(image)


@MIXES
def test_positions_are_refused_and_nothing_has_an_inverse(index, image, labels):
    container = augment(every_mix()[index], TA.RandomHorizontalFlip(p=1.0))
    out = container(image, labels)
    name = type(every_mix()[index]).__name__
    with pytest.raises(ValueError, match=f"which {name} do not"):
        _ = container.boxes
    with pytest.raises(ValueError, match=f"which {name} do not"):
        _ = container.matrices
    with pytest.raises(RuntimeError, match=f"{name} has no inverse"):
        container.inverse(*out)
    for key, value in (("keypoints", torch.zeros(BATCH, 1, 2)), ("bbox_xyxy", torch.ones(BATCH, 1, 4))):
        with pytest.raises(ValueError, match=f"data_keys of {name} must be 'image' and 'mask', got '{key}'"):
            augment(every_mix()[index], keys=["image", "mask", key])(image, labels, value)
    with pytest.raises(ValueError, match="got 'label'"):
        every_mix()[index](image, torch.zeros(BATCH), data_keys=["image", "class"])


def test_kornia_s_container(image, labels):
    """It hands over image and mask one after the other, and casts masks to floats and back."""
    cut = K.AugmentationSequential(TA.RandomCutMix(), TA.RandomHorizontalFlip(p=0.5), data_keys=["image", "mask"])
    ours = augment(TA.RandomCutMix(), TA.RandomHorizontalFlip(p=0.5), keys=("image", "mask"))
    for value, wanted in zip(seeded(cut, image, labels), seeded(ours, image, labels), strict=True):
        assert torch.equal(value, wanted)
    blend = K.AugmentationSequential(TA.RandomMixUp(num_classes=CLASSES), data_keys=["image", "mask"])
    with pytest.raises(TypeError, match="a soft label cannot become"):
        blend(image, labels)
    shown, soft = seeded(blend, image, labels.float())
    wanted = seeded(augment(TA.RandomMixUp(num_classes=CLASSES), keys=("image", "mask")), image, labels)
    assert torch.equal(shown, wanted[0])
    assert torch.equal(soft, wanted[1])
    with pytest.raises(ValueError, match="RandomClassMix needs a mask beside the image, in the same call"):
        K.AugmentationSequential(TA.RandomClassMix(CLASSES), data_keys=["image", "mask"])(image, labels)
    video = augment(K.VideoSequential(TA.RandomCutMix()), keys=["image"])
    with pytest.raises(ValueError, match="has no place in a VideoSequential"):
        video(torch.rand(2, 3, 4, 8, 8))


@records_in_graphs
@MIXES
def test_a_container_compiles_to_one_graph(index, image, labels):
    torch._dynamo.reset()
    container = augment(every_mix()[index], TA.RandomResizedCrop((12, 20), num_classes=CLASSES))
    compiled = torch.compile(container, fullgraph=True, backend="aot_eager")
    first, second = ([value.clone() for value in compiled(image, labels)] for _ in range(2))
    for value, other in zip(second, container(image, labels, params=container._params), strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=2e-5)
    assert not torch.equal(first[0], second[0])


@MIXES
@pytest.mark.parametrize("mixes_first", [True, False])
def test_no_value_on_the_images_device_is_read(index, mixes_first, image, labels):
    """On the meta device there are no values: whoever waited for one on a GPU fails here."""
    modules = [every_mix(p=0.5)[index], TA.RandomResizedCrop((12, 20), num_classes=CLASSES)]
    container = augment(*modules if mixes_first else modules[::-1])
    shown, soft = container(image.to("meta"), labels.to("meta"))
    assert (shown.shape, soft.shape) == ((BATCH, 3, 12, 20), (BATCH, CLASSES, 12, 20))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@MIXES
@pytest.mark.parametrize("mixes_first", [True, False])
def test_on_a_gpu_nothing_synchronises_and_everything_equals_the_cpu(index, mixes_first, image, labels):
    modules = [every_mix(p=0.7)[index], TA.RandomResizedCrop((12, 20), num_classes=CLASSES)]
    container = augment(*modules if mixes_first else modules[::-1])
    here = container(image, labels)
    params = copy.deepcopy(container._params)
    there = image.cuda(), labels.cuda()
    container(*there)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = container(*there, params=params)
        container(*there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for value, other in zip(out, here, strict=True):
        torch.testing.assert_close(value.cpu(), other, rtol=0, atol=2e-5)


# --- gradients -------------------------------------------------------------------------------------------------------


@MIXES
@pytest.mark.parametrize("soft", [False, True])
def test_gradients_reach_the_images_and_change_nothing(index, soft, image, labels):
    masks = ts.soft_resize(labels, (HEIGHT, WIDTH), CLASSES) if soft else labels
    mix = every_mix()[index]
    plain = mix(image, masks)
    params = mix._params
    leaf = image.clone().double().requires_grad_()
    shown, mixed = mix(leaf, masks, params=params)
    torch.testing.assert_close(shown.float(), plain[0], rtol=0, atol=ROUNDING)
    assert torch.equal(mixed, plain[1])
    # The map is linear: its gradient along an image is the image's own value.
    other = torch.rand_like(shown)
    (grad,) = torch.autograd.grad(shown, leaf, other)
    direction = torch.rand_like(leaf)
    there = (mix(direction, masks, params=params)[0] * other).sum()
    torch.testing.assert_close((grad * direction).sum(), there)


def test_gradients_reach_soft_labels(labels):
    soft = ts.soft_resize(labels, (6, 8), CLASSES, dtype=torch.float64)
    image = torch.rand(BATCH, 1, 6, 8, dtype=torch.float64)
    for mix in (TA.RandomMixUp(), TA.RandomClassMix(CLASSES)):
        _, plain = mix(image, soft)
        leaf = soft.clone().requires_grad_()
        _, mixed = mix(image, leaf, params=mix._params)
        torch.testing.assert_close(mixed, plain)
        (grad,) = torch.autograd.grad(mixed.sum(), leaf)
        assert grad.isfinite().all()
        assert grad.abs().sum() > 0


@pytest.mark.parametrize(("index", "soft"), [(0, False), (1, True), (2, False), (2, True)])
def test_forward_mode_and_vmap(index, soft, image, labels):
    masks = pictures_of(labels) if soft else labels
    mix = every_mix()[index]
    mix(image, masks)
    params = mix._params

    def shown(images):
        return mix(images, masks, params=params)[0]

    direction = torch.rand_like(image)
    value, tangent = torch.func.jvp(shown, (image,), (direction,))
    torch.testing.assert_close(value, shown(image), rtol=0, atol=ROUNDING)
    torch.testing.assert_close(tangent, shown(direction), rtol=0, atol=ROUNDING)
    both = torch.stack([image, direction])
    torch.testing.assert_close(torch.vmap(shown)(both), torch.stack([*map(shown, both)]), rtol=0, atol=ROUNDING)


# --- few samples, ranks and bad input --------------------------------------------------------------------------------


@MIXES
def test_a_batch_of_one_stays_as_it_is(index, image, labels):
    for masks in (labels[:1], pictures_of(labels[:1]), ts.soft_resize(labels[:1], (HEIGHT, WIDTH), CLASSES)):
        shown, mixed = every_mix()[index](image[:1], masks)
        assert torch.equal(shown, image[:1])
        wanted = pictures_of(masks) if index == 1 and masks.ndim == 3 else masks.reshape(mixed.shape)
        assert torch.equal(mixed, wanted)
    shown, mixed = augment(every_mix()[index], TA.Resize((6, 10), num_classes=CLASSES))(image[0], labels[0])
    assert torch.equal(mixed, ts.soft_resize(labels[:1], (6, 10), CLASSES))


@MIXES
@pytest.mark.parametrize("same_on_batch", [False, True])
def test_an_empty_batch(index, same_on_batch, image, labels):
    modules = [every_mix(p=0.5, same_on_batch=same_on_batch)[index], TA.Resize((6, 10), num_classes=CLASSES)]
    for ordered in (modules, modules[::-1]):
        shown, soft = augment(*ordered)(image[:0], labels[:0])
        assert (shown.shape, soft.shape) == ((0, 3, 6, 10), (0, CLASSES, 6, 10))


@MIXES
def test_p_of_0_and_1(index, image, labels):
    for p in (0.0, 1.0):
        mix = every_mix(p=p)[index]
        shown, mixed = mix(image, labels)
        assert (mix._params["batch_prob"] == p).all()
        unmixed = pictures_of(labels) if index == 1 else labels[:, None]
        assert torch.equal(shown, image) == (p == 0)
        assert torch.equal(mixed, unmixed) == (p == 0)


@pytest.mark.parametrize("soft", [False, True])
@MIXES
def test_who_is_skipped_stays_to_the_bit(index, soft, image, labels):
    """Whatever its partner holds: a camera's missing pixels are often NaN."""
    image[:2, 0, 0], image[2:, 0, 1] = math.nan, math.inf
    masks = pictures_of(labels) if soft else labels
    mix = every_mix(p=0.5)[index]
    params = {**mix.forward_parameters(image.shape), "batch_prob": torch.tensor([1.0, 0.0, 0.0, 1.0])}
    params["mix_pairs"] = torch.tensor([1, 3, 0, 2])
    for given in (image, image.clone().requires_grad_()):
        shown, mixed = mix(given, masks, params=dict(params))
        rows = slice(1, 2) if given.requires_grad else slice(1, 3)  # with a gradient, infinities are averaged
        torch.testing.assert_close(shown[rows].detach(), image[rows], rtol=0, atol=0, equal_nan=True)
        unmixed = pictures_of(labels) if index == 1 else masks.reshape(mixed.shape)
        assert torch.equal(mixed[1:3], unmixed[1:3])


@MIXES
def test_all_pixels_ignored(index, image, labels):
    ignored = torch.full_like(labels, 255)
    shown, mixed = every_mix()[index](image, ignored)
    if index == 1:
        assert (mixed == 0).all()
    else:
        assert (mixed == 255).all()
    assert torch.equal(shown, image) == (index == 2)
    masses = torch.zeros(BATCH, CLASSES, HEIGHT, WIDTH)
    assert (every_mix()[index](image, masses)[1] == 0).all()


@MIXES
def test_labels_out_of_range(index, image, labels):
    wrong = labels.masked_fill(labels == 0, 77)
    container = augment(every_mix()[index], TA.Resize((6, 10), num_classes=CLASSES))
    with pytest.raises(ValueError, match="77"):
        container(image, wrong)
    if index > 0:
        mix = every_mix()[index]
        mix(image, labels)
        for params in (None, mix._params):
            with pytest.raises(ValueError, match="77"):
                mix(image, wrong, params=params)


@MIXES
def test_ranks(index, image, labels):
    soft = index == 1
    mix = every_mix()[index]
    shown, mixed = mix(image, labels[:, None])
    assert (shown.shape, mixed.shape) == (image.shape, (BATCH, CLASSES if soft else 1, HEIGHT, WIDTH))
    shown, mixed = mix(image[0], labels[0])
    assert (shown.shape, mixed.shape) == ((1, 3, HEIGHT, WIDTH), (1, CLASSES if soft else 1, HEIGHT, WIDTH))
    mix = every_mix(keepdim=True)[index]
    shown, mixed = mix(image, labels)
    assert (shown.shape, mixed.shape) == (image.shape, (BATCH, CLASSES, HEIGHT, WIDTH) if soft else labels.shape)
    shown, mixed = mix(image[0], labels[0])
    assert (shown.shape, mixed.shape) == (image[0].shape, (CLASSES, HEIGHT, WIDTH) if soft else labels[0].shape)
    _, mixed = augment(mix)(image, labels)
    assert mixed.shape == ((BATCH, CLASSES, HEIGHT, WIDTH) if soft else labels.shape)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TA.RandomCutMix(alpha=0.0), "alpha must be a number above 0, got 0.0"),
        (lambda: TA.RandomCutMix(alpha="1"), "alpha must be a number above 0"),
        (lambda: TA.RandomCutMix(area=(0.7, 0.2)), "area must be .smallest, largest. with 0 <= smallest"),
        (lambda: TA.RandomCutMix(area=0.5), "area must be"),
        (lambda: TA.RandomMixUp(lambda_val=(0.0, 1.5)), "lambda_val must be"),
        (lambda: TA.RandomMixUp(num_classes=0), "num_classes must be at least 1, got 0"),
        (lambda: TA.RandomMixUp(num_classes=300), "ignore_index must be given where num_classes is more than 255"),
        (lambda: TA.RandomClassMix(CLASSES, share=0.0), "share must be a number above 0 and up to 1, got 0.0"),
        (lambda: TA.RandomClassMix(CLASSES, share=True), "share must be a number"),
        (lambda: TA.RandomClassMix(CLASSES, p=1.5), "p must be a number from 0 to 1, got 1.5"),
        (lambda: TA.RandomMixUp(p="1"), "p must be a number from 0 to 1, got '1'"),
        (lambda: TA.RandomMixUp(ignore_index=0), "ignore_index must be None where num_classes is, got 0"),
    ],
)
def test_settings_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_numbers_may_be_numpy_s_and_names_come_in_a_list():
    mix = TA.RandomCutMix(alpha=np.float32(0.5), area=(np.float32(0.25), np.int64(1)), p=np.float32(0.5))
    assert repr(mix).startswith("RandomCutMix(alpha=0.5, area=(0.25, 1.0), p=0.5")
    with pytest.raises(TypeError, match="data_keys must be a list of names, got 'image'"):
        TA.RandomCutMix(data_keys="image")


def test_numbers_of_classes_are_ints():
    for wrong in (None, 2.5, "5"):
        with pytest.raises(TypeError, match="num_classes must be an int"):
            TA.RandomClassMix(wrong)


@pytest.mark.parametrize(
    ("index", "arguments", "error", "message"),
    [
        (0, lambda i, m: (i, m[:, ::2]), ValueError, r"same \(H, W\) for RandomCutMix.*\(24, 40\), \(12, 40\)"),
        (2, lambda i, m: (i, m[:, ::2]), ValueError, r"same \(H, W\) for RandomClassMix"),
        (0, lambda i, m: (i, m[:2]), ValueError, "mask must have the batch of its parameters, 4"),
        (0, lambda i, m: (i, list(m)), TypeError, "must be one tensor for all samples .* got a list of 4: stack it"),
        (0, lambda i, m: (i[None], m), ValueError, r"image must be a tensor \(B, K, H, W\)"),
        (0, lambda i, m: (i,), ValueError, r"one argument for each of data_keys=\['image', 'mask'\], got 1"),
        (1, lambda i, m: ((255 * i).byte(), m), TypeError, "image must be floating for RandomMixUp.*torch.uint8"),
        (1, lambda i, m: (i, m[:, None].expand(-1, 3, -1, -1)), ValueError, r"label map \(B, 1, H, W\), or floats"),
        (2, lambda i, m: (i, m[:, None].expand(-1, 3, -1, -1)), ValueError, "a soft label of 5 classes for RandomCl"),
        (2, lambda i, m: ((255 * i).byte(), pictures_of(m)), TypeError, "image must be floating for RandomClassMix"),
    ],
)
def test_arguments_that_cannot_be_mixed(index, arguments, error, message, image, labels):
    with pytest.raises(error, match=message):
        every_mix()[index](*arguments(image, labels))


def test_masks_that_do_not_go_together(image, labels):
    keys = ["image", "mask", "mask"]
    with pytest.raises(ValueError, match="mask must be a soft label like the first one for RandomClassMix"):
        TA.RandomClassMix(CLASSES, data_keys=keys)(image, pictures_of(labels), labels)
    with pytest.raises(ValueError, match="needs an image to draw its numbers for, or params="):
        TA.RandomCutMix()(labels, data_keys=["mask"])
    mix = TA.RandomClassMix(CLASSES)
    mix(image, labels)
    with pytest.raises(ValueError, match=r"image must have the batch of its parameters, 4, got \(3, 3"):
        mix(image[:3], labels[:3], params=mix._params)
    drawn = TA.RandomCutMix().forward_parameters(image.shape)
    with pytest.raises(
        ValueError, match=r"params must be those that RandomClassMix draws, which have \['class_order'\]"
    ):
        mix(image, labels, params=drawn)
    with pytest.raises(TypeError, match="params must be a mapping of what RandomCutMix draws, got list"):
        TA.RandomCutMix()(image, labels, params=[drawn])
    with pytest.raises(ValueError, match=r"params must have 'mix_pairs' in 0\.\.3, .* got \[0, 4, 2, -1\]"):
        TA.RandomCutMix()(image, labels, params={**drawn, "mix_pairs": torch.tensor([0, 4, 2, -1])})
    with pytest.raises(ValueError, match=r"params must have the 'classes' of \(4, 6\)"):
        TA.RandomClassMix(6)(image, labels, params=mix._params)


class _Noted(Tensor):
    """Carries notes along, as torchvision's and MONAI's tensors do."""


@MIXES
def test_plain_tensors_come_back(index, image, labels):
    for masks in (labels, pictures_of(labels)):
        out = every_mix()[index](image.as_subclass(_Noted), masks.as_subclass(_Noted))
        assert [type(value) for value in out] == [Tensor, Tensor]


@MIXES
def test_modules_show_their_settings_and_can_be_copied(index, image, labels):
    mix = every_mix(p=0.5)[index]
    shown = repr(mix)
    wanted = [
        "RandomCutMix(alpha=1.0, area=(0.0, 1.0), p=0.5, p_batch=1.0, same_on_batch=False)",
        "RandomMixUp(alpha=1.0, lambda_val=(0.0, 1.0), p=0.5, p_batch=1.0, same_on_batch=False, num_classes=5, "
        "ignore_index=255)",
        "RandomClassMix(share=0.5, p=0.5, p_batch=1.0, same_on_batch=False, num_classes=5, ignore_index=255)",
    ][index]
    assert shown == wanted
    out = seeded(mix, image, labels)
    for other in (copy.deepcopy(mix), pickle.loads(pickle.dumps(mix)), mix.half()):
        if other is not mix:
            again = seeded(other, image, labels)
            assert all(torch.equal(*pair) for pair in zip(out, again, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mix(image, labels)


@pytest.mark.parametrize(
    "make", [lambda: TA.RandomCutMix(), lambda: TA.RandomMixUp(num_classes=5), lambda: TA.RandomClassMix(5)]
)
@pytest.mark.parametrize("is_soft", [False, True])
def test_vmap_may_draw_other_numbers_for_each_entry(make, is_soft):
    image, labels = torch.rand(2, 3, 1, 6, 7), torch.randint(5, (2, 3, 1, 6, 7))
    masks = torch.stack([ts.to_soft(each, 5) for each in labels]) if is_soft else labels
    mix = make()
    shown, mixed = torch.func.vmap(lambda *entry: tuple(mix(*entry)), randomness="different")(image, masks)
    assert shown.shape == image.shape
    assert mixed.shape[:2] == (2, 3)
    if is_soft:
        torch.testing.assert_close(mixed.sum(2), torch.ones(2, 3, 6, 7))


def test_export_of_class_mix_of_soft_labels_for_any_batch():
    class Mix(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = TA.RandomClassMix(5)

        def forward(self, image, soft):
            return self.mix(image, soft)

    image, soft = torch.rand(3, 1, 4, 5), torch.full((3, 5, 4, 5), 0.2)
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    program = torch.export.export(Mix(), (image, soft), dynamic_shapes=(batch, batch))
    shown, mixed = program.module()(torch.cat([image, image]), torch.cat([soft, soft]))
    assert (shown.shape[0], mixed.shape[0]) == (6, 6)
    torch.testing.assert_close(mixed.sum(1), torch.ones(6, 4, 5))
