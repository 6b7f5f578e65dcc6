"""How time grows: from one base case, one of classes, factor, batch and size changes at a time.

Beside the time stands the floor (`bench.floor`), whose slope ours should have.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import tritonsoft as ts
from bench import floor, measure, rates, rivals
from bench.cases import Case
from bench.report import Point
from bench.test_speed import DEVICES

AXES: dict[str, Sequence[float]] = {
    "classes": (2, 4, 9, 19, 38, 76, 152, 247),
    "factor": (1, 2, 2.7, 4, 5.3, 8, 16),
    "batch": (1, 2, 4, 8, 16),
    "height of the label map": (128, 256, 512, 1024, 2048),
}
OPERATIONS: dict[str, tuple[Any, Callable[..., Any]]] = {
    "soft_resize": ("shrink labels", functools.partial(rivals.our_labels, "area")),
    "area_cross_entropy, forward + backward": (
        "area cross entropy",
        functools.partial(rivals.with_gradient, ts.area_cross_entropy),
    ),
}


def base(device: str, task: Any) -> Case:
    if device == "cpu":
        return Case(task, device, torch.float32, 2, (1024, 2048), 4)
    return Case(task, device, torch.float16, 16, (1024, 2048), 4)


def varied(case: Case, axis: str, value: float) -> Case:
    if axis == "classes":
        return dataclasses.replace(case, num_classes=int(value))
    if axis == "factor":
        return dataclasses.replace(case, factor=value)
    if axis == "batch":
        return dataclasses.replace(case, batch=int(value))
    return dataclasses.replace(case, source=(int(value), 2 * int(value)))


POINTS = [
    (device, axis, operation, value)
    for device, ready in DEVICES.items()
    if ready
    for axis, values in AXES.items()
    for operation in OPERATIONS
    for value in values
]


@pytest.mark.parametrize(
    ("device", "axis", "operation", "value"), POINTS, ids=[", ".join(map(str, point)) for point in POINTS]
)
def test_scaling(
    device: str, axis: str, operation: str, value: float, request: pytest.FixtureRequest, points: list[Point]
) -> None:
    task, function = OPERATIONS[operation]
    start = base(device, task)
    case = varied(start, axis, value)
    call = functools.partial(function, *case.arguments())
    call()
    if device == "cuda":
        times = measure.time_on_gpu(call)
    else:
        rounds, _ = measure.time_on_cpu(call, request.getfixturevalue("benchmark"), measure.SECONDS_PER_ROW / 10)
        times = measure.quartiles(rounds)
    title = start.title.partition(": ")[2]
    traffic = case.traffic()
    least = 1e3 * floor.seconds(traffic, rates.rates(device))
    points.append(Point(device, operation, title, axis, value, *traffic, least, 1e3 * times[1]))
