"""The examples run and show what the README says of them."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_kornia_reads_image_and_label_two_pixels_apart_and_we_read_them_at_one_place(tmp_path: Path) -> None:
    pytest.importorskip("kornia", reason="the example compares with kornia, which is not installed")
    pytest.importorskip("matplotlib", reason="the example draws with matplotlib, which is not installed")
    there, here = load("alignment").main(tmp_path / "figure.png")
    assert there.abs().max() == 2
    assert here.abs().max() <= 1e-9
    assert (tmp_path / "figure.png").stat().st_size > 10_000
