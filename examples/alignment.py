"""Where image and label are read from: kornia's random crop at its defaults, and tritonsoft's.

    python examples/alignment.py [alignment.png]

Both shrink a street scene by 4. First the two are asked for positions instead of pictures: the image holds the
position of each source pixel, the label map its column, so what comes out says where it was read. Then the same crops
show signs on their poles, with the label's outline drawn over the image.
"""

import argparse
from pathlib import Path

import kornia.augmentation as K
import torch
from torch import Tensor, nn

import tritonsoft.augmentation as TA
from tritonsoft.cli.scenes import CLASSES, street_scene

HEIGHT, WIDTH, FACTOR = 512, 1024, 4
SIZE = (HEIGHT // FACTOR, WIDTH // FACTOR)
WHOLE = {"scale": (1.0, 1.0), "ratio": (WIDTH / HEIGHT, WIDTH / HEIGHT)}  # every crop is the whole picture
CLASS_NAMES = ("pole", "traffic sign")
WINDOW = (slice(24, 54), slice(33, 63))  # rows and columns of the shrunken picture that the figure enlarges


def stock() -> nn.Module:
    return K.AugmentationSequential(K.RandomResizedCrop(SIZE, **WHOLE), data_keys=["image", "mask"])


def ours(num_classes: int) -> nn.Module:
    crop = TA.RandomResizedCrop(SIZE, **WHOLE, num_classes=num_classes, ignore_index=-1)
    return TA.AugmentationSequential(crop, data_keys=["image", "mask"])


def drift() -> tuple[Tensor, Tensor]:
    """Image position minus label position along a row, in source pixels: kornia's and ours, each ``(w,)``."""
    columns = torch.arange(WIDTH).expand(1, 1, HEIGHT, WIDTH)
    positions = columns + 0.5  # of the pixels' centres
    image, hard = stock()(positions.float(), columns)
    there = image[0, 0, 0] - (hard[0, 0, 0] + 0.5)
    image, soft = ours(WIDTH)(positions.double(), columns)
    mean_position = torch.einsum("c,cw->w", positions[0, 0, 0].double(), soft[0, :, 0])
    return there, image[0, 0, 0] - mean_position


def crops() -> list[tuple[str, Tensor, Tensor]]:
    """For kornia, then ours: a title, the image ``(3, h, w)``, how much of each pixel is of the classes ``(h, w)``."""
    scene = street_scene(HEIGHT, WIDTH)
    label_map = sum((scene.labels == CLASSES.index(name)).long() for name in CLASS_NAMES)[None]
    image, hard = stock()(scene.image[None] / 255, label_map)
    small, soft = ours(2)(scene.image[None] / 255, label_map)
    return [
        ("kornia: bilinear image, nearest label", image[0], hard[0, 0].float()),
        ("tritonsoft: area image, soft label", small[0], soft[0, 1]),
    ]


def main(path: Path) -> tuple[Tensor, Tensor]:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    there, here = drift()
    figure, (left, *pictures) = plt.subplots(1, 3, figsize=(12, 3.9), width_ratios=(1.25, 1, 1), layout="constrained")
    left.plot(there, color="tab:red", label="kornia's defaults")
    left.plot(here, color="tab:green", label="tritonsoft")
    left.set(xlabel="output column", ylabel="source pixels", title=f"image minus label, shrunk by {FACTOR}")
    left.set_ylim(-2.4, 2.4)
    left.legend(loc="upper left", frameon=False)
    left.grid(alpha=0.3)
    for axes, (title, image, share) in zip(pictures, crops(), strict=True):
        rows, columns = WINDOW
        extent = (columns.start, columns.stop, rows.stop, rows.start)
        axes.imshow(image[:, rows, columns].permute(1, 2, 0).clamp(0, 1), extent=extent, interpolation="nearest")
        ys, xs = (torch.arange(part.start, part.stop) + 0.5 for part in WINDOW)
        axes.contour(xs, ys, share[rows, columns], levels=[0.5], colors=["yellow"], linewidths=1.5)
        axes.set(title=title, xticks=[], yticks=[])
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"image and label read up to {there.abs().max():.1f} source pixels apart in kornia's crop at its defaults,")
    print(f"up to {here.abs().max():.1g} in tritonsoft's; see {path}")
    return there, here


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "figure", nargs="?", type=Path, default="alignment.png", help="the file to draw (default: %(default)s)"
    )
    main(parser.parse_args().figure)
