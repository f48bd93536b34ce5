"""EfficientNet-Lite0 as a tile encoder: pixels to one vector, pooled at three depths."""

import torch
from torch import Tensor, nn

from training.nn.efficientnet_lite import TAPS, WIDTH, EfficientNetLite0

EMBEDDING = WIDTH + 2 * sum(TAPS.values())
"""1584: the last map's means, then means and deviations of the two middle maps."""
MEAN, SCALE = 127.0, 128.0
"""EfficientNet-Lite's own scaling, (rgb - 127) / 128; not the usual ImageNet mean and deviation."""


class TileEncoder(nn.Module):
    """image (B,224,224,3) uint8 RGB to embedding (B,1584) fp32: EfficientNet-Lite0, pooled at three depths.

    The last map says what is there; the deviations of the middle maps say how even the texture is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNetLite0()

    def forward(self, image_BHWC: Tensor) -> Tensor:
        last_BCHW, *middle = self._maps(image_BHWC)
        pooled = [last_BCHW.mean(dim=(2, 3))]
        for map_BCHW in middle:
            mean_BC = map_BCHW.mean(dim=(2, 3))
            gap_BCHW = map_BCHW - mean_BC[:, :, None, None]
            pooled += [mean_BC, ((gap_BCHW * gap_BCHW).mean(dim=(2, 3)) + 1e-6).sqrt()]
        return torch.cat(pooled, dim=1)

    def dense(self, image_BHWC: Tensor) -> Tensor:
        """The last feature map, (B,h,w,1280)."""
        return self._maps(image_BHWC)[0].permute(0, 2, 3, 1)

    def _maps(self, image_BHWC: Tensor) -> list[Tensor]:
        return self.network((image_BHWC.to(torch.float32).permute(0, 3, 1, 2) - MEAN) / SCALE)
