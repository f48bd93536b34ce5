"""Text towers: a prompt's token ids to one vector a token, and one for the prompt."""

import torch
from torch import Tensor, nn

from training.pathsegmentor.attention import EncoderLayer, hide
from training.pathsegmentor.recipe import WordsText

MAX_TOKENS = 16


class WordsTower(nn.Module):
    """A table of the grammar's words, and a pre-norm transformer from fresh weights. Id 0 is padding."""

    def __init__(self, vocabulary: int, width: int, settings: WordsText) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.empty(MAX_TOKENS, width))
        self.layers = nn.ModuleList(
            EncoderLayer(width, settings.heads, settings.ffn, pre=True) for _ in range(settings.layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, token_ids_PL: Tensor, token_mask_PL: Tensor) -> Tensor:
        """(P,L,D), L at most 16."""
        x_PLD = self.words(token_ids_PL) + self.positions[: token_ids_PL.shape[1]]
        bias = hide(token_mask_PL)[:, None, None]
        for layer in self.layers:
            x_PLD = layer(x_PLD, bias)
        return self.norm(x_PLD)


def pooled(tokens_PLD: Tensor, token_mask_PL: Tensor, how: str) -> Tensor:
    """(P,D): the mean of the tokens that are there, the first one (`cls`), or the last one (`last`)."""
    if how == "cls":
        return tokens_PLD[:, 0]
    weight_PL = token_mask_PL.to(tokens_PLD.dtype)
    if how == "last":
        place_L = torch.arange(1, weight_PL.shape[1] + 1, device=weight_PL.device)
        place_PL = weight_PL * place_L
        weight_PL = (place_PL == place_PL.amax(-1, keepdim=True)).to(tokens_PLD.dtype)
    return (tokens_PLD * weight_PL[..., None]).sum(1) / weight_PL.sum(-1, keepdim=True)
