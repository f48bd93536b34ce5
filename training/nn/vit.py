"""Vision transformers: one network for GPFM's students and experts and for the published ViT encoders.

Pre-norm blocks (Dosovitskiy et al., arXiv 2010.11929) with LayerScale (arXiv 2103.17239), register tokens
(arXiv 2309.16588), the packed SwiGLU feed-forward and the masked, row-subset training graph of DINOv2 (arXiv
2304.07193). Parameter names are those that timm gives the same networks, so published weights load by name.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Positions = Literal["all", "class", "patches"]
"""Which tokens have learned positions: class and registers and patches; class and patches; patches alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViTConfig:
    """A ViT's shape. `image_px` is the side that its position table is for; for others the table is interpolated.

    `mlp` is the width of the feed-forward's hidden layer (of each half where it is SwiGLU). `layerscale` None = none.
    `mask_token`: whether patches may be masked in training. `drop_path`: share of rows left out of each branch.
    """

    image_px: int
    patch_px: int
    width: int
    depth: int
    heads: int
    mlp: int
    ffn: Literal["mlp", "swiglu"] = "mlp"
    layerscale: float | None = None
    registers: int = 0
    positions: Positions = "class"
    mask_token: bool = False
    drop_path: float = 0.0
    norm_eps: float = 1e-6

    @property
    def grid(self) -> int:
        return self.image_px // self.patch_px

    @property
    def position_tokens(self) -> int:
        extra = {"all": 1 + self.registers, "class": 1, "patches": 0}[self.positions]
        return extra + self.grid**2


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a ViT gives: after the last norm the class token (B,D), registers (B,R,D) and patch tokens (B,N,D), row by
    row from the top left; and all tokens before that norm (B,1+R+N,D)."""

    cls_BD: Tensor
    registers_BRD: Tensor
    patches_BND: Tensor
    before_norm_BTD: Tensor


class LayerScale(nn.Module):
    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD * self.gamma


class Attention(nn.Module):
    """Multi-head self-attention with one packed, biased projection to queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        q, k, v = self.qkv(x_BTD).reshape(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, T, D))


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BTD)))


class SwiGlu(nn.Module):
    """SiLU of the first half of one packed linear layer, times its second half, linear (arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate, value = self.fc1(x_BTD).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * value)


class Block(nn.Module):
    """x + LayerScale(attention(LN x)), then the same with the feed-forward."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width, scale = config.width, config.layerscale
        self.drop_path = config.drop_path
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.attn = Attention(width, config.heads)
        self.ls1 = nn.Identity() if scale is None else LayerScale(width, scale)
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = Mlp(width, config.mlp) if config.ffn == "mlp" else SwiGlu(width, config.mlp)
        self.ls2 = nn.Identity() if scale is None else LayerScale(width, scale)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = self._add(x_BTD, self._attend)
        return self._add(x_BTD, self._feed)

    def _attend(self, x_BTD: Tensor) -> Tensor:
        return self.ls1(self.attn(self.norm1(x_BTD)))

    def _feed(self, x_BTD: Tensor) -> Tensor:
        return self.ls2(self.mlp(self.norm2(x_BTD)))

    def _add(self, x_BTD: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """The residual sum; in training with drop-path the branch is computed on a random subset of rows only, and
        scaled by what was left out (DINOv2's form of arXiv 1603.09382)."""
        if not self.training or self.drop_path == 0.0:
            return x_BTD + branch(x_BTD)
        rows = len(x_BTD)
        kept = max(int(rows * (1 - self.drop_path)), 1)
        chosen_K = torch.randperm(rows, device=x_BTD.device)[:kept]
        return torch.index_add(x_BTD, 0, chosen_K, branch(x_BTD[chosen_K]).to(x_BTD.dtype), alpha=rows / kept)


class PatchEmbed(nn.Module):
    def __init__(self, patch_px: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_px, patch_px)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.proj(x_BCHW).flatten(2).transpose(1, 2)


class ViT(nn.Module):
    """Images (B,3,H,W), already normalised, to `Tokens`. H and W are multiples of the patch."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.patch_px, config.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        if config.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, config.registers, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.position_tokens, config.width))
        if config.mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    @property
    def width(self) -> int:
        return self.config.width

    def forward(self, x_BCHW: Tensor, mask_BN: Tensor | None = None) -> Tokens:
        """`mask_BN` bool: patches whose embedding is replaced by the mask token; they keep their position."""
        x_BTD = self._embed(x_BCHW, mask_BN)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        normed, first = self.norm(x_BTD), 1 + self.config.registers
        return Tokens(normed[:, 0], normed[:, 1:first], normed[:, first:], x_BTD)

    def _embed(self, x_BCHW: Tensor, mask_BN: Tensor | None) -> Tensor:
        patch = self.config.patch_px
        rows, columns = x_BCHW.shape[-2] // patch, x_BCHW.shape[-1] // patch
        x_BND = self.patch_embed(x_BCHW)
        if mask_BN is not None:
            x_BND = torch.where(mask_BN[..., None], self.mask_token.to(x_BND.dtype), x_BND)
        specials = self.cls_token if not self.config.registers else torch.cat([self.cls_token, self.reg_token], dim=1)
        specials_BSD = specials.expand(x_BND.shape[0], -1, -1).to(x_BND.dtype)
        position_special, position_grid = self._positions(rows, columns)
        x_BND = x_BND + position_grid
        if self.config.positions == "class":
            registers_BRD = specials_BSD[:, 1:]
            return torch.cat([specials_BSD[:, :1] + position_special, registers_BRD, x_BND], dim=1)
        if self.config.positions == "all":
            specials_BSD = specials_BSD + position_special
        return torch.cat([specials_BSD, x_BND], dim=1)

    def _positions(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Positions of the special tokens (1,S,D) and of a grid of patches (1,rows·columns,D)."""
        grid = self.config.grid
        count = self.config.position_tokens - grid**2
        special, table = self.pos_embed[:, :count], self.pos_embed[:, count:]
        if (rows, columns) == (grid, grid):
            return special, table
        return special, interpolate_grid(table, grid, rows, columns)


def interpolate_grid(table_1ND: Tensor, grid: int, rows: int, columns: int) -> Tensor:
    """A table of grid² positions for another grid, as DINOv2 does: bicubic, with the factor (n + 0.1) / grid given as a
    factor, not as a size, which moves the sampling points a little. (1, rows·columns, D)"""
    square = table_1ND.reshape(1, grid, grid, -1).permute(0, 3, 1, 2).float()
    factors = ((rows + 0.1) / grid, (columns + 0.1) / grid)
    resized = F.interpolate(square, scale_factor=factors, mode="bicubic", align_corners=False)
    if resized.shape[-2:] != (rows, columns):
        raise AssertionError(f"interpolated positions are {tuple(resized.shape[-2:])}, not {(rows, columns)}")
    return resized.permute(0, 2, 3, 1).reshape(1, rows * columns, -1).to(table_1ND.dtype)


def initialise(network: ViT, generator: torch.Generator | None = None) -> None:
    """Fresh weights as GPFM's: linear layers and positions normal 0.02 cut at two units, class and register tokens
    normal 1e-6, mask token zero, the patch convolution by the framework's default, norms at identity."""
    for name, parameter in network.named_parameters():
        if name == "patch_embed.proj.weight":
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=generator)
        elif name == "patch_embed.proj.bias":
            bound = 1 / math.sqrt(network.patch_embed.proj.weight[0].numel())
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
        elif name in ("cls_token", "reg_token"):
            nn.init.normal_(parameter, std=1e-6, generator=generator)
        elif name == "pos_embed" or name.endswith(("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight")):
            nn.init.trunc_normal_(parameter, std=0.02, generator=generator)
        elif name == "mask_token" or name.endswith(".bias"):
            nn.init.zeros_(parameter)
        elif name.endswith(".gamma"):
            nn.init.constant_(parameter, network.config.layerscale or 0.0)
        else:
            nn.init.ones_(parameter)


def unchunked(names: Sequence[str]) -> dict[str, str]:
    """Names of an FSDP checkpoint whose blocks lie in chunks (`blocks.c.i.…`) to plain ones (`blocks.i.…`)."""
    return {name: _plain(name) for name in names}


def chunked(names: Sequence[str], depth: int, chunks: int) -> dict[str, str]:
    """Plain names to those of a checkpoint with its `depth` blocks in `chunks` equal chunks; the index stays global."""
    size = depth // chunks
    return {name: _in_chunk(name, size) for name in names}


def _plain(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "blocks" and len(parts) > 2 and parts[2].isdigit():
        del parts[1]
    return ".".join(parts)


def _in_chunk(name: str, size: int) -> str:
    parts = name.split(".")
    if parts[0] == "blocks":
        parts.insert(1, str(int(parts[1]) // size))
    return ".".join(parts)
