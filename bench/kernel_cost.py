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
import functools
import math
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
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
from bench.machine_code import TOOLS, instructions, work
from tritonsoft.kernels import adjoint, area_loss, forward, soft_cross_entropy, soft_overlap, sums, top_k
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
    """A launch, and how often its loops run: in the order of the machine code, outermost first."""

    name: str
    launch: Launch
    trips: Sequence[float]
    taken: Mapping[str, float]  # the share of the iterations that enter an ``if``, by its source text
    per: Tensor  # whose elements are meant by "per element"
    read: Sequence[Tensor]  # what must be read once
    written: Sequence[Tensor]
    timed_as: str = ""  # the title of the case of the benchmark that times this launch
    is_predictable: bool = True  # the model sees no conflicts of banks in shared memory, and no stores of part sectors


def cost_on_nvidia(case: Case, target: str) -> dict[str, str]:
    """One row of the snapshot."""
    gpu, shared_of_device = NVIDIA[target]
    compiled = case.launch.compile(gpu)
    shared = compiled.metadata.shared
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        run = functools.partial(subprocess.run, capture_output=True, text=True, check=True)
        usage = run([TOOLS / "cuobjdump", "--dump-resource-usage", cubin]).stdout
        text = run([TOOLS / "cuobjdump", "--dump-sass", cubin]).stdout
        try:
            of_a_warp = work(instructions(cubin, case.trips, case.taken))
        except ValueError as error:
            raise ValueError(f"{case.name} for {target}") from error
    registers, stack = (re.findall(rf"{name}:(\d+)", usage)[0] for name in ("REG", "STACK"))
    row = {"kernel": case.name, "target": target, "registers": registers, "local": stack, "shared": str(shared)}
    for column, opcode in (("loads", "LDG"), ("stores", "STG")):
        bits = set(re.findall(rf"\b{opcode}\.E(?:\.(U8|U16|64|128))?", text))
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
        if case.is_predictable:
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
COLUMNS += ["waits", "floor_us", "predicted_us"]


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
                if factor == 4 and kind == "street":
                    yield from _without_the_dense_label(labels, soft, platform)
                    yield from _losses(soft, platform)
    boxes = _meta((batch, 4), torch.float32)
    for num_classes in (19, 150):
        for scale, size in ((1.3, (788, 1576)), (1.5, (683, 1365)), (2.7, (380, 760)), (5.3, (194, 388))):
            soft = _meta((batch, num_classes, *size), torch.float16)
            launch = forward.launch_configuration(None, None, soft, labels, boxes, 255, "area", 0.0, platform)
            rows, columns = (math.ceil(launch.arguments[name] * scale) for name in ("BLOCK_H", "BLOCK_W"))
            scan = [math.ceil(rows / 8), math.ceil(columns / 128)]
            taps = [math.ceil(scale + 1)] * 2
            chunks = math.ceil(num_classes / 32)
            scanned = min(chunks, 2)  # the four classes of a street tile lie in one or two chunks of 32
            is_odd = size[1] % 2 == 1
            zeros = [] if is_odd else [num_classes / chunks]  # the output holds them already
            trips = [*scan, chunks, *scan, *zeros, 1 / chunks * scanned, *taps]
            shares = {"chunks >> (chunk & 31) & 1 != 0": scanned / chunks}
            if num_classes <= 32:  # no scan for chunks, of which these lines tell
                shares |= {"num_classes > 32": 0.0, "ALL_CHUNKS": 0.0}
            name = f"soft C={num_classes} boxes s={scale}{' odd width' if is_odd else ''} street"
            yield Case(name, launch, trips, shares, soft, [labels], [soft], is_predictable=not is_odd)
    for factor in (2, 4):
        image = _meta((batch, 3, height, width), torch.float16)
        out = _meta((batch, 3, height // factor, width // factor), torch.float16)
        launch = forward.launch_configuration(out, image, None, None, None, -1, "area", 0.0, platform)
        yield Case(f"image k={factor}", launch, [1, factor, factor], {}, out, [image], [out])
        soft = _meta((batch, 19, height // factor, width // factor), torch.float16)
        launch = forward.launch_configuration(out, image, soft, labels, None, 255, "area", 0.0, platform)
        trips, taken = _dense_loops(19, "street")
        trips = [1, factor, factor, *trips]
        both = _meta((out.numel() + soft.numel(),), torch.float16)
        yield Case(f"pair C=19 k={factor} street", launch, trips, taken, both, [image, labels], [both])
    image, grad = _meta((batch, 3, height, width), torch.float16), _meta((batch, 3, 512, 1024), torch.float16)
    launch = adjoint.launch_configuration(image, grad, boxes, "area", platform)
    # Boxes of three quarters of each side: 2 of 3 source rows in there meet a new row of outputs, none outside.
    shares = {"shrinks": 1.0, "weight > 0": 0.75}
    trips = [1, 32, 0.75 * 2 / 3, 0, 0, 0, 0]
    yield Case("image adjoint boxes s=1.5", launch, trips, shares, image, [grad], [image])


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
    trips, taken = _dense_loops(num_classes, "street", skips=True)
    pixels = _meta((batch, height, width), torch.float32)
    index, kept = _meta((batch, 4, height, width), torch.uint8), _meta((batch, 4, height, width), torch.float16)
    rest = _meta((batch, height, width), torch.float16)
    launch = top_k.launch_configuration(index, kept, rest, labels, None, num_classes, 255, "area", platform)
    yield Case(f"top 4 of C={num_classes} k=4", launch, trips, taken, soft, [labels], [index, kept, rest])
    value = _meta((), torch.float32)
    source, maps = (labels, None, 255, "area", None), [pixels, pixels]
    launch = area_loss.area_cross_entropy_configuration(value, *maps, soft, *source, "mean", platform)
    trips, taken = _dense_loops(num_classes, "street")
    yield Case(f"area loss C={num_classes} k=4", launch, trips, taken, soft, [labels, soft], maps)
    grad = value.expand(pixels.shape)
    launch = area_loss.area_cross_entropy_backward_configuration(soft, grad, value, soft, *source, *maps, platform)
    yield Case(f"area gradient C={num_classes} k=4", launch, trips, taken, soft, [labels, soft, *maps], [soft])


def _losses(soft: Tensor, platform: str) -> Iterator[Case]:
    """Losses of a dense soft label: instructions per logit."""
    batch, num_classes, height, width = soft.shape
    logits, pixels = soft, _meta((batch, height, width), torch.float32)
    value, slopes = _meta((), torch.float32), _meta((1, num_classes, 2), torch.float32)
    inputs, maps = [logits, soft], [pixels, pixels]

    def steps(launch: Launch) -> float:
        return math.ceil(num_classes / launch.arguments["BLOCK_C"] / launch.arguments["UNROLL"])

    launch = soft_cross_entropy.cross_entropy_configuration(value, *maps, logits, soft, None, None, "mean", platform)
    partial = launch.arguments["partial"]
    yield Case(f"cross entropy C={num_classes}", launch, [steps(launch)], {}, soft, inputs, [partial, *maps])
    arguments = (logits, value.expand(pixels.shape), value, logits, soft, None, None, *maps, platform)
    launch = soft_cross_entropy.cross_entropy_backward_configuration(*arguments)
    name = f"cross entropy gradient C={num_classes}"
    yield Case(name, launch, [steps(launch)], {}, soft, [*inputs, *maps], [soft])
    launch = soft_overlap.overlap_configuration(*maps, logits, soft, None, platform)
    partial = launch.arguments["partial"]
    name = f"overlap C={num_classes}"
    yield Case(name, launch, [launch.arguments["TILES"]], {}, soft, inputs, [partial, *maps])
    partial = partial.view(1, -1, partial.shape[2])  # of the whole batch
    launch = sums.sum_rows_configuration(partial, platform)
    chunk = launch.arguments["rows_per_chunk"] / launch.arguments["BLOCK_R"]
    yield Case(f"overlap sums C={num_classes}", launch, [chunk], {}, soft, [partial], [])
    grad = value.expand(slopes.shape[:2])
    launch = soft_overlap.overlap_backward_configuration(logits, grad, slopes, logits, soft, None, *maps, platform)
    name, trips = f"overlap gradient C={num_classes}", [] if launch.arguments["ONE_STEP"] else [steps(launch)] * 2
    yield Case(name, launch, trips, {}, soft, [*inputs, *maps], [soft])


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
