"""The documentation runs, is complete, and says of each argument what it is.

The README's snippets are run by ``test_examples.py``. Those of the other pages are found and run by Sybil: it reads the
fences of MyST, keeps one namespace for a page, and lets a page skip a snippet with a reason that is written there.
"""

import importlib.util
import inspect
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if not {"_build", "gallery"} & {*page.relative_to(DOCS).parts})
PUBLIC = ("tritonsoft", "tritonsoft.augmentation", "tritonsoft.data", "tritonsoft.metrics", "tritonsoft.memory")
REFERENCE = "\n".join(page.read_text("utf-8") for page in sorted((DOCS / "reference").glob("*.rst")))

# --- snippets --------------------------------------------------------------------------------------------------------


def write_data_sets(folder: Path) -> None:
    """The folders that pages name, with two pictures of 1024x2048 in Cityscapes' manner."""
    image_file = pytest.importorskip("PIL.Image", reason="the pages about data sets read pictures with Pillow")
    labels = np.zeros((1024, 2048), np.uint8)
    labels[:600], labels[600:, 900:910] = 23, 17  # sky and a pole, ids of `labelIds`
    labels[600:, :900] = 7
    for root in (folder, folder / "cityscapes"):
        for name in ("0", "1"):
            for kind, end, pixels in (
                ("leftImg8bit", "leftImg8bit", np.full((1024, 2048, 3), 90, np.uint8)),
                ("gtFine", "gtFine_labelIds", labels),
            ):
                file = root / kind / "train" / "aachen" / f"aachen_{name}_{end}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                image_file.fromarray(pixels).save(file, compress_level=1)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).with_suffix("").as_posix())
def test_snippets_run_as_printed_one_after_the_other(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = ROOT / "tests" / "test_recipes.py"
    if page.parent.name == "recipes" and recipes.exists() and f'run("{page.stem}")' in recipes.read_text("utf-8"):
        pytest.skip("test_recipes.py runs this page, and looks at what comes of it")
    monkeypatch.chdir(tmp_path)
    if "leftImg8bit" in page.read_text("utf-8"):
        write_data_sets(tmp_path)
    sybil = pytest.importorskip("sybil", reason="sybil finds the snippets, and is not installed")
    myst = pytest.importorskip("sybil.parsers.myst")
    document = sybil.Sybil([myst.PythonCodeBlockParser(), myst.SkipParser()], path=str(ROOT)).parse(page)
    for example in document.examples():
        try:
            example.evaluate()
        except ModuleNotFoundError as error:
            if (error.name or "tritonsoft").split(".")[0] == "tritonsoft":
                raise
            pytest.skip(f"{page.name} uses {error.name}, which is not installed")
        except Exception as error:
            if type(error).__name__ != "SkipTest":
                raise


def test_links_of_the_readme_lead_somewhere() -> None:
    """They are absolute, since a package index shows the page too."""
    readme = (ROOT / "README.md").read_text("utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    name = re.escape(project["urls"]["Repository"].removeprefix("https://github.com"))
    repository = rf"https://(?:github\.com{name}/blob|raw\.githubusercontent\.com{name})/main/"
    links = re.findall(r"\]\(([^)]+)\)", readme)
    files = [re.sub(repository, "", link) for link in links if re.match(repository, link)]
    assert len(files) > 20
    assert [file for file in files if not (ROOT / file).exists()] == []
    assert [link for link in links if not link.startswith("https://")] == []


# --- figures ---------------------------------------------------------------------------------------------------------


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_about_geometry_says_what_its_figure_shows(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the figure is drawn with matplotlib, which is not installed")
    figure = script("draw_geometry")
    figure.main(tmp_path / "geometry.png")
    assert (tmp_path / "geometry.png").stat().st_size > 10_000
    outside = figure.taps_along_x("area")[1]
    mass = float(figure.masses()[:, *figure.CHOSEN].sum())
    page = " ".join((DOCS / "geometry.md").read_text("utf-8").split())
    assert f"{outside:.0%} of the chosen pixel's weight along x lies outside" in page
    assert f"its masses sum to {mass:.2f}" in page
    # It is 2.8 columns wide, of which 1.7 lie beyond column 10, and 2.4 rows high, of which 1.1 are not ignored.
    assert outside == pytest.approx(1.7 / 2.8)
    assert mass == pytest.approx((1.1 / 2.8) * (1.1 / 2.4))


# --- names and arguments ---------------------------------------------------------------------------------------------


def public_names(module: ModuleType) -> list[str]:
    """``__all__``, or where there is none what a module defines and does not hide."""
    defined = getattr(module, "__all__", None) or [
        name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__
    ]
    return [name for name in defined if not name.startswith("_") or name == "__version__"]


def imported(name: str) -> ModuleType:
    package = {"augmentation": "kornia", "metrics": "torchmetrics"}.get(name.rpartition(".")[2])
    if package:
        pytest.importorskip(package, reason=f"{name} needs {package}, which is not installed")
    return importlib.import_module(name)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_stands_in_the_reference(name: str) -> None:
    module = imported(name)
    # Of the room for memory, users have two functions; the rest is for our own operators.
    names = ["set_pool_limit", "empty_pool"] if name == "tritonsoft.memory" else public_names(module)
    assert names
    missing = [
        public
        for public in names
        if not isinstance(getattr(module, public), ModuleType)
        and not re.search(rf"^\.\. auto\w+:: {re.escape(name)}\.{public}$", REFERENCE, re.MULTILINE)
    ]
    assert missing == []


def described(documentation: str) -> set[str]:
    """The names that a docstring's "Args:" or "Attributes:" gives a line."""
    names: set[str] = set()
    for section in re.findall(r"^(?:Args|Attributes):\n((?:[ ]+.*\n|\n)+)", documentation + "\n", re.MULTILINE):
        for line in re.findall(r"^ {4}(\*?\w+(?:, \*?\w+)*):", section, re.MULTILINE):
            names.update(name.strip("* ") for name in line.split(","))
    return names


def documented_calls(module: ModuleType) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The public functions and classes of a module, and the methods that the reference shows."""
    for name in public_names(module):
        value = getattr(module, name)
        if isinstance(value, ModuleType) or not callable(value):
            continue
        if isinstance(value, type) and issubclass(value, Exception):
            continue
        yield f"{module.__name__}.{name}", value


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_docstring_states_its_own_arguments(name: str) -> None:
    module = imported(name)
    missing = {}
    for call, value in documented_calls(module):
        if name == "tritonsoft.memory" and not REFERENCE.count(f":: {call}\n"):
            continue
        if call == "tritonsoft.augmentation.SoftLabel":
            continue  # a tensor, which nobody constructs with arguments
        parameters = {
            parameter.name
            for parameter in inspect.signature(value).parameters.values()
            if parameter.kind is not parameter.VAR_KEYWORD
        }
        if left_out := parameters - described(inspect.getdoc(value) or ""):
            missing[call] = sorted(left_out)
    assert missing == {}


@pytest.mark.parametrize("name", PUBLIC)
def test_no_argument_is_described_elsewhere_alone(name: str) -> None:
    """A hover in an editor shows one docstring: "see there" helps nobody."""
    elsewhere = re.compile(r":\s+(?:see|as in|as for) [`\w. ']+[.;]?$", re.MULTILINE)
    found = {call: elsewhere.findall(inspect.getdoc(value) or "") for call, value in documented_calls(imported(name))}
    assert {call: lines for call, lines in found.items() if lines} == {}
