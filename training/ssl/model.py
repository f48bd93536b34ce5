"""The backbones that self-distillation trains: a ViT, or EfficientNet-Lite0, both giving tokens."""

import torch
from torch import Tensor

from training.nn.efficientnet_lite import WIDTH, EfficientNetLite0
from training.nn.efficientnet_lite import initialise as initialise_lite0
from training.nn.pretrained import load_lite0
from training.nn.tile_encoder import MEAN, SCALE
from training.nn.vit import Tokens, ViT, ViTConfig
from training.nn.vit import initialise as initialise_vit
from training.runs import Pretraining
from training.ssl.recipe import CnnNetwork, Network, ViTNetwork

Scale = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and deviation of the channels in units of 0–255."""
IMAGENET: Scale = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
LITE: Scale = ((MEAN, MEAN, MEAN), (SCALE, SCALE, SCALE))
_BN_MOMENTUM = 0.1


class ViTBackbone(ViT):
    scale = IMAGENET

    @property
    def depth(self) -> int:
        return self.config.depth

    def grid(self, side_px: int) -> int:
        return side_px // self.config.patch_px


class CnnBackbone(EfficientNetLite0):
    """The class token is the last feature map's mean, the patch tokens are its cells; nothing can be masked."""

    scale = LITE
    width = WIDTH

    def __init__(self) -> None:
        super().__init__()
        for module in self.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = _BN_MOMENTUM  # the published 0.01 is for runs of many thousand steps

    @property
    def depth(self) -> int:
        return len(self._blocks)

    def grid(self, side_px: int) -> int:
        return -(-side_px // 32)

    def forward(self, x_BCHW: Tensor, mask_BN: Tensor | None = None) -> Tokens:
        cells_BND = super().forward(x_BCHW)[0].flatten(2).transpose(1, 2)
        return Tokens(cells_BND.mean(1), cells_BND[:, :0], cells_BND, cells_BND)


Backbone = ViTBackbone | CnnBackbone
"""Images (B,3,H,W), scaled by `scale`, and masked patches (B,N) or None, to `Tokens`; `grid(side_px)`: rows of patch
tokens that an image of this side has; `depth`: number of blocks."""


def new_backbone(network: Network, *, masked: bool) -> Backbone:
    """A backbone whose weights are still to come. `masked`: whether patches can be masked."""
    if isinstance(network, ViTNetwork):
        return ViTBackbone(ViTConfig(mask_token=masked, **network.model_dump(exclude={"arch"})))
    return CnnBackbone()


def begin(backbone: Backbone, network: Network, generator: torch.Generator) -> tuple[Pretraining, ...]:
    """Give a backbone its first weights, and say what they came from. Raises DataMissing, WeightsInvalid."""
    if isinstance(backbone, ViTBackbone):
        initialise_vit(backbone, generator)
    elif isinstance(network, CnnNetwork) and network.start != "random":
        return (load_lite0(backbone),)
    else:
        initialise_lite0(backbone, generator)
    return ()


def normalise(images_BHWC: Tensor, scale: Scale) -> Tensor:
    """(B,H,W,3) uint8 RGB to (B,3,H,W) float32."""
    mean, deviation = (torch.tensor(values, device=images_BHWC.device)[:, None, None] for values in scale)
    return (images_BHWC.permute(0, 3, 1, 2).to(torch.float32) - mean) / deviation
