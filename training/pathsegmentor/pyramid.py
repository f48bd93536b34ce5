"""From pixels to the decoder's scales and mask features: convolutional encoder and the two kinds of feature pyramid.

The pyramid with nearest steps, group norm and ReLU, after a transformer on the coarsest map, is Mask2Former's (arXiv
2112.01527, its configuration without deformable attention), which BiomedParse and PathSegmentor inherit.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.nn.attention import sine_positions
from training.pathsegmentor.attention import EncoderLayer
from training.pathsegmentor.recipe import ConvEncoder, Stages, TransformerSettings

_GROUPS = 8


class ConvUnit(nn.Module):
    """Convolution, group norm, GELU; a residual sum where neither size nor width changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        # A stem of stride 4 sees every pixel only with a kernel of 7.
        self.conv = nn.Conv2d(inputs, outputs, 2 * stride - 1 if stride > 2 else 3, stride, stride - 1 or 1, bias=False)
        self.norm = nn.GroupNorm(_GROUPS, outputs)
        self._residual = stride == 1 and inputs == outputs

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y = F.gelu(self.norm(self.conv(x_BCHW)))
        return x_BCHW + y if self._residual else y


class ConvPyramid(nn.Module):
    """Images (B,3,H,W), already normalised, to four maps, fine to coarse."""

    def __init__(self, settings: ConvEncoder) -> None:
        super().__init__()
        self.widths = settings.widths
        stem = settings.stem
        self.strides: Stages = (stem, 2 * stem, 4 * stem, 8 * stem)
        inputs, stages = 3, []
        for stage, (width, convs) in enumerate(zip(settings.widths, settings.convs, strict=True)):
            first = ConvUnit(inputs, width, 2 if stage else stem)
            stages.append(nn.Sequential(first, *(ConvUnit(width, width) for _ in range(convs - 1))))
            inputs = width
        self.stages = nn.ModuleList(stages)

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x_BCHW = stage(x_BCHW)
            maps.append(x_BCHW)
        return maps


class BilinearPyramid(nn.Module):
    """Four maps to the three coarsest scales, coarse to fine, and to mask features at the finest map's stride."""

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(inputs, width, 1) for inputs in widths)
        self.smooth = ConvUnit(width, width)
        self.norm = nn.GroupNorm(_GROUPS, width)
        self.mask = nn.Conv2d(width, width, 1)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        coarse = self.lateral[3](maps[3])
        middle = self.lateral[2](maps[2]) + _twice(coarse)
        fine = self.smooth(self.lateral[1](maps[1]) + _twice(middle))
        return [coarse, middle, fine], self.mask(F.gelu(self.norm(self.lateral[0](maps[0]) + _twice(fine))))


class Mask2FormerPyramid(nn.Module):
    """The same maps from a transformer on the coarsest one, and 3×3 convolutions on the way up."""

    def __init__(self, widths: Sequence[int], width: int, transformer: TransformerSettings) -> None:
        super().__init__()
        self.project = nn.Conv2d(widths[-1], width, 1)
        self.layers = nn.ModuleList(
            EncoderLayer(width, transformer.heads, transformer.ffn, pre=False) for _ in range(transformer.layers)
        )
        self.lateral = nn.ModuleList(_normed(nn.Conv2d(inputs, width, 1, bias=False)) for inputs in widths[:-1])
        self.output = nn.ModuleList(
            nn.Sequential(_normed(nn.Conv2d(width, width, 3, padding=1, bias=False)), nn.ReLU()) for _ in widths
        )
        self.mask = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        x = self.project(maps[-1])
        height, width = x.shape[-2:]
        positions = sine_positions(height, width, x.shape[1], x.device)
        tokens = x.flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens = layer(tokens, None, positions)
        x = self.output[3](tokens.transpose(1, 2).unflatten(2, (height, width)))
        scales = [x]
        for level in (2, 1, 0):
            x = self.output[level](self.lateral[level](maps[level]) + F.interpolate(x, scale_factor=2.0))
            scales.append(x)
        return scales[:3], self.mask(x)


def to_image(image_NHWC: np.ndarray, device: torch.device) -> Tensor:
    """(N,3,H,W) float, 0-255, of crops (N,H,W,3) uint8."""
    return torch.from_numpy(image_NHWC).to(device).permute(0, 3, 1, 2).float()


def _twice(x_BCHW: Tensor) -> Tensor:
    return F.interpolate(x_BCHW, scale_factor=2.0, mode="bilinear", align_corners=False)


def _normed(conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(conv, nn.GroupNorm(32, conv.out_channels))
