"""Samples mixed with each other: the same bits from every backend, of any type and layout."""

import random
import re
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import tritonsoft as ts
from tritonsoft.backends import reference
from tritonsoft.ops import mixing as mixing_ops

CLASSES = 5
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
DTYPES = (
    *(torch.bool, torch.uint8, torch.int16, torch.uint16, torch.uint32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
)
LABELS = (torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int32, torch.uint32, torch.int64)


def _layouts(images: Tensor) -> list[Tensor]:
    """The same pixels in other memory: contiguous, channels_last, a window of it, and transposed."""
    last = images.contiguous(memory_format=torch.channels_last)
    more = torch.cat([images, images], 1).contiguous(memory_format=torch.channels_last)
    return [images, last, more[:, : images.shape[1]], images.mT.contiguous().mT]


def _images(rng: random.Random, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    return (200 * torch.rand(shape, generator=generator)).to(dtype)


def _labels(rng: random.Random, dtype: torch.dtype, shape: tuple[int, int, int], is_noise: bool) -> Tensor:
    """Blobs or noise of classes, of one id too much, and of ignored pixels."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    side = 1 if is_noise else 7
    cells = torch.randint(CLASSES + 1, (shape[0], shape[1] // side + 1, shape[2] // side + 1), generator=generator)
    cells[torch.rand(cells.shape, generator=generator) < 0.1] = 127 if dtype == torch.int8 else 255
    return cells.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, : shape[1], : shape[2]].to(dtype)


def _partners(rng: random.Random, batch: int) -> Tensor:
    return torch.tensor([rng.randrange(batch) for _ in range(batch)], dtype=rng.choice([torch.int64, torch.uint8]))


def _assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype
    bits = BITS[expected.element_size()]
    assert torch.equal(actual.cpu().contiguous().view(bits), expected.contiguous().view(bits))


def _cases(target: tuple[str, str]) -> range:
    return range(8 if target == ("cpu", "triton") else 80)


def _shape(rng: random.Random, target: tuple[str, str]) -> tuple[int, int, int, int]:
    largest = 40 if target == ("cpu", "triton") else 150
    return rng.randint(1, 4), rng.randint(1, 4), rng.randint(1, 9), rng.randint(1, largest)


def test_boxes_are_pasted_bit_for_bit(target):
    device, backend = target
    for seed in _cases(target):
        rng = random.Random(seed)
        images = _images(rng, DTYPES[seed % len(DTYPES)], _shape(rng, target))
        batch, _, height, width = images.shape
        edges = [[rng.randint(-3, length + 3) for length in (width, height, width, height)] for _ in range(batch)]
        boxes, partners = torch.tensor(edges, dtype=rng.choice([torch.int64, torch.int16])), _partners(rng, batch)
        expected = images.view(BITS[images.element_size()]).clone()
        for sample, (partner, (x0, y0, x1, y1)) in enumerate(zip(partners.tolist(), edges, strict=True)):
            for y in range(max(y0, 0), min(y1, height)):
                for x in range(max(x0, 0), min(x1, width)):
                    expected[sample, :, y, x] = images.view(expected.dtype)[partner, :, y, x]
        for layout in _layouts(images)[: 4 if seed % 4 == 0 else 1]:
            actual = ts.cut_mix(layout.to(device), partners.to(device), boxes.to(device), backend=backend)
            _assert_same_bits(actual, expected.view(images.dtype))
            assert actual.stride() == ts.crop_resize(layout.float(), None, (height, width)).stride()


def test_chosen_classes_are_pasted_bit_for_bit(target):
    device, backend = target
    for seed in _cases(target):
        rng = random.Random(seed)
        images = _images(rng, DTYPES[seed % len(DTYPES)], _shape(rng, target))
        batch, _, height, width = images.shape
        # The same pairs of types in every round: each pair is compiled.
        labels = _labels(rng, LABELS[seed % len(DTYPES) % len(LABELS)], (batch, height, width), seed % 3 == 0)
        partners, chosen = _partners(rng, batch), torch.tensor([[rng.random() < 0.5] * CLASSES for _ in range(batch)])
        chosen ^= torch.rand(chosen.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
        theirs, numbers = images[partners.long()], labels.long()[partners.long()]
        selected = torch.zeros_like(numbers, dtype=torch.bool)
        for sample in range(batch):
            for number in range(CLASSES):
                selected[sample] |= (numbers[sample] == number) & chosen[sample, number]
        bits = BITS[images.element_size()]
        expected = torch.where(selected[:, None], theirs.view(bits), images.view(bits)).view(images.dtype)
        for layout in _layouts(images)[: 4 if seed % 4 == 0 else 1]:
            maps = labels.to(device) if seed % 2 else labels.mT.contiguous().mT.to(device)
            actual = ts.class_mix(layout.to(device), partners.to(device), maps, chosen.to(device), backend=backend)
            _assert_same_bits(actual, expected)


def test_blends_are_as_the_formula_says(target):
    device, backend = target
    for seed in _cases(target):
        rng = random.Random(seed)
        dtype = DTYPES[6 + seed % 4]
        images = _images(rng, dtype, _shape(rng, target))
        partners = _partners(rng, len(images))
        weight = torch.tensor([rng.choice([0.0, 1.0, 0.5, rng.random()]) for _ in images], dtype=torch.float64)
        shares = weight.to(torch.promote_types(dtype, torch.float32))[:, None, None, None].double()
        wide, theirs = images.double(), images.double()[partners.long()]
        expected = (1 - shares) * wide + shares * theirs
        # A difference, a product and a sum of float32, and one rounding to the type.
        tolerance = 200 * (4 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps + torch.finfo(dtype).eps)
        for layout in _layouts(images)[: 4 if seed % 4 == 0 else 1]:
            actual = ts.mix_up(layout.to(device), partners.to(device), weight.to(device, dtype), backend=backend).cpu()
            rounded = weight.to(dtype).to(shares.dtype)[:, None, None, None]
            expected = (1 - rounded) * wide + rounded * theirs
            torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance)
            assert torch.equal(actual[weight == 0], images[weight == 0])
            assert torch.equal(actual[weight == 1], images[partners.long()][weight == 1])


def test_who_is_alone_stays_to_the_bit_and_infinities_too(target):
    device, backend = target
    images = torch.tensor([torch.inf, 1.0, torch.nan, -0.0]).view(2, 1, 1, 2).to(device)
    partners, weight = torch.tensor([0, 1], device=device), torch.tensor([0.3, 0.7], device=device)
    same = ts.mix_up(images, partners, weight, backend=backend)
    _assert_same_bits(same, images.cpu())


def test_labels_are_blended_as_their_one_hot_masses(target):
    device, backend = target
    for seed in _cases(target):
        rng = random.Random(seed)
        batch, _, height, width = _shape(rng, target)
        dtype = (torch.uint8, torch.int8, torch.uint16, torch.int64)[seed % 4]
        labels = _labels(rng, dtype, (batch, height, width), seed % 3 == 0).long()
        labels = labels.masked_fill(labels == CLASSES, 0).to(dtype)
        ignored = 127 if labels.dtype == torch.int8 else 255
        partners = _partners(rng, batch)
        weight = torch.tensor([rng.choice([0.0, 1.0, 0.5, rng.random()]) for _ in range(batch)])
        dtype = DTYPES[6 + seed % 4]
        options = {"ignore_index": ignored, "dtype": dtype}
        masses = ts.to_soft(labels, CLASSES, **options, backend="reference")
        expected = reference.blend(masses, partners.long(), weight)
        maps = labels.to(device) if seed % 2 else labels.mT.contiguous().mT.to(device)
        numbers = (partners.to(device), weight.to(device), CLASSES)
        _assert_same_bits(ts.mix_up_labels(maps, *numbers, **options, backend=backend), expected)


def test_masses_of_two_known_pixels_are_one(target):
    device, backend = target
    weight = torch.rand(64, generator=torch.Generator().manual_seed(0)).to(device)
    labels = (torch.arange(64, device=device) % 3).view(64, 1, 1)
    soft = ts.mix_up_labels(labels, torch.arange(64, device=device).roll(1), weight, 3, backend=backend)
    assert (soft.sum(1) == 1).all()


def test_many_classes_and_wide_ids(target):
    device, backend = target
    labels = torch.tensor([[[0, 1499, 700, -(2**40), 2**40]], [[1499, 3, 3, 3, 3]]], device=device)
    chosen = torch.zeros(2, 1500, dtype=torch.bool, device=device)
    chosen[:, 1499] = True
    partners = torch.tensor([1, 0], device=device)
    assert ts.class_mix(labels[:, None], partners, labels, chosen, backend=backend)[:, 0].tolist() == [
        [[1499, 1499, 700, -(2**40), 2**40]],
        [[1499, 1499, 3, 3, 3]],
    ]


def test_nothing_to_mix(target):
    device, backend = target
    for shape in ((0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)):
        images, partners = torch.rand(shape, device=device), torch.zeros(shape[0], dtype=torch.int64, device=device)
        boxes, weight = torch.zeros(shape[0], 4, dtype=torch.int64, device=device), torch.rand(shape[0], device=device)
        assert ts.cut_mix(images, partners, boxes, backend=backend).shape == shape
        assert ts.mix_up(images, partners, weight, backend=backend).shape == shape


@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients(target, channels_last):
    device, backend = target
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = torch.rand(3, 2, 3, 4, dtype=torch.float64, device=device).contiguous(memory_format=layout)
    images.requires_grad_()
    partners = torch.tensor([1, 1, 0], device=device)  # one of two, and one of nobody
    boxes = torch.tensor([[1, 0, 3, 2]], device=device).expand(3, 4)
    labels = torch.arange(36, device=device).view(3, 3, 4) % CLASSES
    chosen = torch.tensor([[True, False, True, False, False]], device=device).expand(3, CLASSES)
    weight = torch.tensor([0.25, 0.5, 0.9], dtype=torch.float64, device=device)
    for mix in (
        lambda images: ts.cut_mix(images, partners, boxes, backend=backend),
        lambda images: ts.class_mix(images, partners, labels, chosen, backend=backend),
        lambda images: ts.mix_up(images, partners, weight, backend=backend),
    ):
        assert torch.autograd.gradcheck(mix, images, fast_mode=True)
        assert torch.autograd.gradgradcheck(mix, images, fast_mode=True)
        tangent = torch.rand_like(images)
        _, derivative = torch.func.jvp(mix, (images.detach(),), (tangent,))
        torch.testing.assert_close(derivative, mix(tangent))


def _arguments() -> dict[str, object]:
    return {
        "images": torch.rand(2, 3, 4, 5),
        "partners": torch.tensor([1, 0]),
        "boxes": torch.tensor([[0, 0, 2, 2], [1, 1, 3, 3]]),
        "labels": torch.zeros(2, 4, 5, dtype=torch.uint8),
        "chosen": torch.ones(2, 3, dtype=torch.bool),
        "weight": torch.tensor([0.25, 0.5]),
        "num_classes": 3,
    }


CALLS = {
    ts.cut_mix: ("images", "partners", "boxes"),
    ts.class_mix: ("images", "partners", "labels", "chosen"),
    ts.mix_up: ("images", "partners", "weight"),
    ts.mix_up_labels: ("labels", "partners", "weight", "num_classes"),
}
WRONG = [
    ("images", [1.0], TypeError, "images must be a tensor, got list"),
    ("images", torch.rand(3, 4, 5), ValueError, "images must have shape (B, K, H, W), got (3, 4, 5)"),
    ("images", torch.zeros(2, 3, 4, 5, dtype=torch.complex64), TypeError, "images must be .*got complex64"),
    ("partners", [1, 0], TypeError, "partners must be a tensor, got list"),
    ("partners", torch.tensor([1.0, 0.0]), TypeError, "partners must be .*got float32"),
    ("partners", torch.tensor([1, 0, 1]), ValueError, r"partners must have shape \(B,\) with B = 2, got \(3,\)"),
    ("partners", torch.tensor([1, 2]), ValueError, r"partners must lie in 0\.\.1, .*got \[1, 2\]"),
    ("partners", torch.tensor([-1, 0]), ValueError, r"partners must lie in 0\.\.1"),
    ("partners", torch.tensor([1, 0], device="meta"), ValueError, "partners must be on the device of the pixels, cpu"),
    ("boxes", torch.rand(2, 4), TypeError, "boxes must be .*int64, got float32"),
    ("boxes", torch.zeros(2, 3, dtype=torch.int64), ValueError, r"boxes must have shape \(B, 4\) with B = 2"),
    ("labels", torch.zeros(2, 4, 6, dtype=torch.uint8), ValueError, "labels must have the images' batch, height"),
    ("labels", torch.zeros(2, 4, 5), TypeError, "labels must be .*got float32"),
    ("chosen", torch.ones(2, 3), TypeError, "chosen must be bool, got float32"),
    ("chosen", torch.ones(2, dtype=torch.bool), ValueError, r"chosen must have shape \(B, C\) with B = 2"),
    ("chosen", torch.ones(2, 0, dtype=torch.bool), ValueError, r"chosen must have shape \(B, C\)"),
    ("weight", torch.tensor([1, 0]), TypeError, "weight must be .*got int64"),
    ("weight", torch.tensor([0.5, 1.5]), ValueError, r"weight must lie in 0\.\.1, the share of the partner"),
    ("weight", torch.tensor([0.5, torch.nan]), ValueError, r"weight must lie in 0\.\.1"),
    ("weight", torch.tensor([0.5, 0.5], requires_grad=True), ValueError, "weight must not require a gradient"),
    ("num_classes", 0, ValueError, "num_classes must be at least 1"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), WRONG)
def test_bad_input_is_named(name, value, error, message):
    pattern = message if "\\" in message or ".*" in message else re.escape(message)
    tried = 0
    for call, names in CALLS.items():
        if name not in names or (name == "labels" and call is ts.mix_up_labels and "images'" in message):
            continue
        arguments = _arguments() | {name: value}
        with pytest.raises(error, match=pattern):
            call(*(arguments[each] for each in names))
        tried += 1
    assert tried > 0


def test_labels_out_of_range_are_named_where_they_become_masses():
    arguments = _arguments()
    labels = arguments["labels"].clone()
    labels[0, 0, 0] = 7
    with pytest.raises(ValueError, match="7"):
        ts.mix_up_labels(labels, arguments["partners"], arguments["weight"], 3)
    images = arguments["images"]
    mixed = ts.class_mix(images, arguments["partners"], labels, arguments["chosen"])
    assert torch.equal(mixed[1, :, 0, 0], images[1, :, 0, 0])  # what is no class is not pasted


def test_integers_cannot_be_blended():
    arguments = _arguments()
    with pytest.raises(TypeError, match=r"images must be .*got uint8"):
        ts.mix_up(arguments["images"].byte(), arguments["partners"], arguments["weight"])


def test_negative_bytes_are_no_classes_however_many_there_are(target):
    device, backend = target
    labels = torch.tensor([[[-1, -100, 5, 127]], [[0, 0, 0, 0]]], dtype=torch.int8, device=device)
    images = torch.tensor([0, 1], device=device).view(2, 1, 1, 1).expand(2, 1, 1, 4)
    partners, chosen = torch.tensor([0, 0], device=device), torch.ones(2, 300, dtype=torch.bool, device=device)
    assert ts.class_mix(images, partners, labels, chosen, backend=backend)[1].tolist() == [[[1, 1, 0, 0]]]


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_weight_of_nothing_and_of_all_copies_whatever_the_pixels_are(target, channels_last):
    device, backend = target
    layout = torch.channels_last if channels_last else torch.contiguous_format
    special = torch.tensor([-0.0, torch.inf, -torch.inf, torch.nan, 3e38, 1e-42])
    images = torch.stack([special, special.roll(1)]).view(2, 2, 1, 3).contiguous(memory_format=layout)
    partners = torch.tensor([1, 0], device=device)
    for weight, expected in ((0.0, images), (1.0, images.flip(0))):
        mixed = ts.mix_up(images.to(device), partners, torch.full((2,), weight, device=device), backend=backend)
        _assert_same_bits(mixed, expected)


def test_gradients_where_a_partner_is_none_of_the_batch():
    # On a GPU nobody checks them; so says the backward, which a test can call on the CPU.
    partners, boxes = torch.tensor([7, 0]), torch.tensor([[0, 0, 2, 1]]).expand(2, 4)
    context = SimpleNamespace(size=(1, 4), saved_tensors=(partners, boxes, None, None))
    pasted = mixing_ops._PasteGradient.backward(context, torch.ones(2, 1, 1, 4))
    assert pasted.flatten(1).tolist() == [[2, 2, 1, 1], [0, 0, 1, 1]]
    context.saved_tensors = partners, torch.tensor([0.25, 0.25])
    blended = mixing_ops._BlendGradient.backward(context, torch.ones(2, 1, 1, 1))
    assert blended.flatten().tolist() == [1.25, 0.75]


@pytest.mark.parametrize("name", ["cut_mix", "class_mix", "mix_up", "mix_up_labels"])
def test_export_for_any_batch(name):
    class Mix(torch.nn.Module):
        def forward(self, *tensors):
            return getattr(ts, name)(*tensors, 3) if name == "mix_up_labels" else getattr(ts, name)(*tensors)

    call = getattr(ts, name)
    tensors = [value for each in CALLS[call] if isinstance(value := _arguments()[each], Tensor)]
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(Mix(), tuple(tensors), dynamic_shapes=(tuple({0: batch} for _ in tensors),))
    more = [torch.cat([tensor, tensor, tensor]) for tensor in tensors]
    assert torch.equal(program.module()(*more), Mix()(*more))
