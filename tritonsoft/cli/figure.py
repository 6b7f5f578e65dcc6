"""The demo's figure."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import tritonsoft as ts
from tritonsoft.cli.kept import hard_labels, shrunken
from tritonsoft.cli.pictures import Array, Pictures
from tritonsoft.data import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PIXELS = 2**16 - 1  # of a side of a figure that matplotlib draws


def draw_figure(
    file: Path, image: Tensor, labels: Tensor, factors: Sequence[float], thin: Sequence[int], pictures: Pictures
) -> None:
    """Above the whole picture; below a window of it at each factor: image, hard labels, thin classes, entropy."""
    plt = pyplot()
    from matplotlib.patches import Patch, Rectangle

    (height, width), rows, columns = labels.shape, len(factors), 3 + 2 * len(thin)
    top, left, window_height, window_width = busiest_window([labels == class_id for class_id in thin])
    present = [k for k in torch.unique(labels).tolist() if 0 <= k < pictures.num_classes and k != pictures.ignore_index]

    # Inches from the top left.
    gap, margin, heading, bar, panel_width = 0.07, 0.4, 0.3, 0.75, 2.7
    panel = panel_width, panel_width * window_height / window_width
    figure_width = margin + columns * (panel_width + gap) + gap
    half_width = (figure_width - margin - 2 * gap) / 2
    overview = half_width, half_width * height / width
    grid_top = overview[1] + 2 * heading + gap
    bar_top = grid_top + rows * (panel[1] + gap)
    key_columns = 2 * columns
    figure_height = bar_top + bar + 0.25 * math.ceil((len(present) + 1) / key_columns) + gap
    figure: Figure = plt.figure(figsize=(figure_width, figure_height), facecolor="white")

    def place(x: float, y: float, size: tuple[float, float]) -> "Axes":
        bottom = 1 - (y + size[1]) / figure_height
        return figure.add_axes((x / figure_width, bottom, size[0] / figure_width, size[1] / figure_height))

    whole = (f"image, {height} × {width}", image.permute(1, 2, 0).numpy()), ("labels", _painted(labels, pictures))
    for column, (title, pixels) in enumerate(whole):
        axes = place(margin + column * (half_width + gap), heading, overview)
        _show(axes, pixels, labels.shape, title)
        axes.add_patch(Rectangle((left, top), window_width, window_height, fill=False, edgecolor="white", linewidth=2))

    mass = {"cmap": "magma", "vmin": 0, "vmax": 1}
    bits = {"cmap": "viridis", "vmin": 0, "vmax": 2}
    for row, factor in enumerate(factors):
        size = shrunken(labels.shape, factor)
        small, soft = ts.crop_resize_pair(
            image[None], labels[None], None, size, pictures.num_classes, ignore_index=pictures.ignore_index
        )
        hard = hard_labels(labels, size, "nearest-exact")
        entropy = torch.special.entr(ts.normalize(soft))[0].sum(0) / math.log(2)
        entropy[soft[0].sum(0) == 0] = torch.nan  # nothing is known there
        panels: list[tuple[str, Any, dict[str, Any]]] = [
            ("image, area filter", small[0].permute(1, 2, 0).numpy(), {}),
            ("labels, nearest-exact", _painted(hard, pictures), {}),
        ]
        for class_id in thin:
            name = pictures.class_names[class_id]
            panels.append((f"{name}, nearest-exact", hard.eq(class_id).float().numpy(), mass))
            panels.append((f"{name}, soft label", soft[0, class_id].numpy(), mass))
        panels.append(("entropy of the soft label", entropy.numpy(), bits))
        for column, (title, pixels, options) in enumerate(panels):
            x = margin + column * (panel_width + gap)
            axes = place(x, grid_top + row * (panel[1] + gap), panel)
            drawn = _show(axes, pixels, labels.shape, "" if row else title, **options)
            axes.set(xlim=(left, left + window_width), ylim=(top + window_height, top), facecolor="0.7")
            if column == 0:
                axes.set_ylabel(f"1/{factor:g}", fontsize=13, fontweight="bold")
            if row == rows - 1 and options:
                scale = place(x + 0.15, bar_top + 0.1, (panel_width - 0.3, 0.1))
                unit = "bits" if options is bits else "share of the pixel"
                figure.colorbar(drawn, cax=scale, orientation="horizontal", label=unit)

    swatches = [Patch(facecolor=pictures.palette[k] / 255, label=pictures.class_names[k]) for k in present]
    swatches.append(Patch(facecolor="black", label="ignored"))
    figure.legend(handles=swatches, loc="lower center", ncols=key_columns, frameon=False, fontsize=10, handlelength=1.2)
    save_figure(figure, file)


def pyplot() -> Any:
    """matplotlib.pyplot, drawing without a display."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save_figure(figure: "Figure", file: Path) -> None:
    """Save a figure and close it. Names of classes in it are text, also where they hold dollars."""
    import matplotlib.pyplot as plt
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    dpi = min(160, MAX_PIXELS / max(figure.get_size_inches()))
    with atomic_write(file) as temporary:
        figure.savefig(temporary, dpi=dpi)
    plt.close(figure)


def _show(axes: "Axes", pixels: Any, source: Sequence[int], title: str, **options: Any) -> Any:
    """Draw an array of any resolution in the coordinates of the source."""
    axes.set_title(title, fontsize=11)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes.imshow(pixels, extent=(0, source[1], source[0], 0), interpolation="nearest", aspect="auto", **options)


def _painted(labels: Tensor, pictures: Pictures) -> Array:
    """Colours ``(H, W, 3)``; ignored pixels are black."""
    colours = np.vstack((pictures.palette, np.zeros((1, 3), np.uint8)))
    ids = torch.where(labels == pictures.ignore_index, pictures.num_classes, labels.long())
    return np.asarray(colours[ids.numpy()])


def busiest_window(masks: Sequence[Tensor]) -> tuple[int, int, int, int]:
    """Top, left, height and width of the window with the most outline of some masks, as shares of each one's outline.

    A third of the picture each way, but no narrower than 240 pixels where there are as many.
    """
    height, width = masks[0].shape
    window_width = min(width, max(width // 3, 240))
    window = max(height * window_width // width, 1), window_width
    outlines = torch.zeros(height, width)
    for mask in masks:
        outline = F.pad((mask[:, 1:] != mask[:, :-1]).float(), (0, 1))
        outline += F.pad((mask[1:] != mask[:-1]).float(), (0, 0, 0, 1))
        outlines += outline / outline.sum().clamp(min=1)
    stride = max(window[0] // 8, 1), max(window[1] // 8, 1)
    sums = F.avg_pool2d(outlines[None, None], window, stride)[0, 0]
    row, column = divmod(int(sums.argmax()), sums.shape[1])
    return row * stride[0], column * stride[1], *window
