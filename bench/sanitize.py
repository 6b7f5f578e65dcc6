"""Every kernel on odd sizes, with labels, boxes and numbers that no caller should give, for a memory checker to watch.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python -m bench.sanitize

Without a GPU it runs on the CPU, where values are checked: labels and boxes are then fit to be given.
"""

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

import tritonsoft as ts
from bench.gpu_calls import backward
from tritonsoft import full_resolution

NUM_CLASSES = 19


def some_boxes(device: str) -> Iterator[Tensor | None]:
    """Two boxes each: the whole map, none that is a number, far away, padded and mirrored, of a part of a pixel.

    Mirrored and not, one that ends inside the map is the last: what is read behind its outputs is read behind all.
    """
    nan = float("nan")
    yield None
    if device == "cuda":
        yield torch.tensor([[nan, nan, nan, nan], [1e30, -1e30, 5.0, 6.0]], device=device)
    yield torch.tensor([[-20.0, -9.0, 80.0, 60.0], [50.0, 30.0, 3.0, 2.0]], device=device)
    yield torch.tensor([[50.0, 30.0, 3.0, 2.0], [3.0, 2.0, 50.0, 30.0]], device=device)
    yield torch.tensor([[52.5, 36.5, 53.0, 37.0], [200.0, 200.0, 201.0, 201.0]], device=device)


def main() -> None:
    """Run them all, and wait."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    largest = 256 if device == "cuda" else NUM_CLASSES
    bytes_ = torch.randint(largest, (2, 37, 53), generator=generator).to(device, torch.uint8)
    low, high = (-(2**40), 2**40) if device == "cuda" else (0, NUM_CLASSES)
    integers = torch.randint(low, high, (2, 37, 53), generator=generator).to(device)
    image = torch.rand(2, 3, 37, 53, generator=generator).to(device)
    for boxes in some_boxes(device):
        resampled(image, (bytes_, integers), boxes)
        for labels in (bytes_, integers, integers.mT):
            for several in (boxes, None if boxes is None else boxes[:, None].expand(2, 3, 4)):
                ts.class_areas(labels, several, NUM_CLASSES)
        at_full_size(bytes_, boxes)
    for labels in (bytes_, integers, integers.mT):
        for table in ({7: 0, 8: 1}, {7: 0, 10**6: 1}, torch.arange(9, device=device)):
            ts.remap_labels(labels, table)
    mixed(image, bytes_, integers)
    aligned(bytes_[:, :36, :48].contiguous())
    if device == "cuda":
        torch.cuda.synchronize()
    print("every kernel has run")


def mixed(image: Tensor, *label_maps: Tensor) -> None:
    """Two samples, each with pixels of the other."""
    device = image.device
    partners, weight = torch.tensor([1, 0], device=device), torch.tensor([0.25, 0.75], device=device)
    chosen = torch.ones(2, NUM_CLASSES, dtype=torch.bool, device=device)
    boxes = torch.tensor([[-20, -9, 30, 20], [50, 30, 99, 99]], device=device)
    for pixels in (image, image.contiguous(memory_format=torch.channels_last), image.mT):
        wanted = pixels.clone().requires_grad_()
        backward(ts.cut_mix(wanted, partners, boxes), wanted)()
        backward(ts.mix_up(wanted, partners, weight), wanted)()
    for labels in label_maps:
        ts.class_mix(image, partners, labels, chosen)
        ts.class_mix(labels[:, None], partners, labels, chosen)
        ts.mix_up_labels(labels.clamp(0, NUM_CLASSES - 1), partners, weight, NUM_CLASSES)


def resampled(image: Tensor, label_maps: tuple[Tensor, ...], boxes: Tensor | None) -> None:
    """Crops, dense and compact, their gradient, and a loss of a label map."""
    size = (13, 17)
    for filter in ("area", "triangle"):
        for labels in label_maps:
            ts.crop_resize_pair(image, labels, boxes, size, NUM_CLASSES, filter=filter)
            for dtype in (torch.float16, torch.float64):
                ts.soft_crop_resize(labels, boxes, size, 40, dtype=dtype, filter=filter)
            ts.soft_crop_resize(labels, boxes, size, NUM_CLASSES, top_k=3, filter=filter)
            ts.soft_crop_resize(labels, boxes, size, None, top_k=20, filter=filter)
        wanted = image.clone().requires_grad_()
        backward(ts.crop_resize(wanted, boxes, size, filter=filter), wanted)()
        logits = torch.randn(2, NUM_CLASSES, *size, device=image.device, requires_grad=True)
        backward(ts.area_cross_entropy(logits, label_maps[0], boxes, filter=filter), logits)()


def at_full_size(labels: Tensor, boxes: Tensor | None) -> None:
    """Losses and classes of small logits."""
    for num_classes in (NUM_CLASSES, 150):
        logits = torch.randn(2, num_classes, 9, 11, device=labels.device, requires_grad=True)
        for loss in (ts.upsampled_cross_entropy, ts.upsampled_dice_loss):
            backward(loss(logits, labels, boxes), logits)()
        ts.decode(logits, (37, 53), boxes=boxes, scores=True)
        full_resolution.confusion_matrix(logits, labels, boxes)


def aligned(labels: Tensor) -> None:
    """Whole factors, losses of soft labels, a pyramid."""
    for factor in (1, 2, 4):
        soft = ts.soft_resize(labels, (36 // factor, 48 // factor), NUM_CLASSES)
        logits = torch.randn_like(soft).requires_grad_()
        smoothed = functools.partial(ts.soft_cross_entropy, label_smoothing=0.1)
        losses = (
            ts.soft_cross_entropy,
            smoothed,
            ts.soft_binary_cross_entropy,
            ts.soft_dice_loss,
            ts.soft_jaccard_loss,
        )
        for loss in losses:
            backward(loss(logits, soft), logits)()
    ts.soft_pyramid(labels, NUM_CLASSES, (1, 2, 4))


if __name__ == "__main__":
    main()
