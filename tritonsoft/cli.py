"""The command `tritonsoft`: `demo` shows what shrinking does to labels, `doctor` checks an installation."""

try:
    import typer
    from rich import box
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table
    from rich.text import Text
except ImportError as error:
    raise SystemExit(f"{error}: the tritonsoft command needs its extra: pip install 'tritonsoft[demo]'") from None

import colorsys
import concurrent.futures
import contextlib
import dataclasses
import functools
import importlib.metadata
import importlib.util
import math
import multiprocessing
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import tritonsoft as ts
from tritonsoft import backends, reference, scenes
from tritonsoft.conventions import FILTERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Soft labels for semantic segmentation: see what they keep, check what is installed.",
)
console = Console()

Array = np.ndarray[Any, Any]

HARD = ("nearest", "nearest-exact")  # the modes of F.interpolate; the first, PyTorch's default, shifts by half a cell
METHODS = (*HARD, "soft")
PICTURE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"))
LABEL_MODES = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B")  # Pillow's names for one channel of ids
TIMED_RUNS, TIMED_SECONDS = 7, 3.0
RIVAL_BYTES = 2 << 30  # the most that the comparison with one_hot may take


def main() -> None:
    """The console script."""
    app()


# --- what is shrunk --------------------------------------------------------------------------------------------------


class PictureError(Exception):
    """A picture that cannot be used; the message names its file."""


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures with label maps, loaded one at a time."""

    names: Sequence[str]
    load: Callable[[int], tuple[Tensor, Tensor]]  # image (3, H, W) uint8, labels (H, W); raises PictureError
    class_names: Sequence[str]
    palette: Array  # (C, 3) uint8
    ignore_index: int

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def street(height: int, width: int, seed: int) -> Pictures:
    """The built-in scene."""
    scene = scenes.street_scene(height, width, seed)
    palette = np.array(scenes.PALETTE, np.uint8)
    pair = scene.image, scene.labels
    return Pictures([f"street scene {seed}"], lambda _: pair, scenes.CLASSES, palette, scenes.IGNORE_INDEX)


def folder(
    images: Path, labels: Path, class_names: Sequence[str], ignore_index: int
) -> tuple[Pictures, list[PictureError]]:
    """The pictures that have the same path and stem in both folders, and what has no partner."""
    image_files, label_files = _by_stem(images), _by_stem(labels)
    problems = [
        PictureError(f"{files[stem]}: no {missing} of this name in {there}")
        for files, others, missing, there in (
            (image_files, label_files, "label map", labels),
            (label_files, image_files, "image", images),
        )
        for stem in sorted(files.keys() - others.keys())
    ]
    stems = sorted(image_files.keys() & label_files.keys())
    # Hues a golden ratio apart stay distinct, however many there are.
    colours = [
        colorsys.hsv_to_rgb(0.618034 * k % 1, (0.75, 0.5, 0.95)[k % 3], (0.95, 0.8, 0.6)[k % 3])
        for k in range(len(class_names))
    ]
    palette = (np.array(colours) * 255).round().astype(np.uint8)

    def load(index: int) -> tuple[Tensor, Tensor]:
        return load_picture(image_files[stems[index]], label_files[stems[index]])

    return Pictures(stems, load, class_names, palette, ignore_index), problems


def _by_stem(directory: Path) -> dict[str, Path]:
    files = (path for path in sorted(directory.rglob("*")) if path.suffix.lower() in PICTURE_SUFFIXES)
    return {str(path.relative_to(directory).with_suffix("")): path for path in files}


def load_picture(image_file: Path, label_file: Path) -> tuple[Tensor, Tensor]:
    """An image ``(3, H, W)`` uint8 and its label map ``(H, W)`` of grey values or palette indices, uint8 or int32."""
    from PIL import Image

    arrays = []
    for file, is_image in ((image_file, True), (label_file, False)):
        try:
            with Image.open(file) as picture:
                if not is_image and picture.mode not in LABEL_MODES:
                    raise PictureError(f"{file}: a label map needs one channel of class ids, got mode {picture.mode}")
                arrays.append(np.array(picture.convert("RGB") if is_image else picture))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise PictureError(f"{file}: cannot be read ({error})") from None
    pixels, ids = arrays
    if pixels.shape[:2] != ids.shape:
        image_height, image_width = pixels.shape[:2]
        size = f"{ids.shape[1]}x{ids.shape[0]}"
        raise PictureError(f"{label_file}: {size} pixels, where its image has {image_width}x{image_height}")
    labels = torch.from_numpy(ids.astype(np.uint8 if ids.dtype.itemsize == 1 else np.int32))
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), labels


def shrunken(labels: Tensor, factor: float) -> tuple[int, int]:
    height, width = labels.shape
    return max(round(height / factor), 1), max(round(width / factor), 1)


def hard_labels(labels: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """What is done today: ``F.interpolate`` of the ids, ``(H, W)`` -> ``(h, w)``; float64 holds every id exactly."""
    return F.interpolate(labels[None, None].double(), size, mode=mode)[0, 0].to(labels.dtype)


# --- what is kept ----------------------------------------------------------------------------------------------------


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
    table = _table(f"What is left of each class, shrunk by {factor:g}", show_footer=True)
    everything = kept.sum(1)
    table.add_column("class", "all", no_wrap=True)
    table.add_column("area", justify="right")
    for row in range(1, len(kept)):
        heading = "kept" if row <= len(METHODS) else "in place"
        method = METHODS[(row - 1) % len(METHODS)].removeprefix("nearest-")
        table.add_column(f"{heading}\n{method}", _percent(everything[row] / everything[0]), justify="right")
    for class_id in kept[0].nonzero().flatten().tolist():
        area = _percent(kept[0, class_id] / everything[0], digits=2)
        shares = (kept[1:, class_id] / kept[0, class_id]).tolist()
        table.add_row(class_names[class_id], area, *(Text(_percent(share), _style(share)) for share in shares))
    return table


def _table(title: str, *headings: str, caption: str | None = None, show_footer: bool = False) -> Table:
    """As narrow as its contents, so that it fits 80 columns."""
    style: dict[str, Any] = {"box": box.SIMPLE_HEAD, "pad_edge": False, "padding": (0, 0, 0, 1)}
    return Table(*headings, title=title, caption=caption, show_footer=show_footer, title_style="bold", **style)


def _percent(share: Tensor | float, digits: int = 1) -> str:
    return f"{100 * float(share):.{digits}f}%"


def _style(share: float) -> str:
    error = abs(share - 1)
    return "bold red" if error > 0.5 else "red" if error > 0.25 else "yellow" if error > 0.05 else "green"


# --- what it costs ---------------------------------------------------------------------------------------------------


def soft_resize(labels: Tensor, size: tuple[int, int], num_classes: int, ignore_index: int) -> Tensor:
    return ts.soft_resize(labels, size, num_classes, ignore_index=ignore_index)


def one_hot_interpolate(labels: Tensor, size: tuple[int, int], num_classes: int, ignore_index: int) -> Tensor:
    """What people write today; ignored pixels go to a class of their own, which is dropped."""
    ids = torch.where(labels == ignore_index, num_classes, labels.long())  # (B, H, W)
    planes = F.one_hot(ids, num_classes + 1)[..., :num_classes].permute(0, 3, 1, 2).float()
    return F.interpolate(planes, size, mode="area")


RIVALS = (soft_resize, one_hot_interpolate)


def cost_table(labels: Tensor, factors: Sequence[float], num_classes: int, ignore_index: int) -> Table:
    """Time and memory of both rivals on one label map ``(H, W)``, or on as much of it as `RIVAL_BYTES` allow."""
    labels = labels[: max(RIVAL_BYTES // (12 * (num_classes + 1) * labels.shape[1]), 1)]
    device, (height, width) = labels.device, labels.shape
    backend, _ = ts.backend_info()[str(device)]
    how = (
        "peak of the device's allocator above the inputs"
        if device.type != "cpu"
        else "highest resident memory of a fresh process above what it held with inputs loaded and code compiled"
    )
    table = _table(
        f"One label map of {height}x{width}, {num_classes} classes, {_name(labels.dtype)} to float32",
        caption=f"time: median of 3 to {TIMED_RUNS} runs, taking turns, after a warm-up. peak memory, result included: "
        f"{how}. {_describe(device)}, backend {backend}, torch {torch.__version__}, tritonsoft {ts.__version__}.",
    )
    table.add_column("factor", justify="right")
    table.add_column()
    for heading in ("ts.soft_resize", "one_hot + interpolate(area)", "ratio"):
        table.add_column(heading, justify="right")
    all_peaks = peak_memory(labels, factors, num_classes, ignore_index)
    for factor, peaks in zip(factors, all_peaks, strict=True):
        arguments = (labels[None], shrunken(labels, factor), num_classes, ignore_index)
        ours, theirs = (rival(*arguments) for rival in RIVALS)
        difference = float((ours - theirs).abs().max())
        del ours, theirs
        seconds = median_times([functools.partial(rival, *arguments) for rival in RIVALS], device)
        ratios = [Text(f"{theirs / max(ours, 1e-9):.1f}x", "bold") for ours, theirs in (seconds, peaks)]
        table.add_row(f"{factor:g}", "time", *(f"{1e3 * value:.2f} ms" for value in seconds), ratios[0])
        table.add_row("", "peak memory", *(f"{value / 2**20:.1f} MiB" for value in peaks), ratios[1])
        table.add_row("", "largest difference", "", f"{difference:.2g}", "", end_section=factor != factors[-1])
    return table


def median_times(calls: Sequence[Callable[[], object]], device: torch.device) -> list[float]:
    """Seconds of each call, taking turns; the first round warms up."""
    seconds: list[list[float]] = [[] for _ in calls]
    begin = time.perf_counter()
    while len(seconds[0]) < 4 or (len(seconds[0]) <= TIMED_RUNS and time.perf_counter() - begin < TIMED_SECONDS):
        for call, measured in zip(calls, seconds, strict=True):
            _synchronize(device)
            start = time.perf_counter()
            call()
            _synchronize(device)
            measured.append(time.perf_counter() - start)
    return [statistics.median(measured[1:]) for measured in seconds]


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak_memory(labels: Tensor, factors: Sequence[float], num_classes: int, ignore_index: int) -> list[list[int]]:
    """The most bytes that each of `RIVALS` held at once above its inputs, result included, for each factor."""
    classes = num_classes, ignore_index
    if labels.device.type != "cpu":
        return [[_peak_device_memory(rival, labels, factor, *classes) for rival in RIVALS] for factor in factors]
    forkserver = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if forkserver else "spawn")
    if forkserver:
        context.set_forkserver_preload(["tritonsoft"])
    # A process is fresh only once: what a first call frees, a second could take without asking the system for more.
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context, max_tasks_per_child=1) as pool:
        jobs = [
            [pool.submit(_peak_resident_memory, rival, labels.numpy(), factor, *classes) for rival in RIVALS]
            for factor in factors
        ]
        return [[job.result() for job in row] for row in jobs]


def _peak_device_memory(rival: Callable[..., Tensor], labels: Tensor, factor: float, *classes: int) -> int:
    memory = torch.cuda if labels.device.type == "cuda" else torch.xpu
    memory.synchronize(labels.device)
    memory.reset_peak_memory_stats(labels.device)
    before = memory.memory_allocated(labels.device)
    rival(labels[None], shrunken(labels, factor), *classes)
    memory.synchronize(labels.device)
    return int(memory.max_memory_allocated(labels.device) - before)


def _peak_resident_memory(rival: Callable[..., Tensor], ids: Array, factor: float, *classes: int) -> int:
    """Runs in a process of its own."""
    labels = torch.from_numpy(ids.copy())
    height, width = ids.shape
    # The warm-up loads and compiles what the call needs, on a corner that divides by the factor if the whole does.
    side = 16 * max(round(factor), 1)
    corner = labels[: side + (height % factor > 0), : side + (width % factor > 0)].contiguous()
    rival(corner[None], shrunken(corner, factor), *classes)
    before = _resident_memory("VmRSS")
    result = rival(labels[None], shrunken(labels, factor), *classes)
    after = _resident_memory("VmHWM")
    del result
    return after - before


def _resident_memory(field: str) -> int:
    """Bytes held now (``VmRSS``, which also starts a new record) or at most since then (``VmHWM``)."""
    status, record = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if record.exists():
        if field == "VmRSS":
            record.write_text("5")  # lowers the high-water mark to the present
        match = re.search(rf"{field}:\s+(\d+) kB", status.read_text())
        assert match is not None
        return int(match.group(1)) * 1024
    import resource  # without Linux's record: the process's maximum, which the small warm-up did not raise much

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


# --- the figure ------------------------------------------------------------------------------------------------------


def draw_figure(
    file: Path, image: Tensor, labels: Tensor, factors: Sequence[float], thin: Sequence[int], pictures: Pictures
) -> None:
    """Above the whole picture; below a window of it at each factor: image, hard labels, thin classes, entropy."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
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
    figure = plt.figure(figsize=(figure_width, figure_height), facecolor="white")

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
        size = shrunken(labels, factor)
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
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=160)
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


# --- demo ------------------------------------------------------------------------------------------------------------


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the figure.")] = Path("demo"),
    factors: Annotated[str, typer.Option(help="How much to shrink by, separated by commas; at least 1.")] = "2,4,8",
    thin_class: Annotated[
        list[str] | None,
        typer.Option(
            help="Name or id of a class to draw; may be repeated. Default: pole; in a folder, the class that "
            "nearest-exact misplaces most."
        ),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of images, searched recursively.")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Folder of label maps of the same paths and stems: grey or palette ids of 8 or 16 bits."),
    ] = None,
    num_classes: Annotated[int | None, typer.Option(help="Number of classes in the folder's label maps.")] = None,
    ignore_index: Annotated[int, typer.Option(help="Id of unlabelled pixels in the folder's label maps.")] = 255,
    class_names: Annotated[str | None, typer.Option(help="Names of the folder's classes, separated by commas.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ... Default: the GPU where there is one.")
    ] = None,
    height: Annotated[int, typer.Option(help="Height of the built-in scene.")] = 1024,
    width: Annotated[int, typer.Option(help="Width of the built-in scene.")] = 2048,
    seed: Annotated[int, typer.Option(help="Which built-in scene.")] = 0,
) -> None:
    """Shrink pictures with their labels, and show what nearest and what a soft label keeps.

    Without --images it draws a street scene. With --images, --labels and --num-classes it takes a folder; files that
    cannot be used are named and left out, and the exit code is then 1.
    """
    shrink_by, chosen_device = _parse_factors(factors), _parse_device(device)
    for extra in ("PIL", "matplotlib"):
        if importlib.util.find_spec(extra) is None:
            raise typer.BadParameter(f"the demo needs {extra}: pip install 'tritonsoft[demo]'")
    if images is None:
        if labels is not None or num_classes is not None or class_names is not None:
            raise typer.BadParameter("--labels, --num-classes and --class-names describe a folder: they need --images")
        if min(height, width) < 8 or seed < 0:
            raise typer.BadParameter(f"the scene needs 8x8 pixels and seed >= 0, got {height}x{width} and {seed}")
        with console.status("drawing the street scene"):
            pictures, problems = street(height, width, seed), list[PictureError]()
    else:
        if labels is None or num_classes is None:
            raise typer.BadParameter("--images needs --labels and --num-classes")
        for option, directory in (("--images", images), ("--labels", labels)):
            if not directory.is_dir():
                raise typer.BadParameter(f"{option}: {directory} is not a folder")
        pictures, problems = folder(images, labels, _parse_class_names(class_names, num_classes), ignore_index)
    thin = [_parse_class(name, pictures.class_names) for name in thin_class or ([] if images else ["pole"])]

    kept, true_areas = _measure(pictures, shrink_by, chosen_device, problems)
    if not kept[0].any():
        _report(problems)
        _fail(f"nothing to shrink: {len(pictures.names)} pictures with labels found, none usable with a labelled pixel")
    for factor, areas in zip(shrink_by, kept, strict=True):
        console.print(kept_table(factor, areas, pictures.class_names))
    console.print(KEPT_CAPTION, style="dim", highlight=False)
    if images is None:
        console.print(_sampling_error(kept[0][0] / (height * width), seed), style="dim", highlight=False)
    console.print()

    chosen = ""
    if not thin:
        thin = [thinnest_class(kept[-1])]
        chosen = f", the class that nearest-exact misplaces most at 1/{shrink_by[-1]:g}"
    portions = {index: (areas[thin] / kept[0][0, thin].clamp(min=1)).sum() for index, areas in true_areas.items()}
    example = max(portions, key=lambda index: float(portions[index]))  # the picture with most of the thin classes
    image, ids = pictures.load(example)
    with console.status("measuring time and memory"):
        costs = cost_table(ids.to(chosen_device), shrink_by, pictures.num_classes, pictures.ignore_index)
    console.print(costs)
    file = out / "soft_labels.png"
    with console.status("drawing the figure"):
        draw_figure(file, image, ids, shrink_by, thin, pictures)
    shown = " and ".join(pictures.class_names[k] for k in thin)
    console.print(f"{file} shows {pictures.names[example]} with {shown}{chosen}.", highlight=False, soft_wrap=True)
    if problems:
        _report(problems)
        raise typer.Exit(1)


def _measure(
    pictures: Pictures, factors: Sequence[float], device: torch.device, problems: list[PictureError]
) -> tuple[list[Tensor], dict[int, Tensor]]:
    """`areas_kept` of each factor, summed over the usable pictures, and the true areas of each of those."""

    def measure(index: int) -> list[Tensor] | PictureError:
        try:
            ids = pictures.load(index)[1].to(device)
            return [areas_kept(ids, factor, pictures.num_classes, pictures.ignore_index) for factor in factors]
        except PictureError as problem:
            return problem
        except ValueError as error:  # ids out of range
            return PictureError(f"{pictures.names[index]}: {error}")

    kept = [torch.zeros(1 + 2 * len(METHODS), pictures.num_classes, dtype=torch.float64) for _ in factors]
    true_areas = {}
    columns = (TextColumn("measuring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # The pictures share out the cores; but Triton's interpreter knows one thread only.
    workers = 1 if ts.backend_info()[str(device)][0] == "triton" else torch.get_num_threads()
    with (
        one_thread(),
        concurrent.futures.ThreadPoolExecutor(workers) as pool,
        Progress(*columns, console=console, transient=True) as progress,
    ):
        count = len(pictures.names)
        for index, areas in enumerate(progress.track(pool.map(measure, range(count)), total=count)):
            if isinstance(areas, PictureError):
                problems.append(areas)
            else:
                true_areas[index] = areas[0][0]
                kept = [total + area for total, area in zip(kept, areas, strict=True)]
    return kept, true_areas


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Small operations on one thread each: many would spend their time waiting for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _sampling_error(shares: Tensor, seed: int) -> str:
    """How far the label map itself is from the drawing."""
    true = scenes.true_coverage(seed=seed).flatten()
    error = (shares / true - 1).abs().where(true > 0, 0)
    worst = int(error.argmax())
    return (
        f"The label map samples a vector drawing at pixel centres; its class areas lie within {_percent(error[worst])} "
        f"({scenes.CLASSES[worst]}) of the drawing's own, counted on 8192x16384 points."
    )


def _report(problems: Sequence[PictureError]) -> None:
    for problem in problems:
        console.print(Text.assemble(("left out ", "red"), str(problem)), soft_wrap=True)


def _fail(message: str) -> None:
    console.print(Text(message, "bold red"), soft_wrap=True)
    raise typer.Exit(1)


def _parse_factors(text: str) -> list[float]:
    try:
        factors = [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--factors must be numbers separated by commas, got {text!r}") from None
    if not all(1 <= factor < math.inf for factor in factors):
        raise typer.BadParameter(f"--factors must be at least 1, got {text!r}")
    return factors


def _parse_device(name: str | None) -> torch.device:
    devices = list(ts.backend_info())
    if name is None:
        return torch.device(devices[min(1, len(devices) - 1)])
    found = {"cuda": "cuda:0", "xpu": "xpu:0"}.get(name, name)
    if found not in devices:
        raise typer.BadParameter(f"--device must be one of {', '.join(devices)}; got {name!r}")
    return torch.device(found)


def _parse_class_names(text: str | None, num_classes: int) -> list[str]:
    if num_classes < 1:
        raise typer.BadParameter(f"--num-classes must be at least 1, got {num_classes}")
    if text is None:
        return [f"class {class_id}" for class_id in range(num_classes)]
    names = [name.strip() for name in text.split(",")]
    if len(names) != num_classes:
        raise typer.BadParameter(f"--class-names must hold --num-classes={num_classes} names, got {len(names)}")
    return names


def _parse_class(text: str, class_names: Sequence[str]) -> int:
    if text in class_names:
        return class_names.index(text)
    if text.isdecimal() and int(text) < len(class_names):
        return int(text)
    wanted = f"an id in 0..{len(class_names) - 1} or one of {', '.join(class_names)}"
    raise typer.BadParameter(f"--thin-class must be {wanted}; got {text!r}")


# --- doctor ----------------------------------------------------------------------------------------------------------


@app.command()
def doctor() -> None:
    """Versions, devices and backends, and a check of every backend against the reference; exit code 1 if one fails."""
    versions = _table("Versions", "package", "version")
    versions.add_row("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in ("tritonsoft", "torch", "numpy", "triton", "numba", "kornia"):
        versions.add_row(package, _version(package))
    versions.add_row("torch's CUDA / ROCm", f"{torch.version.cuda or 'none'} / {torch.version.hip or 'none'}")
    console.print(versions)

    devices = _table("Devices", "device", "what", "backend", "why")
    for name, (backend, reason) in ts.backend_info().items():
        devices.add_row(name, _describe(torch.device(name)), backend, reason)
    console.print(devices)

    checks = _table(
        "Every backend against the float64 reference",
        *("device", "backend", "result", "detail"),
        caption="Images in [0, 1] and soft labels, float32, all filters: random fractional, mirrored, outlying boxes, "
        "and whole images by 2 and 3.3. Allowed: one float32 rounding for each pixel under a footprint, and 8 more.",
    )
    passed = True
    for name in ts.backend_info():
        for backend in backends.BACKENDS:
            available, reason = backends.explain_backend(torch.device(name).type, backend)
            if available is None:
                checks.add_row(name, backend, Text("not available", "yellow"), reason)
                continue
            start = time.perf_counter()
            try:
                with one_thread():
                    error, allowed = self_check(torch.device(name), backend)
                right = error <= allowed
                elapsed = time.perf_counter() - start
                detail = f"largest error {error:.1e}, allowed {allowed:.1e}; took {elapsed:.1f} s"
            except Exception as exception:  # whatever a broken installation raises belongs in the table
                right, detail = False, f"{type(exception).__name__}: {_first_line(exception)}"
            checks.add_row(name, backend, Text("pass", "green") if right else Text("FAILED", "bold red"), Text(detail))
            passed &= right
    console.print(checks)
    if not passed:
        raise typer.Exit(1)


def self_check(device: torch.device, backend: str) -> tuple[float, float]:
    """The largest error of a backend against the float64 reference, and the largest that rounding explains."""
    random = np.random.default_rng(0)
    batch, height, width, num_classes, ignore_index = 3, 40, 66, 7, 255
    image = torch.from_numpy(random.random((batch, 3, height, width), np.float32))
    labels = torch.from_numpy(random.integers(0, num_classes + 1, (batch, height, width)).astype(np.uint8))
    labels[labels == num_classes] = ignore_index
    # One end of each box before the middle and one behind it, in either order: never empty, often outside.
    ends = random.uniform((-0.4, 0.6), (0.4, 1.4), (batch, 2, 2))  # (B, axis, end)
    corners = random.permuted(ends, axis=2).transpose(0, 2, 1) * (width, height)  # (B, end, axis)
    boxes = torch.from_numpy(corners.reshape(batch, 4)).float()
    cases: list[tuple[Tensor | None, tuple[int, int]]] = [(boxes, (13, 17)), (None, (20, 33)), (None, (12, 20))]
    worst = 0.0
    for filter in FILTERS:
        for case_boxes, size in cases:
            results = ts.crop_resize_pair(
                image.to(device),
                labels.to(device),
                None if case_boxes is None else case_boxes.to(device),
                size,
                num_classes,
                ignore_index=ignore_index,
                filter=filter,
                backend=backend,
            )
            wanted = (
                reference.crop_resize(image.double(), case_boxes, size, filter, 0.0, torch.float64),
                reference.soft_crop_resize(labels, case_boxes, size, num_classes, ignore_index, filter, torch.float64),
            )
            for result, target in zip(results, wanted, strict=True):
                worst = max(worst, float((result.cpu().double() - target).abs().nan_to_num(torch.inf).max()))
    # The boxes span at most 1.8 of an axis; the widest filter reaches one footprint to either side.
    taps = (2 * 1.8 * height / 13 + 2) * (2 * 1.8 * width / 17 + 2)
    return worst, (taps + 8) * torch.finfo(torch.float32).eps


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ts.__version__ if package == "tritonsoft" else "not installed"


def _describe(device: torch.device) -> str:
    if device.type == "cpu":
        information = Path("/proc/cpuinfo")
        match = re.search(r"model name\s*: (.+)", information.read_text()) if information.exists() else None
        model = match.group(1) if match else platform.processor() or platform.machine()
        threads = f"{torch.get_num_threads()} threads of {os.cpu_count()}"
        return f"{model}, {threads}, {torch.backends.cpu.get_cpu_capability()}"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        capability = f"capability {properties.major}.{properties.minor}"
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {capability}"
    return str(torch.xpu.get_device_properties(device))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    main()
