"""What a shrunk data set says of itself: ``manifest.json``, described in ``docs/shrunk_datasets.md``."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from tritonsoft.data.errors import DataError
from tritonsoft.data.saving import atomic_write
from tritonsoft.data.shrunk_labels import MASSES, Masses
from tritonsoft.geometry import FILTERS, Filter
from tritonsoft.version import __version__

MANIFEST: Final = "manifest.json"
FORMAT: Final = "tritonsoft shrunk data set"
VERSION: Final = 1  # of the format: what another version wrote is refused

ImageFormat = Literal["png", "jpeg", "webp"]
SUFFIXES: Final[dict[ImageFormat, str]] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


@dataclasses.dataclass(frozen=True)
class ShrinkSettings:
    """All that decides which bytes a pair of files becomes.

    Attributes:
        num_classes, ignore_index, class_names, ids, colours: those of the `LabelFormat`, the tables as sorted pairs.
        factor: each side becomes ``max(1, round(side / factor))``; None where ``size`` is given.
        size: ``(h, w)`` of all samples, or None.
        filter: of image and labels.
        top_k: how many classes a pixel keeps.
        masses: ``"uint8"`` or ``"float16"``.
        image_format: ``"png"``, ``"jpeg"`` or ``"webp"``.
        quality: of JPEG and WebP, 1 to 100; None for PNG.
    """

    num_classes: int
    ignore_index: int
    class_names: tuple[str, ...]
    ids: tuple[tuple[int, int], ...]
    colours: tuple[tuple[tuple[int, int, int], int], ...]
    factor: float | None
    size: tuple[int, int] | None
    filter: Filter
    top_k: int
    masses: Masses
    image_format: ImageFormat
    quality: int | None

    @functools.cached_property
    def digest(self) -> str:
        """Names these settings in a labels file: equal where all of them are, and the format's version too."""
        text = json.dumps([VERSION, dataclasses.asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """The size ``(h, w)`` of the sample of a source of this ``height`` and ``width``."""
        if self.size is not None:
            return self.size
        assert self.factor is not None
        return max(1, round(height / self.factor)), max(1, round(width / self.factor))

    def differences(self, other: "ShrinkSettings") -> list[str]:
        """What is different in ``other``, as ``"factor 4.0 there, 2.0 here"``; of tables and names their names."""
        found = []
        for field in dataclasses.fields(self):
            here, there = getattr(self, field.name), getattr(other, field.name)
            if here != there:
                long = field.name in ("class_names", "ids", "colours")
                found.append(f"{field.name}" if long else f"{field.name} {there} there, {here} here")
        return found


@dataclasses.dataclass(frozen=True)
class Sample:
    """One picture of a shrunk data set.

    Attributes:
        name: what image and labels share.
        image, labels: its files, relative to the data set's folder.
        size: ``(h, w)``.
        source_size: ``(H, W)``; the sample is of the whole source, the box ``(0, 0, W, H)``.
        source_image, source_labels: the files that it was made of.
        image_sha256, labels_sha256: of these files, hexadecimal.
    """

    name: str
    image: str
    labels: str
    size: tuple[int, int]
    source_size: tuple[int, int]
    source_image: str
    source_labels: str
    image_sha256: str
    labels_sha256: str


def check_choices(filter: object, masses: object, image_format: object) -> None:
    """ValueError, naming the argument, where one is none of those there are."""
    for name, value, known in (
        ("filter", filter, FILTERS),
        ("masses", masses, MASSES),
        ("image_format", image_format, tuple(SUFFIXES)),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def image_file(name: str, settings: ShrinkSettings) -> str:
    """Of a sample, relative to the folder."""
    return f"images/{name}{SUFFIXES[settings.image_format]}"


def labels_file(name: str) -> str:
    """Of a sample, relative to the folder."""
    return f"labels/{name}.safetensors"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The contents of ``manifest.json``.

    Attributes:
        settings: with which all samples were made.
        names: of the samples that are to be; those that are done are among them.
        samples: of a finished data set, all; else empty.
        finished: whether all pictures were done, or skipped because a file of theirs cannot be used.
        skipped: what is wrong with files that were skipped.
        versions: of what made it.
    """

    settings: ShrinkSettings
    names: tuple[str, ...]
    samples: tuple[Sample, ...] = ()
    finished: bool = False
    skipped: tuple[str, ...] = ()
    versions: Mapping[str, str] = dataclasses.field(default_factory=lambda: versions_here())

    def write(self, folder: Path) -> None:
        """Write it to ``folder``, whole or not at all."""
        content: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "state": "finished" if self.finished else "unfinished",
            "settings": {**dataclasses.asdict(self.settings), "digest": self.settings.digest},
            "versions": dict(self.versions),
            "skipped": self.skipped,
        }
        content |= (
            {"samples": [dataclasses.asdict(s) for s in self.samples]} if self.finished else {"names": self.names}
        )
        with atomic_write(folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", "utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read that of ``folder``.

        Raises:
            DataError: there is none, it is none, or it is of another version.
        """
        file = folder / MANIFEST
        try:
            content = json.loads(file.read_text("utf-8"))
        except FileNotFoundError:
            raise DataError(f"{folder}: is no shrunk data set: there is no {MANIFEST} in it") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: cannot be read ({error})") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise DataError(f"{file}: is no manifest of a {FORMAT}")
        if content.get("version") != VERSION:
            raise DataError(
                f"{file}: of version {content.get('version')} of the format, and this tritonsoft ({__version__}) reads "
                f"version {VERSION}: shrink the data set again, or install the tritonsoft that wrote it "
                f"({content.get('versions', {}).get('tritonsoft', 'unknown')})"
            )
        try:
            settings = _settings(content["settings"])
            samples = tuple(_sample(fields) for fields in content.get("samples", ()))
            names = tuple(content.get("names", [sample.name for sample in samples]))
            _check_inside(names, samples)
            finished = {"finished": True, "unfinished": False}[content["state"]]
            return cls(settings, names, samples, finished, tuple(content["skipped"]), content["versions"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{file}: is broken ({type(error).__name__}: {error})") from None


def _settings(fields: dict[str, Any]) -> ShrinkSettings:
    values = {field.name: fields[field.name] for field in dataclasses.fields(ShrinkSettings)}
    values["class_names"] = tuple(values["class_names"])
    values["ids"] = tuple((id, value) for id, value in values["ids"])
    values["colours"] = tuple(((r, g, b), value) for (r, g, b), value in values["colours"])
    values["size"] = None if values["size"] is None else _pair(values["size"])
    settings = ShrinkSettings(**values)
    check_choices(settings.filter, settings.masses, settings.image_format)
    if fields["digest"] != settings.digest:
        raise ValueError("the settings are not those of the labels files")
    return settings


def _sample(fields: dict[str, Any]) -> Sample:
    return Sample(**{**fields, "size": _pair(fields["size"]), "source_size": _pair(fields["source_size"])})


def _check_inside(names: Sequence[str], samples: Sequence[Sample]) -> None:
    """ValueError where files would lie outside the folder: those of names are deleted, those of samples read."""
    # A name with a slash in front is still one inside: it comes behind "images/".
    for path in (*(f"./{name}" for name in names), *(file for each in samples for file in (each.image, each.labels))):
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"{path} leads out of the folder")
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"a name must be a string, got {name!r}")


def _pair(values: Sequence[int]) -> tuple[int, int]:
    height, width = values
    return int(height), int(width)


def versions_here() -> dict[str, str]:
    """What decides the bytes beside settings and sources."""
    distributions = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "pillow", "safetensors")}
    return {"tritonsoft": __version__, **distributions, "python": platform.python_version()}
