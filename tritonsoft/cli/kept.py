"""How much of each class's area is left at low resolution, and how much of that at the right place."""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from rich.text import Text
from torch import Tensor

import tritonsoft as ts
from tritonsoft.cli.common import (
    MAX_LINES,
    free_bytes,
    name_left_out,
    one_thread,
    percent,
    progress_of,
    saving,
    table_of,
)
from tritonsoft.data import DataError, UnknownLabelError, atomic_write

HARD = ("nearest", "nearest-exact")  # the modes of F.interpolate; the first, PyTorch's default, shifts by half a cell
METHODS = (*HARD, "soft")
ALL_METHODS = (*HARD, "majority", "bilinear", "soft")
MIN_WRONG = 10  # label maps with ids that are no class, before those can stop the measuring


@dataclasses.dataclass(frozen=True)
class Kept:
    """What M methods keep of C classes at low resolution: float64 areas in source pixels, and numbers of label maps."""

    methods: tuple[str, ...]
    area: Tensor  # (C,) the true one
    given: Tensor  # (M, C) what each method gives a class, wherever
    placed: Tensor  # (M, C) and in the low-resolution pixels where it lies: sum(min(given, true))
    maps: Tensor  # (C,) how many label maps hold the class
    lost: Tensor  # (M, C) in how many of those none of it is left

    @classmethod
    def none(cls, methods: Sequence[str], num_classes: int) -> "Kept":
        one, each = (num_classes,), (len(methods), num_classes)
        sums = [torch.zeros(size, dtype=torch.float64) for size in (one, each, each, one, each)]
        return cls(tuple(methods), *sums)

    def __add__(self, other: "Kept") -> "Kept":
        return Kept(
            self.methods,
            self.area + other.area,
            self.given + other.given,
            self.placed + other.placed,
            self.maps + other.maps,
            self.lost + other.lost,
        )

    @property
    def distance(self) -> Tensor:
        """``(M, C)``: the L1 distance to the true areas, sum(|given - true|)."""
        return self.given + self.area - 2 * self.placed


def shrunken(size: Sequence[int], factor: float) -> tuple[int, int]:
    height, width = size
    return max(round(height / factor), 1), max(round(width / factor), 1)


def hard_labels(labels: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """What is done today: ``F.interpolate`` of the ids, ``(H, W)`` -> ``(h, w)``; float64 holds every id exactly."""
    return F.interpolate(labels[None, None].double(), size, mode=mode)[0, 0].to(labels.dtype)


def areas_kept(
    labels: Tensor, factor: float, num_classes: int, ignore_index: int, methods: Sequence[str] = METHODS
) -> Kept:
    """What some methods keep of a label map ``(H, W)``.

    "nearest" and "nearest-exact" of the ids; "majority": the class with the most area in each low-resolution pixel;
    "bilinear": one-hot planes interpolated without antialiasing; "soft": `tritonsoft.soft_resize`.
    """
    size = shrunken(labels.shape, factor)
    cell = labels.numel() / (size[0] * size[1])
    soft = ts.soft_resize(labels[None], size, num_classes, ignore_index=ignore_index)[0]  # (C, h, w)
    hard = {mode: hard_labels(labels, size, mode) for mode in methods if mode in HARD}
    if "majority" in methods:
        largest, winner = soft.max(0)
        hard["majority"] = torch.where(largest > 0, winner, -1)

    def share(method: str, class_id: int, mask: Tensor) -> Tensor:
        if method == "soft":
            return soft[class_id].double()
        if method == "bilinear":
            return F.interpolate(mask[None, None].double(), size, mode="bilinear")[0, 0]
        return hard[method].eq(class_id).double()

    result = Kept.none(methods, num_classes)
    for class_id in torch.unique(labels).tolist():
        if class_id == ignore_index:
            continue
        mask = labels == class_id
        true = cell_areas(mask, size)
        given = [share(method, class_id, mask) * cell for method in methods]
        result.area[class_id], result.maps[class_id] = true.sum(), 1
        result.given[:, class_id] = torch.stack([area.sum() for area in given]).cpu()
        result.placed[:, class_id] = torch.stack([area.minimum(true).sum() for area in given]).cpu()
    return dataclasses.replace(result, lost=((result.maps > 0) & (result.given == 0)).double())


def measure(
    names: Sequence[str],
    load: Callable[[int], Tensor],
    num_classes: int,
    ignore_index: int,
    factors: Sequence[float],
    device: torch.device,
    problems: list[DataError],
    methods: Sequence[str] = METHODS,
    options: str = "--num-classes and --ignore-index",
) -> tuple[list[Kept], dict[int, Tensor]]:
    """What is kept at each factor, summed over the label maps that can be used, and the true areas of each of those.

    DataError as soon as most label maps hold ids that are no class, which a wrong number of classes looks like, or what
    else ``options`` say.
    """

    def of_one(index: int) -> list[Kept] | DataError:
        try:
            ids = load(index)
            need_memory(names[index], ids, min(factors), num_classes, device)
            ids = ids.to(device)
            return [areas_kept(ids, factor, num_classes, ignore_index, methods) for factor in factors]
        except DataError as problem:
            return problem
        except (MemoryError, torch.OutOfMemoryError):
            return DataError(f"{names[index]}: there is not enough memory for its soft label")

    kept = [Kept.none(methods, num_classes) for _ in factors]
    true_areas, wrong = {}, list[UnknownLabelError]()
    # The label maps share out the cores; but Triton's interpreter knows one thread only.
    workers = 1 if ts.backend_info()[str(device)][0] == "triton" else torch.get_num_threads()
    with (
        one_thread(),
        concurrent.futures.ThreadPoolExecutor(workers) as pool,
        progress_of("measuring") as progress,
    ):
        count = len(names)
        try:
            for index, each in enumerate(progress.track(pool.map(of_one, range(count)), total=count)):
                if isinstance(each, DataError):
                    problems.append(each)
                else:
                    true_areas[index] = each[0].area
                    kept = [total + more for total, more in zip(kept, each, strict=True)]
                if isinstance(each, UnknownLabelError):
                    wrong.append(each)
                    if len(wrong) >= MIN_WRONG and 2 * len(wrong) > index + 1:
                        raise DataError(
                            f"stopped: {len(wrong)} of the first {index + 1} of {count} label maps hold ids that are "
                            f"no class; are {options} right? The first: {wrong[0]}"
                        )
        finally:
            pool.shutdown(cancel_futures=True)
    return kept, true_areas


def kept_rows(factors: Sequence[float], kept: Sequence[Kept], class_names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row for each factor, class and method, as tables in files have them; areas in source pixels, shares of them."""
    for factor, each in zip(factors, kept, strict=True):
        for class_id in each.area.nonzero().flatten().tolist():
            area = float(each.area[class_id])
            for row, method in enumerate(each.methods):
                yield {
                    "factor": factor,
                    "class_id": class_id,
                    "class": class_names[class_id],
                    "method": method,
                    "area": area,
                    "kept": float(each.given[row, class_id]) / area,
                    "in_place": float(each.placed[row, class_id]) / area,
                    "distance": float(each.distance[row, class_id]) / area,
                    "label_maps": int(each.maps[class_id]),
                    "gone": int(each.lost[row, class_id]),
                }


def need_memory(name: str, labels: Tensor, factor: float, num_classes: int, device: torch.device) -> None:
    """DataError where the soft label of a label map ``(H, W)`` cannot fit: a system might end the process for it."""
    height, width = shrunken(labels.shape, factor)
    needed, free = 4 * num_classes * height * width, free_bytes(device)
    if needed > free:
        size = f"{num_classes} classes of {height}x{width} pixels"
        raise DataError(f"{name}: {size} need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")


def report(problems: Sequence[DataError], out: Path) -> None:
    """What was left out, by name; where that is much, the first by name and all in a file."""
    file = out / "left_out.txt"
    if len(problems) > MAX_LINES:
        with saving(out), atomic_write(file) as temporary:
            temporary.write_text("".join(f"{problem}\n" for problem in problems), "utf-8", "surrogateescape")
    name_left_out(problems, file)


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


def thinnest_class(kept: Kept) -> int:
    """The class that nearest-exact misplaces most, of those with at least a thousandth of the labelled area."""
    placed = kept.placed[kept.methods.index("nearest-exact")]
    common = kept.area >= kept.area.sum() / 1000
    return int(torch.where(common, placed / kept.area.clamp(min=1), 2).argmin())


KEPT_CAPTION = (
    "area: share of all labelled pixels. kept: the class's area at low resolution / its true area. in place: the share "
    "of its true area that it is given in the very low-resolution pixels where it lies, sum min(given, true) / sum "
    "true: here too much in one pixel does not make up for too little in another. nearest: PyTorch's default, which "
    "shifts; exact: nearest-exact; soft: ts.soft_resize. True areas: float64 running totals over the full-size label "
    "map."
)


def kept_table(factor: float, kept: Kept, class_names: Sequence[str]) -> Table:
    table = table_of(f"What is left of each class, shrunk by {factor:g}", show_footer=True)
    total = kept.area.sum()
    table.add_column("class", "all", no_wrap=True)
    table.add_column("area", justify="right")
    areas = torch.cat([kept.given, kept.placed])  # (2 M, C)
    headings = [f"{what}\n{short(method)}" for what in ("kept", "in place") for method in kept.methods]
    for heading, area in zip(headings, areas, strict=True):
        table.add_column(heading, percent(area.sum() / total), justify="right")
    for class_id in kept.area.nonzero().flatten().tolist():
        table.add_row(
            class_names[class_id],
            percent(kept.area[class_id] / total, digits=2),
            *(coloured(float(area / kept.area[class_id])) for area in areas[:, class_id]),
        )
    return table


def short(method: str) -> str:
    """Its name over a column of percentages."""
    return {"nearest-exact": "exact", "majority": "major", "bilinear": "linear"}.get(method, method)


def coloured(share: float) -> Text:
    error = abs(share - 1)
    style = "bold red" if error > 0.5 else "red" if error > 0.25 else "yellow" if error > 0.05 else "green"
    return Text(percent(share), style)
