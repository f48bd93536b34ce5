"""Tiles through an encoder: all their views, and what an interrupted run need not compute again."""

from collections.abc import Callable

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from training.data.dataset import Dataset
from training.data.views import views
from training.errors import RecipeInvalid
from training.graphs import Graph
from training.nn.efficientnet_lite import initialise
from training.nn.tile_encoder import TileEncoder
from training.runs import RunWriter

_CHUNK = 16


class Resized(nn.Module):
    """An encoder of another input side, on tiles that show the same field; averaged over the source, as the gateway
    reads them."""

    def __init__(self, network: nn.Module, side_px: int) -> None:
        super().__init__()
        self.network, self.side_px = network, side_px

    def forward(self, image_BHWC: Tensor) -> Tensor:
        x_BCHW = image_BHWC.permute(0, 3, 1, 2).float()
        size = (self.side_px, self.side_px)
        resized = F.interpolate(x_BCHW, size, mode="bicubic", antialias=True, align_corners=False)
        return self.network(resized.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1))


def on_tiles(graph: Graph, tiles: Dataset) -> nn.Module:
    """The served encoder, for tiles of the data set's scale. Raises RecipeInvalid where it wants another field."""
    mpp, side_px, tile_px = float(graph.card["mpp"]), int(graph.card["tile_px"]), tiles.read(0).shape[0]
    found_px = round(tile_px * tiles.mpp / mpp)
    if found_px != side_px:
        raise RecipeInvalid(
            f"The encoder “{graph.card['title']}” takes {side_px} px at {mpp:g} µm/px; the tiles are {found_px} px at "
            "that scale. Serve it at the tiles' field, or take other tiles."
        )
    return graph.network if side_px == tile_px else Resized(graph.network, side_px)


def embed(encoder: nn.Module, tiles: Dataset, seed: int, count: int) -> np.ndarray:
    """(N,V,D) float32: the embeddings of every tile's first `count` views."""
    encoder.eval()
    embedded = []
    with torch.inference_mode():
        for index in range(len(tiles)):
            images = torch.from_numpy(views(tiles.read(index), count, np.random.default_rng((seed, index))).copy())
            embedded.append(torch.cat([encoder(part) for part in images.split(_CHUNK)]).numpy())
    return np.stack(embedded)


def cached(run: RunWriter, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """An array that an interrupted run need not compute again."""
    path = run.work / f"{name}.safetensors"
    if not path.is_file():
        save_file({"array": torch.from_numpy(compute())}, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
    return load_file(path)["array"].numpy()


def random_encoder(tiles: Dataset, seed: int) -> TileEncoder:
    """Random weights; batch norms set to the tiles' own statistics (no label is used), else it answers a constant."""
    encoder = TileEncoder()
    initialise(encoder.network, torch.Generator().manual_seed(seed))
    settle_batch_norms(encoder, tiles.images())
    return encoder


def settle_batch_norms(encoder: TileEncoder, images_NHWC: np.ndarray) -> None:
    """Set every batch norm's statistics to their mean over whole tiles; after few steps the running ones lag behind."""
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    encoder.train()
    with torch.no_grad():
        for images in torch.from_numpy(images_NHWC).split(_CHUNK):
            encoder(images)
    encoder.eval()
