"""What NVIDIA's machine code says of a kernel before it runs: how often each instruction runs, what a warp waits for.

An instruction is weighed by the trip counts of its loops and the share of the branch that it is in. Its control word
says how many cycles the next one comes later at least, and which scoreboards it sets or waits for (Jia et al.,
Dissecting the NVIDIA Volta GPU architecture via microbenchmarking, arXiv 1804.06826): that is the time line of a warp
alone.
"""

import ast
import collections
import functools
import inspect
import linecache
import math
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, TypeGuard

import triton

from tritonsoft.kernels import (
    adjoint,
    counting_integer,
    counting_rows,
    enlarged_overlap,
    epilogues,
    forward,
    resampling,
    warp_points,
)

TOOLS = Path(inspect.getfile(triton)).parent / "backends" / "nvidia" / "bin"
# All but these go, on 8.0 and 9.0, to a pipe that takes an instruction of a warp every second cycle.
FULL_RATE = r"FADD|FMUL|FFMA|HADD2|HMUL2|HFMA2|IMAD|POPC|MUFU|F2I|I2F\b|I2F\.|F2F\b|F2F\.|FRND|REDUX|D[A-Z]+|LD|ST|SHFL"
FULL_RATE += r"|BRA|EXIT|U[A-Z]|R2UR|S2|CS2|B[A-Z]+|CALL|RET|NOP|WARPSYNC|PLOP3|P2R|R2P|VOTE"
WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}  # bytes of a thread; else 4
# Cycles from issue to result inside a multiprocessor, as that paper and later ones measured them; rounded.
SHARED_LATENCY, OTHER_LATENCY = 30, 20

Line = tuple[str, int]  # of the source: its file's name, and the number
# Where branches are whose shares are given. No two of their functions have the same name.
BRANCHING = (epilogues, counting_integer, counting_rows, enlarged_overlap, forward, resampling, adjoint, warp_points)
# Of loops by their source text. Of one that may come unrolled, for each place that it is in: how often the copies run
# together, how many they are, and how often the rest runs.
Unrolled = Sequence[tuple[float, int, float]]
Trips = Sequence[float] | Mapping[str, float | Unrolled]


class Instruction(NamedTuple):
    address: int
    opcode: str
    weight: float  # how often a thread runs it
    control: int

    @property
    def stall(self) -> int:
        """Cycles to the next instruction."""
        return max(self.control & 15, 1)

    @property
    def sets(self) -> tuple[int, int]:
        """The scoreboards that are free when the result is there, and when the operands have been read; 7: none."""
        return self.control >> 5 & 7, self.control >> 8 & 7

    @property
    def waits(self) -> list[int]:
        return [board for board in range(6) if self.control >> 11 + board & 1]

    @property
    def width(self) -> int:
        """Bytes of a thread."""
        return next((WIDTHS[part] for part in self.opcode.split(".") if part in WIDTHS), 4)


class Work(NamedTuple):
    """What one warp does."""

    instructions: float
    half_rate: float  # those that go to the pipe of half the rate
    cycles: float  # that it takes alone, if memory answers at once
    waits: float  # for memory, one after the other
    wavefronts: float  # of 128 bytes, through the first cache or shared memory
    requested: float  # bytes of global memory


def work(code: Sequence[Instruction]) -> Work:
    """The sums over the instructions of a kernel."""
    near, far = (_cycles_alone(code, latency) for latency in (300, 900))
    waits = (far - near) / 600
    moves = [item for item in code if re.match(r"LDG|STG|LDS|STS|SHFL", item.opcode)]
    return Work(
        sum(item.weight for item in code),
        sum(item.weight for item in code if not re.match(FULL_RATE, item.opcode)),
        near - 300 * waits,
        waits,
        sum(item.weight * (1 if item.opcode.startswith("SHFL") else max(1, item.width / 4)) for item in moves),
        sum(item.weight * 32 * item.width for item in code if item.opcode.startswith("LDG")),
    )


def _cycles_alone(code: Sequence[Instruction], latency: float) -> float:
    """The cycles of a warp that no other hinders, where memory answers after ``latency``."""
    now, total = 0.0, 0.0
    free = [0.0] * 6
    for item in code:
        start = now
        now = max([now, *(free[board] for board in item.waits)])
        result, operands = item.sets
        is_shared = re.match(r"LDS|STS|SHFL|BAR|LDC", item.opcode)
        delay = latency if item.opcode.startswith("LDG") else SHARED_LATENCY if is_shared else OTHER_LATENCY
        for board, cycles in ((result, delay), (operands, OTHER_LATENCY)):
            if board < 6:
                free[board] = max(free[board], now + cycles)
        now += item.stall
        total += (now - start) * item.weight
    return total


def instructions(cubin: Path, trips: Trips, taken: Mapping[str, float]) -> list[Instruction]:
    """The instructions of a kernel in order.

    Args:
        cubin: the compiled kernel.
        trips: how often each loop runs, by its source text, such as "row in range(start, end)" or "while present != 0";
            or in the order of the machine code, outermost first.
        taken: the share of the iterations that enter an ``if`` of `BRANCHING`, by its source text.

    Raises:
        ValueError: ``trips`` are not those of the loops in the machine code, which the message lists.
    """
    command = [TOOLS / "nvdisasm", "-g", "-c", "-hex", cubin]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    labels: dict[str, int] = {}
    code: list[tuple[int, str, str, int]] = []  # address, opcode, operands, basic block
    controls: list[int] = []
    line_of: list[Line] = []
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
            line_of.append(line)
            lines[block].add(line)
            block += _is_branch(match[2]) or match[2] == "EXIT"
        elif match := re.match(r"\s+/\* 0x([0-9a-f]{16}) \*/", row):
            controls.append(int(match[1], 16) >> 41)  # the upper half of the instruction before
    loops: dict[int, int] = {}
    for address, opcode, operands, _ in code:
        target = labels.get(match[1], address) if (match := re.search(r"`\((\S+)\)", operands)) else address
        if _is_branch(opcode) and target < address:
            loops[target] = max(address, loops.get(target, 0))
    texts = _texts_of(loops, [(address, line) for (address, *_), line in zip(code, line_of, strict=True)])
    counted = [(start, loops[start], trip) for start, trip in _trips_of(texts, trips)]
    branches = list(_branches(taken))
    shares = {block: math.prod(weight for arm, weight in branches if numbers & arm) for block, numbers in lines.items()}
    return [
        Instruction(
            address,
            opcode,
            shares[block] * math.prod(trip for start, end, trip in counted if start <= address <= end),
            control,
        )
        for (address, opcode, _, block), control in zip(code, controls, strict=True)
        if opcode != "NOP"
    ]


def _texts_of(loops: Mapping[int, int], lines: Sequence[tuple[int, Line]]) -> list[tuple[int, str]]:
    """Where each loop starts, and its source: "n in range(n)", or "while n > 0".

    A loop's last instructions, which step it and branch back, belong to the line that says how it runs, or else some of
    the others do that are in no loop inside of it.
    """
    texts: dict[int, str] = {}
    for start, end in sorted(loops.items(), key=lambda loop: loop[1] - loop[0]):  # those inside of others first
        inner = [(first, last) for first, last in loops.items() if start <= first and last <= end and first in texts]
        own = [line for place, line in lines if start <= place <= end and not _is_in(place, inner)]
        taken = {texts[first] for first, _ in inner}
        found = (text for line in reversed(own) if (text := _loop_text(line)) and text not in taken)
        texts[start] = next(found, "a loop of no known line")
    return sorted(texts.items())


def _is_in(place: int, ranges: Sequence[tuple[int, int]]) -> bool:
    return any(first <= place <= last for first, last in ranges)


def _loop_text(line: Line) -> str:
    """What a line says of a loop of the machine code; empty where it says nothing."""
    name, number = line
    folder = Path(inspect.getfile(epilogues)).parent
    text = linecache.getline(str(folder / name), number).strip()
    is_loop = text.startswith(("for ", "while ")) and "static_range" not in text
    return text.removeprefix("for ").rstrip(":") if is_loop else ""


def _trips_of(loops: Sequence[tuple[int, str]], trips: Trips) -> list[tuple[int, float]]:
    """Where each loop starts, and how often it runs."""
    texts = [text for _, text in loops]
    if isinstance(trips, Mapping):
        counts = collections.Counter(texts)
        left = {text: _in_order(trip, counts[text]) for text, trip in trips.items()}
        if counts.keys() != left.keys() or not all(left.values()):
            raise ValueError(f"the loops in the machine code are {texts}, trip counts are for {dict(trips)}")
        return [(start, left[text].pop(0)) for start, text in loops]
    if len(loops) != len(trips):
        raise ValueError(f"the loops in the machine code are {texts}, trip counts are {list(trips)}")
    return [(start, trip) for (start, _), trip in zip(loops, trips, strict=True)]


def _in_order(trip: float | Unrolled, count: int) -> list[float]:
    """The trips of the ``count`` loops that one of the source has become; none if they are others."""
    if isinstance(trip, float | int):
        return [trip] * count
    if count == len(trip):
        return [together * copies + rest for together, copies, rest in trip]
    return [part for together, _, rest in trip for part in (together, rest)] if count == 2 * len(trip) else []


def _is_branch(opcode: str) -> bool:
    return opcode.partition(".")[0] == "BRA"  # BRA.U takes one for all threads of a warp


def _branches(taken: Mapping[str, float]) -> Iterator[tuple[set[Line], float]]:
    """The source lines of either arm of each ``if`` whose share is known, and the share of the iterations it gets.

    A function that only one arm of its caller's calls belongs to that arm. What a constant decides is not in the code.
    """
    functions, files = _functions()
    for name, function in functions.items():
        for node in ast.walk(function):
            share = taken.get(ast.unparse(node.test)) if isinstance(node, ast.If) else None
            if not isinstance(node, ast.If) or share is None:
                continue
            calls = collections.Counter(_calls([function], taken))
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


@functools.cache
def _functions() -> tuple[dict[str, ast.FunctionDef], dict[str, str]]:
    """The functions of `BRANCHING` by name, and their files."""
    functions: dict[str, ast.FunctionDef] = {}
    files: dict[str, str] = {}
    for module in BRANCHING:
        found = [node for node in ast.parse(inspect.getsource(module)).body if _is_function(node)]
        functions |= {node.name: node for node in found}
        files |= dict.fromkeys((node.name for node in found), _file_name(module))
    return functions, files


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
