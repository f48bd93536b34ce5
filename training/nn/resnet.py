"""ResNet-50: up to its third stage, as whole-slide tools use it for tiles, and its maps, as detectors use them.

He et al., arXiv 1512.03385, with the stride in the 3×3 convolution (torchvision's form). Parameter names are
torchvision's, so its ImageNet weights load by name once the classifier, and the fourth stage if need be, is left out.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 1024


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, middle: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * middle
        self.conv1, self.bn1 = nn.Conv2d(inputs, middle, 1, bias=False), nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3, self.bn3 = nn.Conv2d(middle, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x_BCHW)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x_BCHW))


class ResNet50Stage3(nn.Module):
    """(B,3,H,W) normalised to the third stage's map (B,1024,H/16,W/16); 8,543,296 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, 3, 1)
        self.layer2 = _stage(256, 128, 4, 2)
        self.layer3 = _stage(512, 256, 6, 2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y = F.max_pool2d(F.relu(self.bn1(self.conv1(x_BCHW))), 3, 2, padding=1)
        return self.layer3(self.layer2(self.layer1(y)))


class ResNet50Maps(ResNet50Stage3):
    """(B,3,H,W) normalised to the maps of the second, third and fourth stage, of strides 8, 16 and 32; 23,508,032
    parameters."""

    widths = (512, 1024, 2048)

    def __init__(self) -> None:
        super().__init__()
        self.layer4 = _stage(1024, 512, 3, 2)

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        y = F.max_pool2d(F.relu(self.bn1(self.conv1(x_BCHW))), 3, 2, padding=1)
        maps = [self.layer2(self.layer1(y))]
        for stage in (self.layer3, self.layer4):
            maps.append(stage(maps[-1]))
        return maps


def _stage(inputs: int, middle: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (Bottleneck(4 * middle, middle, 1) for _ in range(blocks - 1))
    return nn.Sequential(Bottleneck(inputs, middle, stride), *rest)


def initialise(network: ResNet50Stage3, generator: torch.Generator | None = None) -> None:
    """Fresh weights: normal with the fan-out variance (He et al., arXiv 1502.01852), batch norms at identity. Without a
    generator from torch's own stream."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
            module.reset_running_stats()
