"""What a detector sees with: maps of an image at several strides.

Smart-CCS (arXiv 2502.09662) takes ResNet-50; the small residual network with group norm (arXiv 1803.08494), which needs
no large batch, is ours.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from training.nn.checkpoints import load_state, read_weights
from training.nn.resnet import ResNet50Maps
from training.nn.resnet import initialise as initialise_resnet
from training.runs import runs_folder
from training.smartccs.recipe import Backbone, ConvBackbone, ResNetBackbone

_GROUPS = 8


class ResidualStage(nn.Module):
    """Half the size: two 3×3 convolutions with group norm beside a 1×1 one."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 2, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.GroupNorm(_GROUPS, outputs), nn.GroupNorm(_GROUPS, outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, 2, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x_BCHW)))
        return F.relu(self.norm2(self.conv2(y)) + self.skip(x_BCHW))


class ConvMaps(nn.Module):
    """(B,3,H,W) normalised to the maps of the last `levels` stages, fine to coarse."""

    def __init__(self, settings: ConvBackbone) -> None:
        super().__init__()
        self.widths = settings.widths[-settings.levels :]
        self.stages = nn.ModuleList(
            ResidualStage(inputs, outputs)
            for inputs, outputs in zip((3, *settings.widths), settings.widths, strict=False)
        )

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x_BCHW = stage(x_BCHW)
            maps.append(x_BCHW)
        return maps[-len(self.widths) :]


class FrozenResNet50Maps(ResNet50Maps):
    """With ImageNet weights, whose batch norms stay as they are: batches are too small to measure them anew."""

    def __init__(self) -> None:
        super().__init__()
        self.train()

    def train(self, mode: bool = True) -> "FrozenResNet50Maps":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval().requires_grad_(False)
        return self


def backbone_of(settings: Backbone) -> ConvMaps | ResNet50Maps:
    """Without weights."""
    if isinstance(settings, ConvBackbone):
        return ConvMaps(settings)
    return ResNet50Maps() if settings.weights_file is None else FrozenResNet50Maps()


def begin(network: ConvMaps | ResNet50Maps, settings: Backbone) -> None:
    """Fresh weights from torch's own stream, or those of the file that the recipe names. Raises WeightsInvalid."""
    if isinstance(network, ConvMaps):
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(settings, ResNetBackbone) and settings.weights_file is not None:
        path = runs_folder() / settings.weights_file
        tensors = {key: value for key, value in read_weights(path).items() if not key.startswith("fc.")}
        load_state(network, tensors, path.name)
    else:
        initialise_resnet(network)
