"""Draws ``images/geometry.png``: a box, the footprint and taps of one output pixel, and the masses that come of them.

    python docs/draw_geometry.py [geometry.png]

Weights and masses are those that the library computes, in float64.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tritonsoft as ts
from tritonsoft.backends.reference import axis_matrix

FIGURE = Path(__file__).parent / "images" / "geometry.png"
LABELS = torch.tensor(
    [
        [0, 0, 0, 0, 1, 1, 1, 1, 0, 0],
        [0, 0, 0, 2, 1, 1, 1, 1, 1, 0],
        [0, 0, 0, 2, 1, 1, 1, 1, 1, 1],
        [3, 3, 3, 2, 3, 3, 3, 1, 1, 1],
        [3, 3, 3, 2, 3, 3, 3, 3, 255, 255],
        [3, 3, 3, 2, 3, 3, 3, 3, 255, 255],
    ]
)
IGNORED, NUM_CLASSES = 255, 4
COLOURS = ["#9ecae9", "#f2cf5b", "#e45756", "#8c8c94"]
NAMES = ["class 0", "class 1", "class 2", "class 3"]
BOX, SIZE = (0.5, 0.5, 11.7, 5.3), (2, 4)  # x0, y0, x1, y1; rows and columns of the output
CHOSEN = (1, 3)  # the output pixel whose taps are drawn: it reaches out of the image
FILTERS = ("area", "triangle")


def taps_along_x(filter: str) -> tuple[Tensor, float]:
    """The weights of the source columns in the chosen output column, and that of what lies outside."""
    inside, outside = axis_matrix(torch.tensor([[BOX[0], BOX[2]]]).double(), LABELS.shape[1], SIZE[1], filter)
    return inside[0, CHOSEN[1]], float(outside[0, CHOSEN[1]])


def masses() -> Tensor:
    """The soft label of the box, ``(C, h, w)``."""
    return ts.soft_crop_resize(LABELS[None], torch.tensor([BOX]).double(), SIZE, NUM_CLASSES, dtype=torch.float64)[0]


def main(path: Path = FIGURE) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(10.5, 6.6), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.15, 1), height_ratios=(1, 1))
    draw_source(figure.add_subplot(grid[0, 0]))
    draw_taps(figure.add_subplot(grid[1, 0]))
    draw_masses(figure, grid[:, 1])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_source(axes: Any) -> None:
    """The label map, the box, its output pixels, and the footprint of one of them."""
    from matplotlib.patches import Rectangle

    height, width = LABELS.shape
    for y in range(height):
        for x in range(width):
            label = int(LABELS[y, x])
            look = {"facecolor": "white", "hatch": "xxx"} if label == IGNORED else {"facecolor": COLOURS[label]}
            axes.add_patch(Rectangle((x, y), 1, 1, edgecolor="0.55", linewidth=0.6, **look))
    x0, y0, x1, y1 = BOX
    step_x, step_y = (x1 - x0) / SIZE[1], (y1 - y0) / SIZE[0]
    axes.add_patch(Rectangle((width, y0), x1 - width, y1 - y0, facecolor="none", edgecolor="0.5", hatch="..", lw=0))
    for row in range(SIZE[0] + 1):
        axes.plot((x0, x1), 2 * (y0 + row * step_y,), color="black", linewidth=1.4)
    for column in range(SIZE[1] + 1):
        axes.plot(2 * (x0 + column * step_x,), (y0, y1), color="black", linewidth=1.4)
    left, top = x0 + CHOSEN[1] * step_x, y0 + CHOSEN[0] * step_y
    axes.add_patch(Rectangle((left, top), step_x, step_y, fill=False, edgecolor="#d6249f", linewidth=3.2, zorder=5))
    axes.plot(left + step_x / 2, top + step_y / 2, "o", color="#d6249f", markersize=5, zorder=6)
    axes.annotate("(0, 0)", (0, 0), (-0.1, -0.15), ha="left", va="bottom", fontsize=9)
    axes.annotate("(W, H)", (width, height), (width, height + 0.1), ha="center", va="top", fontsize=9)
    axes.text(x1 + 0.15, top + step_y / 2, "footprint", color="#d6249f", fontsize=10, va="center")
    axes.text((width + x1) / 2, y0 - 0.12, "padding", ha="center", va="bottom", fontsize=9)
    axes.set(xlim=(-0.2, 13.6), ylim=(height + 0.6, -0.7), aspect="equal", xticks=[], yticks=[])
    axes.set_title(f"label map {height} x {width}, box {BOX}, output {SIZE[0]} x {SIZE[1]}", fontsize=10)
    axes.set_frame_on(False)


def draw_taps(axes: Any) -> None:
    """The weights of the source columns in one output column."""
    width = LABELS.shape[1]
    for place, (filter, colour) in enumerate(zip(FILTERS, ("#4c78a8", "#f58518"), strict=True)):
        weights, outside = taps_along_x(filter)
        shift = (place - 0.5) * 0.42
        columns = (torch.arange(width) + 0.5 + shift).numpy()
        axes.bar(columns, weights.numpy(), 0.4, color=colour, label=f'"{filter}": {outside:.2f} lies outside')
        # What lies outside has one weight here; its two columns share it as the filter says.
        beyond = taps_beyond(filter)
        axes.bar(
            (torch.arange(width, width + len(beyond)) + 0.5 + shift).numpy(),
            beyond.numpy(),
            0.4,
            facecolor="white",
            edgecolor=colour,
            hatch="....",
        )
    step = (BOX[2] - BOX[0]) / SIZE[1]
    left = BOX[0] + CHOSEN[1] * step
    axes.axvspan(left, left + step, color="#d6249f", alpha=0.12, lw=0)
    axes.axvline(left + step / 2, color="#d6249f", linewidth=1)
    axes.axvline(width, color="black", linewidth=1)
    axes.set(xlim=(-0.2, 13.6), xlabel="source column", ylabel="weight")
    axes.set_xticks([k + 0.5 for k in range(12)], [str(k) for k in range(12)])
    axes.set_title("taps of that output pixel along x; beyond the line: padding", fontsize=10)
    axes.legend(fontsize=9, loc="upper left", frameon=False)
    axes.grid(axis="y", alpha=0.3)


def taps_beyond(filter: str) -> Tensor:
    """The same weights of the columns right of the image that the box touches: those of a wider image."""
    width = LABELS.shape[1]
    inside, _ = axis_matrix(torch.tensor([[BOX[0], BOX[2]]]).double(), width + 2, SIZE[1], filter)
    return inside[0, CHOSEN[1], width:]


def draw_masses(figure: Any, place: Any) -> None:
    """The soft label: a column of masses for each output pixel, up to 1."""
    from matplotlib.patches import Rectangle

    soft = masses()
    axes = figure.add_subplot(place)
    for row in range(SIZE[0]):
        for column in range(SIZE[1]):
            bottom, base = 0.0, SIZE[0] - 1 - row
            for class_id in range(NUM_CLASSES):
                mass = float(soft[class_id, row, column])
                corner = (column + 0.08, base + 0.06 + 0.8 * bottom)
                axes.add_patch(Rectangle(corner, 0.84, 0.8 * mass, facecolor=COLOURS[class_id], lw=0))
                if mass > 0.06:
                    axes.text(corner[0] + 0.42, corner[1] + 0.4 * mass, f"{mass:.2f}", ha="center", va="center")
                bottom += mass
            is_chosen = (row, column) == CHOSEN
            axes.add_patch(
                Rectangle(
                    (column + 0.08, base + 0.06),
                    0.84,
                    0.8,
                    fill=False,
                    edgecolor="#d6249f" if is_chosen else "black",
                    linewidth=3 if is_chosen else 1,
                )
            )
            axes.text(column + 0.5, base + 0.88, f"sum {bottom:.2f}", ha="center", va="bottom", fontsize=9)
    handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS]
    handles.append(Rectangle((0, 0), 1, 1, facecolor="white", edgecolor="0.4", hatch="xxx"))
    axes.legend(handles, [*NAMES, "ignored"], loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=5, fontsize=9,
                frameon=False, handlelength=1, columnspacing=1)  # fmt: skip
    axes.set(xlim=(0, SIZE[1]), ylim=(0, SIZE[0] + 0.05), xticks=[], yticks=[])
    axes.set_title("soft label (area filter): the mass of each class", fontsize=10)
    axes.set_frame_on(False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", nargs="?", type=Path, default=FIGURE, help="the file to draw (default: %(default)s)")
    main(parser.parse_args().figure)
