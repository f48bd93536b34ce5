"""Swin-T with a convolutional stem, the network of CTransPath and CHIEF's tile encoder.

Liu et al., arXiv 2103.14030; Wang et al., Medical Image Analysis 81 (2022) 102559 for the stem. Parameter names are
those of the published checkpoints.
"""

import torch
from torch import Tensor, nn

from training.nn.vit import Mlp

WIDTH = 768
_WINDOW = 7
_DEPTHS, _HEADS, _EMBED = (2, 2, 6, 2), (3, 6, 12, 24), 96
_SIDE_PX = 224
_HIDDEN = -100.0
"""Added to the score of two places that lie in one window only because the map was rolled."""


class ConvStem(nn.Module):
    """Two 3×3 convolutions of stride 2 and one 1×1, then a layer norm: (B,3,H,W) to (B,H/4,W/4,96)."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(3, 12, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 24, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.Conv2d(24, _EMBED, 1),
        )
        self.norm = nn.LayerNorm(_EMBED)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.norm(self.proj(x_BCHW).permute(0, 2, 3, 1))


class WindowAttention(nn.Module):
    """Self-attention of the 49 places of a window, with a learned bias for each relative position and head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * _WINDOW - 1) ** 2, heads))
        self.register_buffer("places_PP", _relative_places(), persistent=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BWPC: Tensor, mask_WPP: Tensor | None) -> Tensor:
        """(B,windows,49,C); `mask_WPP` is added to the scores."""
        B, W, P, C = x_BWPC.shape
        q, k, v = self.qkv(x_BWPC).reshape(B * W, P, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        bias_HPP = self.relative_position_bias_table[self.places_PP.flatten()].unflatten(0, (P, P)).permute(2, 0, 1)
        scores = (q * (C // self.heads) ** -0.5) @ k.transpose(-2, -1) + bias_HPP
        if mask_WPP is not None:
            scores = (scores.unflatten(0, (B, W)) + mask_WPP[:, None]).flatten(0, 1)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, W, P, C))


class Block(nn.Module):
    """Attention within windows, which every second block moves by half a window; then the feed-forward."""

    def __init__(self, width: int, heads: int, side: int, *, shifted: bool) -> None:
        super().__init__()
        self.side, self.shift = side, _WINDOW // 2 if shifted and side > _WINDOW else 0
        self.norm1, self.attn = nn.LayerNorm(width), WindowAttention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width, 4 * width)
        self.register_buffer("mask_WPP", _shift_mask(side, self.shift) if self.shift else None, persistent=False)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        y = self.norm1(x_BHWC)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), dims=(1, 2))
        y = _merged(self.attn(_windows(y), self.mask_WPP), self.side)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), dims=(1, 2))
        x_BHWC = x_BHWC + y
        return x_BHWC + self.mlp(self.norm2(x_BHWC))


class PatchMerging(nn.Module):
    """Four neighbours side by side, then half the width: (B,H,W,C) to (B,H/2,W/2,2C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        quarters = [x_BHWC[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(quarters, dim=-1)))


class Stage(nn.Module):
    def __init__(self, index: int) -> None:
        super().__init__()
        width, side = _EMBED * 2**index, _SIDE_PX // 4 // 2**index
        self.blocks = nn.ModuleList(
            Block(width, _HEADS[index], side, shifted=block % 2 == 1) for block in range(_DEPTHS[index])
        )
        self.downsample = PatchMerging(width) if index + 1 < len(_DEPTHS) else nn.Identity()

    def forward(self, x_BHWC: Tensor) -> Tensor:
        for block in self.blocks:
            x_BHWC = block(x_BHWC)
        return self.downsample(x_BHWC)


class SwinTinyConvStem(nn.Module):
    """(B,3,224,224) normalised to the last map after its norm (B,768,7,7); 27.52 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = ConvStem()
        self.layers = nn.ModuleList(Stage(index) for index in range(len(_DEPTHS)))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BHWC = self.patch_embed(x_BCHW)
        for stage in self.layers:
            x_BHWC = stage(x_BHWC)
        return self.norm(x_BHWC).permute(0, 3, 1, 2)


def _windows(x_BHWC: Tensor) -> Tensor:
    """(B,H,W,C) to (B,windows,49,C)."""
    B, H, W, C = x_BHWC.shape
    x = x_BHWC.reshape(B, H // _WINDOW, _WINDOW, W // _WINDOW, _WINDOW, C).transpose(2, 3)
    return x.reshape(B, (H // _WINDOW) * (W // _WINDOW), _WINDOW**2, C)


def _merged(x_BWPC: Tensor, side: int) -> Tensor:
    """The inverse of `_windows`."""
    B, _, _, C = x_BWPC.shape
    x = x_BWPC.reshape(B, side // _WINDOW, side // _WINDOW, _WINDOW, _WINDOW, C).transpose(2, 3)
    return x.reshape(B, side, side, C)


def _relative_places() -> Tensor:
    """(49,49): where in the bias table the offset from each place of a window to each other one stands."""
    rows, columns = torch.arange(_WINDOW**2) // _WINDOW, torch.arange(_WINDOW**2) % _WINDOW
    down = rows[:, None] - rows[None] + _WINDOW - 1
    right = columns[:, None] - columns[None] + _WINDOW - 1
    return down * (2 * _WINDOW - 1) + right


def _shift_mask(side: int, shift: int) -> Tensor:
    """(windows,49,49): zero between places that were neighbours before the map was rolled, `_HIDDEN` between others."""
    place = torch.arange(side)
    band = (place >= side - _WINDOW).long() + (place >= side - shift).long()
    region = (3 * band[:, None] + band[None]).float()[None, ..., None]
    region_WP = _windows(region)[0, :, :, 0]
    return (region_WP[:, None] != region_WP[:, :, None]).float() * _HIDDEN


def initialise(network: SwinTinyConvStem, generator: torch.Generator) -> None:
    """Fresh weights: linear layers and bias tables normal 0.02, convolutions by their fan-out, norms at identity."""
    for name, parameter in network.named_parameters():
        if name.endswith("relative_position_bias_table"):
            nn.init.trunc_normal_(parameter, std=0.02, generator=generator)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", generator=generator)
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            module.reset_parameters()
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
