"""The bytes of shrunk labels: most pixels are of one class, and the few others hold little.

What a labels file's tensor holds (``docs/shrunk_datasets.md`` says it byte by byte), deflated as one stream:

* codes ``(h, w)``: the class of a pixel that is wholly of one class, C of a pixel without mass, C + 1 of a mixed one;
* classes ``(k, m)`` of the m mixed pixels, in the order of their pixels: those of `SparseLabels.index`;
* numbers ``(k + 1, m)`` of them: with float16 the masses and the rest. With uint8, in units of 1/255, the unlabelled
  share in place of the largest mass, which is what the others leave of 255: it is nearly always 0.

Codes and classes take one byte each up to 254 classes and two above, the low one first.
"""

import itertools
import zlib
from pathlib import Path
from typing import Any, Final, Literal, cast

import numpy as np
import torch

from tritonsoft._extras import how_to_install
from tritonsoft.data.errors import DataError
from tritonsoft.sparse import SparseLabels, check_has_classes, index_type

Masses = Literal["uint8", "float16"]
MASSES: Final = ("uint8", "float16")
PIXELS: Final = "pixels"  # the name of the tensor
METADATA: Final = "tritonsoft"  # one entry: safetensors writes several in any order, and bytes should be the same

NEEDED: Final = f"shrunk labels are stored by safetensors: {how_to_install('data')}"

_Array = np.ndarray[Any, Any]
_UNITS: Final = 255  # a mass of one in a byte
_SHARES: Final = np.arange(_UNITS + 1, dtype=np.float32) / np.float32(_UNITS)
_LEVEL: Final = 6  # of zlib: 9 saves 3% and takes ten times as long
_ROUNDING_OF_SUMS: Final = 2.0**-20  # float32 masses of a pixel that is wholly of one class may be this far from 1


def encode(labels: SparseLabels, masses: Masses) -> bytes:
    """The bytes of a sample's labels, ``(k, h, w)`` on the CPU."""
    check_has_classes(labels, "labels")
    k, num_classes = labels.k, cast(int, labels.num_classes)
    index = labels.index.numpy().reshape(k, -1)
    mass, rest = labels.mass.float().numpy().reshape(k, -1), labels.rest.float().numpy().reshape(-1)
    labelled = mass[0] > 0
    code = _code_type(num_classes)
    codes = index[0].astype(code)
    codes[~labelled] = num_classes

    mixed = np.flatnonzero(labelled & (mass[0] < 1 - _ROUNDING_OF_SUMS))
    shares = np.concatenate([mass.take(mixed, 1), rest.take(mixed)[None]])
    numbers = round_together(shares) if masses == "uint8" else shares.astype(np.float16)
    classes, numbers[:-1] = _in_order(index.take(mixed, 1), numbers[:-1])
    # Rounded, some are of one class after all, or of none.
    # (In float16 the largest may become 1 beside others, which a pixel of one class would lose.)
    has_mass, is_whole = numbers.any(0), (numbers[0] == (_UNITS if masses == "uint8" else 1)) & ~numbers[1:].any(0)
    codes[mixed] = np.where(is_whole, classes[0], np.where(has_mass, num_classes + 1, num_classes))
    classes, numbers = (plane.compress(has_mass & ~is_whole, 1) for plane in (classes, numbers))
    if masses == "uint8":
        numbers[0] = _UNITS - numbers.sum(0)
    planes = (codes, classes.astype(code), numbers.astype(_number_type(masses)))
    return zlib.compress(b"".join(plane.tobytes() for plane in planes), _LEVEL)


def decode(
    data: bytes | memoryview, size: tuple[int, int], k: int, num_classes: int, masses: Masses, dtype: torch.dtype
) -> SparseLabels:
    """The labels that `encode` got, with masses of ``dtype``. Raises ValueError where bytes are none of these."""
    try:
        plain = zlib.decompress(data)
    except zlib.error as error:
        raise ValueError(f"the pixels cannot be unpacked ({error})") from None
    h, w = size
    code, number = _code_type(num_classes), _number_type(masses)
    if len(plain) < h * w * code.itemsize:
        raise ValueError(f"{len(plain)} bytes are too few for {h}x{w} pixels")
    codes = np.frombuffer(plain, code, h * w)
    mixed = np.flatnonzero(codes == num_classes + 1)
    end_of_codes, of_classes = h * w * code.itemsize, k * len(mixed) * code.itemsize
    if len(plain) != end_of_codes + of_classes + (k + 1) * len(mixed) * number.itemsize:
        raise ValueError(f"{len(plain)} bytes are not those of {h}x{w} pixels of which {len(mixed)} are mixed")
    classes = np.frombuffer(plain, code, k * len(mixed), end_of_codes).reshape(k, -1)
    if codes.max(initial=0) > num_classes + 1 or classes.max(initial=0) >= num_classes:
        raise ValueError(f"a class is none of the {num_classes}")
    numbers = np.frombuffer(plain, number, offset=end_of_codes + of_classes).reshape(k + 1, -1)
    real = np.dtype(np.float16 if dtype == torch.float16 else np.float32)
    if masses == "uint8":
        largest = _UNITS - numbers.sum(0, dtype=np.int32)
        if largest.min(initial=0) < 0:
            raise ValueError(f"shares of a pixel add up to more than {_UNITS}")
        shares = _SHARES.astype(real)[np.concatenate([largest[None], numbers[1:]])]
    else:
        shares = numbers

    index = np.zeros((k, h * w), np.uint8 if index_type(num_classes) == torch.uint8 else np.int16)
    mass, rest = np.zeros((k, h * w), real), np.zeros(h * w, real)
    labelled = codes != num_classes
    np.multiply(codes, labelled, out=index[0], casting="unsafe")
    mass[0] = labelled
    for rank in range(k):  # row by row: at once takes NumPy several times as long
        index[rank][mixed], mass[rank][mixed] = classes[rank], shares[rank]
    rest[mixed] = shares[k]
    planes = [torch.from_numpy(plane) for plane in (index.reshape(k, h, w), mass.reshape(k, h, w), rest.reshape(h, w))]
    return SparseLabels(planes[0], planes[1].to(dtype), planes[2].to(dtype), num_classes)


def to_file(data: bytes, metadata: str) -> bytes:
    """A labels file: what `encode` gave, and what the file says of itself."""
    try:
        from safetensors.numpy import save
    except ImportError as error:
        raise ImportError(f"{error}: {NEEDED}") from None

    return save({PIXELS: np.frombuffer(data, np.uint8)}, {METADATA: metadata})


def from_file(file: Path) -> tuple[memoryview, str]:
    """What `to_file` got. Raises DataError where the file is missing, broken or another."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(f"{error}: {NEEDED}") from None

    try:
        with safe_open(file, "np") as stream:
            return stream.get_tensor(PIXELS).data, stream.metadata()[METADATA]
    except FileNotFoundError:
        raise DataError(f"{file}: is missing") from None
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from None


def round_together(shares: _Array) -> _Array:
    """Shares ``(n, m)`` in units of 1/255, rounded so that each column adds up to its rounded sum (largest remainder).

    Every share is off by less than 1/255 and a share of 0 stays 0. uint8.
    """
    exact = shares * np.float32(_UNITS)
    below = np.floor(exact)
    missing = np.rint(exact.sum(0)) - below.sum(0)
    rounded: _Array = (below + (_rank(below - exact) < missing)).astype(np.uint8)
    return rounded


def _in_order(index: _Array, numbers: _Array) -> tuple[_Array, _Array]:
    """Classes and their numbers as `SparseLabels` has them: largest first, equal ones by class, class 0 where none."""
    index = np.where(numbers > 0, index, 0)
    whole = numbers.view(np.uint16) if numbers.dtype == np.float16 else numbers  # bits of floats above 0 are in order
    rank = _rank(index - (whole.astype(np.int32) << 16))
    ordered = np.empty_like(index), np.empty_like(numbers)
    for values, target in zip((index, numbers), ordered, strict=True):
        np.put_along_axis(target, rank, values, 0)
    return ordered


def _rank(keys: _Array) -> _Array:
    """``(n, m)`` -> how many keys of the same column are smaller, or equal and above."""
    # n is small: comparing the rows takes a fifth of the time of sorting many short columns.
    rank = np.zeros(keys.shape, np.intp)
    for row, later in itertools.combinations(range(len(keys)), 2):
        is_first = keys[row] <= keys[later]
        rank[later] += is_first
        rank[row] += ~is_first
    return rank


def _code_type(num_classes: int) -> np.dtype[Any]:
    return np.dtype("u1" if num_classes + 2 <= 256 else "<u2")


def _number_type(masses: Masses) -> np.dtype[Any]:
    return np.dtype("u1" if masses == "uint8" else "<f2")
