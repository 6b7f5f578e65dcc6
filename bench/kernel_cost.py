"""What the compiled GPU kernels cost, read from their machine code: no GPU needed.

``python bench/kernel_cost.py`` compiles each launch configuration for sm_90, weighs every instruction by how often it
runs (trip counts of its loops, share of the branch it is in) and sets the time that takes an H200 to issue against the
time that the memory takes to move: labels and images read once, outputs written once.
"""

import ast
import collections
import inspect
import math
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeGuard

import torch
import triton
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from triton.backends.compiler import GPUTarget

from tritonsoft.kernels import counting, forward, label_targets
from tritonsoft.kernels.launch import Launch

# H200: multiprocessors, clock in Hz, measured copy rate in bytes per second.
MULTIPROCESSORS, CLOCK, COPY_RATE = 132, 1.75e9, 4.3e12
# Instructions of a thread that one multiprocessor completes per clock (CUDA programming guide, compute capability 9.0);
# whatever the kind, it issues 128 in all.
KINDS = {
    "float": (r"FADD|FMUL|FFMA|FSEL|HADD2|HMUL2|HFMA2|IMAD", 128),
    "convert": (r"POPC|MUFU|F2I|I2F\b|I2F\.|F2F|FRND|REDUX", 16),
    "double": (r"D[A-Z]+", 64),
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


class Instruction(NamedTuple):
    address: int
    opcode: str
    weight: float


def _branches(taken: Mapping[str, float]) -> Iterator[tuple[set[int], float]]:
    """The source lines of either arm of each ``if`` whose share is known, and the share of the iterations it gets.

    A function that only one arm of its caller's calls belongs to that arm.
    """
    functions = {node.name: node for node in ast.parse(inspect.getsource(counting)).body if _is_function(node)}
    for function in functions.values():
        calls = collections.Counter(_calls([function]))
        for node in ast.walk(function):
            share = taken.get(ast.unparse(node.test)) if isinstance(node, ast.If) else None
            if not isinstance(node, ast.If) or share is None:
                continue
            for arm, weight in ((node.body, share), (node.orelse, 1 - share)):
                in_arm = collections.Counter(_calls(arm))
                called = [functions[name] for name in in_arm if in_arm[name] == calls[name] and name in functions]
                yield {n for part in (*arm, *called) for n in range(part.lineno, (part.end_lineno or 0) + 1)}, weight


def _is_function(node: ast.AST) -> TypeGuard[ast.FunctionDef]:
    return isinstance(node, ast.FunctionDef)


def _calls(nodes: Sequence[ast.AST]) -> Iterator[str]:
    for node in nodes:
        for child in ast.walk(node):
            if isinstance(child, ast.Call):
                yield ast.unparse(child.func)


def instructions(cubin: Path, case: Case) -> list[Instruction]:
    """The instructions of a kernel with the number of times that a thread runs each."""
    text = subprocess.run([TOOLS / "nvdisasm", "-g", "-c", cubin], capture_output=True, text=True, check=True).stdout
    labels: dict[str, int] = {}
    code: list[tuple[int, str, str, int]] = []  # address, opcode, operands, basic block
    lines: dict[int, set[int]] = collections.defaultdict(set)  # of the source, by basic block
    line, block, pending = 0, 0, []
    for row in text.splitlines():
        if match := re.match(r"(\.L_x_\d+|\$\S+):", row):
            if match[1].startswith("$"):
                break  # subroutines for rare operands
            pending.append(match[1])
            block += 1
        elif match := re.search(r'//## File "(.*)", line (\d+)', row):
            line = int(match[2]) if Path(match[1]).name == Path(counting.__file__).name else 0
        elif match := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\d+\s+)?([A-Z0-9_.]+)(.*)", row):
            address = int(match[1], 16)
            labels.update(dict.fromkeys(pending, address))
            pending = []
            code.append((address, match[2], match[3], block))
            lines[block].add(line)
            block += match[2] in ("BRA", "EXIT")
    loops: dict[int, int] = {}
    for address, opcode, operands, _ in code:
        target = labels.get(match[1], address) if (match := re.search(r"`\((\S+)\)", operands)) else address
        if opcode == "BRA" and target < address:
            loops[target] = max(address, loops.get(target, 0))
    if len(loops) != len(case.trips):
        raise RuntimeError(f"{case.name}: {len(loops)} loops in the machine code, trip counts for {len(case.trips)}")
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


def _kind(opcode: str) -> str:
    return next(kind for kind, (pattern, _) in KINDS.items() if re.match(pattern, opcode))


def report(case: Case) -> list[str]:
    """One row of the table."""
    compiled = case.launch.compile(GPUTarget("cuda", 90, 32))
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = subprocess.run(
            [TOOLS / "cuobjdump", "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
        ).stdout
        code = instructions(cubin, case)
    elements = case.per.numel()
    threads = case.launch.grid[0] * 32 * case.launch.options["num_warps"]
    per_kind = collections.Counter[str]()
    for instruction in code:
        per_kind[_kind(instruction.opcode)] += instruction.weight * threads
    pipes = [per_kind[kind] / rate for kind, (_, rate) in KINDS.items()] + [per_kind.total() / 128]
    arithmetic = max(pipes) / MULTIPROCESSORS / CLOCK
    floor = sum(tensor.numel() * tensor.element_size() for tensor in case.moved) / COPY_RATE
    widths = {
        letter: "+".join(
            sorted({i.opcode[3:].replace(".E", "").strip(".") or "32" for i in code if i.opcode[:3] == letter})
        )
        for letter in ("LDG", "STG")
    }
    registers, stack, shared = (re.findall(rf"{name}:(\d+)", usage)[0] for name in ("REG", "STACK", "SHARED"))
    return [
        case.name,
        registers,
        stack,
        shared,
        widths["LDG"],
        widths["STG"],
        *(f"{per_kind[kind] / elements:.2f}" for kind in KINDS),
        f"{per_kind.total() / elements:.2f}",
        f"{arithmetic * 1e6:.0f}",
        f"{floor * 1e6:.0f}",
        f"{arithmetic / floor:.2f}",
    ]


def _meta(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def cases() -> Iterator[Case]:
    """16 maps of 1024 x 2048; tiles that hold 4 classes in 3 groups of four, and noise, which holds them all."""
    batch, height, width = 16, 1024, 2048
    labels = _meta((batch, height, width), torch.uint8)
    for num_classes in (19, 150):
        groups = math.ceil(num_classes / 4)
        for factor in (1, 2, 4, 8):
            soft = _meta((batch, num_classes, height // factor, width // factor), torch.float16)
            launch = forward.launch_configuration(None, None, soft, labels, None, 255, "area", 0.0, "cuda")
            for kind, present in (("street", 3), ("noise", groups)):
                name = f"soft C={num_classes} k={factor} {kind}"
                taken = {"tl.max(members) != 0": present / groups}
                yield Case(name, launch, [groups], taken, soft, [labels, soft])
                if factor == 4 and kind == "street":
                    yield from _without_the_dense_label(labels, soft, groups, taken)
    boxes = _meta((batch, 4), torch.float32)
    for num_classes in (19, 150):
        for scale, size in ((1.3, (788, 1576)), (2.7, (380, 760)), (5.3, (194, 388))):
            soft = _meta((batch, num_classes, *size), torch.float16)
            launch = forward.launch_configuration(None, None, soft, labels, boxes, 255, "area", 0.0, "cuda")
            rows, columns = (math.ceil(launch.arguments[name] * scale) for name in ("BLOCK_H", "BLOCK_W"))
            scan = [math.ceil(rows / 8), math.ceil(columns / 128)]
            taps = [math.ceil(scale + 1)] * 2
            chunks = math.ceil(num_classes / 32)
            scanned = min(chunks, 2)  # the four classes of a street tile lie in one or two chunks of 32
            trips = [*scan, chunks, *scan, num_classes / chunks, 1 / chunks * scanned, *taps]
            shares = {
                "num_classes > 32": float(num_classes > 32),
                "chunks >> (chunk & 31) & 1 != 0": scanned / chunks,
            }
            yield Case(f"soft C={num_classes} boxes s={scale} street", launch, trips, shares, soft, [labels, soft])
    for factor in (2, 4):
        image = _meta((batch, 3, height, width), torch.float16)
        out = _meta((batch, 3, height // factor, width // factor), torch.float16)
        launch = forward.launch_configuration(out, image, None, None, None, -1, "area", 0.0, "cuda")
        yield Case(f"image k={factor}", launch, [3, factor, factor], {}, out, [image, out])
        soft = _meta((batch, 19, height // factor, width // factor), torch.float16)
        launch = forward.launch_configuration(out, image, soft, labels, None, 255, "area", 0.0, "cuda")
        # ptxas sometimes copies the loop over the channels, three times, for tiles where no footprint has a tap.
        without_taps = [0.0] * 3 if factor == 4 else []
        taken = {"tl.max(members) != 0": 3 / 5}
        trips = [3, factor, factor, *without_taps, 5]
        both = _meta((out.numel() + soft.numel(),), torch.float16)
        yield Case(f"pair C=19 k={factor} street", launch, trips, taken, both, [image, labels, both])


def _without_the_dense_label(labels: Tensor, soft: Tensor, groups: int, taken: Mapping[str, float]) -> Iterator[Case]:
    """What else is made of a label map: instructions per element of the soft label that is never stored."""
    batch, num_classes, height, width = soft.shape
    pixels = _meta((batch, height, width), torch.float32)
    index, kept = _meta((batch, 4, height, width), torch.uint8), _meta((batch, 4, height, width), torch.float16)
    rest = _meta((batch, height, width), torch.float16)
    launch = label_targets.top_configuration(index, kept, rest, labels, None, num_classes, 255, "area", "cuda")
    yield Case(f"top 4 of C={num_classes} k=4", launch, [groups], taken, soft, [labels, index, kept, rest])
    maps = {"loss": pixels, "mass": pixels, "lse": pixels, "weights": None}
    launch = label_targets.loss_configuration(labels, None, 255, "area", soft, maps, "cuda")
    yield Case(
        f"area loss C={num_classes} k=4", launch, [num_classes // 4, groups], taken, soft, [labels, soft] + 3 * [pixels]
    )
    one = _meta((1, 1, 1), torch.float32).expand(pixels.shape)
    maps = {"gradient": soft, "scale": one, "mass": pixels, "lse": pixels, "weights": None}
    launch = label_targets.loss_configuration(labels, None, 255, "area", soft, maps, "cuda")
    moved = [labels, soft, soft, pixels, pixels]
    yield Case(f"area gradient C={num_classes} k=4", launch, [groups], taken, soft, moved)


def main() -> None:
    """Print the table."""
    table = Table(title="H200, from sm_90 code: instructions per output element, times in microseconds")
    for header in (
        "",
        "registers",
        "stack",
        "shared",
        "loads",
        "stores",
        *KINDS,
        "all",
        "arithmetic",
        "floor",
        "ratio",
    ):
        table.add_column(header, justify="right" if header else "left")
    for case in cases():
        table.add_row(*report(case))
    Console(width=190).print(table)


if __name__ == "__main__":
    typer.run(main)
