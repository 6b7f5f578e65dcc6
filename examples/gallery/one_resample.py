"""
A rotation and a crop in one resample
=====================================

The same random rotation, crop and flip with kornia's modules, one after the other, and with those of tritonsoft.
"""

# %%
# Both containers draw the same parameters for the same seed. kornia resamples three times, and reads the label map by
# nearest neighbour each time. Here the three come to one matrix, and image and label map are resampled once from their
# original pixels.

import kornia.augmentation as K
import torch
from matplotlib import pyplot as plt

import tritonsoft as ts
import tritonsoft.augmentation as TA
from tritonsoft.cli.scenes import CLASSES, IGNORE_INDEX, street_scene

POLE, SIZE = CLASSES.index("pole"), (64, 128)
scene = street_scene(512, 1024)
image, labels = scene.image[None] / 255, scene.labels[None, None]


def pipeline(library, **options):
    return library.AugmentationSequential(
        library.RandomRotation((20.0, 20.0), p=1.0, **options),
        library.RandomResizedCrop(SIZE, scale=(0.3, 0.3), ratio=(2.0, 2.0), **options),
        library.RandomHorizontalFlip(p=1.0, **options),
        data_keys=["image", "mask"],
    )


torch.manual_seed(0)
theirs, hard = pipeline(K)(image, labels)
augment = pipeline(TA, num_classes=len(CLASSES), ignore_index=IGNORE_INDEX)
torch.manual_seed(0)
ours, soft = augment(image, labels)

# %%
# The true share of poles in each pixel: their plane under the same matrix at 24 times the size, read at the nearest
# pixel, and averaged.

fine = (24 * SIZE[0], 24 * SIZE[1])
whole = ts.box_to_matrix(torch.tensor([[0.0, 0.0, SIZE[1], SIZE[0]]]), fine)
points = ts.warp((labels == POLE).float(), augment.matrices @ whole, fine, filter="nearest")
truth = ts.resize(points, SIZE)[0, 0]

shares = {"kornia": (hard[0, 0] == POLE).float(), "tritonsoft": soft[0, POLE]}
for name, share in shares.items():
    print(f"{name}: {float(torch.minimum(share, truth).sum() / truth.sum()):.1%} of the poles' area lies in place")

# %%

figure, panels = plt.subplots(2, 3, figsize=(10, 3.7), layout="constrained")
rows = {
    "kornia": (theirs, shares["kornia"], "poles, nearest three times"),
    "tritonsoft": (ours, shares["tritonsoft"], "poles, one resample"),
}
for row, (name, (pixels, share, title)) in zip(panels, rows.items(), strict=True):
    row[0].imshow(pixels[0].permute(1, 2, 0).clamp(0, 1), interpolation="nearest")
    row[0].set_title(f"{name}: image")
    row[1].imshow(share, cmap="magma", vmin=0, vmax=1, interpolation="nearest")
    row[1].set_title(title)
    row[2].imshow((share - truth).abs(), cmap="magma", vmin=0, vmax=1, interpolation="nearest")
    row[2].set_title("difference from the true share")
for axes in panels.flat:
    axes.set(xticks=[], yticks=[])
plt.show()
