"""kornia's geometric modules, resampled by tritonsoft: a box, a matrix or a field, which image and mask share."""

from tritonsoft.augmentation.class_crop import RandomClassCrop
from tritonsoft.augmentation.crops import CenterCrop, RandomCrop, RandomResizedCrop, RandomScaleCrop
from tritonsoft.augmentation.resize_and_flips import RandomHorizontalFlip, RandomVerticalFlip, Resize
from tritonsoft.augmentation.warps import (
    RandomAffine,
    RandomElasticTransform,
    RandomPerspective,
    RandomRotation,
    RandomShear,
    RandomTranslate,
)

__all__ = [
    "CenterCrop",
    "RandomAffine",
    "RandomClassCrop",
    "RandomCrop",
    "RandomElasticTransform",
    "RandomHorizontalFlip",
    "RandomPerspective",
    "RandomResizedCrop",
    "RandomRotation",
    "RandomScaleCrop",
    "RandomShear",
    "RandomTranslate",
    "RandomVerticalFlip",
    "Resize",
]
