"""Draws ``images/street_scene.webp``: the figure of ``tritonsoft demo``, small enough for a page.

python docs/draw_street_scene.py [street_scene.webp]
"""

import argparse
import tempfile
from pathlib import Path

from PIL import Image

from tritonsoft.cli.figure import draw_figure
from tritonsoft.cli.pictures import street

FIGURE = Path(__file__).parent / "images" / "street_scene.webp"
WIDTH = 1500  # pixels


def main(path: Path = FIGURE, height: int = 1024) -> None:
    pictures = street(height, 2 * height, seed=0)
    image, labels = pictures.load(0)
    thin = [pictures.class_names.index("pole")]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "figure.png"
        draw_figure(drawn, image, labels, (2, 4, 8), thin, pictures)
        with Image.open(drawn) as figure:
            size = WIDTH, round(WIDTH * figure.height / figure.width)
            figure.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(path, quality=72, method=6)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", nargs="?", type=Path, default=FIGURE, help="the file to draw (default: %(default)s)")
    main(parser.parse_args().figure)
