"""Attention as published: keys and values of another length than the queries, and sine positions, written with plain
products, so that they export as such."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head attention with biased projections. Keys and values may be of another length than the queries.
    `dropout` is of the attention's weights."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
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
        return self.out((self.dropout(scores.softmax(-1)) @ v).transpose(1, 2).flatten(2))

    def _split(self, x_BND: Tensor) -> Tensor:
        # Laid out anew, so that the products' kernels, and with them the last bits, do not depend on the batch.
        return x_BND.unflatten(-1, (self.heads, -1)).transpose(1, 2).contiguous()


class Feed(nn.Module):
    """Linear, activation, linear. `dropout` is of the hidden units."""

    def __init__(self, width: int, hidden: int, *, relu: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self._relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(self.dropout(F.relu(x) if self._relu else F.gelu(x)))


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
