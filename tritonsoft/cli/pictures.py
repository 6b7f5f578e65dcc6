"""Pictures with label maps: the built-in street scene, or those of a data set."""

import colorsys
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from tritonsoft.cli import scenes
from tritonsoft.data import LabelFormat, Pair, read_pair

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures with label maps, loaded one at a time."""

    names: Sequence[str]
    load: Callable[[int], tuple[Tensor, Tensor]]  # image (3, H, W) uint8, labels (H, W); raises DataError
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


def folder(pairs: Sequence[Pair], format: LabelFormat) -> Pictures:
    """Images and label files."""
    # Hues a golden ratio apart stay distinct, however many there are.
    colours = [
        colorsys.hsv_to_rgb(0.618034 * k % 1, (0.75, 0.5, 0.95)[k % 3], (0.95, 0.8, 0.6)[k % 3])
        for k in range(format.num_classes)
    ]
    palette = (np.array(colours) * 255).round().astype(np.uint8)
    names = [pair.name for pair in pairs]
    return Pictures(
        names, lambda index: read_pair(pairs[index], format), format.class_names, palette, format.ignore_index
    )
