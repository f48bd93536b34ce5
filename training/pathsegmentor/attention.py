"""The transformer block of the pixel decoder and the text tower, and what masks and prompts need of the products.

Masks are added as -10,000 and not as -∞: a row that hides everything stays finite, in half precision as well.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from training.nn.attention import Attention, Feed

HIDDEN = -1e4


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
