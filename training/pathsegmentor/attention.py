"""Attention blocks of the query decoder, the pixel decoder and the text tower, written with plain products.

Masks are added as -10,000 and not as -∞: a row that hides everything stays finite, in half precision as well.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HIDDEN = -1e4


class Attention(nn.Module):
    """Multi-head attention with biased projections. Keys and values may be of another length than the queries."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, q_BND: Tensor, k_BMD: Tensor, v_BMD: Tensor, bias: Tensor | None) -> Tensor:
        """(B,N,D). `bias` is added to the scores and broadcasts to (B,heads,N,M)."""
        q, k, v = self._split(self.query(q_BND)), self._split(self.key(k_BMD)), self._split(self.value(v_BMD))
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        if bias is not None:
            scores = scores + bias
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    def _split(self, x_BND: Tensor) -> Tensor:
        # Laid out anew, so that the products' kernels, and with them the last bits, do not depend on the batch.
        return x_BND.unflatten(-1, (self.heads, -1)).transpose(1, 2).contiguous()


class Feed(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, width: int, hidden: int, *, relu: bool = False) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self._relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(F.relu(x) if self._relu else F.gelu(x))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward with residual sums; the norm before (`pre`) or after each branch."""

    def __init__(self, width: int, heads: int, ffn: int, *, pre: bool) -> None:
        super().__init__()
        self._pre = pre
        self.attention, self.feed = Attention(width, heads), Feed(width, ffn, relu=not pre)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x_BND: Tensor, bias: Tensor | None, positions: Tensor | None = None) -> Tensor:
        """`positions` are added to queries and keys, not to values."""
        y = self.norm1(x_BND) if self._pre else x_BND
        at = y if positions is None else y + positions
        x_BND = x_BND + self.attention(at, at, y, bias)
        if self._pre:
            return x_BND + self.feed(self.norm2(x_BND))
        x_BND = self.norm1(x_BND)
        return self.norm2(x_BND + self.feed(x_BND))


def by_rows(layer: Callable[[Tensor], Tensor], x_BND: Tensor) -> Tensor:
    """A layer of products on N rows, where N is the number of prompts. A product with fewer than four rows goes through
    other kernels, whose sums are rounded otherwise: with rows to spare, the answer to a prompt has the same bits
    whether it is asked alone or among others."""
    return layer(F.pad(x_BND, (0, 0, 0, 3)))[..., : x_BND.shape[-2], :]


def hide(keep: Tensor) -> Tensor:
    """What to add to attention scores: 0 where `keep` is 1, -10,000 where it is 0."""
    return (1.0 - keep.float()) * HIDDEN


def sine_positions(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """(height·width, channels): sines and cosines of the row, then of the column, normalised to 2π (arXiv 2005.12872,
    appendix A.4)."""
    half = channels // 2
    exponent = 2 * torch.div(torch.arange(half, device=device), 2, rounding_mode="floor") / half
    frequency = 10000.0**exponent

    def along(count: int) -> Tensor:
        place = (torch.arange(count, device=device) + 1) / count * 2 * torch.pi
        angle = place[:, None] / frequency
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=-1).flatten(1)

    rows, columns = along(height), along(width)
    grid = torch.cat([rows[:, None].expand(height, width, half), columns[None].expand(height, width, half)], dim=-1)
    return grid.flatten(0, 1)
