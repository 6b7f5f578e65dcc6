"""Data sets in folders: pictures and label files as people have them, found, paired and read into classes.

Pillow, of the extra ``data``, reads the pictures; it is imported when the first is read. `tritonsoft` itself does not
import this module.
"""

from tritonsoft.data.errors import ClusterError, DataError, OutputError, UnknownLabelError
from tritonsoft.data.label_files import LabelFormat, label_format
from tritonsoft.data.manifest import Manifest, Sample, ShrinkSettings
from tritonsoft.data.pairing import Pair, find_files, pair_files
from tritonsoft.data.pictures import read_image, read_pair
from tritonsoft.data.saving import atomic_write
from tritonsoft.data.shrinking import ShrinkEstimate, ShrinkResult, estimate_shrinking, shrink_dataset
from tritonsoft.data.shrunk_dataset import ShrunkDataset
from tritonsoft.data.shrunk_sample import shrink_settings

__all__ = [
    "ClusterError",
    "DataError",
    "LabelFormat",
    "Manifest",
    "OutputError",
    "Pair",
    "Sample",
    "ShrinkEstimate",
    "ShrinkResult",
    "ShrinkSettings",
    "ShrunkDataset",
    "UnknownLabelError",
    "atomic_write",
    "estimate_shrinking",
    "find_files",
    "label_format",
    "pair_files",
    "read_image",
    "read_pair",
    "shrink_dataset",
    "shrink_settings",
]
