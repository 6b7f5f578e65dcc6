"""What the compiled GPU kernels cost, read from their machine code: no GPU needed.

    python -m bench.kernel_cost            compiles for all targets, prints the table of one, writes the snapshot
    python -m bench.kernel_cost --check    fails where the snapshot is not what this checkout compiles to (one target)

Each launch configuration that the library would choose is compiled, every instruction weighed by how often it runs
(trip counts of its loops, share of the branch it is in), and the time that a device takes to issue them set against the
time that its memory takes to move what must move: labels, images, logits read once, outputs written once. The larger of
the two is the prediction; it assumes that latencies are hidden.

Where the benchmark has run on such a device, its times stand beside the predictions, with the model's error.

The snapshot, ``bench/results/kernel-cost.csv``, is under version control: a change that costs instructions shows there.
Of AMD's code, whose instructions are not weighed, it holds registers, local memory and widths alone.
"""

import ast
import collections
import csv
import functools
import inspect
import math
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, NamedTuple, TypeGuard

import torch
import triton
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from triton.backends.compiler import GPUTarget

from bench import cases as bench_cases
from tritonsoft.kernels import (
    area_loss,
    counting_general,
    counting_integer,
    epilogues,
    forward,
    soft_cross_entropy,
    soft_overlap,
    sums,
    top_k,
)
from tritonsoft.kernels.launch import Launch

SNAPSHOT = Path(__file__).parent / "results" / "kernel-cost.csv"


class Device(NamedTuple):
    """What a target's code runs on."""

    name: str
    target: GPUTarget
    multiprocessors: int
    clock: float  # Hz
    copy_rate: float  # bytes per second: the H200's as measured, else nine tenths of what the data sheet says
    float_rate: int  # instructions of a thread per clock and multiprocessor
    double_rate: int


DEVICES = {
    "sm_80": Device("A100 80GB", GPUTarget("cuda", 80, 32), 108, 1.41e9, 0.9 * 2.04e12, 64, 32),
    "sm_90": Device("H200", GPUTarget("cuda", 90, 32), 132, 1.75e9, 4.3e12, 128, 64),
    "sm_100": Device("B200", GPUTarget("cuda", 100, 32), 148, 1.85e9, 0.9 * 8e12, 128, 64),
}
AMD = {"gfx942": GPUTarget("hip", "gfx942", 64)}
# Instructions of a thread that one multiprocessor completes per clock (CUDA programming guide, arithmetic instructions;
# 10.0 taken as 9.0); whatever the kind, it issues 128 in all. 0 stands for the device's own.
KINDS = {
    "float": (r"FADD|FMUL|FFMA|HADD2|HMUL2|HFMA2", 0),
    "multiply": (r"IMAD", 64),
    "special": (r"POPC|MUFU|F2I|I2F\b|I2F\.|F2F\b|F2F\.|FRND|REDUX", 16),
    "double": (r"D[A-Z]+", 0),
    "memory": (r"LD|ST|SHFL|BAR", 32),
    "control": (r"BRA|EXIT|U[A-Z]|R2UR|S2|CS2|B[A-Z]+|CALL|RET|NOP|WARPSYNC|PLOP3|P2R|R2P|VOTE", 128),
    "integer": (r".*", 64),
}
TOOLS = Path(inspect.getfile(triton)).parent / "backends" / "nvidia" / "bin"


class Case(NamedTuple):
    """A launch, and how often its loops run: in the order of the machine code, outermost first."""

    name: str
    launch: Launch
    trips: Sequence[float]
    taken: Mapping[str, float]  # the share of the iterations that enter an ``if``, by its source text
    per: Tensor  # whose elements are meant by "per element"
    moved: Sequence[Tensor]  # what must be read or written once
    timed_as: str = ""  # the title of the case of the benchmark that times this launch


class Instruction(NamedTuple):
    address: int
    opcode: str
    weight: float


Line = tuple[str, int]  # of the source: its file's name, and the number
COUNTING = (epilogues, counting_integer, counting_general)  # no two of their functions have the same name


def _branches(taken: Mapping[str, float]) -> Iterator[tuple[set[Line], float]]:
    """The source lines of either arm of each ``if`` whose share is known, and the share of the iterations it gets.

    A function that only one arm of its caller's calls belongs to that arm. What a constant decides is not in the code.
    """
    functions: dict[str, ast.FunctionDef] = {}
    files: dict[str, str] = {}
    for module in COUNTING:
        found = [node for node in ast.parse(inspect.getsource(module)).body if _is_function(node)]
        functions |= {node.name: node for node in found}
        files |= dict.fromkeys((node.name for node in found), _file_name(module))
    for name, function in functions.items():
        calls = collections.Counter(_calls([function], taken))
        for node in ast.walk(function):
            share = taken.get(ast.unparse(node.test)) if isinstance(node, ast.If) else None
            if not isinstance(node, ast.If) or share is None:
                continue
            for arm, weight in ((node.body, share), (node.orelse, 1 - share)):
                in_arm = collections.Counter(_calls(arm, taken))
                only_here = (
                    [] if _is_constant(node.test) else [called for called in in_arm if in_arm[called] == calls[called]]
                )
                parts: list[tuple[str, ast.stmt]] = [(name, part) for part in arm]
                parts += [(called, functions[called]) for called in only_here if called in functions]
                yield (
                    {
                        (files[owner], number)
                        for owner, part in parts
                        for number in range(part.lineno, (part.end_lineno or 0) + 1)
                    },
                    weight,
                )


def _file_name(module: ModuleType) -> str:
    return Path(module.__file__ or "").name


def _is_function(node: ast.AST) -> TypeGuard[ast.FunctionDef]:
    return isinstance(node, ast.FunctionDef)


def _calls(nodes: Sequence[ast.AST], taken: Mapping[str, float]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)
        children: list[ast.AST] = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.If) and _is_constant(node.test) and (test := ast.unparse(node.test)) in taken:
            children = list(node.body if taken[test] else node.orelse)
        yield from _calls(children, taken)


def _is_constant(test: ast.AST) -> bool:
    """Whether a condition is known when the kernel is compiled: constants are written in capitals."""
    return all(node.id.isupper() for node in ast.walk(test) if isinstance(node, ast.Name))


def instructions(cubin: Path, case: Case) -> list[Instruction]:
    """The instructions of a kernel with the number of times that a thread runs each."""
    text = subprocess.run([TOOLS / "nvdisasm", "-g", "-c", cubin], capture_output=True, text=True, check=True).stdout
    labels: dict[str, int] = {}
    code: list[tuple[int, str, str, int]] = []  # address, opcode, operands, basic block
    lines: dict[int, set[Line]] = collections.defaultdict(set)  # by basic block
    line: Line = ("", 0)
    block, pending = 0, []
    for row in text.splitlines():
        if match := re.match(r"(\.L_x_\d+|\$\S+):", row):
            if match[1].startswith("$"):
                break  # subroutines for rare operands
            pending.append(match[1])
            block += 1
        elif match := re.search(r'//## File "(.*)", line (\d+)', row):
            line = (Path(match[1]).name, int(match[2]))
        elif match := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\d+\s+)?([A-Z0-9_.]+)(.*)", row):
            address = int(match[1], 16)
            labels.update(dict.fromkeys(pending, address))
            pending = []
            code.append((address, match[2], match[3], block))
            lines[block].add(line)
            block += _is_branch(match[2]) or match[2] == "EXIT"
    loops: dict[int, int] = {}
    for address, opcode, operands, _ in code:
        target = labels.get(match[1], address) if (match := re.search(r"`\((\S+)\)", operands)) else address
        if _is_branch(opcode) and target < address:
            loops[target] = max(address, loops.get(target, 0))
    if len(loops) != len(case.trips):
        raise ValueError(f"{case.name}: {len(loops)} loops in the machine code, trip counts for {len(case.trips)}")
    trips = [(start, loops[start], trip) for start, trip in zip(sorted(loops), case.trips, strict=True)]
    branches = list(_branches(case.taken))
    shares = {block: math.prod(weight for arm, weight in branches if numbers & arm) for block, numbers in lines.items()}
    return [
        Instruction(
            address,
            opcode,
            shares[block] * math.prod(trip for start, end, trip in trips if start <= address <= end),
        )
        for address, opcode, _, block in code
        if opcode != "NOP"
    ]


def _is_branch(opcode: str) -> bool:
    return opcode.partition(".")[0] == "BRA"  # BRA.U takes one for all threads of a warp


def _kind(opcode: str) -> str:
    return next(kind for kind, (pattern, _) in KINDS.items() if re.match(pattern, opcode))


def cost_on_nvidia(case: Case, target: str) -> dict[str, str]:
    """One row of the snapshot."""
    device = DEVICES[target]
    compiled = case.launch.compile(device.target)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        run = functools.partial(subprocess.run, capture_output=True, text=True, check=True)
        usage = run([TOOLS / "cuobjdump", "--dump-resource-usage", cubin]).stdout
        text = run([TOOLS / "cuobjdump", "--dump-sass", cubin]).stdout
        code = instructions(cubin, case)
    registers, stack, shared = (re.findall(rf"{name}:(\d+)", usage)[0] for name in ("REG", "STACK", "SHARED"))
    row = {"kernel": case.name, "target": target, "registers": registers, "local": stack, "shared": shared}
    for column, opcode in (("loads", "LDG"), ("stores", "STG")):
        bits = set(re.findall(rf"\b{opcode}\.E(?:\.(U8|U16|64|128))?", text))
        row[column] = "+".join(sorted((width.strip("U") or "32" for width in bits), key=int))
    threads = case.launch.grid[0] * 32 * case.launch.options["num_warps"]
    per_kind = collections.Counter[str]()
    for instruction in code:
        per_kind[_kind(instruction.opcode)] += instruction.weight * threads
    own_rates = {"float": device.float_rate, "double": device.double_rate}
    cycles = [per_kind[kind] / (rate or own_rates[kind]) for kind, (_, rate) in KINDS.items()]
    cycles.append((per_kind["float"] + per_kind["multiply"]) / device.float_rate)  # one half of that pipe multiplies
    arithmetic = max(*cycles, per_kind.total() / 128) / device.multiprocessors / device.clock
    floor = sum(tensor.numel() * tensor.element_size() for tensor in case.moved) / device.copy_rate
    elements = case.per.numel()
    return row | {
        **{kind: f"{per_kind[kind] / elements:.3g}" for kind in KINDS},
        "instructions": f"{per_kind.total() / elements:.3g}",
        "arithmetic_us": f"{arithmetic * 1e6:.3g}",
        "floor_us": f"{floor * 1e6:.3g}",
        "arithmetic_over_floor": f"{arithmetic / floor:.2f}",
        "predicted_us": f"{max(arithmetic, floor) * 1e6:.3g}",
    }


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


COLUMNS = ["triton", "kernel", "target", "registers", "local", "shared", "loads", "stores", *KINDS, "instructions"]
COLUMNS += ["arithmetic_us", "floor_us", "arithmetic_over_floor", "predicted_us"]


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
                yield Case(name, launch, trips, taken, soft, [labels, soft], timed_as(factor, num_classes, kind))
                if factor == 4 and kind == "street":
                    yield from _without_the_dense_label(labels, soft, platform)
                    yield from _losses(soft, platform)
    boxes = _meta((batch, 4), torch.float32)
    for num_classes in (19, 150):
        for scale, size in ((1.3, (788, 1576)), (2.7, (380, 760)), (5.3, (194, 388))):
            soft = _meta((batch, num_classes, *size), torch.float16)
            launch = forward.launch_configuration(None, None, soft, labels, boxes, 255, "area", 0.0, platform)
            rows, columns = (math.ceil(launch.arguments[name] * scale) for name in ("BLOCK_H", "BLOCK_W"))
            scan = [math.ceil(rows / 8), math.ceil(columns / 128)]
            taps = [math.ceil(scale + 1)] * 2
            chunks = math.ceil(num_classes / 32)
            scanned = min(chunks, 2)  # the four classes of a street tile lie in one or two chunks of 32
            trips = [*scan, chunks, *scan, num_classes / chunks, 1 / chunks * scanned, *taps]
            shares = {"chunks >> (chunk & 31) & 1 != 0": scanned / chunks}
            if num_classes <= 32:  # no scan for chunks, of which these lines tell
                shares |= {"num_classes > 32": 0.0, "ALL_CHUNKS": 0.0}
            yield Case(f"soft C={num_classes} boxes s={scale} street", launch, trips, shares, soft, [labels, soft])
    for factor in (2, 4):
        image = _meta((batch, 3, height, width), torch.float16)
        out = _meta((batch, 3, height // factor, width // factor), torch.float16)
        launch = forward.launch_configuration(out, image, None, None, None, -1, "area", 0.0, platform)
        yield Case(f"image k={factor}", launch, [1, factor, factor], {}, out, [image, out])
        soft = _meta((batch, 19, height // factor, width // factor), torch.float16)
        launch = forward.launch_configuration(out, image, soft, labels, None, 255, "area", 0.0, platform)
        trips, taken = _dense_loops(19, "street")
        trips = [1, factor, factor, *trips]
        both = _meta((out.numel() + soft.numel(),), torch.float16)
        yield Case(f"pair C=19 k={factor} street", launch, trips, taken, both, [image, labels, both])


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
    yield Case(f"top 4 of C={num_classes} k=4", launch, trips, taken, soft, [labels, index, kept, rest])
    value = _meta((), torch.float32)
    source, maps = (labels, None, 255, "area", None), (pixels, pixels)
    launch = area_loss.area_cross_entropy_configuration(value, *maps, soft, *source, "mean", platform)
    yield Case(f"area loss C={num_classes} k=4", launch, [num_classes // 4, *trips], taken, soft, [labels, soft, *maps])
    grad = value.expand(pixels.shape)
    launch = area_loss.area_cross_entropy_backward_configuration(soft, grad, value, soft, *source, *maps, platform)
    moved = [labels, soft, soft, pixels, pixels]
    trips, taken = _dense_loops(num_classes, "street")
    yield Case(f"area gradient C={num_classes} k=4", launch, trips, taken, soft, moved)


def _losses(soft: Tensor, platform: str) -> Iterator[Case]:
    """Losses of a dense soft label: instructions per logit."""
    batch, num_classes, height, width = soft.shape
    logits, pixels = soft, _meta((batch, height, width), torch.float32)
    value, slopes = _meta((), torch.float32), _meta((1, num_classes, 2), torch.float32)
    maps = [pixels, pixels]

    def steps(launch: Launch) -> float:
        return math.ceil(num_classes / launch.arguments["BLOCK_C"] / launch.arguments["UNROLL"])

    launch = soft_cross_entropy.cross_entropy_configuration(value, *maps, logits, soft, None, None, "mean", platform)
    partial = launch.arguments["partial"]
    yield Case(f"cross entropy C={num_classes}", launch, [steps(launch)], {}, soft, [logits, soft, partial, *maps])
    arguments = (logits, value.expand(pixels.shape), value, logits, soft, None, None, *maps, platform)
    launch = soft_cross_entropy.cross_entropy_backward_configuration(*arguments)
    yield Case(
        f"cross entropy gradient C={num_classes}", launch, [steps(launch)], {}, soft, [logits, soft, soft, *maps]
    )
    launch = soft_overlap.overlap_configuration(*maps, logits, soft, None, platform)
    partial = launch.arguments["partial"]
    yield Case(f"overlap C={num_classes}", launch, [steps(launch)] * 2, {}, soft, [logits, soft, partial, *maps])
    partial = partial.view(1, -1, partial.shape[2])  # of the whole batch
    launch = sums.sum_rows_configuration(partial, platform)
    trips = launch.arguments["rows_per_chunk"] / launch.arguments["BLOCK_R"]
    yield Case(f"overlap sums C={num_classes}", launch, [trips], {}, soft, [partial])
    grad = value.expand(slopes.shape[:2])
    launch = soft_overlap.overlap_backward_configuration(logits, grad, slopes, logits, soft, None, *maps, platform)
    yield Case(f"overlap gradient C={num_classes}", launch, [steps(launch)] * 2, {}, soft, [logits, soft, soft, *maps])


def main(
    check: Annotated[bool, typer.Option(help="Only compare the snapshot of the shown target.")] = False,
    show: Annotated[str, typer.Option(help="The target whose table is printed.")] = "sm_90",
) -> None:
    """What every kernel costs on every target."""
    if check:
        if lines := differences(show):
            raise SystemExit("\n".join([*lines, "if this is meant: make cost"]))
        return
    rows = [row for target in (*DEVICES, *AMD) for row in costs(target)]
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
    device = DEVICES[target].name if target in DEVICES else target
    table = Table(title=f"{device}, from {target} code: instructions per output element, times in microseconds")
    shown = [column for column in COLUMNS if column not in ("triton", "target")]
    for column in shown:
        table.add_column(column.replace("_", " "), justify="left" if column == "kernel" else "right")
    measured = measurements(device)
    if measured:
        table.add_column("measured us", justify="right")
        table.add_column("prediction is off by", justify="right")
    for row in rows:
        microseconds = measured.get(row["kernel"])
        if microseconds is None:
            comparison = []
        else:
            error = float(row["predicted_us"]) / microseconds - 1
            comparison = [f"{microseconds:.3g}", f"{error:+.0%}"]
        table.add_row(*(row[column] for column in shown), *comparison)
    Console(width=200).print(table)


if __name__ == "__main__":
    typer.run(main)
