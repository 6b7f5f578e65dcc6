"""What is installed and what an import costs in modules: the wheel, the sdist, and a core that needs neither extra."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile
from pathlib import Path

import pytest

from tritonsoft._extras import REQUIREMENTS
from tritonsoft.version import __version__

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

pytestmark = pytest.mark.xdist_group("package")  # two processes that build in one checkout tread on each other

USE_WITHOUT_EXTRAS = """
import sys
sys.modules["numba"] = sys.modules["kornia"] = sys.modules["matplotlib"] = None  # as if not installed
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ("numba", "kornia") else find_spec(name, *rest)
import torch, tritonsoft as ts
labels = torch.tensor([[[0, 0, 1, 1], [0, 1, 1, 255]]])
assert ts.backend_info()["cpu"][0] == "reference"
assert ts.soft_resize(labels, (1, 2), 2).flatten().tolist() == [0.75, 0, 0.25, 0.75]
print(ts.__file__)
"""


def _python(code: str, *options: str, **environment: str) -> str:
    variables = {**os.environ, **environment}
    result = subprocess.run([sys.executable, *options, "-c", code], env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def _extras() -> dict[str, list[str]]:
    extras: dict[str, list[str]] = PROJECT["optional-dependencies"]
    return extras


def _requirements(extra: str) -> set[str]:
    """Of an extra, with those of the extras that it names."""
    found = set()
    for requirement in _extras()[extra]:
        others = re.fullmatch(r"tritonsoft\[([\w,]+)\]", requirement)
        found |= set().union(*map(_requirements, others[1].split(","))) if others else {requirement}
    return found


def test_messages_say_to_install_what_the_extras_bring():
    assert {extra: set(requirements) for extra, requirements in REQUIREMENTS.items()} == {
        extra: _requirements(extra) for extra in REQUIREMENTS
    }
    for file in ROOT.glob("tritonsoft/**/*.py"):
        assert file.name == "_extras.py" or "pip install" not in file.read_text("utf-8"), file


def test_version_is_the_same_everywhere():
    released = re.findall(r"^## \[(\d[^\]]*)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    cited = re.search(r"^version: (\S+)$", citation, re.MULTILINE)
    dated = re.search(r"^date-released: (\S+)$", citation, re.MULTILINE)
    assert cited is not None
    assert dated is not None
    assert released[0] == (__version__, dated[1])
    assert cited[1] == __version__


def test_extras_bring_what_their_users_need():
    assert _requirements("demo") | _requirements("cpu") <= _requirements("all")
    assert _requirements("all") <= _requirements("dev")


def test_what_is_said_to_install_can_be_installed():
    """No index has the package: what names an extra must name the checkout or a wheel, and an extra that is there."""
    files = [*ROOT.glob("*.md"), ROOT / "Makefile", *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.py")]
    hints = [
        hint
        for file in files
        for hint in re.findall(r"pip install (?:-\S+ )*['\"]?([^'\"\s]*\[[\w,]*\])", file.read_text("utf-8"))
    ]
    assert len(hints) >= 4
    for hint in hints:
        path, names = hint.removesuffix("]").split("[")
        assert path == "." or path.endswith(".whl")
        assert set(names.split(",")) <= _extras().keys()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_takes_the_python_that_it_is_told(tmp_path: Path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    other = tmp_path / "other python"
    other.write_text("#!/bin/sh\necho another version\n")
    other.chmod(0o755)
    same = f"PYTHON={sys.executable}"
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "MAKEFLAGS")}

    def plan(*arguments: str) -> str:
        goals = () if "demo" in arguments else (".venv/installed",)
        command = ["make", "--dry-run", *arguments, *goals]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    assert f"{sys.executable} -m venv --clear .venv" in plan(same)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", ".venv"], cwd=tmp_path, check=True)
    assert "pip install" in plan()
    assert "venv --clear" not in plan()  # only installs, into the environment that is there
    time_of_stamp = time.time() + 10
    (tmp_path / ".venv" / "installed").touch()
    os.utime(tmp_path / ".venv" / "installed", (time_of_stamp, time_of_stamp))
    assert "up to date" in plan()
    assert "up to date" in plan(same)
    assert '--editable ".[all]"' in plan("demo")  # which alone needs less
    assert "other\\ python -m venv --clear .venv" in plan("PYTHON=./other\\ python")


def test_import_loads_no_backend_and_no_extra():
    code = "import torch, sys; before = set(sys.modules); import tritonsoft; print(*set(sys.modules) - before)"
    loaded = _python(code, PYTHONPATH=str(ROOT)).split()
    assert "tritonsoft.ops" in loaded
    unwanted = {"triton", "numba", "kornia", "matplotlib", "rich", "typer", "PIL", "cv2"}
    assert not {name.split(".")[0] for name in loaded} & unwanted
    assert "tritonsoft.kernels" not in loaded


def test_core_works_without_the_extras():
    _python(USE_WITHOUT_EXTRAS, PYTHONPATH=str(ROOT), TRITON_INTERPRET="0")


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    pytest.importorskip("build", reason="the package `build` is not installed")
    folder = tmp_path_factory.mktemp("dist")
    # The sdist first, then the wheel from that very sdist.
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


def test_wheel_holds_one_top_level_package(distributions: tuple[Path, Path]):
    with zipfile.ZipFile(distributions[1]) as wheel:
        names = wheel.namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"tritonsoft"}
    kernels = {path.name for path in (ROOT / "kernels").glob("*.py")}
    assert {
        name.removeprefix("tritonsoft/kernels/") for name in names if name.startswith("tritonsoft/kernels/")
    } == kernels
    assert "tritonsoft/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)


@pytest.mark.parametrize("room", ["augmentation", "data"])
def test_rooms_above_are_built_on_public_functions(room: str) -> None:
    inner = re.compile(r"(?:from|import) tritonsoft\.(?:_validation|ops|backends|kernels|memory)\b")
    files = list((ROOT / "tritonsoft" / room).rglob("*.py"))
    assert files
    assert {file.name: found for file in files if (found := inner.findall(file.read_text()))} == {}


def test_sdist_is_a_checkout(distributions: tuple[Path, Path]):
    with tarfile.open(distributions[0]) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames() if "/" in name}
    assert "LICENSE" in names
    assert not any(name.startswith((".venv", "demo/", "docs/_build")) for name in names)
    # The tests import each other's cases, the benchmark and the examples, and read documentation and results.
    files = [*ROOT.glob("*.md"), *(ROOT / name for name in ("CITATION.cff", "Makefile", "constraints.txt"))]
    for pattern in ("tests/**/*.py", "bench/**/*.py", "bench/results/*.csv", "examples/*.py", "docs/*.md"):
        files += ROOT.glob(pattern)
    assert {str(file.relative_to(ROOT)) for file in files} <= names
    kernels = {path.name for path in (ROOT / "kernels").glob("*.py")}
    for room in ("kernels/", "tritonsoft/kernels/"):  # here the second is a symlink, which an archive may not hold
        assert {name.removeprefix(room) for name in names if name.startswith(room) and name.endswith(".py")} == kernels


def test_installed_wheel_imports_and_works(distributions: tuple[Path, Path], tmp_path: Path):
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path)]
    subprocess.run([*command, str(distributions[1])], check=True)
    where = _python(USE_WITHOUT_EXTRAS, "-P", PYTHONPATH=str(tmp_path), TRITON_INTERPRET="0")
    assert where.startswith(str(tmp_path))
    top_level = "import importlib.util, tritonsoft.kernels; print(tritonsoft.kernels.__file__)"
    assert _python(top_level, "-P", PYTHONPATH=str(tmp_path)).startswith(str(tmp_path / "tritonsoft" / "kernels"))
    assert not (tmp_path / "kernels").exists()
