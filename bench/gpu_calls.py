"""The calls whose time on a GPU is recorded: every kernel, on 16 street scenes of 1024 x 2048.

Each has the bytes that must move (`bench.floor`). Names are those of `bench.kernel_cost`, which says what the kernel of
such a call costs; ``bench/results/*-kernels.csv`` holds their times. The inputs are the same on every machine.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

import tritonsoft as ts
from bench.floor import Traffic
from tritonsoft import full_resolution
from tritonsoft.cli.scenes import IGNORE_INDEX, street_scene

HALF = torch.float16
DRAWN = 4  # scenes, repeated


class Call(NamedTuple):
    """``make`` gives what is timed: it allocates the inputs that no other call has."""

    name: str
    make: Callable[[], Callable[[], Any]]
    traffic: Traffic


class Inputs:
    """A batch of street scenes and what else calls take."""

    def __init__(self, device: str, batch: int = 16, height: int = 1024, width: int = 2048) -> None:
        scenes = [street_scene(height, width, seed) for seed in range(min(batch, DRAWN))]
        repeats = -(-batch // len(scenes))
        self.device, self.batch, self.height, self.width = device, batch, height, width
        labels = torch.stack([scene.labels for scene in scenes]).repeat(repeats, 1, 1)[:batch].to(device)
        self.image = (
            torch.stack([scene.image for scene in scenes]).repeat(repeats, 1, 1, 1)[:batch].to(device, HALF) / 255
        )
        self.labels = {19: labels.to(torch.uint8)}  # (B, H, W), by the number of classes
        far_apart = torch.where(labels == IGNORE_INDEX, IGNORE_INDEX, labels.int() * 7)
        self.labels[150] = far_apart.to(torch.uint8)
        noise = torch.randint(19, labels.shape, generator=torch.Generator().manual_seed(0))
        self.noise = noise.to(device, torch.uint8)
        # Boxes of half to all of each side: scales of 1 to 2 for an output of half the size.
        generator = torch.Generator().manual_seed(0)
        across, down = (torch.rand(batch, generator=generator) for _ in range(2))
        extent = torch.stack(((1 + across) * width / 2, (1 + down) * height / 2), 1)
        corner = torch.rand(batch, 2, generator=generator) * (torch.tensor([width, height]) - extent)
        self.boxes = torch.cat((corner, corner + extent), 1).to(device)
        self.box_pixels = int((extent[:, 0] * extent[:, 1]).sum())
        self.pixels = batch * height * width

    def size(self, factor: float) -> tuple[int, int]:
        return round(self.height / factor), round(self.width / factor)

    def cells(self, factor: float) -> int:
        """Outputs of a plane, of all samples."""
        height, width = self.size(factor)
        return self.batch * height * width

    def logits(self, num_classes: int, factor: float) -> Tensor:
        """The same on every machine."""
        shape = (self.batch, num_classes, *self.size(factor))
        generator = torch.Generator().manual_seed(0)
        plane = torch.randn(shape[1:], generator=generator).to(self.device, HALF)
        return plane.repeat(self.batch, 1, 1, 1).requires_grad_()

    def soft(self, num_classes: int, factor: float) -> Tensor:
        return ts.soft_resize(self.labels[num_classes], self.size(factor), num_classes, dtype=HALF)


def calls(inputs: Inputs) -> Iterator[Call]:
    """All of them."""
    yield from of_labels(inputs)
    yield from of_images(inputs)
    yield from of_losses(inputs)
    yield from at_full_size(inputs)


def of_labels(inputs: Inputs) -> Iterator[Call]:
    """Soft labels, dense and compact."""
    pixels = inputs.pixels

    def soft(name: str, labels: Tensor, num_classes: int, factor: float) -> Call:
        call = functools.partial(ts.soft_resize, labels, inputs.size(factor), num_classes, dtype=HALF)
        share = len(labels) / inputs.batch
        traffic = Traffic(round(share * pixels), round(share * inputs.cells(factor) * num_classes * 2))
        return Call(name, lambda: call, traffic)

    for num_classes, factors in ((19, (1, 2, 4, 8, 1.5, 2.7, 5.3, 16)), (150, (1, 2, 4, 8, 1.5, 2.7))):
        for factor in factors:
            # 150 planes of the whole size are 10 GB: a quarter of the maps.
            labels = inputs.labels[num_classes]
            some = labels[: max(1, len(labels) // 4)] if (num_classes, factor) == (150, 1) else labels
            yield soft(f"soft C={num_classes} k={factor:g}", some, num_classes, factor)
    for factor in (2, 4, 8):
        yield soft(f"soft C=19 k={factor} noise", inputs.noise, 19, factor)
    size, cells = inputs.size(2), inputs.cells(2)
    for num_classes in (19, 150):
        labels = inputs.labels[num_classes]
        call = functools.partial(ts.soft_crop_resize, labels, inputs.boxes, size, num_classes, dtype=HALF)
        traffic = Traffic(inputs.box_pixels, cells * num_classes * 2)
        yield Call(f"soft C={num_classes} boxes", lambda call=call: call, traffic)
    top = functools.partial(ts.soft_resize, inputs.labels[150], inputs.size(4), 150, dtype=HALF, top_k=4)
    # Four classes and masses, and the rest.
    yield Call("top 4 of C=150 k=4", lambda: top, Traffic(pixels, inputs.cells(4) * 14))
    modes = functools.partial(ts.soft_resize, inputs.labels[150], inputs.size(8), None, dtype=HALF, top_k=1)
    yield Call("mode of ids k=8", lambda: modes, Traffic(pixels, inputs.cells(8) * 5))  # an id, its mass, the rest
    ten = inputs.boxes.repeat_interleave(10, 0).view(inputs.batch, 10, 4)
    areas = functools.partial(ts.class_areas, inputs.labels[19], ten, 19)
    yield Call("areas of ten boxes", lambda: areas, Traffic(10 * inputs.box_pixels, 10 * inputs.batch * 19 * 4))
    yield from mixed(inputs)
    factors = (2, 4, 8, 16)
    pyramid = functools.partial(ts.soft_pyramid, inputs.labels[19], 19, factors, dtype=HALF)
    written = sum(inputs.cells(factor) for factor in factors) * 19 * 2
    yield Call("pyramid C=19", lambda: pyramid, Traffic(pixels, written))


def mixed(inputs: Inputs) -> Iterator[Call]:
    """Samples mixed with the next ones: of images one pixel is read for each that is written, or two."""
    image, labels, batch = inputs.image, inputs.labels[19], inputs.batch
    device, pixels = image.device, labels.numel()
    partners, weight = torch.arange(batch, device=device).roll(1), torch.rand(batch, device=device)
    height, width = labels.shape[1:]
    boxes = torch.tensor([[width // 5, height // 5, 4 * width // 5, 4 * height // 5]], device=device).expand(batch, 4)
    chosen = (torch.arange(19, device=device) % 2 == 0).expand(batch, 19)
    cut = functools.partial(ts.cut_mix, image, partners, boxes)
    yield Call("cut mix of images", lambda: cut, Traffic(image.nbytes, image.nbytes))
    classes = functools.partial(ts.class_mix, image, partners, labels, chosen)
    yield Call("class mix of images", lambda: classes, Traffic(image.nbytes + pixels, image.nbytes))
    blend = functools.partial(ts.mix_up, image, partners, weight)
    yield Call("mix up of images", lambda: blend, Traffic(image.nbytes, image.nbytes))
    masses = functools.partial(ts.mix_up_labels, labels, partners, weight, 19, dtype=HALF)
    yield Call("mix up of labels C=19", lambda: masses, Traffic(pixels, pixels * 19 * 2))


def of_images(inputs: Inputs) -> Iterator[Call]:
    """Images alone, with their labels, and the gradient of a crop."""
    image, labels, size, cells = inputs.image, inputs.labels[19], inputs.size(2), inputs.cells(2)
    of_a_pixel = image.shape[1] * image.itemsize  # bytes
    pair = functools.partial(ts.crop_resize_pair, image, labels)
    planes = of_a_pixel + 2 * 19
    yield Call(
        "pair C=19 boxes",
        lambda: lambda: pair(inputs.boxes, size, 19, soft_dtype=HALF),
        Traffic(inputs.box_pixels * (of_a_pixel + 1), cells * planes),
    )
    yield Call(
        "pair C=19 k=2",
        lambda: lambda: pair(None, size, 19, soft_dtype=HALF),
        Traffic(inputs.pixels * (of_a_pixel + 1), cells * planes),
    )
    traffic = Traffic(inputs.box_pixels * of_a_pixel, cells * of_a_pixel)
    yield Call("image boxes", lambda: lambda: ts.crop_resize(image, inputs.boxes, size), traffic)
    for factor in (2, 4):
        resize = functools.partial(ts.resize, image, inputs.size(factor))
        traffic = Traffic(inputs.pixels * of_a_pixel, inputs.cells(factor) * of_a_pixel)
        yield Call(f"image k={factor}", lambda resize=resize: resize, traffic)

    def adjoint() -> Callable[[], Any]:
        wanted = image.detach().requires_grad_()
        return backward(ts.crop_resize(wanted, inputs.boxes, size), wanted)

    yield Call("image adjoint boxes", adjoint, Traffic(cells * of_a_pixel, inputs.pixels * of_a_pixel))


def backward(value: Tensor, wanted: Tensor) -> Callable[[], Any]:
    """A gradient alone: its forward pass has been."""
    slopes = torch.ones_like(value)
    return lambda: torch.autograd.grad(value, wanted, slopes, retain_graph=True)


def forward_and_gradient(
    name: str,
    kind: str,
    loss: Callable[[Tensor], Tensor],
    logits: Callable[[], Tensor],
    traffic: tuple[Traffic, Traffic],
) -> Iterator[Call]:
    """Both passes of a loss, each on its own."""

    def forward() -> Callable[[], Any]:
        made = logits().detach()
        return lambda: loss(made)

    def gradient() -> Callable[[], Any]:
        made = logits()
        return backward(loss(made), made)

    yield Call(f"{'area loss' if name == 'area' else name} {kind}", forward, traffic[0])
    yield Call(f"{name} gradient {kind}", gradient, traffic[1])


def of_losses(inputs: Inputs) -> Iterator[Call]:
    """Losses of soft labels and of label maps, at the size of the logits."""
    for num_classes, factor in ((19, 2), (150, 4)):
        planes = inputs.cells(factor) * num_classes * 2
        kind = f"C={num_classes} k={factor}"
        logits = functools.partial(inputs.logits, num_classes, factor)
        labels = inputs.labels[num_classes]
        soft = functools.cache(functools.partial(inputs.soft, num_classes, factor))
        with_soft = (Traffic(2 * planes, 0), Traffic(2 * planes, planes))
        with_labels = (Traffic(planes + inputs.pixels, 0), Traffic(planes + inputs.pixels, planes))
        losses: dict[str, tuple[Callable[[Tensor], Tensor], tuple[Traffic, Traffic]]] = {
            "cross entropy": (lambda z, soft=soft: ts.soft_cross_entropy(z, soft()), with_soft),
            "overlap": (lambda z, soft=soft: ts.soft_dice_loss(z, soft()), with_soft),
            "area": (lambda z, labels=labels: ts.area_cross_entropy(z, labels), with_labels),
            "smoothed cross entropy": (
                lambda z, soft=soft: ts.soft_cross_entropy(z, soft(), label_smoothing=0.1),
                with_soft,
            ),
            "binary cross entropy": (lambda z, soft=soft: ts.soft_binary_cross_entropy(z, soft()), with_soft),
        }
        for name, (loss, traffic) in losses.items():
            yield from forward_and_gradient(name, kind, loss, logits, traffic)


def at_full_size(inputs: Inputs) -> Iterator[Call]:
    """Logits at a quarter, against the label map at its full size."""
    for num_classes in (19, 150):
        kind = f"C={num_classes} r=4"
        planes = inputs.cells(4) * num_classes * 2
        logits = functools.partial(inputs.logits, num_classes, 4)
        labels = inputs.labels[num_classes]
        traffic = (Traffic(planes + inputs.pixels, 0), Traffic(planes + inputs.pixels, planes))
        losses: dict[str, Callable[[Tensor], Tensor]] = {
            "upsampled cross entropy": lambda z, labels=labels: ts.upsampled_cross_entropy(z, labels),
            "upsampled overlap": lambda z, labels=labels: ts.upsampled_dice_loss(z, labels),
        }
        for name, loss in losses.items():
            yield from forward_and_gradient(name, kind, loss, logits, traffic)

        def decode(logits: Callable[[], Tensor] = logits) -> Callable[[], Any]:
            made = logits().detach()
            return lambda: ts.decode(made, (inputs.height, inputs.width))

        def confusion(logits: Callable[[], Tensor] = logits, labels: Tensor = labels) -> Callable[[], Any]:
            made = logits().detach()
            return lambda: full_resolution.confusion_matrix(made, labels)

        yield Call(f"decode {kind}", decode, Traffic(planes, inputs.pixels))
        yield Call(f"confusion matrix {kind}", confusion, Traffic(planes + inputs.pixels, 0))
