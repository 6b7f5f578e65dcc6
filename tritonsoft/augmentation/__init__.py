"""kornia-compatible augmentations in which image, soft label, boxes and keypoints stay together.

Change the import in a kornia pipeline and keep the rest. Images are antialiased, masks are sampled on the image's
half-pixel grid, and with ``num_classes`` integer label maps become soft labels. In `AugmentationSequential` a run of
crops, resizes, flips and warps is one resample of the original pixels, for the image and its label map together.

Example:
    >>> import torch
    >>> import tritonsoft.augmentation as TA
    >>> augment = TA.AugmentationSequential(
    ...     TA.RandomResizedCrop((256, 512), num_classes=19),
    ...     TA.RandomHorizontalFlip(),
    ...     data_keys=["image", "mask"],
    ... )
    >>> image, label_map = torch.rand(2, 3, 512, 1024), torch.randint(0, 19, (2, 512, 1024)).to(torch.uint8)
    >>> image, soft = augment(image, label_map)
    >>> image.shape, soft.shape
    (torch.Size([2, 3, 256, 512]), torch.Size([2, 19, 256, 512]))
"""

from tritonsoft._extras import how_to_install

try:
    import kornia.augmentation  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"tritonsoft.augmentation needs kornia: {how_to_install('kornia')}", name=error.name
    ) from error

from tritonsoft.augmentation.container import AugmentationSequential
from tritonsoft.augmentation.masks import SoftLabel
from tritonsoft.augmentation.modules import (
    CenterCrop,
    RandomAffine,
    RandomClassCrop,
    RandomCrop,
    RandomElasticTransform,
    RandomHorizontalFlip,
    RandomPerspective,
    RandomResizedCrop,
    RandomRotation,
    RandomScaleCrop,
    RandomShear,
    RandomTranslate,
    RandomVerticalFlip,
    Resize,
)
from tritonsoft.augmentation.remapping import RemapLabels

__all__ = [
    "AugmentationSequential",
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
    "RemapLabels",
    "Resize",
    "SoftLabel",
]
