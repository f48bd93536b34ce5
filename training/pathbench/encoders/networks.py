"""A card's network with its embedding rule: pixels as the transform gives them to one vector an image."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from training.nn import efficientnet_lite, resnet, swin, vit
from training.nn.tile_encoder import TileEncoder
from training.pathbench.encoders.cards import Card, Vit
from training.pathbench.encoders.errors import EncoderInvalid
from training.pathbench.encoders.functions import FUNCTIONS


def mean_over_places(x_BND: Tensor) -> Tensor:
    """The mean over N, (B,D), as a product: ONNX Runtime sums a mean over this axis in another sequence where the batch
    is one, and an image's embedding must not depend on its neighbours by a single bit."""
    count = x_BND.shape[1]
    return (x_BND.new_full((1, count), 1 / count) @ x_BND)[:, 0]


class TokenEmbedder(nn.Module):
    """A ViT's class token (B,D), or class token beside the mean of the patch tokens (B,2D). Registers never count."""

    def __init__(self, network: vit.ViT, *, mean: bool) -> None:
        super().__init__()
        self.network, self.mean = network, mean

    def forward(self, x_BCHW: Tensor) -> Tensor:
        tokens = self.network(x_BCHW)
        if not self.mean:
            return tokens.cls_BD
        return torch.cat([tokens.cls_BD, mean_over_places(tokens.patches_BND)], dim=1)

    def dense(self, x_BCHW: Tensor) -> Tensor:
        """Patch tokens after the last norm, (B,rows,columns,D)."""
        patch = self.network.config.patch_px
        return self.network(x_BCHW).patches_BND.unflatten(1, (x_BCHW.shape[2] // patch, x_BCHW.shape[3] // patch))


class MapEmbedder(nn.Module):
    """A network that gives one map (B,C,h,w): its mean over the places."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return mean_over_places(self.network(x_BCHW).flatten(2).transpose(1, 2))

    def dense(self, x_BCHW: Tensor) -> Tensor:
        """The map, (B,h,w,C)."""
        return self.network(x_BCHW).permute(0, 2, 3, 1)


class LiteEmbedder(TileEncoder):
    """An EfficientNet-Lite as it is served: uint8 pixels in, three depths pooled."""

    def __init__(self, network: efficientnet_lite.EfficientNetLite) -> None:
        super().__init__()
        self.network = network


class FunctionEmbedder(nn.Module):
    """A function of one image, for batches of uint8 pixels."""

    def __init__(self, function: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__()
        self.function = function

    def forward(self, image_BHWC: Tensor) -> Tensor:
        return torch.from_numpy(np.stack([self.function(image) for image in image_BHWC.numpy()]))


def network_of(encoder_id: str, card: Card) -> nn.Module:
    """The network of a card, with weights that mean nothing yet. Raises EncoderInvalid where the card cannot say it."""
    architecture = card.architecture
    if card.unverified or architecture is None:
        raise EncoderInvalid(
            f"Of {encoder_id} only the dimension ({card.dim}) and the approximate size ({card.parameters}) are known, "
            "so it cannot be built. Describe its architecture in its card first."
        )
    if isinstance(architecture, Vit):
        network = vit.ViT(architecture.config())
        return TokenEmbedder(network, mean=card.embedding == "class token, mean of patch tokens")
    match architecture.kind:
        case "swin-convstem":
            return MapEmbedder(swin.SwinTinyConvStem())
        case "resnet50-stage3":
            return MapEmbedder(resnet.ResNet50Stage3())
        case "efficientnet-lite0":
            return LiteEmbedder(efficientnet_lite.EfficientNetLite0())
        case "efficientnet-lite1":
            return LiteEmbedder(efficientnet_lite.EfficientNetLite1())
        case "function":
            return FunctionEmbedder(FUNCTIONS[encoder_id])


def initialise(embedder: nn.Module, seed: int) -> None:
    """Fresh weights by seed, each family as its authors begin."""
    generator = torch.Generator().manual_seed(seed)
    network = getattr(embedder, "network", None)
    if isinstance(network, vit.ViT):
        vit.initialise(network, generator)
    elif isinstance(network, efficientnet_lite.EfficientNetLite):
        efficientnet_lite.initialise(network, generator)
    elif isinstance(network, swin.SwinTinyConvStem):
        swin.initialise(network, generator)
    elif isinstance(network, resnet.ResNet50Stage3):
        resnet.initialise(network, generator)
