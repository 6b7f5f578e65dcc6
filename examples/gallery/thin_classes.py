"""
Thin classes
============

How much of its area each class keeps in the low-resolution pixels where it lies, by the kind of label.
"""

# %%
# `tritonsoft.metrics.LabelRetention` compares a low-resolution label, hard or soft, with the label map that it was
# made from. Three street scenes, shrunk by 8:

import torch
from matplotlib import pyplot as plt
from torch.nn import functional as F

import tritonsoft as ts
from tritonsoft import metrics
from tritonsoft.cli.scenes import CLASSES, IGNORE_INDEX, street_scene

FACTOR, NUM_CLASSES = 8, len(CLASSES)
labels = torch.stack([street_scene(512, 1024, seed).labels for seed in range(3)])  # (3, 512, 1024)
size = (512 // FACTOR, 1024 // FACTOR)
soft = ts.soft_resize(labels, size, NUM_CLASSES, ignore_index=IGNORE_INDEX)


def hard(mode: str) -> torch.Tensor:
    return F.interpolate(labels[:, None].float(), size, mode=mode)[:, 0].long()


majority = torch.where(soft.sum(1) > 0, soft.argmax(1), IGNORE_INDEX)
candidates = {
    "PyTorch's nearest": hard("nearest"),
    "nearest-exact": hard("nearest-exact"),
    "majority": majority,
    "soft": soft,
}

# %%
# Shares of each class's area, in place:

in_place = {}
for name, label in candidates.items():
    retention = metrics.LabelRetention(NUM_CLASSES, ignore_index=IGNORE_INDEX, average="none")
    retention.update(label, labels)
    in_place[name] = retention.compute()["in_place"]

share = torch.stack([(labels == k).double().mean() for k in range(NUM_CLASSES)])
order = [k for k in in_place["nearest-exact"].nan_to_num(nan=2.0).argsort().tolist() if share[k] > 0]
for k in order[:5]:
    kept = ", ".join(f"{name} {float(values[k]):.0%}" for name, values in in_place.items())
    print(f"{CLASSES[k]:>13} ({float(share[k]):.2%} of all pixels): {kept}")

# %%
# Thin shapes lose most, sky and road next to nothing:

figure, axes = plt.subplots(figsize=(8, 5.2), layout="constrained")
for place, (name, values) in enumerate(in_place.items()):
    rows = torch.arange(len(order)) + 0.2 * place - 0.3
    axes.barh(rows, 100 * values[order], 0.19, label=name, color=("C3", "C1", "C7", "C2")[place])
axes.set_yticks(range(len(order)), [CLASSES[k] for k in order])
axes.invert_yaxis()
axes.set(xlabel="% of the class's area, in place", title=f"three street scenes, shrunk by {FACTOR}")
figure.legend(loc="outside lower center", ncols=4)
axes.grid(axis="x", alpha=0.3)
plt.show()
