"""The served graphs: tile encoder (pixels to embedding) and tissue head (embedding to logits)."""

import torch
from torch import Tensor, nn

from training.nn.efficientnet_lite import EMBEDDING, EfficientNetLite0

MEAN, SCALE = 127.0, 128.0
"""EfficientNet-Lite's own scaling, (rgb - 127) / 128; not the usual ImageNet mean and deviation."""


class TileEncoder(nn.Module):
    """image (B,224,224,3) uint8 RGB to embedding (B,1280) fp32: EfficientNet-Lite0, mean over the feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNetLite0()

    def forward(self, image_BHWC: Tensor) -> Tensor:
        x_BCHW = (image_BHWC.to(torch.float32).permute(0, 3, 1, 2) - MEAN) / SCALE
        return self.network(x_BCHW).mean(dim=(2, 3))


class TissueHead(nn.Module):
    """embedding (B,1280) fp32 to logits (B,classes) fp32.

    Standardisation and temperature are folded into the one linear layer: softmax(logits) is the calibrated
    probability.
    """

    def __init__(self, classes: int, embedding: int = EMBEDDING) -> None:
        super().__init__()
        self.linear = nn.Linear(embedding, classes)

    def forward(self, embedding_BD: Tensor) -> Tensor:
        return self.linear(embedding_BD)
