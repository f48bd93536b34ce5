"""What a detector sees with: maps of an image at several strides.

Smart-CCS (arXiv 2502.09662) takes ResNet-50. Ours are EfficientNet-Lite0, and a small residual network with group norm
(arXiv 1803.08494), which needs no large batch.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from training.files import sha256_file
from training.nn.checkpoints import load_state, read_weights
from training.nn.efficientnet_lite import LITE0, EfficientNetLite
from training.nn.pretrained import load_lite0
from training.nn.resnet import ResNet50Maps
from training.nn.resnet import initialise as initialise_resnet
from training.runs import Pretraining, runs_folder
from training.smartccs.recipe import Backbone, ConvBackbone, LiteBackbone, ResNetBackbone
from training.ssl.model import IMAGENET, LITE

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

    scale = IMAGENET

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

    scale = IMAGENET

    def __init__(self) -> None:
        super().__init__()
        self.train()

    def train(self, mode: bool = True) -> "FrozenResNet50Maps":
        super().train(mode)
        _hold_batch_norms(self)
        return self


class FreshResNet50Maps(ResNet50Maps):
    """Without weights to begin with."""

    scale = IMAGENET


class LiteMaps(EfficientNetLite):
    """(B,3,H,W) normalised to Lite0's maps of strides 16 and 32, of ImageNet weights; batch norms stay as they are."""

    scale = LITE
    widths = (112, 192)

    def __init__(self, settings: LiteBackbone) -> None:
        super().__init__(LITE0[:-1], head=False)
        for part in (self._conv_stem, self._bn0, *self._blocks[: settings.frozen_blocks]):
            part.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "LiteMaps":
        super().train(mode)
        _hold_batch_norms(self)
        return self

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        coarse, middle, _ = super().forward(x_BCHW)
        return [middle, coarse]


def _hold_batch_norms(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)


Maps = ConvMaps | FreshResNet50Maps | FrozenResNet50Maps | LiteMaps
"""Each has `scale` (what normalises its images) and `widths` (the channels of its maps, fine to coarse)."""


def backbone_of(settings: Backbone) -> Maps:
    """Without weights."""
    if isinstance(settings, ConvBackbone):
        return ConvMaps(settings)
    if isinstance(settings, LiteBackbone):
        return LiteMaps(settings)
    return FreshResNet50Maps() if settings.weights_file is None else FrozenResNet50Maps()


def begin(network: Maps, settings: Backbone) -> tuple[Pretraining, ...]:
    """Fresh weights from torch's own stream, or those that the recipe names; and what they came from. Raises
    WeightsInvalid, DataMissing."""
    if isinstance(network, LiteMaps):
        return (load_lite0(network),)
    if isinstance(network, ConvMaps):
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(settings, ResNetBackbone) and settings.weights_file is not None:
        path = runs_folder() / settings.weights_file
        tensors = {key: value for key, value in read_weights(path).items() if not key.startswith("fc.")}
        load_state(network, tensors, path.name)
        return (Pretraining("", "", path.name, sha256_file(path), "not stated", "ImageNet-1k"),)
    else:
        initialise_resnet(network)
    return ()
