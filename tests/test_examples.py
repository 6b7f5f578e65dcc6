"""The examples, and the README's training loop, run and show what the README says of them."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

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


def test_the_training_loop_of_the_readme_runs() -> None:
    readme = (EXAMPLES.parent / "README.md").read_text()
    block = re.search(r"## Training with soft labels\n.*?```python\n(.*?)```", readme, re.DOTALL)
    assert block is not None
    names: dict[str, Any] = {}
    exec(compile(block[1], "README.md", "exec"), names)
    assert names["soft"].shape == (4, 19, 32, 64)
    assert names["loss"].isfinite()
    assert all(parameter.grad.abs().sum() > 0 for parameter in names["model"].parameters())
