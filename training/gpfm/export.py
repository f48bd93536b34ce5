"""What the gpfm system's runs serve: a tile encoder, be it a student, its baseline or one of our own experts."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.errors import RecipeInvalid
from training.gpfm.experts import origins
from training.gpfm.model import ImageEncoder, network_of, recipe_of
from training.graphs import Graph, TensorSpec
from training.nn.tile_encoder import EMBEDDING, TileEncoder
from training.publish import card_texts, synthetic_tiles
from training.runs import Run
from training.ssl.model import CnnBackbone


class VitTileEncoder(nn.Module):
    """image (B,side,side,3) uint8 RGB to embedding (B,D) fp32.

    A tile is brought to the network's own side by the mean over squares of `shrink` pixels: it shows the field that a
    whole tile showed in training, and every runtime computes it alike.
    """

    def __init__(self, encoder: ImageEncoder, shrink: int) -> None:
        super().__init__()
        self.encoder, self.shrink = encoder, shrink
        mean, deviation = encoder.backbone.scale
        self.register_buffer("mean_C11", torch.tensor(mean)[:, None, None])
        self.register_buffer("deviation_C11", torch.tensor(deviation)[:, None, None])

    def forward(self, image_BHWC: Tensor) -> Tensor:
        return self.encoder(self._crops(image_BHWC))[0]

    def dense(self, image_BHWC: Tensor) -> Tensor:
        """(B,h,w,D): the patch tokens in their places."""
        patches_BND = self.encoder.backbone(self._crops(image_BHWC)).patches_BND
        side = round(patches_BND.shape[1] ** 0.5)
        return patches_BND.unflatten(1, (side, side))

    def _crops(self, image_BHWC: Tensor) -> Tensor:
        x_BCHW = F.avg_pool2d(image_BHWC.to(torch.float32).permute(0, 3, 1, 2), self.shrink)
        return (x_BCHW - self.mean_C11) / self.deviation_C11


def declare(run: Run) -> Graph:
    """The graph of a finished run. Raises RecipeInvalid, RunInvalid, WeightsInvalid."""
    recipe, encoder = recipe_of(run.recipe), network_of(run)
    publish, side_px = recipe.publish, recipe.crops.global_px
    network: nn.Module
    if isinstance(encoder.backbone, CnnBackbone):
        # Pooled at three depths, as the ImageNet encoder is that it started from.
        network, size = TileEncoder(), EMBEDDING
        network.network.load_state_dict(encoder.backbone.state_dict())
    else:
        if publish.tile_px % side_px:
            raise RecipeInvalid(f"publish.tile_px is no multiple of crops.global_px, {side_px}. Correct the recipe.")
        network, size = VitTileEncoder(encoder, publish.tile_px // side_px), encoder.dim
    return Graph(
        model=publish.model,
        kind="encoder",
        network=network.eval().requires_grad_(False),
        inputs=(TensorSpec("image", "UINT8", (publish.tile_px, publish.tile_px, 3)),),
        outputs=(TensorSpec("embedding", "FP32", (size,)),),
        samples=lambda sizes: {"image": synthetic_tiles(sizes["batch"], publish.tile_px, recipe.seed)},
        card=card_texts(publish, origins(run, "data"), origins(run, "pretraining"))
        | {"metrics": [], "embedding_size": size},
    )
