"""The tissue head: embedding to logits."""

from torch import Tensor, nn

from training.nn.tile_encoder import EMBEDDING


class TissueHead(nn.Module):
    """embedding (B,1584) fp32 to logits (B,classes) fp32.

    Standardisation and temperature are folded into the one linear layer: softmax(logits) is the calibrated
    probability.
    """

    def __init__(self, classes: int, embedding: int = EMBEDDING) -> None:
        super().__init__()
        self.linear = nn.Linear(embedding, classes)

    def forward(self, embedding_BD: Tensor) -> Tensor:
        return self.linear(embedding_BD)
