"""What people run instead of our crops that know classes, our mixing, and our chains that keep a few classes.

As in `bench.rivals`, a rival is a plain function of the arguments that its task gets, listed at the end of this file:

    crops that know classes        (image, labels, size, num_classes)              -> (B, K, h, w), (B, C, h, w)
    samples mixed with each other  (image, labels, num_classes)                    -> image and labels, or soft labels
    chains that keep few classes   (image, labels, size, num_classes)              -> (B, K, h, w), a SparseLabels

Ours draw their numbers in each call, from one seed. Rivals that can take numbers are given the same ones, which they
need not draw, and are checked; the others draw crops of their own, and what they give is not compared.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import tritonsoft as ts
from bench import rivals
from bench.rivals import IGNORED, PairResult, Rival, Size, one_hot

Mix = Literal["cut mix", "mix up", "class mix"]

# --- crops that know classes -----------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def crops(knows_classes: bool, size: Size, num_classes: int, dtype: torch.dtype) -> Any:
    """A container with one crop of ours."""
    import tritonsoft.augmentation as TA

    crop = TA.RandomClassCrop if knows_classes else TA.RandomScaleCrop
    keys = ["image", "mask"]
    return TA.AugmentationSequential(crop(size, num_classes=num_classes), data_keys=keys, soft_dtype=dtype)


def our_class_crop(image: Tensor, labels: Tensor, size: Size, num_classes: int) -> PairResult:
    torch.manual_seed(0)
    shown, soft = crops(True, size, num_classes, image.dtype)(image, labels)
    return shown, soft


def chosen_boxes(image: Tensor, labels: Tensor, size: Size, num_classes: int) -> Tensor:
    """The boxes ``(B, 4)`` that our crop chooses."""
    our_class_crop(image, labels, size, num_classes)
    boxes: Tensor = crops(True, size, num_classes, image.dtype).boxes
    return boxes


@functools.lru_cache(maxsize=1)
def chosen_corners(image: Tensor, labels: Tensor, size: Size, num_classes: int) -> Tensor:
    """The same, as they are among a crop's parameters."""
    our_class_crop(image, labels, size, num_classes)
    corners: Tensor = crops(True, size, num_classes, image.dtype)[0]._params["src"]
    return corners


def our_scale_crop(image: Tensor, labels: Tensor, size: Size, num_classes: int) -> PairResult:
    """The crop that knows nothing of classes draws its boxes, and shows those that the other one chose."""
    crop = crops(False, size, num_classes, image.dtype)
    params = crop.forward_parameters(image.shape)
    params[0].data["src"] = chosen_corners(image, labels, size, num_classes)
    shown, soft = crop(image, labels, params=params)
    return shown, soft


def mmsegmentation_crop(image: Tensor, labels: Tensor, size: Size, num_classes: int) -> PairResult:
    """mmsegmentation's RandomResize, then its RandomCrop(cat_max_ratio=0.75): sample by sample on the host.

    The whole image is scaled, linearly, and the label map by nearest neighbours; then up to ten windows are tried.
    """
    import cv2

    random = np.random.default_rng(0)
    source = (labels.shape[1], labels.shape[2])
    shown, shown_labels = torch.empty(*image.shape[:2], *size), torch.empty(len(labels), 1, *size, dtype=labels.dtype)
    for index, (planes, label_map) in enumerate(zip(image.float().cpu().numpy(), labels.cpu().numpy(), strict=True)):
        scale = random.uniform(0.5, 2.0)
        scaled = (round(source[1] * scale), round(source[0] * scale))
        label_map = cv2.resize(label_map, scaled, interpolation=cv2.INTER_NEAREST)
        resized = [cv2.resize(plane, scaled, interpolation=cv2.INTER_LINEAR) for plane in planes]
        for _ in range(10):
            top, left = (random.integers(0, label_map.shape[axis] - size[axis] + 1) for axis in range(2))
            window = np.s_[top : top + size[0], left : left + size[1]]
            classes, counts = np.unique(label_map[window], return_counts=True)
            counts = counts[classes != IGNORED]
            if len(counts) > 1 and counts.max() / counts.sum() < 0.75:
                break
        for channel, plane in enumerate(resized):
            shown[index, channel] = torch.from_numpy(plane[window])
        shown_labels[index, 0] = torch.from_numpy(label_map[window])
    return shown.to(image.device, image.dtype), shown_labels.to(labels.device)


@functools.cache
def monai_crop_of(size: Size, num_classes: int) -> Any:
    from monai.transforms import RandCropByLabelClassesd

    keys = ["image", "labels"]
    return RandCropByLabelClassesd(keys, label_key="labels", spatial_size=size, num_classes=num_classes, warn=False)


def monai_class_crop(image: Tensor, labels: Tensor, size: Size, num_classes: int) -> PairResult:
    """A window around a pixel of a class that is drawn, at the scale of the source: nothing is resampled."""
    crop = monai_crop_of(size, num_classes).set_random_state(0)
    crops = [crop({"image": one, "labels": label_map[None]})[0] for one, label_map in zip(image, labels, strict=True)]
    shown, shown_labels = (torch.stack([each[key].as_tensor() for each in crops]) for key in ("image", "labels"))
    return shown, shown_labels


# --- samples mixed with each other -----------------------------------------------------------------------------------


@functools.cache
def mixing_module(mix: Mix, num_classes: int) -> Any:
    import tritonsoft.augmentation as TA

    if mix == "cut mix":
        return TA.RandomCutMix()
    return (TA.RandomMixUp if mix == "mix up" else TA.RandomClassMix)(num_classes=num_classes)


def our_mix(mix: Mix, image: Tensor, labels: Tensor, num_classes: int) -> PairResult:
    torch.manual_seed(0)
    mixed, mixed_labels = mixing_module(mix, num_classes)(image, labels)
    return mixed, mixed_labels


@torch.compiler.disable  # type: ignore[untyped-decorator]
@functools.cache
def drawn(mix: Mix, shape: torch.Size, num_classes: int, device: torch.device) -> dict[str, Tensor]:
    """What ours draws, on the device where it is used."""
    torch.manual_seed(0)
    params = mixing_module(mix, num_classes).forward_parameters(shape)
    return {name: numbers.to(device) for name, numbers in params.items()}


def boxes_of_cuts(cuts: dict[str, Tensor], size: Size) -> Tensor:
    """``(B, 4)``, whole edges: boxes of the image's shape that cover the drawn share of it."""
    ends = []
    for length, place in ((size[1], cuts["across"]), (size[0], cuts["down"])):
        extent = (cuts["area"].sqrt() * length).round()
        start = (place * (length - extent + 1)).floor().clamp(max=length - extent)
        ends.append((start, start + extent))
    (x0, x1), (y0, y1) = ends
    return torch.stack([x0, y0, x1, y1], 1)


def pasted(image: Tensor, labels: Tensor, partners: Tensor, selected: Tensor) -> PairResult:
    """The partner's pixels where ``(B, H, W)`` they are selected."""
    return (
        torch.where(selected[:, None], image[partners], image),
        torch.where(selected, labels[partners], labels)[:, None],
    )


def cut_by_where(image: Tensor, labels: Tensor, num_classes: int) -> PairResult:
    cuts, (height, width) = drawn("cut mix", image.shape, num_classes, image.device), labels.shape[1:]
    x0, y0, x1, y1 = boxes_of_cuts(cuts, (height, width))[..., None].unbind(1)
    ys, xs = (torch.arange(length, device=image.device) for length in (height, width))
    down, across = (ys >= y0) & (ys < y1), (xs >= x0) & (xs < x1)
    return pasted(image, labels, cuts["mix_pairs"], down[:, :, None] & across[:, None])


def cut_by_slices(image: Tensor, labels: Tensor, num_classes: int) -> PairResult:
    """A clone, and each box copied into it: what everybody writes, and as little as can be moved."""
    cuts = drawn("cut mix", image.shape, num_classes, torch.device("cpu"))
    boxes = boxes_of_cuts(cuts, (labels.shape[1], labels.shape[2])).int().tolist()
    mixed, mixed_labels = image.clone(), labels.clone()
    for sample, (partner, (x0, y0, x1, y1)) in enumerate(zip(cuts["mix_pairs"].tolist(), boxes, strict=True)):
        mixed[sample, :, y0:y1, x0:x1] = image[partner, :, y0:y1, x0:x1]
        mixed_labels[sample, y0:y1, x0:x1] = labels[partner, y0:y1, x0:x1]
    return mixed, mixed_labels[:, None]


def mix_one_hot(image: Tensor, labels: Tensor, num_classes: int) -> PairResult:
    shares = drawn("mix up", image.shape, num_classes, image.device)
    partners, weight = shares["mix_pairs"], shares["weight"].view(-1, 1, 1, 1).to(image.dtype)
    soft = one_hot(labels, num_classes, image.dtype)
    return torch.lerp(image, image[partners], weight), torch.lerp(soft, soft[partners], weight)


def mix_by_scatter(image: Tensor, labels: Tensor, num_classes: int) -> PairResult:
    """Of each pixel two classes get a share."""
    shares = drawn("mix up", image.shape, num_classes, image.device)
    partners, weight = shares["mix_pairs"], shares["weight"].view(-1, 1, 1, 1).to(image.dtype)
    ids = rivals.class_ids(labels, num_classes)[:, None]
    soft = image.new_zeros(len(labels), num_classes + 1, *labels.shape[1:])
    soft.scatter_(1, ids, (1 - weight).expand(ids.shape)).scatter_add_(1, ids[partners], weight.expand(ids.shape))
    return torch.lerp(image, image[partners], weight), soft[:, :num_classes]


def chosen_classes(present: Tensor, order: Tensor) -> Tensor:
    """Of the classes ``(B, C)`` that are there half, rounded and at least one: those of the smallest numbers."""
    rank = order.masked_fill(~present, 2.0).argsort(dim=1, stable=True).argsort(dim=1)
    return present & (rank < (present.sum(1, keepdim=True) / 2 + 0.5).floor().clamp(min=1))


def mix_classes_by_table(image: Tensor, labels: Tensor, num_classes: int) -> PairResult:
    """Which classes there are by a scatter, where chosen ones are by a gather."""
    orders = drawn("class mix", image.shape, num_classes, image.device)
    partners = orders["mix_pairs"]
    ids = rivals.class_ids(labels, num_classes).flatten(1)
    present = torch.zeros(len(labels), num_classes + 1, dtype=torch.bool, device=labels.device)
    present.scatter_(1, ids, torch.ones((), dtype=torch.bool, device=labels.device).expand(ids.shape))
    chosen = chosen_classes(present[partners, :num_classes], orders["class_order"])
    table = torch.cat([chosen, torch.zeros_like(chosen[:, :1])], 1)
    return pasted(image, labels, partners, table.gather(1, ids[partners]).view(labels.shape))


def mix_classes_of_each(image: Tensor, labels: Tensor, num_classes: int) -> PairResult:
    """As ClassMix's own code: ``torch.unique`` of each label map, a comparison with each chosen class, a product."""
    orders = drawn("class mix", image.shape, num_classes, image.device)
    mixed, mixed_labels = [], []
    for sample, partner in enumerate(orders["mix_pairs"].tolist()):
        classes = torch.unique(labels[partner])
        classes = classes[classes != IGNORED].long()
        count = max(int(len(classes) / 2 + 0.5), 1)
        chosen = classes[orders["class_order"][sample, classes].argsort()[:count]]
        mask = (labels[partner][None] == chosen[:, None, None]).sum(0)
        mixed.append(mask * image[partner] + (1 - mask) * image[sample])
        mixed_labels.append(mask * labels[partner] + (1 - mask) * labels[sample])
    return torch.stack(mixed), torch.stack(mixed_labels)[:, None].to(labels.dtype)


def reference_mix(mix: Mix, image: Tensor, labels: Tensor, num_classes: int) -> PairResult:
    """What all must give, in double precision."""
    call = {"cut mix": cut_by_where, "mix up": mix_one_hot, "class mix": mix_classes_of_each}[mix]
    return call(image.double(), labels, num_classes)


@functools.lru_cache(maxsize=1)
def mixed_before(mix: Mix, shape: torch.Size, dtype: torch.dtype, num_classes: int, device: torch.device) -> PairResult:
    """Outputs of these shapes."""
    is_soft = mix == "mix up"
    of_labels = (shape[0], num_classes if is_soft else 1, *shape[2:])
    labels = torch.ones(of_labels, dtype=dtype if is_soft else torch.uint8, device=device)
    return torch.ones(shape, dtype=dtype, device=device), labels


def clone_outputs(mix: Mix, image: Tensor, labels: Tensor, num_classes: int) -> PairResult:
    mixed, mixed_labels = mixed_before(mix, image.shape, image.dtype, num_classes, image.device)
    return mixed.clone(), mixed_labels.clone()


@functools.lru_cache(maxsize=1)
def ready_outputs(
    mix: Mix, shape: torch.Size, dtype: torch.dtype, num_classes: int, device: torch.device
) -> PairResult:
    mixed, mixed_labels = mixed_before(mix, shape, dtype, num_classes, device)
    return torch.empty_like(mixed), torch.empty_like(mixed_labels)


def copy_outputs(mix: Mix, image: Tensor, labels: Tensor, num_classes: int) -> PairResult:
    """Into memory that is there."""
    which = (mix, image.shape, image.dtype, num_classes, image.device)
    mixed, mixed_labels = (
        ready.copy_(before) for ready, before in zip(ready_outputs(*which), mixed_before(*which), strict=True)
    )
    return mixed, mixed_labels


@functools.cache
def kornia_mixing(mix: Mix) -> Any:
    import kornia.augmentation as K

    if mix == "mix up":
        return K.RandomMixUpV2(data_keys=["input"])
    return K.RandomCutMixV2(data_keys=["input"], use_correct_lambda=True)


@functools.cache
def kornia_draws(mix: Mix, shape: torch.Size, num_classes: int, device: torch.device) -> dict[str, Tensor]:
    """What ours draws, as kornia's parameters."""
    ours, batch = drawn(mix, shape, num_classes, device), shape[0]
    both = {"batch_prob": torch.ones(batch, device=device), "image_shape": torch.tensor(shape[2:], device=device)}
    if mix == "mix up":
        return both | {"mixup_pairs": ours["mix_pairs"], "mixup_lambdas": ours["weight"]}
    x0, y0, x1, y1 = boxes_of_cuts(ours, (shape[2], shape[3])).unbind(1)
    corners = torch.stack((x0, y0, x1 - 1, y0, x1 - 1, y1 - 1, x0, y1 - 1), 1).view(1, batch, 4, 2)
    return both | {"mix_pairs": ours["mix_pairs"][None], "crop_src": corners}


def kornia_mix(mix: Mix, image: Tensor, labels: Tensor, num_classes: int) -> PairResult:
    """kornia mixes images, so the label goes through as one: a hard mask where pixels are cut, else one-hot."""
    params = kornia_draws(mix, image.shape, num_classes, image.device)
    module = kornia_mixing(mix)
    mask = labels[:, None].to(image.dtype) if mix == "cut mix" else one_hot(labels, num_classes, image.dtype)
    return module(image, params=dict(params)), module(mask, params=dict(params))


def torchvision_mix(mix: Mix, image: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """torchvision's mix images and a class of each, no masks: less work."""
    from torchvision.transforms import v2

    classes = torch.zeros(len(image), dtype=torch.int64, device=image.device)
    mixed, _ = (v2.CutMix if mix == "cut mix" else v2.MixUp)(num_classes=num_classes)(image, classes)
    return mixed  # type: ignore[no-any-return]


# --- chains that keep few classes ------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=3)
def chain(size: Size, num_classes: int, dtype: torch.dtype, top_k: int | None, warps: bool) -> Any:
    """A crop and a flip, with a rotation after them where asked, folded into one resample."""
    import tritonsoft.augmentation as TA

    modules = [TA.RandomResizedCrop(size, num_classes=num_classes, top_k=top_k), TA.RandomHorizontalFlip(1.0)]
    if warps:
        modules.append(TA.RandomRotation(30.0, p=1.0))
    return TA.AugmentationSequential(*modules, data_keys=["image", "mask"], soft_dtype=dtype)


def our_chain(
    top_k: int | None, warps: bool, image: Tensor, labels: Tensor, size: Size, num_classes: int
) -> tuple[Tensor, Any]:
    torch.manual_seed(0)
    shown, soft = chain(size, num_classes, image.dtype, top_k, warps)(image, labels)
    return shown, soft


def matrices_of_chain(image: Tensor, size: Size) -> Tensor:
    """Where the chain with a rotation takes its pixels from, ``(B, 3, 3)``."""
    torch.manual_seed(0)
    augment = chain(size, 2, image.dtype, None, True)
    augment(image, torch.zeros_like(image[:, 0], dtype=torch.uint8))
    matrices: Tensor = augment.matrices
    return matrices


def dense_chain_then_top(
    warps: bool, image: Tensor, labels: Tensor, size: Size, num_classes: int
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    shown, soft = our_chain(None, warps, image, labels, size, num_classes)
    return shown, kept_of(soft)


def kept_of(soft: Tensor) -> tuple[Tensor, Tensor]:
    mass, index = soft.topk(rivals.TOP, dim=1)
    return index.to(torch.uint8), mass


def sliced_then_top(
    image: Tensor, labels: Tensor, size: Size, num_classes: int
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """A dense rival that shrinks and enlarges, then its largest classes."""
    boxes = rivals.boxes_of_pipeline(image.shape, size).to(image.device)
    both = rivals.interpolate_antialias, rivals.compare_interpolate_antialias
    shown, soft = rivals.sliced_pair(*both, image, labels, boxes, size, num_classes)
    return shown.flip(3), kept_of(soft.flip(3))


@functools.lru_cache(maxsize=1)
def kornia_chain(size: Size, warps: bool) -> Any:
    import kornia.augmentation as K

    modules = [K.RandomResizedCrop(size, align_corners=False), K.RandomHorizontalFlip(1.0)]
    if warps:
        modules.append(K.RandomRotation(30.0, p=1.0))
    return K.AugmentationSequential(*modules, data_keys=["image", "mask"])


def kornia_hard_chain(warps: bool, image: Tensor, labels: Tensor, size: Size, num_classes: int) -> PairResult:
    torch.manual_seed(0)
    shown, mask = kornia_chain(size, warps)(image, labels.long()[:, None])
    return shown, mask


def decode_kept(result: tuple[Tensor, Any], num_classes: int) -> PairResult:
    """The image, and the kept masses as `rivals.decode_top` has them."""
    shown, kept = result
    pair = (kept.index, kept.mass) if isinstance(kept, ts.SparseLabels) else kept
    return shown, rivals.decode_top(pair, num_classes)


def decode_dense_chain(result: PairResult, num_classes: int) -> PairResult:
    shown, soft = result
    return shown, rivals.decode_dense(soft, num_classes)


def decode_hard_chain(result: PairResult, num_classes: int) -> PairResult:
    return decode_dense_chain(rivals.decode_hard(result, num_classes), num_classes)


# --- who runs where --------------------------------------------------------------------------------------------------

CLASS_CROP = [
    Rival("tritonsoft", our_class_crop, package="kornia"),
    Rival("tritonsoft's RandomScaleCrop, the same boxes", our_scale_crop, package="kornia"),
    Rival("mmsegmentation's loop on the host, hard labels", mmsegmentation_crop, "draws", package="cv2", usual=True),
    Rival("MONAI RandCropByLabelClassesd, hard labels, no resample", monai_class_crop, "draws", package="monai"),
]


def _mixing(mix: Mix, *others: Rival) -> list[Rival]:
    """Ours, two copies and others."""
    return [
        Rival("tritonsoft", functools.partial(our_mix, mix), package="kornia"),
        Rival("a copy of the outputs", functools.partial(clone_outputs, mix), "fills"),
        Rival("a copy of the outputs into memory that is there", functools.partial(copy_outputs, mix), "fills"),
        *others,
    ]


def _drawn_by_ours(name: str, call: Callable[..., Any], **options: Any) -> Rival:
    return Rival(name, call, package="kornia", **options)


CUT_MIX = _mixing(
    "cut mix",
    _drawn_by_ours("clone, then each box", cut_by_slices),
    _drawn_by_ours("index and where", cut_by_where),
    _drawn_by_ours("index and where, compiled", cut_by_where, compiled=True),
    Rival(
        "kornia RandomCutMixV2 of image and mask",
        functools.partial(kornia_mix, "cut mix"),
        package="kornia",
        usual=True,
    ),
    Rival(
        "torchvision CutMix, image alone", functools.partial(torchvision_mix, "cut mix"), "draws", package="torchvision"
    ),
)
MIX_UP = _mixing(
    "mix up",
    _drawn_by_ours("compare + lerp", mix_one_hot),
    _drawn_by_ours("compare + lerp, compiled", mix_one_hot, compiled=True),
    _drawn_by_ours("scatter_add of two shares", mix_by_scatter),
    Rival(
        "kornia RandomMixUpV2 of image and one-hot mask",
        functools.partial(kornia_mix, "mix up"),
        package="kornia",
        usual=True,
    ),
    Rival(
        "torchvision MixUp, image alone", functools.partial(torchvision_mix, "mix up"), "draws", package="torchvision"
    ),
)
CLASS_MIX = _mixing(
    "class mix",
    _drawn_by_ours("scatter, gather and where", mix_classes_by_table),
    _drawn_by_ours("scatter, gather and where, compiled", mix_classes_by_table, compiled=True),
    _drawn_by_ours("ClassMix's own loop: unique, compare, product", mix_classes_of_each, usual=True),
)


def _chains(warps: bool, *others: Rival) -> list[Rival]:
    """Ours, sparse and dense, what a label takes of them, others, and kornia's."""
    ours = functools.partial(our_chain, rivals.TOP, warps)
    dense = functools.partial(our_chain, None, warps)
    return [
        Rival("tritonsoft", ours, package="kornia", decode=decode_kept),
        Rival("tritonsoft, the dense chain", dense, package="kornia", decode=decode_dense_chain),
        Rival(
            "tritonsoft's dense chain + topk",
            functools.partial(dense_chain_then_top, warps),
            package="kornia",
            decode=decode_kept,
        ),
        *others,
        Rival(
            "kornia's chain, hard int64 mask",
            functools.partial(kornia_hard_chain, warps),
            "hardens",
            package="kornia",
            decode=decode_hard_chain,
            usual=True,
        ),
    ]


SPARSE_PIPELINE = _chains(
    False,
    Rival(
        "slices: interpolate(antialias) of both, topk",
        sliced_then_top,
        "triangle",
        package="kornia",
        decode=decode_kept,
    ),
)
SPARSE_WARP_PIPELINE = _chains(True)
