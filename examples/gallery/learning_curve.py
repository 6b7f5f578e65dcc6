"""
The learning curve
==================

How well a linear classifier of frozen features learns from each kind of label, by the number of training pictures and
by weight decay.
"""

# %%
# Every fit was measured on CamVid and stands in ``examples/linear_probe.csv``; nothing is trained here. What the
# numbers mean and how they were made is on the page :doc:`/evidence`.

import csv
from collections import defaultdict
from pathlib import Path

from matplotlib import pyplot as plt

EXAMPLES = next(
    folder for folder in (Path("examples"), Path.cwd(), *Path.cwd().parents) if (folder / "linear_probe.csv").exists()
)
with (EXAMPLES / "linear_probe.csv").open(newline="") as file:
    rows = [row for row in csv.DictReader(file) if row["stride"] == "16"]
LOOKS = {  # the label's name in the file, here, and its colour
    "soft": ("soft label", "C2"),
    "nearest": ("nearest-exact", "C1"),
    "torch-nearest": ("PyTorch's nearest", "C3"),
    "full": ("loss at full size", "C0"),
}

# %%
# Left, each label at its own best weight decay; right, with 46 pictures, at every weight decay. Hard labels learn the
# noise of one sample per cell by heart where regularisation is weak; soft labels do not. The loss at full size, which
# was fitted with 46 pictures and two weight decays alone, is best there: full size is what is scored.

figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
for labels, (name, colour) in LOOKS.items():
    best = defaultdict(list)
    for row in rows:
        if row["labels"] == labels:
            best[int(row["pictures"])].append((float(row["nll"]), float(row["miou"])))
    pictures = sorted(best)
    miou = [100 * min(best[count])[1] for count in pictures]
    left.plot(pictures, miou, "o-", color=colour, label=name)
    fits = sorted(
        (float(row["weight_decay"]), float(row["nll"]))
        for row in rows
        if row["labels"] == labels and row["pictures"] == "46"
    )
    right.plot(*zip(*fits, strict=True), "o-", color=colour, label=name)
    values = [f"{value:.1f}% ({count} pictures)" for count, value in zip(pictures, miou, strict=True)]
    print(f"{name:>17}: mIoU {', '.join(values)}")
for axes in (left, right):
    axes.set_xscale("log")
    axes.grid(alpha=0.3)
left.set(xlabel="training pictures", ylabel="mIoU at full size, %", title="stride 16, best weight decay")
left.set_xticks([46, 92, 184, 367], ["46", "92", "184", "367"])
left.minorticks_off()
right.set(xlabel="weight decay", ylabel="negative log-likelihood, nats", title="stride 16, 46 pictures")
right.legend()
plt.show()
