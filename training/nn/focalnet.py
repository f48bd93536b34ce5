"""FocalNet: convolutional context of several reaches, gathered by gates, in place of attention (arXiv 2203.11926).

The form that dense prediction uses (SEEM, BiomedParse): overlapping convolutional patch embedding, norms after each
branch, LayerScale, a modulator scaled by the number of its levels, and a norm on each stage's output. Parameter names
are those of the published checkpoints.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.nn.vit import Mlp

_FACTOR = 2
"""By how much the kernel grows from one level to the next, px."""
_LAYERSCALE = 1e-4


class FocalModulation(nn.Module):
    """Eq. 4–8 of the paper: (B,H,W,C) to the same, C channels modulated by their surroundings at L+1 reaches."""

    def __init__(self, width: int, levels: int, window: int) -> None:
        super().__init__()
        self._split = (width, width, levels + 1)
        self.f = nn.Linear(width, 2 * width + levels + 1)
        self.h = nn.Conv2d(width, width, 1)
        self.proj = nn.Linear(width, width)
        kernels = [window + _FACTOR * level for level in range(levels)]
        self.focal_layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width, bias=False), nn.GELU())
            for kernel in kernels
        )

    def forward(self, x_BHWC: Tensor) -> Tensor:
        query, context, gates = self.f(x_BHWC).permute(0, 3, 1, 2).split(self._split, dim=1)
        gathered = torch.zeros_like(context)
        for level, layer in enumerate(self.focal_layers):
            context = layer(context)
            gathered = gathered + context * gates[:, level : level + 1]
        gathered = gathered + F.gelu(context.mean((2, 3), keepdim=True)) * gates[:, -1:]
        modulator = self.h(gathered / (len(self.focal_layers) + 1))
        return self.proj((query * modulator).permute(0, 2, 3, 1))


class FocalBlock(nn.Module):
    """x + scale · norm(modulation(x)), then the same with the feed-forward; in training a branch is left out of a row
    with probability `drop_path`."""

    def __init__(self, width: int, levels: int, window: int, drop_path: float) -> None:
        super().__init__()
        self._drop = drop_path
        self.modulation = FocalModulation(width, levels, window)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)
        self.gamma_1 = nn.Parameter(torch.full((width,), _LAYERSCALE))
        self.gamma_2 = nn.Parameter(torch.full((width,), _LAYERSCALE))

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_BHWC = x_BHWC + self._kept(self.gamma_1 * self.norm1(self.modulation(x_BHWC)))
        return x_BHWC + self._kept(self.gamma_2 * self.norm2(self.mlp(x_BHWC)))

    def _kept(self, branch_BHWC: Tensor) -> Tensor:
        if not self.training or self._drop == 0.0:
            return branch_BHWC
        kept_B = torch.rand(len(branch_BHWC), 1, 1, 1, device=branch_BHWC.device) >= self._drop
        return branch_BHWC * kept_B / (1 - self._drop)


class ConvEmbed(nn.Module):
    """An overlapping strided convolution and a layer norm: (B,C,H,W) to (B,H',W',C')."""

    def __init__(self, inputs: int, width: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, width, kernel, stride, padding)
        self.norm = nn.LayerNorm(width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.norm(self.proj(x_BCHW).permute(0, 2, 3, 1))


class FocalStage(nn.Module):
    """Blocks, and what leads to the next stage, where there is one."""

    def __init__(self, width: int, levels: int, window: int, drop_paths: Sequence[float], *, last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(FocalBlock(width, levels, window, drop) for drop in drop_paths)
        if not last:
            self.downsample = ConvEmbed(width, 2 * width, 3, 2, 1)


class FocalNet(nn.Module):
    """Images (B,3,H,W), already normalised, to four maps at strides 4, 8, 16 and 32, fine to coarse."""

    strides = (4, 8, 16, 32)

    def __init__(self, embed: int, depths: Sequence[int], levels: int, window: int, drop_path: float) -> None:
        super().__init__()
        self.widths = tuple(embed * 2**stage for stage in range(len(depths)))
        self.patch_embed = ConvEmbed(3, embed, 7, 4, 2)
        total = sum(depths)
        drops = [drop_path * block / (total - 1) for block in range(total)]
        starts = [sum(depths[:stage]) for stage in range(len(depths))]
        self.layers = nn.ModuleList(
            FocalStage(width, levels, window, drops[start : start + depth], last=start + depth == total)
            for width, depth, start in zip(self.widths, depths, starts, strict=True)
        )
        for stage, width in enumerate(self.widths):
            self.add_module(f"norm{stage}", nn.LayerNorm(width))

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        x_BHWC, maps = self.patch_embed(x_BCHW), []
        for number, stage in enumerate(self.layers):
            for block in stage.blocks:
                x_BHWC = block(x_BHWC)
            maps.append(self.get_submodule(f"norm{number}")(x_BHWC).permute(0, 3, 1, 2))
            if number + 1 < len(self.layers):
                x_BHWC = stage.downsample(x_BHWC.permute(0, 3, 1, 2))
        return maps
