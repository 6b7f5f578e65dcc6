"""A rotation, a crop and a flip: kornia's modules one after the other, and the same ones as one resample.

    python examples/warps.py [warps.png]

Both draw the same parameters for the same street scene. The figure shows what comes out as image, as label and as the
share of each pixel that poles cover, beside that share counted over many points of each footprint in the label map.
"""

import argparse
from pathlib import Path
from typing import Any

import kornia.augmentation as K
import torch
from torch import Tensor

import tritonsoft.augmentation as TA
from tritonsoft.cli.scenes import CLASSES, IGNORE_INDEX, PALETTE, Scene, street_scene

HEIGHT, WIDTH, SEED = 512, 1024, 0
SIZE = (64, 128)
POLE = CLASSES.index("pole")
POINTS = 24  # along each axis of a pixel, over which its true share is counted


def pipeline(library: Any, **options: Any) -> Any:
    """The same modules of either library; ``options`` for those that ours has besides."""
    return library.AugmentationSequential(
        library.RandomRotation((20.0, 20.0), p=1.0, **options),
        library.RandomResizedCrop(SIZE, scale=(0.3, 0.3), ratio=(2.0, 2.0), **options),
        library.RandomHorizontalFlip(p=1.0, **options),
        data_keys=["image", "mask"],
    )


def warped(scene: Scene) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
    """kornia's image and hard label, ours and the soft label, each ``(_, h, w)``, and the matrix that ours went by."""
    image, labels = scene.image[None] / 255, scene.labels[None, None]
    stock, ours = pipeline(K), pipeline(TA, num_classes=len(CLASSES), ignore_index=IGNORE_INDEX)
    torch.manual_seed(SEED)
    there = stock(image, labels)
    torch.manual_seed(SEED)
    here = ours(image, labels)
    return (there[0][0], there[1][0]), (here[0][0], here[1][0]), ours.matrices[0]


def counted_share(labels: Tensor, matrix: Tensor) -> Tensor:
    """The share of each output pixel that poles cover, ``(h, w)``: `POINTS` squared points, by plain indexing."""
    v, u = ((torch.arange(side * POINTS).double() + 0.5) / POINTS for side in SIZE)
    ones = torch.ones(len(v), len(u)).double()
    positions = matrix @ torch.stack([u * ones, v[:, None] * ones, ones]).flatten(1)
    x, y = (positions[:2] / positions[2]).floor().long()
    inside = (x >= 0) & (x < labels.shape[1]) & (y >= 0) & (y < labels.shape[0])
    found = labels[y.clamp(0, labels.shape[0] - 1), x.clamp(0, labels.shape[1] - 1)] == POLE
    cells = (found & inside).view(SIZE[0], POINTS, SIZE[1], POINTS)
    return cells.double().mean((1, 3))


def kept_in_place(share: Tensor, truth: Tensor) -> float:
    """How much of the true area lies where the label says it does."""
    return float(torch.minimum(share.double(), truth).sum() / truth.sum())


def main(path: Path) -> tuple[float, float]:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    scene = street_scene(HEIGHT, WIDTH)
    (stock_image, hard), (image, soft), matrix = warped(scene)
    truth = counted_share(scene.labels, matrix)
    shares = (hard[0] == POLE).double(), soft[POLE].double(), truth
    kept = kept_in_place(shares[0], truth), kept_in_place(shares[1], truth)

    palette = torch.cat([torch.tensor(PALETTE), torch.zeros(256 - len(PALETTE), 3).long()]) / 255
    rows = (
        ("kornia, three modules", stock_image, palette[hard[0].long()], shares[0]),
        ("tritonsoft, one resample", image, torch.einsum("chw,cd->hwd", soft, palette[: len(CLASSES)]), shares[1]),
    )
    figure = plt.figure(figsize=(13.2, 4.6), layout="constrained")
    grid = figure.add_gridspec(2, 4, width_ratios=(1.25, 1, 1, 1))
    _draw_source(figure.add_subplot(grid[0, 0]), scene, matrix)
    axes = figure.add_subplot(grid[1, 0])
    axes.imshow(truth.numpy(), cmap="magma", vmin=0, vmax=1, interpolation="nearest")
    axes.set(title="poles, the true share of each pixel", xticks=[], yticks=[])
    for row, (name, pixels, labels, share) in enumerate(rows):
        for column, (what, values) in enumerate(
            (("image", pixels.permute(1, 2, 0)), ("label", labels), ("poles", share))
        ):
            axes = figure.add_subplot(grid[row, column + 1])
            options = {"cmap": "magma", "vmin": 0, "vmax": 1} if what == "poles" else {}
            axes.imshow(values.clamp(0, 1).numpy(), interpolation="nearest", **options)
            title = f"poles, {kept[row]:.0%} of their area in place" if what == "poles" else f"{name}: {what}"
            axes.set(title=title, xticks=[], yticks=[])
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"poles keep {kept[0]:.1%} of their area in place in kornia's label, {kept[1]:.1%} in the soft label")
    return kept


def _draw_source(axes: Any, scene: Scene, matrix: Tensor) -> None:
    """The scene, and the outline of what is taken from it."""
    height, width = SIZE
    corners = torch.tensor([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1], [0, 0, 1]]).double()
    x, y, depth = matrix @ corners.T
    axes.imshow(scene.image.permute(1, 2, 0).numpy(), extent=(0, WIDTH, HEIGHT, 0))
    axes.plot((x / depth).numpy(), (y / depth).numpy(), color="yellow", linewidth=2)
    axes.set(title="rotated, cropped and flipped", xlim=(0, WIDTH), ylim=(HEIGHT, 0), xticks=[], yticks=[])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "figure", nargs="?", type=Path, default="warps.png", help="the file to draw (default: %(default)s)"
    )
    main(parser.parse_args().figure)
