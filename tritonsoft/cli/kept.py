"""How much of each class's area is left at low resolution, and how much of that at the right place."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from rich.table import Table
from rich.text import Text
from torch import Tensor

import tritonsoft as ts
from tritonsoft.cli.common import percent, table_of

HARD = ("nearest", "nearest-exact")  # the modes of F.interpolate; the first, PyTorch's default, shifts by half a cell
METHODS = (*HARD, "soft")


def shrunken(labels: Tensor, factor: float) -> tuple[int, int]:
    height, width = labels.shape
    return max(round(height / factor), 1), max(round(width / factor), 1)


def hard_labels(labels: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """What is done today: ``F.interpolate`` of the ids, ``(H, W)`` -> ``(h, w)``; float64 holds every id exactly."""
    return F.interpolate(labels[None, None].double(), size, mode=mode)[0, 0].to(labels.dtype)


def areas_kept(labels: Tensor, factor: float, num_classes: int, ignore_index: int) -> Tensor:
    """How much of each class's area a method shows at low resolution, and how much of that at the right place.

    Returns:
        ``(7, C)`` float64 in source pixels: the class's true area; the area that each of `METHODS` gives it; the area
        that each of them gives it in the low-resolution pixels where it truly is, ``sum(min(given, true))``.
    """
    size = shrunken(labels, factor)
    cell = labels.numel() / (size[0] * size[1])
    soft = ts.soft_resize(labels[None], size, num_classes, ignore_index=ignore_index, validate=True)[0]  # (C, h, w)
    hard = [hard_labels(labels, size, mode) for mode in HARD]
    result = torch.zeros(1 + 2 * len(METHODS), num_classes, dtype=torch.float64)
    for class_id in torch.unique(labels).tolist():
        if class_id == ignore_index:
            continue
        true = cell_areas(labels == class_id, size)
        given = [*(ids.eq(class_id).double() * cell for ids in hard), soft[class_id].double() * cell]
        placed = [area.minimum(true) for area in given]
        result[:, class_id] = torch.stack([area.sum() for area in (true, *given, *placed)]).cpu()
    return result


def cell_areas(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """The area of a mask in each of h x w equal cells: differences of running totals, exact for fractional cells too.

    It shares no code and no formula with the operators that the demo judges by it.
    """
    areas, total = mask, mask.cumsum(0, dtype=torch.int32)
    for dim, cells in enumerate(size):
        pixels = areas.shape[dim]
        edge = torch.arange(1, cells + 1, dtype=torch.float64, device=mask.device) * pixels / cells
        last = edge.long().clamp(max=pixels - 1)  # the pixel that the edge cuts, or that ends there
        beyond = (1 - (edge - last)).unsqueeze(1 - dim)
        up_to_edge = total.index_select(dim, last) - beyond * areas.index_select(dim, last)
        areas = up_to_edge.diff(dim=dim, prepend=torch.zeros_like(up_to_edge.narrow(dim, 0, 1)))
        total = areas.cumsum(1)
    return areas


def thinnest_class(kept: Tensor) -> int:
    """The class that nearest-exact misplaces most, of those with at least a thousandth of the labelled area."""
    area, placed = kept[0], kept[1 + len(METHODS) + HARD.index("nearest-exact")]
    common = area >= area.sum() / 1000
    return int(torch.where(common, placed / area.clamp(min=1), 2).argmin())


KEPT_CAPTION = (
    "area: share of all labelled pixels. kept: the class's area at low resolution / its true area. in place: the share "
    "of its true area that it is given in the very low-resolution pixels where it lies, Σ min(given, true) / Σ true: "
    "here too much in one pixel does not make up for too little in another. nearest: PyTorch's default, which shifts; "
    "exact: nearest-exact; soft: ts.soft_resize. True areas: float64 running totals over the full-size label map."
)


def kept_table(factor: float, kept: Tensor, class_names: Sequence[str]) -> Table:
    table = table_of(f"What is left of each class, shrunk by {factor:g}", show_footer=True)
    everything = kept.sum(1)
    table.add_column("class", "all", no_wrap=True)
    table.add_column("area", justify="right")
    for row in range(1, len(kept)):
        heading = "kept" if row <= len(METHODS) else "in place"
        method = METHODS[(row - 1) % len(METHODS)].removeprefix("nearest-")
        table.add_column(f"{heading}\n{method}", percent(everything[row] / everything[0]), justify="right")
    for class_id in kept[0].nonzero().flatten().tolist():
        area = percent(kept[0, class_id] / everything[0], digits=2)
        shares = (kept[1:, class_id] / kept[0, class_id]).tolist()
        table.add_row(class_names[class_id], area, *(Text(percent(share), _style(share)) for share in shares))
    return table


def _style(share: float) -> str:
    error = abs(share - 1)
    return "bold red" if error > 0.5 else "red" if error > 0.25 else "yellow" if error > 0.05 else "green"
