"""BERT without its pooler (arXiv 1810.04805), and word pieces; PubMedBERT (arXiv 2007.15779) and MiniLM (arXiv
2002.10957) are of this shape. Parameter names are those of the published checkpoints. There is no dropout.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

_EPS = 1e-12
_HIDDEN = -1e4


@dataclass(frozen=True, slots=True, kw_only=True)
class BertConfig:
    """A BERT's shape; `mlp` is the width of the feed-forward's hidden layer."""

    vocabulary: int = 30522
    positions: int = 512
    width: int
    depth: int
    heads: int
    mlp: int


PUBMEDBERT = BertConfig(width=768, depth=12, heads=12, mlp=3072)
MINILM = BertConfig(width=384, depth=6, heads=12, mlp=1536)


class Embeddings(nn.Module):
    """Sum of word, position and first token type, normed."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocabulary, config.width)
        self.position_embeddings = nn.Embedding(config.positions, config.width)
        self.token_type_embeddings = nn.Embedding(2, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=_EPS)

    def forward(self, ids_BT: Tensor, places_BT: Tensor) -> Tensor:
        kind = self.token_type_embeddings.weight[0]
        return self.LayerNorm(self.word_embeddings(ids_BT) + self.position_embeddings(places_BT) + kind)


class _Projection(nn.Module):
    """A branch's last linear layer, its residual sum and the norm after it."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, width)
        self.LayerNorm = nn.LayerNorm(width, eps=_EPS)

    def forward(self, branch: Tensor, x: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(branch) + x)


class BertLayer(nn.Module):
    """Self-attention and feed-forward, each with the norm after its sum."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self._heads, width = config.heads, config.width
        self.attention = nn.ModuleDict(
            {
                "self": nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")}),
                "output": _Projection(width, width),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, config.mlp)})
        self.output = _Projection(config.mlp, width)

    def forward(self, x_BTC: Tensor, bias_B11T: Tensor) -> Tensor:
        q, k, v = (
            self.attention["self"][name](x_BTC).unflatten(-1, (self._heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias_B11T
        x_BTC = self.attention["output"]((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), x_BTC)
        return self.output(F.gelu(self.intermediate["dense"](x_BTC)), x_BTC)


class Bert(nn.Module):
    """Word pieces to the states of the last layer."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(BertLayer(config) for _ in range(config.depth))})

    def forward(self, ids_BT: Tensor, there_BT: Tensor) -> Tensor:
        """(B,T,C). Pieces that are not `there` (bool) are seen by none and take no position; they may lie between
        others: the answer for the rest is that of the sequence without them."""
        places_BT = (there_BT.long().cumsum(-1) - 1).clamp(min=0)
        x_BTC = self.embeddings(ids_BT, places_BT)
        bias_B11T = ((1.0 - there_BT.to(x_BTC.dtype)) * _HIDDEN)[:, None, None]
        for layer in self.encoder["layer"]:
            x_BTC = layer(x_BTC, bias_B11T)
        return x_BTC


def word_pieces(text: str, vocabulary: Mapping[str, int]) -> list[int]:
    """Ids of lower-case text: words and punctuation marks apart, each cut greedily into the longest known pieces
    (arXiv 1609.08144, section 4.1); `[UNK]` for a word that cannot be cut."""
    spaced = "".join(letter if letter.isalnum() else f" {letter} " for letter in text.lower())
    return [piece for word in spaced.split() for piece in _cut(word, vocabulary)]


def _cut(word: str, vocabulary: Mapping[str, int]) -> list[int]:
    pieces, start = [], 0
    while start < len(word):
        prefix = "##" if start else ""
        ends = (end for end in range(len(word), start, -1) if prefix + word[start:end] in vocabulary)
        end = next(ends, None)
        if end is None:
            return [vocabulary["[UNK]"]]
        pieces.append(vocabulary[prefix + word[start:end]])
        start = end
    return pieces
