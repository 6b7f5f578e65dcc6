"""What the extras bring, and the words that say how to install it: messages that miss a package use these alone."""

from typing import Final, Literal

Extra = Literal["cpu", "kornia", "metrics", "data", "demo", "ray"]

_DATA: Final = ("pillow>=10", "safetensors>=0.5", "typer>=0.19", "rich>=14.3")

# As pyproject.toml has them, which a test compares. The packages are named instead of the extra, since that can be
# typed anywhere: no index has tritonsoft, and who installed its wheel has no checkout to name.
REQUIREMENTS: Final[dict[Extra, tuple[str, ...]]] = {
    "cpu": ("numba>=0.61,<0.69",),
    "kornia": ("kornia>=0.9,<0.10",),
    "metrics": ("torchmetrics>=1.4",),
    "data": _DATA,
    "demo": (*_DATA, "matplotlib>=3.9"),
    "ray": (*_DATA, "ray[data]>=2.51"),
}


def how_to_install(extra: Extra) -> str:
    """The command that installs all packages of an extra, to be typed as it is.

    Example:
        >>> how_to_install("cpu")
        "pip install 'numba>=0.61,<0.69'"
    """
    return f"pip install {' '.join(repr(requirement) for requirement in REQUIREMENTS[extra])}"
