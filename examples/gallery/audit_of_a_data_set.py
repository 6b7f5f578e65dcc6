"""
Audit of a data set
===================

What shrinking does to the labels of a whole data set, as ``tritonsoft audit`` measures it.
"""

# %%
# A data set in CamVid's size, 360x480: eight street scenes, written as any data set has its label maps, as PNG files.
# Of CamVid itself the figure is on the page about soft labels; yours needs the last command alone.

import contextlib
import csv
import io
import tempfile
from pathlib import Path

from matplotlib import pyplot as plt
from PIL import Image

from tritonsoft.cli.app import app
from tritonsoft.cli.scenes import CLASSES, street_scene

folder = Path(tempfile.mkdtemp())
for seed in range(8):
    (folder / "labels").mkdir(exist_ok=True)
    Image.fromarray(street_scene(360, 480, seed).labels.numpy()).save(folder / "labels" / f"{seed}.png")

# %%
# In a shell: ``tritonsoft audit --labels labels --num-classes 19 --factors 2,4,8``.

options = {
    "labels": folder / "labels",
    "num-classes": 19,
    "class-names": ",".join(CLASSES),
    "out": folder,
    "factors": "2,4,8",
}
arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    app(["audit", *arguments, "--json"], standalone_mode=False)

# %%
# It writes ``audit.csv``, a row for each factor, class and kind of label:

with (folder / "audit.csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
for row in rows:
    if row["factor"] == "8" and row["class"] in ("pole", "road"):
        kept = f"{float(row['in_place']):.1%} in place"
        print(f"{row['class']:>5}, {row['method']:>14}: {kept}, gone from {row['gone']} maps")

# %%
# and ``audit.png``:

figure, axes = plt.subplots(figsize=(11, 5.2))
axes.imshow(Image.open(folder / "audit.png"))
axes.set_axis_off()
figure.subplots_adjust(0, 0, 1, 1)
plt.show()
