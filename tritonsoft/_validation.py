"""Checks of arguments that several functions take; each error names the argument, what it got and what it wanted.

Types, shapes and devices are checked by the public functions. *Values* are only known when an op runs, also inside a
compiled graph, so the ops check them, with the functions at the end.
"""

import math
import numbers
import os
from collections.abc import Sequence
from typing import Any, NoReturn, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from tritonsoft.backends import reference
from tritonsoft.backends.select import BACKENDS
from tritonsoft.backends.values import bad_labels, comparable, total_mass
from tritonsoft.geometry import FILTERS, MASS_TOLERANCE, MAX_COORDINATE

INTEGER_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64)
LABEL_DTYPES = (torch.bool, *INTEGER_DTYPES)
# PyTorch 2.11 can copy and view these, but neither index nor select them: the same bits as signed integers do.
SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
# Of label maps that functions make: PyTorch computes with all of them. The smallest first.
OUTPUT_LABEL_DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
IMAGE_DTYPES = (torch.uint8, *FLOAT_DTYPES)
LARGEST_SIZE = 2**31 - 1


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def names_of(dtypes: tuple[torch.dtype, ...]) -> str:
    *others, last = map(name_of, dtypes)
    return f"{', '.join(others)} or {last}" if others else last


def is_int(value: Any) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def is_whole_number(value: Any) -> bool:
    """Whether it is an int, or one of NumPy's; a tensor, which a GPU may have to be waited for, is none."""
    return is_int(value) or (isinstance(value, numbers.Integral) and not isinstance(value, bool))


def is_number(value: Any) -> bool:
    """Whether it is an int or a float, or one of NumPy's."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def python_int(value: Any) -> int:
    """A whole number that PyTorch takes; a compiler's symbols stay what they are."""
    return cast(int, value if is_int(value) else int(value))


def holds(dtype: torch.dtype, *values: int) -> bool:
    """Whether a type of integers holds these."""
    info = torch.iinfo(dtype)
    return all(info.min <= value <= info.max for value in values)


def smallest_label_dtype(*values: int) -> torch.dtype:
    """The first type of `OUTPUT_LABEL_DTYPES` that holds classes and an ignore index, all of which fit an int64."""
    return next(dtype for dtype in OUTPUT_LABEL_DTYPES if holds(dtype, *values))


def plain(tensor: Tensor) -> Tensor:
    """A tensor of a subclass that only carries notes along, as torchvision's `tv_tensors` do, as its data.

    Subclasses that stand for other tensors (fake, functional, distributed ones) are left to torch.
    """
    kind = type(tensor)
    if kind is Tensor or kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return tensor
    return tensor.as_subclass(Tensor)


def refuse_derivative(tensor: Tensor, argument: str, why: str, hint: str = "") -> None:
    """An argument that no gradient reaches must not silently lose one, or a tangent of the forward mode."""
    if torch.is_grad_enabled() and tensor.requires_grad:
        raise ValueError(f"{argument} must not require a gradient: {why}; detach it{hint}")
    if not torch.compiler.is_compiling() and has_tangent(tensor):
        raise ValueError(f"{argument} must not have a tangent: {why}; detach it{hint}")


def has_tangent(tensor: Tensor) -> bool:
    """Whether the forward mode differentiates along a tensor."""
    if forward_ad._current_level < 0:
        return False
    dual: Any = forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
    return dual.tangent is not None


def check_image(image: Tensor) -> Tensor:
    """The image, as a plain tensor."""
    if not isinstance(image, Tensor):
        raise TypeError(f"image must be a tensor, got {type(image).__name__}")
    if image.dtype not in IMAGE_DTYPES:
        raise TypeError(f"image must be {names_of(IMAGE_DTYPES)}, got {name_of(image.dtype)}")
    if image.ndim != 4 or image.shape[2] == 0 or image.shape[3] == 0:
        raise ValueError(f"image must have shape (B, K, H, W) with H, W >= 1, got {tuple(image.shape)}")
    return plain(image)


def image_dtype(image: Tensor, dtype: Any) -> torch.dtype:
    if dtype is None:
        return image.dtype
    if dtype not in IMAGE_DTYPES:
        raise TypeError(f"dtype must be None, {names_of(IMAGE_DTYPES)}, got {dtype}")
    if dtype == torch.uint8 and image.dtype != torch.uint8:
        raise TypeError(f"dtype=uint8 needs a uint8 image, got {name_of(image.dtype)}: scale and round it yourself")
    return cast(torch.dtype, dtype)


def check_fill(fill: Any, dtype: torch.dtype) -> None:
    if not is_number(fill):
        raise TypeError(f"fill must be a number, got {type(fill).__name__}")
    if dtype == torch.uint8 and not 0 <= fill <= 255:
        raise ValueError(f"fill must lie in 0..255 for a uint8 output, got {fill}")


def check_planes(planes: Tensor) -> Tensor:
    """Planes ``(B, C, H, W)`` as a plain tensor; bool ones as the uint8 that they are in memory."""
    if not isinstance(planes, Tensor):
        raise TypeError(f"planes must be a tensor, got {type(planes).__name__}")
    if planes.dtype not in LABEL_DTYPES:
        raise TypeError(f"planes must be {names_of(LABEL_DTYPES)}, got {name_of(planes.dtype)}")
    if planes.ndim != 4 or 0 in planes.shape[1:]:
        raise ValueError(f"planes must have shape (B, C, H, W) with C, H, W >= 1, got {tuple(planes.shape)}")
    planes = plain(planes)
    return planes.view(torch.uint8) if planes.dtype == torch.bool else planes


def check_labels(labels: Tensor) -> Tensor:
    """The label map as ``(B, H, W)``, a plain tensor; a bool one as the uint8 that it is in memory."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a tensor, got {type(labels).__name__}")
    if labels.dtype not in LABEL_DTYPES:
        raise TypeError(f"labels must be {names_of(LABEL_DTYPES)}, got {name_of(labels.dtype)}")
    if labels.ndim == 4 and labels.shape[1] == 1:
        labels = labels.squeeze(1)
    if labels.ndim != 3 or labels.shape[1] == 0 or labels.shape[2] == 0:
        raise ValueError(f"labels must have shape (B, H, W) or (B, 1, H, W) with H, W >= 1, got {tuple(labels.shape)}")
    labels = plain(labels)
    return labels.view(torch.uint8) if labels.dtype == torch.bool else labels


def check_same_extent(image: Tensor, labels: Tensor, owner: str = "image's") -> None:
    """That a label map belongs to an image, whose the message says it is: device, batch, height and width."""
    if labels.device != image.device:
        raise ValueError(f"labels must be on the {owner} device {image.device}, got {labels.device}")
    if labels.shape[0] != image.shape[0] or labels.shape[1:] != image.shape[2:]:
        raise ValueError(
            f"labels must have the {owner} batch, height and width {(image.shape[0], *image.shape[2:])}, "
            f"got {tuple(labels.shape)}"
        )


def are_swapped(target: str) -> str:
    """What a message about logits, or about their target of that name, ends with if each may be the other."""
    return f"; logits come first, then {target}: are the two swapped?"


def check_validate(validate: Any) -> None:
    if validate is not None and not isinstance(validate, bool):
        raise TypeError(f"validate must be None, True or False, got {validate!r}")


DEFAULT_IGNORE_INDEX = 255


def check_ignore_index(ignore_index: Any, num_classes: int | None) -> int:
    """The label that carries no mass: 255 where none is given, unless that may be a class (None: not yet known)."""
    if ignore_index is None:
        if num_classes is not None and num_classes > DEFAULT_IGNORE_INDEX:
            raise ValueError(
                f"ignore_index must be given where num_classes is more than {DEFAULT_IGNORE_INDEX}, as the default, "
                f"{DEFAULT_IGNORE_INDEX}, would be a class; got num_classes={num_classes} (-1 is no class, for one)"
            )
        return DEFAULT_IGNORE_INDEX
    if not is_whole_number(ignore_index):
        raise TypeError(f"ignore_index must be an int, got {type(ignore_index).__name__}")
    label = python_int(ignore_index)
    if not -(2**63) <= label < 2**63:
        raise ValueError(f"ignore_index must fit an int64, got {label}")
    return label


def check_num_classes(num_classes: Any, otherwise: str = "") -> int:
    """An int, of Python or NumPy, as Python's; ``otherwise`` says what else may be given."""
    if not is_whole_number(num_classes):
        raise TypeError(f"num_classes must be an int, got {type(num_classes).__name__}")
    number = python_int(num_classes)
    if number < 1:
        raise ValueError(f"num_classes must be at least 1{otherwise}, got {number}")
    if number > LARGEST_SIZE:
        raise ValueError(f"num_classes must be at most {LARGEST_SIZE}, got {number}")
    return number


def check_classes(
    num_classes: Any, ignore_index: Any, validate: Any, dtype: Any, dtype_argument: str
) -> tuple[int, int]:
    """The number of classes and the ignore index."""
    num_classes = check_num_classes(num_classes)
    ignore_index = check_ignore_index(ignore_index, num_classes)
    check_validate(validate)
    if dtype not in FLOAT_DTYPES:
        raise TypeError(f"{dtype_argument} of a soft label must be {names_of(FLOAT_DTYPES)}, got {dtype}")
    return num_classes, ignore_index


def check_backend(backend: Any) -> None:
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend must be None or one of {BACKENDS}, got {backend!r}")


def check_size(size: Any) -> tuple[int, int]:
    """Two ints, of Python or NumPy, as Python's."""
    if not isinstance(size, (tuple, list)) or len(size) != 2 or not all(map(is_whole_number, size)):
        raise TypeError(f"size must be two ints (h, w), got {size!r}")
    height, width = map(python_int, size)
    if height < 1 or width < 1:
        raise ValueError(f"size must be at least (1, 1), got {(height, width)}")
    if height > LARGEST_SIZE or width > LARGEST_SIZE:
        raise ValueError(f"size must be at most {LARGEST_SIZE} along each axis, got {(height, width)}")
    return height, width


def check_sampling(filter: Any, backend: Any) -> None:
    if filter not in FILTERS:
        if isinstance(filter, str) and filter.lower().startswith(("bicubic", "cubic", "lanczos")):
            raise ValueError(
                f"filter={filter!r} has negative weights, which give no class distribution; choose one of {FILTERS}"
            )
        raise ValueError(f"filter must be one of {FILTERS}, got {filter!r}")
    check_backend(backend)


Boxes = Tensor | Sequence[float] | Sequence[Sequence[float]]


def check_boxes(boxes: Any, batch: int, device: torch.device, owner: str) -> Tensor | None:
    """The boxes as a plain tensor ``(B, 4)`` of a floating type; `tritonsoft.functional` says what is taken."""
    if boxes is None:
        return None
    if isinstance(boxes, (tuple, list)):
        return _boxes_of_numbers(boxes, batch, device)
    if not isinstance(boxes, Tensor):
        raise TypeError(f"boxes must be None, a tensor or a list of numbers, got {type(boxes).__name__}")
    if boxes.dtype not in (*FLOAT_DTYPES, *INTEGER_DTYPES):
        allowed = names_of((*FLOAT_DTYPES, *INTEGER_DTYPES))
        raise TypeError(f"boxes must be floating point or integers ({allowed}), got {name_of(boxes.dtype)}")
    if boxes.ndim != 2 or boxes.shape[0] != batch or boxes.shape[1] != 4:
        raise ValueError(f"boxes must have shape (B, 4) = ({batch}, 4), got {tuple(boxes.shape)}")
    if boxes.device != device:
        raise ValueError(f"boxes must be on the device of {owner}, {device}, got {boxes.device}")
    refuse_derivative(boxes, "boxes", "the operators differentiate in the image only")
    tensor = plain(boxes)
    return tensor if tensor.is_floating_point() else tensor.double()  # which holds every coordinate that is allowed


def _boxes_of_numbers(boxes: Any, batch: int, device: torch.device) -> Tensor:
    """Four numbers for all samples, or for each; they are on the host and so are always checked."""
    for_all = len(boxes) > 0 and all(map(is_number, boxes))
    rows = [boxes] if for_all else boxes
    for row in rows:
        if not isinstance(row, (tuple, list)) or len(row) != 4 or not all(map(is_number, row)):
            raise TypeError(f"boxes must be four numbers (x0, y0, x1, y1), or as many for each sample, got {boxes!r}")
    if not for_all and len(rows) != batch:
        raise ValueError(f"boxes must have four numbers for each of {batch} samples, got {len(rows)} times four")
    rows = [[_python_float(number) for number in row] for row in rows]
    _check_box_rows(rows)
    on_device = tensor_on(torch.tensor(rows, dtype=torch.float64, device="cpu").view(-1, 4), device)
    return on_device.expand(batch, 4)


def _python_float(number: Any) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf


def check_transform(transform: Any, size: Sequence[int], batch: int, device: torch.device, owner: str) -> Tensor:
    """A matrix ``(B, 3, 3)``, or a field ``(B, h, w, 2)`` of this size, as a plain tensor."""
    if not isinstance(transform, Tensor):
        raise TypeError(f"transform must be a tensor, got {type(transform).__name__}")
    if transform.dtype not in FLOAT_DTYPES:
        raise TypeError(f"transform must be floating point ({names_of(FLOAT_DTYPES)}), got {name_of(transform.dtype)}")
    matrix, field = (batch, 3, 3), (batch, *size, 2)
    if tuple(transform.shape) not in (matrix, field):
        raise ValueError(
            f"transform must be a matrix of shape (B, 3, 3) = {matrix} or a field of shape (B, h, w, 2) = {field}, "
            f"got {tuple(transform.shape)}"
        )
    if transform.device != device:
        raise ValueError(f"transform must be on the device of {owner}, {device}, got {transform.device}")
    refuse_derivative(transform, "transform", "the operators differentiate in the image only")
    return plain(transform)


def check_top_k(k: Any, num_classes: int, argument: str) -> int:
    """An int from 1 to C, of Python or NumPy, as Python's; or an error that names the argument."""
    if not is_whole_number(k):
        raise TypeError(f"{argument} must be an int, got {type(k).__name__}")
    number = python_int(k)
    if not 1 <= number <= num_classes:
        raise ValueError(f"{argument} must lie in 1..{num_classes} (num_classes={num_classes}), got {number}")
    return number


def check_count(value: Any, argument: str) -> int:
    """An int of at least 1, of Python or NumPy, as Python's."""
    if not is_whole_number(value):
        raise TypeError(f"{argument} must be an int, got {type(value).__name__}")
    number = python_int(value)
    if number < 1:
        raise ValueError(f"{argument} must be at least 1, got {number}")
    return number


# --- losses -----------------------------------------------------------------------------------------------------------


def check_logits(logits: Any, target: Any, name: str) -> Tensor:
    """The logits, as a plain tensor; the ``target`` of that name may be the logits, and the logits be it."""
    swapped = are_swapped(name) if isinstance(target, Tensor) and target.is_floating_point() else ""
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits must be a tensor, got {type(logits).__name__}{swapped}")
    if logits.dtype not in FLOAT_DTYPES:
        raise TypeError(f"logits must be {names_of(FLOAT_DTYPES)}, got {name_of(logits.dtype)}{swapped}")
    if logits.ndim != 4 or 0 in logits.shape[1:]:
        raise ValueError(f"logits must have shape (B, C, h, w) with C, h, w >= 1, got {tuple(logits.shape)}")
    return plain(logits)


def check_hard_target(labels: Any, logits: Tensor, of_soft_labels: str) -> Tensor:
    """The label map ``(B, H, W)`` of these logits; soft labels go to the function of that name."""
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        kind = name_of(labels.dtype) if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels must be a label map of integers, got {kind}: soft labels go to {of_soft_labels}")
    label_map = check_labels(labels)
    if label_map.device != logits.device:
        raise ValueError(f"labels must be on the device of logits, {logits.device}, got {label_map.device}")
    if label_map.shape[0] != logits.shape[0]:
        raise ValueError(f"labels must have the batch of logits, {logits.shape[0]}, got {label_map.shape[0]}")
    return label_map


def check_vector(vector: Any, argument: str) -> None:
    """A float tensor ``(C,)`` without a derivative."""
    if not isinstance(vector, Tensor):
        raise TypeError(f"{argument} must be None or a tensor, got {type(vector).__name__}")
    if vector.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{argument} must be {names_of(FLOAT_DTYPES)}, got {name_of(vector.dtype)}")
    if vector.ndim != 1:
        raise ValueError(f"{argument} must have shape (C,), got {tuple(vector.shape)}")
    refuse_derivative(vector, argument, "there is none for it")


def check_class_vector(vector: Any, argument: str, logits: Tensor) -> Tensor | None:
    """One number for each class of these logits, as a plain tensor, or None."""
    if vector is None:
        return None
    check_vector(vector, argument)
    if vector.shape[0] != logits.shape[1]:
        raise ValueError(
            f"{argument} must have one number for each of {logits.shape[1]} classes, got {vector.shape[0]}"
        )
    if vector.device != logits.device:
        raise ValueError(f"{argument} must be on the device of logits, {logits.device}, got {vector.device}")
    tensor: Tensor = vector
    return plain(tensor)


def check_reduction(reduction: Any) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")


def check_label_smoothing(label_smoothing: Any) -> float:
    """A number from 0 to 1, as Python's."""
    if not is_number(label_smoothing):
        raise TypeError(f"label_smoothing must be a number, got {type(label_smoothing).__name__}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must lie in 0..1, got {label_smoothing}")
    return float(label_smoothing)


def check_reduced_classes(classes: Any, per_sample: Any) -> None:
    if classes not in ("present", "all"):
        raise ValueError(f"classes must be 'present' or 'all', got {classes!r}")
    if not isinstance(per_sample, bool):
        raise TypeError(f"per_sample must be True or False, got {per_sample!r}")


def tensor_on(values: Tensor, device: torch.device) -> Tensor:
    """A few numbers of the CPU's, or that are there, on a device, without waiting for it."""
    if device.type == "cpu" or values.device == device or torch.compiler.is_compiling():
        return values.to(device)
    # From pinned memory the copy is queued like a kernel; from any other the host may have to wait for the device.
    return (values.pin_memory() if device.type != "meta" else values).to(device, non_blocking=True)


# --- values ----------------------------------------------------------------------------------------------------------


def should_validate(device: torch.device, validate: bool | None) -> bool:
    """Values are always checked on the CPU; on a GPU that costs a synchronisation and happens on request."""
    if device.type == "cpu":
        return True
    return os.environ.get("TRITONSOFT_VALIDATE") == "1" if validate is None else validate


def check_box_values(boxes: Tensor | None, boxes_per_sample: int = 1) -> None:
    """Finite, within ±`MAX_COORDINATE`, and not empty."""
    if boxes is not None:
        # Plain floats: for the few boxes of a batch a fifth of the time of array operations.
        _check_box_rows(boxes.tolist(), boxes_per_sample)


def _check_box_rows(rows: Sequence[Sequence[float]], boxes_per_sample: int = 1) -> None:
    limit = MAX_COORDINATE
    for index, (x0, y0, x1, y1) in enumerate(rows):
        if -limit <= x0 <= limit and -limit <= y0 <= limit and -limit <= x1 <= limit and -limit <= y1 <= limit:
            if x0 != x1 and y0 != y1:
                continue
            rule = "have a width and a height other than zero"
        elif all(map(math.isfinite, (x0, y0, x1, y1))):
            rule = f"stay within ±{limit:.0f} pixels"
        else:
            rule = "be finite"
        place = f"sample {index // boxes_per_sample}"
        if boxes_per_sample > 1:
            place = f"box {index % boxes_per_sample} of {place}"
        raise ValueError(f"boxes must {rule}, got (x0, y0, x1, y1) = {(x0, y0, x1, y1)} for {place}")


def _scaled_to_one(row: list[float]) -> list[float]:
    largest = max(map(abs, row))
    return [value / largest for value in row] if largest > 0 else row


def check_transform_values(transform: Tensor) -> None:
    """Finite, and a matrix invertible."""
    if transform.ndim == 4:
        if not bool(transform.isfinite().all()):
            number = int((~transform.isfinite()).any(-1).sum())
            raise ValueError(f"transform must hold finite positions, got {number} pixels of the field with others")
        return
    for index, (row0, row1, row2) in enumerate(transform.tolist()):
        if not all(map(math.isfinite, (*row0, *row1, *row2))):
            raise ValueError(f"transform must be finite, got {[row0, row1, row2]} for sample {index}")
        # A row's scale changes nothing about whether they are independent, but products may overflow or vanish with it.
        first, second, third = map(_scaled_to_one, (row0, row1, row2))
        products = [
            sign * first[i] * second[j] * third[k]
            for sign, i, j, k in ((1, 0, 1, 2), (1, 1, 2, 0), (1, 2, 0, 1), (-1, 2, 1, 0), (-1, 1, 0, 2), (-1, 0, 2, 1))
        ]
        if abs(sum(products)) <= 2.0**-48 * sum(map(abs, products)):
            raise ValueError(f"transform must be invertible, got the singular {[row0, row1, row2]} for sample {index}")


MIN_WEIGHT, MAX_WEIGHT = 1e-20, 1e20


def check_partner_values(partners: Tensor) -> None:
    """That each sample ``(B,)`` has one of the batch for its partner."""
    numbers = partners.tolist()
    if not all(0 <= number < len(numbers) for number in numbers):
        raise ValueError(f"partners must lie in 0..{len(numbers) - 1}, numbers of samples, got {numbers}")


def check_share_values(weight: Tensor) -> None:
    """That each partner's share ``(B,)`` is one."""
    shares = weight.tolist()
    if not all(0 <= share <= 1 for share in shares):  # NaN is not
        raise ValueError(f"weight must lie in 0..1, the share of the partner, got {shares}")


def check_weight_values(weight: Tensor | None, argument: str = "weight") -> None:
    """Not negative, and of a size whose sums and quotients float32 can hold."""
    if weight is None:
        return
    numbers = weight.tolist()
    if not all(number == 0 or MIN_WEIGHT <= number <= MAX_WEIGHT for number in numbers):
        raise ValueError(
            f"{argument} must hold finite numbers that are not negative, each 0 or from {MIN_WEIGHT:g} to "
            f"{MAX_WEIGHT:g}, got {numbers}"
        )


def check_bias_values(bias: Tensor | None) -> None:
    """Numbers or -infinity, which a class is never decoded with."""
    if bias is None:
        return
    numbers = bias.tolist()
    if not all(number < math.inf for number in numbers):
        raise ValueError(f"bias must hold numbers below infinity, got {numbers}")


def check_index_values(index: Tensor | None, num_classes: int) -> None:
    """The classes of a `SparseLabels`."""
    if index is None or index.numel() == 0:
        return
    least, largest = (value.item() for value in index.aminmax())
    if least < 0 or largest >= num_classes:
        raise ValueError(f"soft.index must lie in 0..{num_classes - 1}, got values from {least} to {largest}")


def raise_label_values(labels: Tensor, num_classes: int, ignore_index: int) -> NoReturn:
    """The error for a label map in which a backend found what is neither a class nor ``ignore_index``."""
    values = comparable(labels)[bad_labels(labels, num_classes, ignore_index)]
    raise ValueError(
        f"labels must lie in 0..{num_classes - 1} (num_classes={num_classes}) or equal "
        f"ignore_index={ignore_index}, got {values.numel()} other values from {values.min().item()} to "
        f"{values.max().item()}"
    )


def raise_plane_values(planes: Tensor, ignore_index: int) -> NoReturn:
    """The error for planes in which a backend found what is neither 0 nor 1 nor ``ignore_index``."""
    values = comparable(planes)[bad_labels(planes, 2, ignore_index)]
    raise ValueError(
        f"planes must lie in 0..1 or equal ignore_index={ignore_index}, got {values.numel()} other values from "
        f"{values.min().item()} to {values.max().item()}"
    )


def raise_unknown_ids(labels: Tensor, ids: Tensor | None, classes: Tensor, first_id: int) -> NoReturn:
    """The error for a label map in which a backend found ids that a table does not have."""
    unknown = ~reference.remap_labels(labels, ids, classes, first_id)[1]
    values = comparable(labels)[unknown]
    sample, row, column = unknown.nonzero()[0].tolist()
    raise ValueError(
        f"labels must hold ids that the table has, got {values.numel()} others from {values.min().item()} to "
        f"{values.max().item()}, the first of them {values[0].item()} in row {row}, column {column} of sample {sample}"
    )


def raise_soft_values(soft: Tensor) -> NoReturn:
    """The error for a soft label in which a backend found what is no mass."""
    least = soft.min().item()
    swapped = are_swapped("soft") if least < -MASS_TOLERANCE else ""
    raise ValueError(
        f"soft must hold masses, at least 0 and at most 1 in all classes of a pixel together, within 1/64, "
        f"got entries from {least:.6g} and sums up to {total_mass(soft).max().item():.6g}{swapped}"
    )


def raise_binary_values(soft: Tensor, known: Tensor | None) -> NoReturn:
    """The error for masses of planes in which a backend found what is none."""
    least, largest = (value.item() for value in soft.aminmax())
    if known is not None and not bool((known >= -MASS_TOLERANCE).all() & (known <= 1 + MASS_TOLERANCE).all()):
        least, largest = (value.item() for value in known.aminmax())
        raise ValueError(f"mass must lie in 0..1, within 1/64, got entries from {least:.6g} to {largest:.6g}")
    limit = "1" if known is None else "mass"
    above = "" if known is None else f", up to {(soft.double() - known.double()).max().item():.6g} above mass"
    swapped = are_swapped("soft") if least < -MASS_TOLERANCE else ""
    raise ValueError(
        f"soft must hold masses, each at least 0 and at most {limit}, within 1/64, got entries from {least:.6g} to "
        f"{largest:.6g}{above}{swapped}"
    )
