"""Samples of a data set that `tritonsoft.data.shrink_dataset` has made."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tritonsoft.data.errors import DataError
from tritonsoft.data.manifest import MANIFEST, Manifest, Sample, ShrinkSettings
from tritonsoft.data.shrunk_labels import decode, from_file
from tritonsoft.functional import names_of
from tritonsoft.sparse import MASS_DTYPES, SparseLabels

LABELS: Final = ("sparse", "dense")


class ShrunkDataset(Dataset[Any]):
    """A map-style data set of images ``(3, h, w)`` uint8 and their soft labels, without a batch axis.

    The soft label is a `SparseLabels`, or with ``labels="dense"`` a tensor ``(C, h, w)``;
    `torch.utils.data.default_collate` makes batches of either where sizes are equal. Labels files are memory-mapped
    while they are read, and nothing stays open: data sets are forked, spawned and pickled as they are.

    Args:
        folder: what `shrink_dataset` or ``tritonsoft shrink`` has made.
        transform: gets image and labels of a sample; what it returns is the sample.
        split: only samples whose names begin with this folder, such as ``"train"``; None: all.
        labels: ``"sparse"`` or ``"dense"``.
        dtype: of the masses: float32 holds them as they are stored, float16 and bfloat16 round those in one byte.

    Attributes:
        folder: where it is.
        samples: what its manifest says of each sample: names, sizes, files, sources and their checksums.
        settings: what all were made with.
        skipped: what was wrong with files that are not in it.

    Raises:
        DataError: the folder holds no shrunk data set, one of another version, an unfinished one, or no sample (of this
            split). Reading a sample: a file of it is missing, broken, or of another data set; the message names it.
        TypeError, ValueError: another argument, which is named.

    Example:
        >>> train = ShrunkDataset("cityscapes-4", split="train")  # doctest: +SKIP
        >>> image, labels = train[0]  # doctest: +SKIP
        >>> image.shape, labels  # doctest: +SKIP
        (torch.Size([3, 256, 512]), SparseLabels(shape=(19, 256, 512), k=4, dtype=torch.float32, device='cpu'))
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        transform: Callable[[Tensor, SparseLabels | Tensor], Any] | None = None,
        *,
        split: str | None = None,
        labels: Literal["sparse", "dense"] = "sparse",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if labels not in LABELS:
            raise ValueError(f"labels must be one of {', '.join(LABELS)}, got {labels!r}")
        if dtype not in MASS_DTYPES:
            raise TypeError(f"dtype must be {names_of(MASS_DTYPES)}, got {dtype}")
        if transform is not None and not callable(transform):
            raise TypeError(f"transform must be callable or None, got {type(transform).__name__}")
        self.folder = Path(folder)
        manifest = Manifest.read(self.folder)
        if not manifest.finished:
            raise DataError(f"{self.folder}: is unfinished: run the command that shrinks it again, with --resume")
        self.samples: tuple[Sample, ...] = manifest.samples
        if split is not None:
            self.samples = tuple(sample for sample in manifest.samples if sample.name.startswith(f"{split}/"))
        if not self.samples:
            what = "no sample" if split is None else f"no sample whose name begins with {split}/"
            raise DataError(f"{self.folder / MANIFEST}: holds {what}")
        self.settings: ShrinkSettings = manifest.settings
        self.skipped: tuple[str, ...] = manifest.skipped
        self.transform, self.labels, self.dtype = transform, labels, dtype
        self._digest = self.settings.digest

    @property
    def num_classes(self) -> int:
        """C."""
        return self.settings.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """C names."""
        return self.settings.class_names

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the samples, in their order."""
        return tuple(sample.name for sample in self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        image, labels = self._image(self._sample(index)), self.read_labels(index)
        soft = labels if self.labels == "sparse" else labels.to_dense()
        return (image, soft) if self.transform is None else self.transform(image, soft)

    def read_labels(self, index: int) -> SparseLabels:
        """The labels of the sample number ``index`` without its image, as for counting classes."""
        sample = self._sample(index)
        file = self.folder / sample.labels
        pixels, metadata = from_file(file)
        if f'"settings": "{self._digest}"' not in metadata:
            raise DataError(f"{file}: was shrunk with other settings than {self.folder / MANIFEST} says")
        settings = self.settings
        try:
            return decode(pixels, sample.size, settings.top_k, settings.num_classes, settings.masses, self.dtype)
        except ValueError as error:
            raise DataError(f"{file}: is broken: {error}") from None

    def _sample(self, index: int) -> Sample:
        if isinstance(index, slice):
            raise TypeError(f"index must be an int, got {index}; torch.utils.data.Subset holds some of the samples")
        return self.samples[index]

    def _image(self, sample: Sample) -> Tensor:
        from PIL import Image

        file = self.folder / sample.image
        try:
            # At once, and without what `read_image` does for pictures from elsewhere: a third of small ones' time.
            with Image.open(io.BytesIO(file.read_bytes()), formats=[self.settings.image_format]) as picture:
                pixels = np.array(picture)
        except FileNotFoundError:
            raise DataError(f"{file}: is missing") from None
        except Exception as error:  # of a broken file Pillow's decoders may raise anything
            raise DataError(f"{file}: cannot be read ({error})") from None
        if pixels.shape != (*sample.size, 3):
            raise DataError(f"{file}: has shape {pixels.shape}, where {MANIFEST} says {(*sample.size, 3)}")
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def __repr__(self) -> str:
        return f"ShrunkDataset({str(self.folder)!r}, {len(self)} samples, {self.num_classes} classes)"
