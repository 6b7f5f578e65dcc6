"""kornia's crops, resizes and flips, resampled by tritonsoft: each is a box, which image, mask and matrix share."""

from tritonsoft.augmentation.crops import CenterCrop, RandomCrop, RandomResizedCrop, RandomScaleCrop
from tritonsoft.augmentation.resize_and_flips import RandomHorizontalFlip, RandomVerticalFlip, Resize

__all__ = [
    "CenterCrop",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "RandomScaleCrop",
    "RandomVerticalFlip",
    "Resize",
]
