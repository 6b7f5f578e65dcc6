"""How Sphinx builds these pages: ``make docs``."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

from tritonsoft.version import __version__

DOCS = Path(__file__).parent
ROOT = DOCS.parent
URLS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"].get("urls", {})

project = "tritonsoft"
author = copyright = "the tritonsoft authors"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "reference/_*.md", "gallery/*.py", "gallery/*.ipynb", "sg_execution_times.rst"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["config.cache"]  # the settings of the gallery hold functions

html_theme = "furo"
html_title = f"tritonsoft {__version__}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_theme_options: dict[str, Any] = {"navigation_with_keys": True}
if "Repository" in URLS:
    html_theme_options |= {
        "source_repository": URLS["Repository"],
        "source_branch": "main",
        "source_directory": "docs/",
    }
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Docstrings are Google's style; a name in single backquotes is a link where it has an entry here.
default_role = "py:obj"
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_rtype = False
napoleon_custom_sections = [("Shape", "notes_style")]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # types stand in the text, with their shapes and units
python_maximum_signature_line_length = 120
toc_object_entries_show_parents = "hide"

# What other libraries define has no page here, and no network is asked for theirs.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|nn|torchmetrics|kornia|collections|pathlib|os)(\..*)?"),
    ("py:obj", r"Multiclass\w+|DataKey|transform_matrix|tritonsoft|tv_tensors|MetaTensor"),
    ("py:obj", r"Random(CutMixV2|MixUpV2|Transplantation)"),
]


class GalleryOrder:
    """The order in which the gallery tells its story."""

    SCRIPTS = ("street_scene_by_factors", "thin_classes", "one_resample", "audit_of_a_data_set", "learning_curve")

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, file: str) -> int:
        return self.SCRIPTS.index(Path(file).stem)


sphinx_gallery_conf = {
    "examples_dirs": "../examples/gallery",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "image_scrapers": ("matplotlib",),
    "matplotlib_animations": False,
    "remove_config_comments": True,
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 3600,
    "abort_on_example_error": True,
    "within_subsection_order": GalleryOrder,
    "thumbnail_size": (400, 280),
}


def write_command_help(app: Sphinx, config: Any) -> None:
    """The command's options, as Typer itself writes them."""
    page = DOCS / "reference" / "_command.md"
    command = [sys.executable, "-m", "typer", "tritonsoft.cli.app", "utils", "docs", "--name", "tritonsoft"]
    environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1", "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    text = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    lines = [line for line in text.splitlines() if line != "# `tritonsoft`"]
    text = "\n".join(lines) + "\n"
    if not page.exists() or page.read_text("utf-8") != text:
        page.write_text(text, "utf-8")


# What pages include has a page of its own here; all else beside docs/ is to be read in the repository.
PAGES_OF = {"CHANGELOG.md": "changelog.md", "examples/RESULTS.md": "evidence.md"}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")


def with_links(text: str, file: Path) -> str:
    """Markdown of ``file`` whose links lead to pages here, or for files of the checkout to the repository."""

    def replaced(link: re.Match[str]) -> str:
        label, path, anchor = link[1], (file.parent / link[2]).resolve(), link[3] or ""
        if path.is_relative_to(DOCS) and file.is_relative_to(DOCS):
            return link[0]
        if path.is_relative_to(DOCS):
            return f"[{label}](/{path.relative_to(DOCS)}{anchor})"
        inside = path.relative_to(ROOT).as_posix()
        if not path.exists():
            raise ValueError(f"{file.relative_to(ROOT)} leads to {inside}, which is not there")
        if inside in PAGES_OF:
            return f"[{label}](/{PAGES_OF[inside]}{anchor})"
        if "Repository" not in URLS:
            return label if "`" in label or inside.endswith(label) else f"{label} (`{inside}`)"
        return f"[{label}]({URLS['Repository']}/{'tree' if path.is_dir() else 'blob'}/main/{inside}{anchor})"

    return LINK.sub(replaced, text)


def rewrite_page(app: Sphinx, name: str, source: list[str]) -> None:
    file = Path(app.env.doc2path(name))
    if file.suffix == ".md":
        source[0] = with_links(source[0], file)


def rewrite_included(app: Sphinx, path: Path, parent: str, content: list[str]) -> None:
    if path.suffix == ".md":
        content[0] = with_links(content[0], (DOCS / path).resolve())


def resolve_in_package(app: Sphinx, env: Any, node: addnodes.pending_xref, text: nodes.TextElement) -> Any:
    """A module's docstring names what the package exports as its reader would: without the package."""
    if node.get("refdomain") != "py" or "." in node["reftarget"]:
        return None
    domain = env.get_domain("py")
    full = f"tritonsoft.{node['reftarget']}"
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", full, node, text)


def setup(app: Sphinx) -> None:
    app.connect("config-inited", write_command_help)
    app.connect("source-read", rewrite_page)
    app.connect("include-read", rewrite_included)
    app.connect("missing-reference", resolve_in_package)
