"""What the compiled GPU kernels cost, read from their machine code: no GPU needed.

    python -m bench.kernel_cost            compiles for all targets, prints the table of one, writes the snapshot
    python -m bench.kernel_cost --check    fails where the snapshot is not what this checkout compiles to (one target)

Each launch configuration that the library would choose is compiled. Shown are its registers, local and shared memory,
the widths of its accesses, the warps that a scheduler holds at a time, the instructions per output (each weighed by how
often it runs, see `machine_code`), and how often a warp waits for memory. Beside them stand the time that the memory
needs for what must move (labels, images, logits read once, outputs written once) and what `cost_model` predicts for the
device whose profiles it was fitted to. A prediction is no measurement; where the model is known to be
blind, there is none.

Where the benchmark has run on such a device, its times stand beside the predictions, with the model's error.

The snapshot, ``bench/results/kernel-cost.csv``, is under version control: a change that costs instructions shows there.
Of AMD's code, whose instructions are not weighed, it holds registers, local memory and widths alone.
"""

import csv
import math
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import triton
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from triton.backends.compiler import GPUTarget

from bench import cases as bench_cases
from bench import cost_model
from bench.machine_code import TOOLS, Trips, Unrolled, instructions, work
from tritonsoft.kernels import (
    adjoint,
    area_loss,
    areas,
    binary_loss,
    decoding,
    enlarged_cross_entropy,
    enlarged_overlap,
    enlarging,
    forward,
    mixing,
    remapping,
    soft_cross_entropy,
    soft_overlap,
    sums,
    top_k,
    warping,
)
from tritonsoft.kernels.launch import Launch

SNAPSHOT = Path(__file__).parent / "results" / "kernel-cost.csv"
# Targets, and the bytes of shared memory of a multiprocessor.
NVIDIA = {
    "sm_80": (GPUTarget("cuda", 80, 32), 164 * 1024),
    "sm_90": (GPUTarget("cuda", 90, 32), 228 * 1024),
    "sm_100": (GPUTarget("cuda", 100, 32), 228 * 1024),
}
AMD = {"gfx942": GPUTarget("hip", "gfx942", 64)}
MODELLED = {"sm_90": ("H100", cost_model.H100)}


class Case(NamedTuple):
    """A launch, and how often its loops run."""

    name: str
    launch: Launch
    trips: Trips
    taken: Mapping[str, float]  # the share of the iterations that enter an ``if``, by its source text
    per: Tensor  # whose elements are meant by "per element"
    read: Sequence[Tensor]  # what must be read once
    written: Sequence[Tensor]
    timed_as: str = ""  # the title of the case of the benchmark that times this launch
    blind_to: str = ""  # why the model may not be used


def cost_on_nvidia(case: Case, target: str) -> dict[str, str]:
    """One row of the snapshot."""
    gpu, shared_of_device = NVIDIA[target]
    compiled = case.launch.compile(gpu)
    shared = compiled.metadata.shared
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        command = [TOOLS / "cuobjdump", "--dump-resource-usage", cubin]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        try:
            code = instructions(cubin, case.trips, case.taken)
        except ValueError as error:
            raise ValueError(f"{case.name} for {target}") from error
    registers, stack = (re.findall(rf"{name}:(\d+)", usage)[0] for name in ("REG", "STACK"))
    row = {"kernel": case.name, "target": target, "registers": registers, "local": stack, "shared": str(shared)}
    row["blind_to"] = case.blind_to
    of_a_warp, opcodes = work(code), " ".join(item.opcode for item in code)
    for column, opcode in (("loads", "LDG"), ("stores", "STG")):
        bits = set(re.findall(rf"\b{opcode}\.E(?:\.(U8|U16|64|128))?", opcodes))
        row[column] = "+".join(sorted((width.strip("U") or "32" for width in bits), key=int))
    per_program = case.launch.options["num_warps"]
    warps = math.prod(case.launch.grid) * per_program
    held = cost_model.warps_per_scheduler(int(registers), per_program, shared, shared_of_device)
    row |= {
        "warps": f"{held:g}",
        "instructions": f"{of_a_warp.instructions * warps * 32 / case.per.numel():.3g}",
        "waits": f"{of_a_warp.waits:.3g}",
    }
    if target in MODELLED:
        _, device = MODELLED[target]
        read, written = (
            sum(tensor.numel() * tensor.element_size() for tensor in tensors) for tensors in (case.read, case.written)
        )
        row["floor_us"] = f"{cost_model.floor(read, written, device) * 1e6:.3g}"
        if not case.blind_to:
            launch = cost_model.Profiled(*of_a_warp, warps, held, read, written)
            row["predicted_us"] = f"{cost_model.predict(launch, device) * 1e6:.3g}"
    return row


def cost_on_amd(case: Case, target: str) -> dict[str, str]:
    """What the assembler notes."""
    text = case.launch.compile(AMD[target]).asm["amdgcn"]

    def note(name: str) -> str:
        return str(sum(int(number) for number in re.findall(rf"\.{name}:\s*(\d+)", text)))

    row = {"kernel": case.name, "target": target, "registers": note("vgpr_count")}
    row |= {"local": note("private_segment_fixed_size"), "shared": note("group_segment_fixed_size")}
    for column, opcode in (("loads", "load"), ("stores", "store")):
        found = set(re.findall(rf"(?:global|buffer)_{opcode}_(dwordx\d|dword|u?short|u?byte)", text))
        bits = {"byte": 8, "ubyte": 8, "short": 16, "ushort": 16, "dword": 32}
        row[column] = "+".join(map(str, sorted({bits.get(name) or 32 * int(name[-1]) for name in found})))
    return row


COLUMNS = ["triton", "kernel", "target", "registers", "local", "shared", "loads", "stores", "warps", "instructions"]
COLUMNS += ["waits", "floor_us", "predicted_us", "blind_to"]
ATOMICS = "atomic additions that meet"


def costs(target: str) -> list[dict[str, str]]:
    """The rows of a target."""
    cost = cost_on_amd if target in AMD else cost_on_nvidia
    found = list(cases("hip" if target in AMD else "cuda"))
    rows = (cost(case, target) for case in track(found, target, console=Console(stderr=True), transient=True))
    return [dict.fromkeys(COLUMNS, "") | {"triton": triton.__version__} | row for row in rows]


def read_snapshot() -> list[dict[str, str]]:
    with SNAPSHOT.open(newline="") as file:
        return list(csv.DictReader(file))


def differences(target: str) -> list[str]:
    """What this checkout compiles to and the snapshot does not say, a line each."""
    kept = {row["kernel"]: row for row in read_snapshot() if row["target"] == target}
    now = {row["kernel"]: row for row in costs(target)}
    lines = [f"{name}: only in the snapshot" for name in kept.keys() - now.keys()]
    for name, row in now.items():
        if name not in kept:
            lines.append(f"{name}: not in the snapshot")
            continue
        changed = [f"{key} {kept[name][key]} -> {row[key]}" for key in COLUMNS if kept[name][key] != row[key]]
        lines += [f"{name}: {', '.join(changed)}"] if changed else []
    return lines


def _meta(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def cases(platform: str) -> Iterator[Case]:
    """16 maps of 1024 x 2048; tiles that hold 4 classes in 3 groups of four, and noise, which holds them all."""
    batch, height, width = 16, 1024, 2048
    labels = _meta((batch, height, width), torch.uint8)
    for num_classes in (19, 150):
        for factor in (1, 2, 4, 8):
            soft = _meta((batch, num_classes, height // factor, width // factor), torch.float16)
            launch = forward.launch_configuration(None, None, soft, labels, None, 255, "area", 0.0, platform)
            for kind in ("street", "noise"):
                name = f"soft C={num_classes} k={factor} {kind}"
                trips, taken = _dense_loops(num_classes, kind)
                yield Case(name, launch, trips, taken, soft, [labels], [soft], timed_as(factor, num_classes, kind))
                if factor == (2 if num_classes == 19 else 4) and kind == "street":
                    yield from _without_the_dense_label(labels, soft, platform)
                    yield from _losses(soft, factor, platform)
    boxes = _meta((batch, 4), torch.float32)
    for num_classes in (19, 150):
        for factor in (1.5, 2.7, *([5.3, 16] if num_classes == 19 else [])):
            size = (round(height / factor), round(width / factor))
            soft = _meta((batch, num_classes, *size), torch.float16)
            launch = forward.launch_configuration(None, None, soft, labels, None, 255, "area", 0.0, platform)
            trips, shares = _label_loops(launch, factor, num_classes)
            odd = " odd width" if size[1] % 2 == 1 else ""
            yield Case(f"soft C={num_classes} k={factor}{odd} street", launch, trips, shares, soft, [labels], [soft])
    yield from _remapped(labels, platform)
    yield from _mixed(labels, platform)
    yield _areas(labels, platform)
    yield from _in_boxes(labels, boxes, platform)
    yield from _warped(labels, platform)
    for factor in (2, 4):
        image = _meta((batch, 3, height, width), torch.float16)
        out = _meta((batch, 3, height // factor, width // factor), torch.float16)
        launch = forward.launch_configuration(out, image, None, None, None, -1, "area", 0.0, platform)
        yield Case(f"image k={factor}", launch, *_image_loops(launch, factor), out, [image], [out])
        soft = _meta((batch, 19, height // factor, width // factor), torch.float16)
        launch = forward.launch_configuration(out, image, soft, labels, None, 255, "area", 0.0, platform)
        trips, shares = _pair_loops(launch, factor, 19)
        both = _meta((out.numel() + soft.numel(),), torch.float16)
        yield Case(f"pair C=19 k={factor} street", launch, trips, shares, both, [image, labels], [both])
    image, grad = _meta((batch, 3, height, width), torch.float16), _meta((batch, 3, 512, 1024), torch.float16)
    launch = adjoint.launch_configuration(image, grad, boxes, "area", platform)
    # Boxes of three quarters of each side: 2 of 3 source rows in there meet a new row of outputs, none outside.
    shares = {"shrinks": 1.0, "weight > 0": 0.75}
    trips = [1, 32, 0.75 * 2 / 3, 0, 0, 0, 0]
    yield Case("image adjoint boxes s=1.5", launch, trips, shares, image, [grad], [image])
    for num_classes in (19, 150):
        yield from _at_full_size(num_classes, platform)


def _remapped(labels: Tensor, platform: str) -> Iterator[Case]:
    """The 35 ids of Cityscapes in bytes, and 100 ids far apart, which are searched in 7 steps."""
    shape, hits = labels.shape, "loads that find their line in the first-level cache"
    wide, out = _meta(shape, torch.int32), _meta(shape, torch.uint8)
    launch = remapping.remap_configuration(out, labels, None, _meta((35,), torch.int32), 0, 255, platform)
    yield Case("remap uint8", launch, {}, {}, out, [labels], [out], blind_to=hits)
    ids, classes = _meta((100,), torch.int64), _meta((100,), torch.int32)
    launch = remapping.remap_configuration(out, wide, ids, classes, 0, 255, platform)
    yield Case("remap int32 searched", launch, {"while step > 0": 7}, {}, out, [wide], [out], blind_to=hits)


def _mixed(labels: Tensor, platform: str) -> Iterator[Case]:
    """Images mixed with others, of which one is read for each pixel that is pasted; and soft labels of 19 classes."""
    batch, height, width = labels.shape
    image, soft = _meta((batch, 3, height, width), torch.float16), _meta((batch, 19, height, width), torch.float16)
    partners, weight = _meta((batch,), torch.int64), _meta((batch,), torch.float32)
    where = (_meta((batch, 4), torch.int64), None, None)
    launch = mixing.paste_configuration(image, image, partners, *where, platform)
    yield Case("paste boxes", launch, {}, {}, image, [image], [image])
    chosen = _meta((batch, 19), torch.uint8)
    launch = mixing.paste_configuration(image, image, partners, None, labels, chosen, platform)
    hits = "loads that find their line in the first-level cache"
    yield Case("paste classes", launch, {}, {}, image, [image, labels], [image], blind_to=hits)
    launch = mixing.blend_configuration(image, image, partners, weight, platform)
    yield Case("blend", launch, {}, {}, image, [image], [image])
    launch = mixing.blend_labels_configuration(soft, labels, partners, weight, 255, platform)
    yield Case("blend labels", launch, {"index in range(num_classes)": 19}, {}, soft, [labels], [soft])


def _areas(labels: Tensor, platform: str) -> Case:
    """Ten boxes of each sample, of a quarter of it, whose tiles hold four classes."""
    batch, height, width = labels.shape
    launch = areas.class_areas_configuration(labels, _meta((batch * 10, 4), torch.float32), 10, 19, 255, platform)
    rows = height // 2 // launch.arguments["PARTS"]
    trips = {
        "row in range(first_row, end_row, BLOCK_H)": -(-rows // launch.arguments["BLOCK_H"]),
        "column in range(first_column, end_column, BLOCK_W)": width // 2 // launch.arguments["BLOCK_W"],
        "while present != 0": 4,
    }
    out = launch.arguments["areas"]
    return Case("areas of ten boxes", launch, trips, {}, out, [labels], [out])


def _in_boxes(labels: Tensor, boxes: Tensor, platform: str) -> Iterator[Case]:
    """Random boxes: half to all of each side, to 512x1024, which makes the mean scale 1.5."""
    batch, height, width = labels.shape
    scale, size = 1.5, (height // 2, width // 2)
    image, out = _meta((batch, 3, height, width), torch.float16), _meta((batch, 3, *size), torch.float16)
    inside = (batch, height * 3 // 4, width * 3 // 4)
    read_labels, read_image = _meta(inside, torch.uint8), _meta((3, *inside), torch.float16)
    launch = forward.launch_configuration(out, image, None, None, boxes, -1, "area", 0.0, platform)
    yield Case("image boxes", launch, *_image_loops(launch, scale), out, [read_image], [out])
    for num_classes in (19, 150):
        soft = _meta((batch, num_classes, *size), torch.float16)
        launch = forward.launch_configuration(None, None, soft, labels, boxes, 255, "area", 0.0, platform)
        trips, shares = _label_loops(launch, scale, num_classes)
        yield Case(f"soft C={num_classes} boxes street", launch, trips, shares, soft, [read_labels], [soft])
        if num_classes == 19:
            launch = forward.launch_configuration(out, image, soft, labels, boxes, 255, "area", 0.0, platform)
            trips, shares = _pair_loops(launch, scale, num_classes)
            both = _meta((out.numel() + soft.numel(),), torch.float16)
            read = [read_image, read_labels]
            yield Case(f"pair C={num_classes} boxes street", launch, trips, shares, both, read, [both])


def _warped(labels: Tensor, platform: str) -> Iterator[Case]:
    """Whole maps turned a little, at half the size: two points along each axis of an output, four classes in a tile."""
    batch, height, width = labels.shape
    size, matrix = (height // 2, width // 2), _meta((batch, 3, 3), torch.float64)
    image, out = _meta((batch, 3, height, width), torch.float16), _meta((batch, 3, *size), torch.float16)
    soft = _meta((batch, 19, *size), torch.float16)
    points = {"step_y in range(0, most_y)": 2.0, "step_x in range(0, most_x)": 2.0}
    of_image = {"first_channel in range(0, channels, CHANNELS)": 1.0}
    of_labels = {
        "chunk in range(0, tl.cdiv(num_classes, 32))": 1.0,
        "while present != 0": 1.0,
    }
    shares = {"num_classes > 32": 0.0, "ALL_CHUNKS": 0.0}
    launch = warping.launch_configuration(out, image, None, None, matrix, -1, "area", 0.0, platform)
    yield Case("image warped", launch, points | of_image, {}, out, [image], [out])
    launch = warping.launch_configuration(None, None, soft, labels, matrix, 255, "area", 0.0, platform)
    # The fill of the soft label with zeros is a kernel of its own.
    yield Case("soft C=19 warped street", launch, points | of_labels, shares, soft, [labels], [soft])
    launch = warping.launch_configuration(out, image, soft, labels, matrix, 255, "area", 0.0, platform)
    both = _meta((out.numel() + soft.numel(),), torch.float16)
    trips = points | of_image | of_labels
    yield Case("pair C=19 warped street", launch, trips, shares, both, [image, labels], [both])


def _row_loops(launch: Launch, scale: float) -> tuple[dict[str, float], dict[str, float]]:
    """Trips and shares of `resampling`: of a row of outputs, one line, and as many groups of taps as there are."""
    exact = scale == int(scale) and launch.arguments["boxes"] is None
    taps = scale if exact else scale + 1
    groups = math.ceil(math.ceil(taps) / launch.arguments["GROUP"])
    trips = {
        "line in range(0, extent[1])": 1.0,
        "source_row in range(first_row, last_row + 1)": taps,
        "group in range(0, extent[2])": float(groups),
    }
    return trips, {"(group > 0) | (line > 0)": 1 - 1 / groups}


def _image_loops(launch: Launch, scale: float) -> tuple[dict[str, float], dict[str, float]]:
    trips, shares = _row_loops(launch, scale)
    return trips | {"step in range(0, num_rows)": launch.arguments["BLOCK_H"]}, shares


def _label_loops(
    launch: Launch, scale: float, num_classes: int
) -> tuple[dict[str, float | Unrolled], dict[str, float]]:
    """Trips and shares of the general way over a street tile: four classes, in one or two chunks of 32."""
    trips, shares = _row_loops(launch, scale)
    rows = launch.arguments["BLOCK_H"]
    scanned = rows * scale + (0 if scale == int(scale) and launch.arguments["boxes"] is None else 1)
    chunks = math.ceil(num_classes / 32)
    found = min(chunks, 2)
    # The loops over a scan's rows mostly come unrolled by four, with the rest in a loop of its own.
    unrolled = [((scanned - 1.5) / 4, 4, 1.5)]
    trips |= {
        "while present != 0": found / chunks,  # four classes at a time
        "step in range(steps[0], steps[1])": float(rows),
        "class_index in range(first_class, end_class)": num_classes / chunks,
    }
    if chunks > 1:
        trips["chunk in range(0, num_chunks)"] = float(chunks)
        shares["found >> (chunk & 31) & 1 != 0"] = found / chunks
        unrolled *= 2
    return {**trips, "source_row in range(source_rows[0], source_rows[1] + 1)": unrolled}, shares


def _pair_loops(launch: Launch, scale: float, num_classes: int) -> tuple[dict[str, float | Unrolled], dict[str, float]]:
    (image, _), (labels, shares) = _image_loops(launch, scale), _label_loops(launch, scale, num_classes)
    return {**labels, **image}, shares


def _at_full_size(num_classes: int, platform: str) -> Iterator[Case]:
    """Logits of a quarter of the size against 16 label maps of 1024 x 2048; per element: per class and label pixel."""
    batch, height, width, ratio = 16, 1024, 2048, 4
    labels = _meta((batch, height, width), torch.uint8)
    logits = _meta((batch, num_classes, height // ratio, width // ratio), torch.float16)
    lse, value = _meta((batch, height, width), torch.float32), _meta((), torch.float32)
    per = _meta((batch, num_classes, height, width), torch.float16)
    found = enlarging.tables_configuration(logits, labels, None, platform)
    tables = [found.arguments[name] for name in found.scratch]
    place, kind = (logits, labels, False, 255), f"C={num_classes} r={ratio}"
    gaps = height // ratio + 1  # between rows of logits, above the first and below the last; a step each is empty

    def walk(launch: Launch, classes: str = "") -> dict[str, float]:
        """The loops of a program over strips of label rows; of a gap all rows are one tile."""
        strips = math.ceil(gaps / launch.arguments["GAPS"])
        trips = {"step in range(first_step, end_step)": 2 * gaps / strips}
        if not classes:
            return trips | {"row in range(start, end)": ratio}
        tiles = ratio / launch.arguments["ROWS"] / 2
        groups = math.ceil(num_classes / launch.arguments["UNROLL"])
        return trips | {
            "first_row in range(start, end, ROWS)": tiles,
            f"{classes} in range(0, num_classes, UNROLL)": groups,
        }

    def gradient(launch: Launch) -> dict[str, float]:
        return {
            "gap in range(first_row - 1, tl.minimum(first_row + STRIP, height))": launch.arguments["STRIP"] + 1,
            "step in range(2 * gap + 2, 2 * gap + 4)": 2,
            "row in range(rows[0], rows[1])": ratio / 2,
        }

    configuration = enlarged_cross_entropy.upsampled_cross_entropy_configuration
    launch = configuration(value, lse, *place, None, 0.0, "mean", *tables, platform=platform)
    yield Case(f"upsampled cross entropy {kind}", launch, walk(launch, "first"), {}, per, [logits, labels], [lse])
    grad, read = value.expand(lse.shape), [logits, labels, lse]
    options = (None, 0.0, lse, *tables)
    configuration = enlarged_cross_entropy.upsampled_cross_entropy_backward_configuration
    launch = configuration(logits, grad, value, *place, *options, platform=platform)
    yield Case(f"upsampled cross entropy gradient {kind}", launch, gradient(launch), {}, per, read, [logits])
    if num_classes == 19:  # the others, whose loops are the same
        yield from _overlap_at_full_size(logits, labels, lse, per, tables, walk, gradient, kind, platform)
    out = _meta((batch, height, width), torch.uint8)
    launch = decoding.decode_configuration(out, None, logits, False, None, *tables, platform=platform)
    yield Case(f"decode {kind}", launch, walk(launch, "first_class"), {}, per, [logits], [out])


def _overlap_at_full_size(
    logits: Tensor,
    labels: Tensor,
    lse: Tensor,
    per: Tensor,
    tables: Sequence[Tensor],
    walk: Callable[..., dict[str, float]],
    gradient: Callable[[Launch], dict[str, float]],
    kind: str,
    platform: str,
) -> Iterator[Case]:
    """The four kernels of both passes of the Dice loss, and the counts of a confusion matrix."""
    place = (logits, labels, False, 255)
    slopes = _meta((1, logits.shape[1], 2), torch.float32)
    grad = _meta((), torch.float32).expand(slopes.shape[:2])
    read = [logits, labels, lse]
    configuration = enlarged_overlap.statistics_configuration
    launch = configuration(lse, None, None, None, *place, *tables, platform=platform)
    yield Case(f"upsampled logsumexp {kind}", launch, walk(launch, "first"), {}, per, [logits, labels], [lse])
    launch = enlarged_overlap.sums_configuration(lse, *place, *tables, platform=platform)
    yield Case(f"upsampled overlap sums {kind}", launch, walk(launch), {"start < end": 0.5}, per, read, [])
    launch = configuration(lse, lse, grad, slopes, *place, *tables, platform=platform)
    yield Case(f"upsampled mean slope {kind}", launch, walk(launch, "first_class"), {}, per, read, [lse])
    configuration = enlarged_overlap.upsampled_overlap_backward_configuration
    launch = configuration(logits, grad, slopes, lse, *place, lse, *tables, platform=platform)
    yield Case(f"upsampled overlap gradient {kind}", launch, gradient(launch), {}, per, [*read, lse], [logits])
    counts = _meta((logits.shape[1], logits.shape[1]), torch.int64)
    configuration = decoding.confusion_matrix_configuration
    launch = configuration(counts, logits, labels, False, None, 255, *tables, platform=platform)
    # The pixels of a tile hold two pairs of classes, besides what is left at their edge.
    trips = walk(launch, "first_class") | {"while (largest >= 0) & (rounds < MAX_ROUNDS)": 2.0}
    yield Case(f"confusion matrix {kind}", launch, trips, {}, per, [logits, labels], [], blind_to=ATOMICS)


def _dense_loops(num_classes: int, kind: str, skips: bool = False) -> tuple[list[float], dict[str, float]]:
    """Trips over groups of four classes, or, if absent blocks of 16 are skipped, over these and groups; shares."""
    blocks, groups = math.ceil(num_classes / 16), math.ceil(num_classes / 4)
    # The classes of a street tile lie in three groups, of two blocks.
    found_blocks, found_groups = (2, 3) if kind == "street" else (blocks, groups)
    near_groups = min(4 * found_blocks, groups)
    taken = {"EPILOGUE == 'top' or EPILOGUE == 'loss'": float(skips)}
    if not skips:
        return [groups], taken | {"tl.max(members) != 0": found_groups / groups}
    taken |= {"tl.max(near) != 0": found_blocks / blocks, "tl.max(members) != 0": found_groups / near_groups}
    taken |= {"tl.max(matches) != 0": 1 / 3}  # the street tile's four of its three groups' classes
    return [blocks, near_groups / found_blocks], taken


def timed_as(factor: float, num_classes: int, kind: str) -> str:
    """The title of the benchmark's case of the same shapes."""
    content = "noise" if kind == "noise" else "street scenes"
    shape = ("cuda", torch.float16, 16, (1024, 2048))
    return bench_cases.Case("shrink labels", *shape, factor, num_classes, content=content).title


def _without_the_dense_label(labels: Tensor, soft: Tensor, platform: str) -> Iterator[Case]:
    """What else is made of a label map: instructions per element of the soft label that is never stored."""
    batch, num_classes, height, width = soft.shape
    kind = f"C={num_classes} k={labels.shape[1] // height}"
    trips, taken = _dense_loops(num_classes, "street", skips=True)
    pixels = _meta((batch, height, width), torch.float32)
    index, kept = _meta((batch, 4, height, width), torch.uint8), _meta((batch, 4, height, width), torch.float16)
    rest = _meta((batch, height, width), torch.float16)
    launch = top_k.launch_configuration(index, kept, rest, None, 0, labels, None, num_classes, 255, "area", platform)
    yield Case(f"top 4 of {kind}", launch, trips, taken, soft, [labels], [index, kept, rest])
    value = _meta((), torch.float32)
    source, maps = (labels, None, 255, "area", None), [pixels, pixels]
    launch = area_loss.area_cross_entropy_configuration(value, *maps, soft, *source, 0.0, None, "mean", platform)
    trips, taken = _dense_loops(num_classes, "street")
    yield Case(f"area loss {kind}", launch, trips, taken, soft, [labels, soft], maps)
    grad = value.expand(pixels.shape)
    saved = (pixels, None, pixels)
    launch = area_loss.area_cross_entropy_backward_configuration(
        soft, grad, value, soft, *source, 0.0, *saved, platform
    )
    yield Case(f"area gradient {kind}", launch, trips, taken, soft, [labels, soft, *maps], [soft])


def _losses(soft: Tensor, factor: int, platform: str) -> Iterator[Case]:
    """Losses of a dense soft label: instructions per logit."""
    kind = f"C={soft.shape[1]} k={factor}"
    batch, num_classes, height, width = soft.shape
    logits, pixels = soft, _meta((batch, height, width), torch.float32)
    value, slopes = _meta((), torch.float32), _meta((1, num_classes, 2), torch.float32)
    inputs, maps = [logits, soft], [pixels, pixels]

    def steps(launch: Launch) -> float:
        return math.ceil(num_classes / launch.arguments["BLOCK_C"] / launch.arguments["UNROLL"])

    launch = soft_cross_entropy.cross_entropy_configuration(
        value, *maps, logits, soft, None, None, 0.0, None, "mean", platform
    )
    partial = launch.arguments["partial"]
    yield Case(f"cross entropy {kind}", launch, [steps(launch)], {}, soft, inputs, [partial, *maps])
    arguments = (logits, value.expand(pixels.shape), value, logits, soft, None, None, 0.0, pixels, None, pixels)
    launch = soft_cross_entropy.cross_entropy_backward_configuration(*arguments, platform)
    name = f"cross entropy gradient {kind}"
    yield Case(name, launch, [steps(launch)], {}, soft, [*inputs, *maps], [soft])
    launch = soft_overlap.overlap_configuration(*maps, logits, soft, None, platform)
    partial = launch.arguments["partial"]
    yield Case(f"overlap {kind}", launch, [launch.arguments["TILES"]], {}, soft, inputs, [partial, *maps])
    partial = partial.view(1, -1, partial.shape[2])  # of the whole batch
    launch = sums.sum_rows_configuration(partial, platform)
    chunk = launch.arguments["rows_per_chunk"] / launch.arguments["BLOCK_R"]
    yield Case(f"overlap sums {kind}", launch, [chunk], {}, soft, [partial], [])
    grad = value.expand(slopes.shape[:2])
    launch = soft_overlap.overlap_backward_configuration(logits, grad, slopes, logits, soft, None, *maps, platform)
    name, trips = f"overlap gradient {kind}", [] if launch.arguments["ONE_STEP"] else [steps(launch)] * 2
    yield Case(name, launch, trips, {}, soft, [*inputs, *maps], [soft])
    if num_classes == 19:
        yield from _losses_of_other_targets(soft, kind, steps, platform)


def _losses_of_other_targets(
    soft: Tensor, kind: str, steps: Callable[[Launch], float], platform: str
) -> Iterator[Case]:
    """The cross-entropy of a smoothed target, and that of each class for itself."""
    batch, _, height, width = soft.shape
    pixels, value = _meta((batch, height, width), torch.float32), _meta((), torch.float32)
    inputs, maps = [soft, soft], [pixels, pixels]
    options = (soft, soft, None, None, 0.1)
    launch = soft_cross_entropy.cross_entropy_configuration(value, *maps, *options, None, "mean", platform)
    written = [launch.arguments["partial"], *maps]
    yield Case(f"smoothed cross entropy {kind}", launch, [steps(launch)], {}, soft, inputs, written)
    grad = value.expand(pixels.shape)
    arguments = (soft, grad, value, *options, pixels, None, pixels)
    launch = soft_cross_entropy.cross_entropy_backward_configuration(*arguments, platform)
    yield Case(f"smoothed cross entropy gradient {kind}", launch, [steps(launch)], {}, soft, [*inputs, *maps], [soft])
    options = (soft, soft, None, None, None)
    launch = binary_loss.binary_cross_entropy_configuration(value, *options, "mean", platform)
    written = [launch.arguments["partial"]]
    yield Case(f"binary cross entropy {kind}", launch, [steps(launch)], {}, soft, inputs, written)
    arguments = (soft, value.expand(soft.shape), value, *options)
    launch = binary_loss.binary_cross_entropy_backward_configuration(*arguments, platform)
    yield Case(f"binary cross entropy gradient {kind}", launch, [steps(launch)], {}, soft, inputs, [soft])


def main(
    check: Annotated[bool, typer.Option(help="Only compare the snapshot of the shown target.")] = False,
    show: Annotated[str, typer.Option(help="The target whose table is printed.")] = "sm_90",
) -> None:
    """What every kernel costs on every target."""
    if check:
        if lines := differences(show):
            raise SystemExit("\n".join([*lines, "if this is meant: make cost"]))
        return
    rows = [row for target in (*NVIDIA, *AMD) for row in costs(target)]
    SNAPSHOT.parent.mkdir(exist_ok=True)
    with SNAPSHOT.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print_table([row for row in rows if row["target"] == show], show)


def measurements(device: str, results: Path = SNAPSHOT.parent) -> dict[str, float]:
    """Microseconds of those kernels that a committed run of the benchmark on this device has timed."""
    kernels = {case.timed_as: case.name for case in cases("cuda") if case.timed_as}
    found = {}
    for path in results.glob("*.csv"):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                name = kernels.get(row.get("case", ""))
                if name and row["rival"] == "tritonsoft" and device in row["device_name"] and row["milliseconds"]:
                    found[name] = 1e3 * float(row["milliseconds"])
    return found


def print_table(rows: Sequence[Mapping[str, Any]], target: str) -> None:
    """Instructions per output element, and times."""
    device = MODELLED[target][0] if target in MODELLED else target
    title = f"{target}: instructions per output element, warps that a scheduler holds, waits of a warp for memory"
    table = Table(title=f"{title}; microseconds of an {device}" if target in MODELLED else title)
    shown = [column for column in COLUMNS if column not in ("triton", "target")]
    for column in shown:
        table.add_column(column.replace("_", " "), justify="left" if column == "kernel" else "right")
    measured = measurements(device)
    if measured:
        table.add_column("measured us", justify="right")
        table.add_column("prediction is off by", justify="right")
    for row in rows:
        microseconds = measured.get(row["kernel"])
        if microseconds is None or not row["predicted_us"]:
            comparison = []
        else:
            error = float(row["predicted_us"]) / microseconds - 1
            comparison = [f"{microseconds:.3g}", f"{error:+.0%}"]
        table.add_row(*(row[column] for column in shown), *comparison)
    Console(width=200).print(table)


if __name__ == "__main__":
    typer.run(main)
