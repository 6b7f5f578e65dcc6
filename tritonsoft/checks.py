"""Checks of arguments that several functions take; each error names the argument, what it got and what it wanted.

Types, shapes and devices are checked by the public functions. *Values* are only known when an op runs, also inside a
compiled graph, so the ops check them, with the functions at the end.
"""

import math
import os
from typing import Any, cast

import torch
from torch import Tensor

from tritonsoft.backends import BACKENDS, module_of
from tritonsoft.conventions import FILTERS, MAX_COORDINATE

LABEL_DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
IMAGE_DTYPES = (torch.uint8, *FLOAT_DTYPES)
LARGEST_SIZE = 2**31 - 1


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def names_of(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(map(name_of, dtypes[:-1])) + f" or {name_of(dtypes[-1])}"


def is_int(value: Any) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def check_image(image: Tensor) -> None:
    if not isinstance(image, Tensor):
        raise TypeError(f"image must be a tensor, got {type(image).__name__}")
    if image.dtype not in IMAGE_DTYPES:
        raise TypeError(f"image must be {names_of(IMAGE_DTYPES)}, got {name_of(image.dtype)}")
    if image.ndim != 4 or image.shape[2] == 0 or image.shape[3] == 0:
        raise ValueError(f"image must have shape (B, K, H, W) with H, W >= 1, got {tuple(image.shape)}")


def image_dtype(image: Tensor, dtype: Any) -> torch.dtype:
    if dtype is None:
        return image.dtype
    if dtype not in IMAGE_DTYPES:
        raise TypeError(f"dtype must be None, {names_of(IMAGE_DTYPES)}, got {dtype}")
    if dtype == torch.uint8 and image.dtype != torch.uint8:
        raise TypeError(f"dtype=uint8 needs a uint8 image, got {name_of(image.dtype)}: scale and round it yourself")
    return cast(torch.dtype, dtype)


def check_fill(fill: Any, dtype: torch.dtype) -> None:
    if not isinstance(fill, (int, float)) or isinstance(fill, bool):
        raise TypeError(f"fill must be a number, got {type(fill).__name__}")
    if dtype == torch.uint8 and not 0 <= fill <= 255:
        raise ValueError(f"fill must lie in 0..255 for a uint8 output, got {fill}")


def check_labels(labels: Tensor) -> Tensor:
    """The label map as ``(B, H, W)``."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a tensor, got {type(labels).__name__}")
    if labels.dtype not in LABEL_DTYPES:
        raise TypeError(f"labels must be {names_of(LABEL_DTYPES)}, got {name_of(labels.dtype)}")
    if labels.ndim == 4 and labels.shape[1] == 1:
        labels = labels.squeeze(1)
    if labels.ndim != 3 or labels.shape[1] == 0 or labels.shape[2] == 0:
        raise ValueError(f"labels must have shape (B, H, W) or (B, 1, H, W) with H, W >= 1, got {tuple(labels.shape)}")
    return labels


def are_swapped(target: str) -> str:
    """What a message about logits, or about their target of that name, ends with if each may be the other."""
    return f"; logits come first, then {target}: are the two swapped?"


def check_validate(validate: Any) -> None:
    if validate is not None and not isinstance(validate, bool):
        raise TypeError(f"validate must be None, True or False, got {validate!r}")


def check_classes(num_classes: Any, ignore_index: Any, validate: Any, dtype: Any, dtype_argument: str) -> None:
    if not is_int(num_classes):
        raise TypeError(f"num_classes must be an int, got {type(num_classes).__name__}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if num_classes > LARGEST_SIZE:
        raise ValueError(f"num_classes must be at most {LARGEST_SIZE}, got {num_classes}")
    if not is_int(ignore_index):
        raise TypeError(f"ignore_index must be an int, got {type(ignore_index).__name__}")
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"ignore_index must fit an int64, got {ignore_index}")
    check_validate(validate)
    if dtype not in FLOAT_DTYPES:
        raise TypeError(f"{dtype_argument} of a soft label must be {names_of(FLOAT_DTYPES)}, got {dtype}")


def check_backend(backend: Any) -> None:
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend must be None or one of {BACKENDS}, got {backend!r}")


def check_geometry(
    boxes: Any, size: Any, filter: Any, backend: Any, batch: int, device: torch.device, owner: str
) -> None:
    if not isinstance(size, (tuple, list)) or len(size) != 2 or not (is_int(size[0]) and is_int(size[1])):
        raise TypeError(f"size must be two ints (h, w), got {size!r}")
    if size[0] < 1 or size[1] < 1:
        raise ValueError(f"size must be at least (1, 1), got {tuple(size)}")
    if size[0] > LARGEST_SIZE or size[1] > LARGEST_SIZE:
        raise ValueError(f"size must be at most {LARGEST_SIZE} along each axis, got {tuple(size)}")
    if filter not in FILTERS:
        if isinstance(filter, str) and filter.lower().startswith(("bicubic", "cubic", "lanczos")):
            raise ValueError(
                f"filter={filter!r} has negative weights, which give no class distribution; choose one of {FILTERS}"
            )
        raise ValueError(f"filter must be one of {FILTERS}, got {filter!r}")
    check_backend(backend)
    if boxes is None:
        return
    if not isinstance(boxes, Tensor):
        raise TypeError(f"boxes must be None or a tensor, got {type(boxes).__name__}")
    if boxes.dtype not in FLOAT_DTYPES:
        raise TypeError(f"boxes must be floating point ({names_of(FLOAT_DTYPES)}), got {name_of(boxes.dtype)}")
    if boxes.ndim != 2 or boxes.shape[0] != batch or boxes.shape[1] != 4:
        raise ValueError(f"boxes must have shape (B, 4) = ({batch}, 4), got {tuple(boxes.shape)}")
    if boxes.device != device:
        raise ValueError(f"boxes must be on the device of {owner}, {device}, got {boxes.device}")
    if boxes.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "boxes must not require a gradient: the operators differentiate in the image only; detach them"
        )


def check_top_k(k: Any, num_classes: int, argument: str) -> None:
    """An int from 1 to C, or an error that names the argument."""
    if not isinstance(k, int) or isinstance(k, bool):
        raise TypeError(f"{argument} must be an int, got {type(k).__name__}")
    if not 1 <= k <= num_classes:
        raise ValueError(f"{argument} must lie in 1..{num_classes} (num_classes={num_classes}), got {k}")


# --- values ----------------------------------------------------------------------------------------------------------


def wants_validation(tensor: Tensor, validate: bool | None) -> bool:
    """Values are always checked on the CPU; on a GPU that costs a synchronisation and happens on request."""
    if tensor.device.type == "cpu":
        return True
    return os.environ.get("TRITONSOFT_VALIDATE") == "1" if validate is None else validate


# Masses and probabilities may have been rounded before they came into their type: in bfloat16 each is off by 1/256 of
# itself at most, and so is what is left of 1 for a background, which may fall below 0 by as much as totals exceed 1.
MASS_TOLERANCE = 1 / 64


def are_shares(values: Tensor) -> bool:
    """Whether the classes of every pixel of ``(B, C, h, w)`` are at least 0 and together at most 1; NaN is not.

    Within the tolerance on both sides: what is below 0 counts as 0, and so adds nothing to the total.
    """
    return bool((values >= -MASS_TOLERANCE).all() & (total_shares(values) <= 1 + MASS_TOLERANCE).all())


def total_shares(values: Tensor) -> Tensor:
    """The sum over the classes of what is above 0."""
    return values.clamp(min=0).sum(1, dtype=torch.float64)


def check_box_values(boxes: Tensor | None, validate: bool | None) -> None:
    if boxes is None or not wants_validation(boxes, validate):
        return
    limit = MAX_COORDINATE
    # Plain floats: for the few boxes of a batch a fifth of the time of array operations.
    for index, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        if -limit <= x0 <= limit and -limit <= y0 <= limit and -limit <= x1 <= limit and -limit <= y1 <= limit:
            if x0 != x1 and y0 != y1:
                continue
            rule = "have a width and a height other than zero"
        elif all(map(math.isfinite, (x0, y0, x1, y1))):
            rule = f"stay within ±{limit:.0f} pixels"
        else:
            rule = "be finite"
        raise ValueError(f"boxes must {rule}, got (x0, y0, x1, y1) = {(x0, y0, x1, y1)} for sample {index}")


def check_label_values(
    labels: Tensor, num_classes: int, ignore_index: int, backend: str, validate: bool | None
) -> None:
    if labels.numel() == 0 or not wants_validation(labels, validate):
        return
    if backend == "numba" and module_of(backend).labels_in_range(labels, num_classes, ignore_index):
        return
    # Out-of-range scalars would wrap in a narrow dtype: compare with bounds that the dtype can hold.
    info = torch.iinfo(labels.dtype)
    bad = labels < 0
    if num_classes <= info.max:
        bad |= labels >= num_classes
    if info.min <= ignore_index <= info.max:
        bad &= labels != ignore_index
    if bad.any():
        values, least, largest = labels[bad], labels[bad].min().item(), labels[bad].max().item()
        raise ValueError(
            f"labels must lie in 0..{num_classes - 1} (num_classes={num_classes}) or equal "
            f"ignore_index={ignore_index}, got {values.numel()} other values from {least} to {largest}"
        )
