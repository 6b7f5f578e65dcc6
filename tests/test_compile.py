"""Every kernel, in the launch configurations that the library would choose, compiled for GPUs that are not there.

Triton decides on import whether kernels are interpreted, so the compiling is done by this file run as a program, once
per target: ``python tests/test_compile.py sm_90`` prints what it found as JSON.
"""

import csv
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
# Bytes that one thread stores at once at least, where rows are aligned: all of its outputs, up to 16 bytes.
STORE_WIDTHS = {
    "soft k=1 uint8 float16": 16,
    "soft k=2 uint8 float16": 16,
    "soft k=4 uint8 float16": 8,
    "soft k=8 uint8 float16": 4,
    "soft k=2 uint8 float32": 16,
    "soft k=4 uint8 float32": 16,
    "soft k=8 uint8 float32": 8,
    "cross entropy backward C=19 float16": 16,
    "cross entropy backward C=150 float32": 16,
    "cross entropy backward C=150 float16 sparse": 16,
    "overlap backward C=19 float16": 16,
    "overlap backward C=150 float32": 16,
    "binary cross entropy backward C=19 float16": 16,
    "binary cross entropy backward C=150 float32": 16,
    "binary cross entropy backward of each C=19 float16": 16,
}


def launches(platform: str) -> Iterator[tuple[str, Any]]:
    """The name and the `Launch` of each configuration; the tensors have no memory."""
    from tritonsoft.geometry import FILTERS
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
        pyramid,
        remapping,
        soft_cross_entropy,
        soft_overlap,
        sums,
        top_k,
        top_k_ids,
        warping,
    )

    def empty(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool = False) -> torch.Tensor:
        tensor = torch.empty(shape, dtype=dtype, device="meta")
        return tensor.contiguous(memory_format=torch.channels_last) if channels_last else tensor

    half, single, double, byte = torch.float16, torch.float32, torch.float64, torch.uint8
    batch, height, width = 4, 512, 1024
    boxes = empty((batch, 4), single)

    def soft(k: int, labels: torch.dtype, out: torch.dtype, num_classes: int, boxes: Any, filter: Any) -> Any:
        result = empty((batch, num_classes, height // k, width // k), out)
        source = empty((batch, height, width), labels)
        return forward.launch_configuration(None, None, result, source, boxes, 255, filter, 0.0, platform)

    def name(dtype: torch.dtype) -> str:
        return str(dtype).removeprefix("torch.")

    for k in (1, 2, 4, 8):
        for labels, out in ((byte, half), (byte, single), (torch.int64, single)):
            yield f"soft k={k} {name(labels)} {name(out)}", soft(k, labels, out, 19, None, "area")
    yield "soft k=2 int32 float64", soft(2, torch.int32, double, 150, None, "area")
    yield "soft k=2 int16 bfloat16", soft(2, torch.int16, torch.bfloat16, 150, None, "area")
    for filter in FILTERS:
        yield f"soft boxes {filter} uint8 float16", soft(2, byte, half, 19, boxes, filter)
    result, source = empty((batch, 150, 171, 341), half), empty((batch, height, width), byte)
    yield (
        "soft odd width uint8 float16",
        forward.launch_configuration(None, None, result, source, None, 255, "area", 0.0, platform),
    )
    for labels, out in ((torch.int64, single), (byte, double)):
        yield f"soft boxes area {name(labels)} {name(out)}", soft(2, labels, out, 150, empty((batch, 4), out), "area")

    image_types = ((half, half, False), (byte, half, True), (byte, byte, False), (double, double, False))
    for source, out, channels_last in image_types:
        result = empty((batch, 3, height // 2, width // 2), out, channels_last)
        image = empty((batch, 3, height, width), source, channels_last)
        label_map = empty((batch, height, width), byte)
        mass = empty((batch, 19, height // 2, width // 2), half)
        for some_boxes in (None, boxes):
            suffix = f"{name(source)} {name(out)}" + (" boxes" if some_boxes is not None else "")
            yield (
                f"image {suffix}",
                forward.launch_configuration(result, image, None, None, some_boxes, -1, "area", 0.0, platform),
            )
            yield (
                f"pair {suffix}",
                forward.launch_configuration(result, image, mass, label_map, some_boxes, 255, "area", 0.0, platform),
            )
    table, ids = empty((35,), torch.int32), empty((100,), torch.int64)
    for labels, some_ids, classes in (
        (byte, None, table),
        (torch.uint16, None, empty((35,), byte)),
        (torch.int32, ids, empty((100,), torch.int32)),
    ):
        result, source = empty((batch, height, width), byte), empty((batch, height, width), labels)
        how = "" if some_ids is None else " searched"
        yield (
            f"remap {name(labels)}{how}",
            remapping.remap_configuration(result, source, some_ids, classes, 0, 255, platform),
        )
    for labels, num_classes, some_boxes in ((byte, 19, empty((batch * 10, 4), single)), (torch.int64, 1500, None)):
        source, number = empty((batch, height, width), labels), 1 if some_boxes is None else 10
        launch = areas.class_areas_configuration(source, some_boxes, number, num_classes, 255, platform)
        yield f"areas C={num_classes} {name(labels)}", launch
    partners, whole_boxes = empty((batch,), torch.int64), empty((batch, 4), torch.int64)
    for dtype, channels_last, labels in ((single, False, byte), (half, True, torch.int64)):
        images = empty((batch, 3, height, width), dtype, channels_last)
        source, suffix = empty((batch, height, width), labels), f"{name(dtype)}{' channels_last' * channels_last}"
        in_classes = (None, source, empty((batch, 19), byte))
        for where, how in (((whole_boxes, None, None), "boxes"), (in_classes, "classes")):
            launch = mixing.paste_configuration(images, images, partners, *where, platform)
            yield f"paste {how} {suffix}", launch
        weight = empty((batch,), single)
        yield f"blend {suffix}", mixing.blend_configuration(images, images, partners, weight, platform)
        mass = empty((batch, 19, height, width), dtype)
        yield f"blend labels {suffix}", mixing.blend_labels_configuration(mass, source, partners, weight, 255, platform)
    matrix, field = empty((batch, 3, 3), single), empty((batch, 256, 512, 2), single)
    result, mass = empty((batch, 3, 256, 512), half), empty((batch, 19, 256, 512), half)
    image, label_map = empty((batch, 3, height, width), half), empty((batch, height, width), byte)
    for transform, filter in ((matrix, "area"), (field, "triangle")):
        yield (
            f"warp pair {filter}",
            warping.launch_configuration(result, image, mass, label_map, transform, 255, filter, 0.0, platform),
        )
    integers = empty((batch, 3, height, width), torch.int64)
    yield (
        "warp adjoint",
        warping.adjoint_configuration(integers, result, empty((), double), matrix, "area", platform),
    )
    for dtype, channels_last in ((half, True), (single, False), (double, False)):
        for filter in FILTERS[:2]:
            grad = empty((batch, 3, height // 2, width // 2), dtype, channels_last)
            image = empty((batch, 3, height, width), dtype, channels_last)
            yield f"adjoint {filter} {name(dtype)}", adjoint.launch_configuration(image, grad, boxes, filter, platform)

    def all_losses(
        logits: torch.Tensor, soft: torch.Tensor, index: Any, weight: Any, smoothing: float
    ) -> Iterator[tuple[str, Any]]:
        _, num_classes, *size = logits.shape
        pixels = empty((batch, *size), double if logits.dtype == double else single)
        value = empty((), pixels.dtype)
        target, maps = (logits, soft, index), (pixels, pixels)
        known = pixels if smoothing > 0 and weight is not None else None
        configuration = soft_cross_entropy.cross_entropy_configuration
        options = (weight, smoothing, known)
        yield "cross entropy of each pixel", configuration(pixels, *maps, *target, *options, "none", platform)
        launch = configuration(value, *maps, *target, *options, "mean", platform)
        yield "cross entropy", launch
        partial = launch.arguments["partial"]
        yield "finish cross entropy", sums.finish_cross_entropy_configuration(value, value, partial, "mean", platform)
        configuration = soft_cross_entropy.cross_entropy_backward_configuration
        grad = value.expand(pixels.shape)
        options = (weight, smoothing, pixels, known, pixels)
        yield "cross entropy backward", configuration(logits, grad, value, *target, *options, platform)
        launch = soft_overlap.overlap_configuration(*maps, *target, platform)
        yield "overlap", launch
        launch = sums.sum_rows_configuration(launch.arguments["partial"], platform)
        yield "sum rows", launch
        slopes, partial = empty((batch, num_classes, 2), pixels.dtype), launch.arguments["out"]
        for measure, classes in (("dice", "present"), ("jaccard", "all")):
            launch = sums.finish_overlap_configuration(
                value, slopes, partial, weight, measure, classes, "mean", platform
            )
            yield f"finish {measure}", launch
        configuration = soft_overlap.overlap_backward_configuration
        grad = value.expand(slopes.shape[:2])
        yield "overlap backward", configuration(logits, grad, slopes, *target, *maps, platform)

    size = (height // 4, width // 4)
    index = empty((batch, 4, *size), byte)
    loss_inputs = {
        "C=19 float16": (empty((batch, 19, *size), half), empty((batch, 19, *size), half), None, None),
        "C=19 float16 channels_last": (
            empty((batch, 19, *size), half, True),
            empty((batch, 19, *size), half),
            None,
            None,
        ),
        "C=150 float32": (empty((batch, 150, *size), single), empty((batch, 150, *size), single), None, None),
        "C=150 float16 sparse": (
            empty((batch, 150, *size), half),
            empty(index.shape, half),
            index,
            empty((150,), single),
        ),
        "C=37 float64": (
            empty((batch, 37, *size), double),
            empty((batch, 37, *size), torch.bfloat16),
            None,
            empty((37,), double),
        ),
    }
    for suffix, inputs in loss_inputs.items():
        for smoothing in (0.0, 0.1):
            for loss, launch in all_losses(*inputs, smoothing):
                if smoothing == 0 or loss.startswith("cross entropy"):
                    yield f"{loss} {suffix}{' smoothed' if smoothing > 0 else ''}", launch

    def of_planes(logits: torch.Tensor, soft: torch.Tensor, index: Any, weight: Any) -> Iterator[tuple[str, Any]]:
        """What takes each class for itself."""
        value = empty((), double if logits.dtype == double else single)
        each = empty(tuple(logits.shape), value.dtype)
        known = None if weight is None else soft[:, :1].expand(soft.shape)
        inputs = (logits, soft, known, weight, weight)
        configuration = binary_loss.binary_cross_entropy_configuration
        yield "binary cross entropy", configuration(value, *inputs, "mean", platform)
        yield "binary cross entropy of each", configuration(each, *inputs, "none", platform)
        configuration = binary_loss.binary_cross_entropy_backward_configuration
        yield "binary cross entropy backward", configuration(logits, value.expand(each.shape), value, *inputs, platform)
        yield "binary cross entropy backward of each", configuration(logits, each, None, *inputs, platform)

    for suffix, inputs in loss_inputs.items():
        if not suffix.endswith("sparse"):
            for loss, launch in of_planes(*inputs):
                yield f"{loss} {suffix}", launch

    def of_a_label_map(
        labels: torch.Tensor, out: torch.dtype, num_classes: int, k: int, boxes: Any, filter: Any
    ) -> Any:
        """What is made of a label map other than the dense soft label."""
        logits = empty((batch, num_classes, height // k, width // k), out)
        pixels = empty((batch, height // k, width // k), double if out == double else single)
        if out != double:
            index = empty((batch, 4, height // k, width // k), byte if num_classes <= 256 else torch.int16)
            tops = (index, empty(index.shape, out), empty(pixels.shape, out))
            source = (labels, boxes, num_classes, 255, filter)
            yield "top", top_k.launch_configuration(*tops, None, 0, *source, platform)
            last_key = empty(pixels.shape, torch.int64)
            yield "top, launched again", top_k.launch_configuration(*tops, last_key, 0, *source, platform)
        source, weight, value = (
            (labels, boxes, 255, filter),
            empty((num_classes,), pixels.dtype),
            empty((), pixels.dtype),
        )
        inputs, grad = (pixels, pixels, logits, *source, weight), value.expand(pixels.shape)
        for smoothing, kind in ((0.0, ""), (0.1, " smoothed")):
            known = pixels if smoothing > 0 else None
            configuration = area_loss.area_cross_entropy_configuration
            options = (smoothing, known)
            yield f"area loss of each pixel{kind}", configuration(pixels, *inputs, *options, "none", platform)
            yield f"area loss{kind}", configuration(value, *inputs, *options, "mean", platform)
            configuration = area_loss.area_cross_entropy_backward_configuration
            options = (weight if smoothing > 0 else None, smoothing, pixels, known, pixels)
            yield f"area gradient{kind}", configuration(logits, grad, value, logits, *source, *options, platform)

    bytes_, integers = empty((batch, height, width), byte), empty((batch, height, width), torch.int64)
    for labels, where, number, last in (
        (integers, boxes, 20, empty((batch, 256, 512), single)),
        (empty(bytes_.shape, torch.int32), None, 4, None),
        (bytes_, matrix, 1, None),
        (empty(bytes_.shape, torch.uint32), field, 20, empty((batch, 256, 512), single)),
    ):
        tops = (empty((batch, number, 256, 512), labels.dtype), empty((batch, number, 256, 512), half))
        inputs = (empty((batch, 256, 512), half), last, 0, labels, where, None if last is None else -1, "area")
        yield f"top {number} ids {name(labels.dtype)}", top_k_ids.launch_configuration(*tops, *inputs, platform)
    for labels, out, num_classes, k, some_boxes, filter in (
        (bytes_, half, 19, 2, None, "area"),
        (bytes_, half, 150, 4, None, "area"),
        (integers, single, 19, 8, None, "area"),
        (bytes_, half, 150, 4, boxes, "area"),
        (integers, single, 1000, 4, None, "triangle"),
        (bytes_, double, 19, 4, boxes, "area"),
    ):
        suffix = f"C={num_classes} k={k} {name(labels.dtype)} {name(out)}{' boxes' if some_boxes is not None else ''}"
        for target, launch in of_a_label_map(labels, out, num_classes, k, some_boxes, filter):
            yield f"{target} {suffix}", launch
    for labels, out, factors in ((bytes_, half, (2, 4, 8, 16)), (integers, single, (4, 8)), (bytes_, double, (1, 2))):
        outs = [empty((batch, 19, height // factor, width // factor), out) for factor in factors]
        suffix = f"{'-'.join(map(str, factors))} {name(labels.dtype)} {name(out)}"
        yield f"pyramid {suffix}", pyramid.launch_configuration(labels, 255, *outs, platform=platform)

    def at_full_size(logits: torch.Tensor, labels: torch.Tensor, boxes: Any, weight: Any, smoothing: float) -> Any:
        """What is made of small logits and a label map."""
        num_classes = logits.shape[1]
        tables = enlarging.tables_configuration(logits, labels, boxes, platform)
        yield "tables", tables
        lse = empty(tuple(labels.shape), double if logits.dtype == double else single)
        value, has_boxes = empty((), lse.dtype), boxes is not None
        geometry = [tables.arguments[name] for name in tables.scratch]
        place = (logits, labels, has_boxes, 255)
        configuration = enlarged_cross_entropy.upsampled_cross_entropy_configuration
        for kind, reduction in (("loss of each label pixel", "none"), ("loss of label pixels", "mean")):
            yield kind, configuration(value, lse, *place, weight, smoothing, reduction, *geometry, platform=platform)
        configuration = enlarged_cross_entropy.upsampled_cross_entropy_backward_configuration
        for kind, grad in (
            ("gradient of label pixels", value.expand(lse.shape)),
            ("gradient of each label pixel", lse),
        ):
            options = (weight, smoothing, lse, *geometry)
            yield kind, configuration(logits, grad, value, *place, *options, platform=platform)
        slopes = empty((len(logits), num_classes, 2), lse.dtype)
        grad = value.expand(slopes.shape[:2])
        for kind, maps in (("logsumexp", (lse, None, None, None)), ("mean slope", (lse, lse, grad, slopes))):
            yield kind, enlarged_overlap.statistics_configuration(*maps, *place, *geometry, platform=platform)
        yield "sums", enlarged_overlap.sums_configuration(lse, *place, *geometry, platform=platform)
        configuration = enlarged_overlap.upsampled_overlap_backward_configuration
        options = (lse, *geometry)
        yield "overlap gradient", configuration(logits, grad, slopes, lse, *place, *options, platform=platform)
        out, counts = empty(tuple(labels.shape), byte), empty((num_classes, num_classes), torch.int64)
        for kind, score in (("decode", None), ("decode with scores", lse)):
            options = (logits, has_boxes, weight, *geometry)
            yield kind, decoding.decode_configuration(out, score, *options, platform=platform)
        options = (logits, labels, has_boxes, weight, 255, *geometry)
        yield "confusion matrix", decoding.confusion_matrix_configuration(counts, *options, platform=platform)

    for logits, ratio, labels, some_boxes, smoothing in (
        (empty((batch, 19, 128, 128), half), 4, torch.uint8, None, 0.0),
        (empty((batch, 150, 128, 128), single, True), 4, torch.int64, boxes, 0.1),
        (empty((batch, 37, 64, 96), double), 2, torch.uint8, boxes, 0.1),
    ):
        label_map = empty((batch, logits.shape[2] * ratio, logits.shape[3] * ratio), labels)
        weight = empty((logits.shape[1],), double if logits.dtype == double else single) if smoothing else None
        suffix = f"C={logits.shape[1]} r={ratio} {name(logits.dtype)}{'' if some_boxes is None else ' boxes'}"
        for target, launch in at_full_size(logits, label_map, some_boxes, weight, smoothing):
            yield f"{target} {suffix}", launch


def _machine_code(compiled: Any, stores: bool) -> dict[str, Any]:
    """Bytes of local memory per thread and, where ``stores`` says so, the widths in bytes of the global stores."""
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]
        local = sum(int(size) for size in re.findall(r"\.private_segment_fixed_size:\s*(\d+)", text))
        # Scalar registers are spilled to lanes of vector registers, not to memory.
        local += sum(int(count) for count in re.findall(r"\.vgpr_spill_count:\s*(\d+)", text))
        found = re.findall(r"(?:global|buffer)_store_(?:dword(x\d)?|short|byte)", text)
        return {"local": local, "stores": [4 * int(store[1:] or 1) if store else 4 for store in found]}
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        run = functools.partial(subprocess.run, capture_output=True, text=True, check=True)
        usage = run([tools / "cuobjdump", "--dump-resource-usage", cubin]).stdout
        sizes = [int(size) for size in re.findall(r"(?:STACK|LOCAL):(\d+)", usage)]
        assert len(sizes) == 2, usage
        # To disassemble takes a hundred times as long. What instructions keep in local memory is on a stack.
        disassembled = stores or any(sizes)
        text = run([tools / "cuobjdump", "--dump-sass", cubin]).stdout if disassembled else ""
    accesses = len(re.findall(r"\b(?:LDL|STL)\b", text))
    local = sum(sizes) + accesses if accesses else 0  # Triton 3.9 reserves a stack that nothing is kept in
    widths = {"U8": 1, "U16": 2, "": 4, "64": 8, "128": 16}
    found = [widths[suffix] for suffix in re.findall(r"\bSTG\.E(?:\.(U8|U16|64|128))?(?=[. ])", text)]
    return {"local": local, "stores": found}


def _compile_all(target: str) -> dict[str, Any]:
    from triton.backends.compiler import GPUTarget

    gpu = GPUTarget(*TARGETS[target])
    chosen = _some(launches(gpu.backend), others=3 if target == "sm_90" else 0)
    return {name: _machine_code(launch.compile(gpu), name in STORE_WIDTHS) for name, launch in chosen}


def _some(all_launches: Iterator[tuple[str, Any]], others: int) -> Iterator[tuple[str, Any]]:
    """Of each kernel the first configuration, those of `STORE_WIDTHS`, and of the others every so many, or none for 0.

    Compiling all takes minutes a target.
    """
    seen, left = set(), 0
    for name, launch in all_launches:
        if launch.kernel not in seen or name in STORE_WIDTHS:
            seen.add(launch.kernel)
            yield name, launch
        elif others > 0:
            left += 1
            if left % others == 0:
                yield name, launch


@functools.cache
def _compiled(target: str) -> dict[str, Any]:
    command = [sys.executable, __file__, target]
    result: dict[str, Any] = json.loads(subprocess.check_output(command, env=_environment(), text=True))
    return result


def _environment() -> dict[str, str]:
    """That of a process whose kernels are compiled."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    root = str(Path(__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [environment.get("PYTHONPATH")])])
    return environment


def _grouped(targets: Iterable[str]) -> list[Any]:
    """One process compiles all that a target's tests look at."""
    return [pytest.param(target, marks=pytest.mark.xdist_group(target)) for target in targets]


@pytest.mark.parametrize("target", _grouped(TARGETS))
def test_no_local_memory(target: str) -> None:
    """Neither spilled registers nor arrays outside the registers."""
    assert {name: found["local"] for name, found in _compiled(target).items() if found["local"]} == {}


@pytest.mark.parametrize("target", _grouped(target for target in TARGETS if target.startswith("sm")))
@pytest.mark.parametrize("name", STORE_WIDTHS)
def test_store_width(name: str, target: str) -> None:
    """Every store at integer factors, and of a gradient, is as wide as the launch heuristic means it to be."""
    assert set(_compiled(target)[name]["stores"]) == {STORE_WIDTHS[name]}


@pytest.mark.xdist_group("snapshot")
def test_the_snapshot_of_costs_is_what_is_compiled() -> None:
    """A change that costs instructions is seen in review: as a change of bench/results/kernel-cost.csv."""
    for package in ("rich", "typer"):
        pytest.importorskip(package, reason=f"the table of costs needs {package}")
    import triton

    root = Path(__file__).parent.parent
    with (root / "bench" / "results" / "kernel-cost.csv").open(newline="") as file:
        version = next(csv.DictReader(file))["triton"]
    if version != triton.__version__:
        pytest.skip(f"the snapshot is of Triton {version}, this is {triton.__version__}: other machine code")
    result = subprocess.run(
        [sys.executable, "-m", "bench.kernel_cost", "--check"],
        env={**_environment(), "COLUMNS": "200"},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


if __name__ == "__main__":
    json.dump(_compile_all(sys.argv[1]), sys.stdout)
