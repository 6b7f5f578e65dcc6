"""Soft labels for semantic segmentation: label maps shrunk, cropped and flipped with the very filter of their image."""

from tritonsoft.functional import (
    backend_info,
    crop_resize,
    crop_resize_pair,
    normalize,
    resize,
    soft_crop_resize,
    soft_resize,
    to_soft,
)
from tritonsoft.version import __version__

__all__ = [
    "__version__",
    "backend_info",
    "crop_resize",
    "crop_resize_pair",
    "normalize",
    "resize",
    "soft_crop_resize",
    "soft_resize",
    "to_soft",
]
