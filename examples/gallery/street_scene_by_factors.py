"""
A street scene by factors
=========================

What is left of an image and of its label map when both are shrunk by 4, 8 and 16, hard and soft.
"""

# %%
# The library draws its own street scenes, with the 19 classes of Cityscapes, so nothing needs to be downloaded.

import torch
from matplotlib import pyplot as plt
from torch.nn import functional as F

import tritonsoft as ts
from tritonsoft.cli.scenes import CLASSES, IGNORE_INDEX, PALETTE, street_scene

scene = street_scene(512, 1024)
image, labels = scene.image[None], scene.labels[None]  # (1, 3, H, W) and (1, H, W), uint8
palette = torch.tensor(PALETTE) / 255  # (19, 3)

# %%
# One call shrinks both with one filter. The image stays uint8, the soft label is float32: the mass of each class in
# each pixel.

FACTORS = (4, 8, 16)
pairs = {}
for factor in FACTORS:
    size = (512 // factor, 1024 // factor)
    pairs[factor] = ts.crop_resize_pair(image, labels, None, size, len(CLASSES), ignore_index=IGNORE_INDEX)
    print(f"1/{factor}: image {tuple(pairs[factor][0].shape)}, soft label {tuple(pairs[factor][1].shape)}")

# %%
# A soft label is shown in mixed colours. Beside it is what PyTorch's ``mode="nearest"`` picks; ignored pixels are
# black.

colours = torch.cat([palette, torch.zeros(256 - len(CLASSES), 3)])
window = (slice(150, 350), slice(560, 960))  # rows and columns of the full-size picture

figure, panels = plt.subplots(3, 3, figsize=(9, 5.2), layout="constrained")
for row, factor in zip(panels, FACTORS, strict=True):
    small, soft = pairs[factor]
    hard = F.interpolate(labels[:, None].float(), soft.shape[2:], mode="nearest")[0, 0].long()
    mixed = torch.einsum("chw,ck->hwk", soft[0], palette)
    shown = {"image": small[0].permute(1, 2, 0), "nearest": colours[hard], "soft label": mixed.clamp(0, 1)}
    for axes, (title, pixels) in zip(row, shown.items(), strict=True):
        axes.imshow(pixels, extent=(0, 1024, 512, 0), interpolation="nearest")
        axes.set(xlim=(window[1].start, window[1].stop), ylim=(window[0].stop, window[0].start), xticks=[], yticks=[])
        if factor == FACTORS[0]:
            axes.set_title(title)
    row[0].set_ylabel(f"1/{factor}")
plt.show()

# %%
# The soft label keeps the area of every class, whatever the factor:

area = torch.stack([(labels == k).sum() for k in range(len(CLASSES))])
for factor, (_, soft) in pairs.items():
    kept = soft.double().sum((0, 2, 3)) * factor**2
    print(
        f"1/{factor}: largest difference of a class's area {(kept - area).abs().max():.3f} pixels of {labels.numel()}"
    )
