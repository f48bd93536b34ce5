"""The slide heads as they are trained and served: a bag of embeddings to logits, and from ABMIL attention."""

import numpy as np
import torch
from torch import Tensor, nn

from training.nn.mil import ABMIL, HeadKind, build_head


class SlideHead(nn.Module):
    """features (1,N,D) fp32 to logits (1,C), and from ABMIL attention (1,N), which sums to 1.

    Standardisation and temperature are folded into the first and the last linear layer: softmax(logits) is the
    calibrated probability.
    """

    def __init__(self, kind: HeadKind, width: int, classes: int, hidden: int = 512) -> None:
        super().__init__()
        self.network = build_head(kind, width, classes, hidden)

    @property
    def explains(self) -> bool:
        return isinstance(self.network, ABMIL)

    def forward(self, features_1ND: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if isinstance(self.network, ABMIL):
            return self.network.explain(features_1ND)
        logits_1C: Tensor = self.network(features_1ND)
        return logits_1C

    def logits(self, features_ND: np.ndarray) -> Tensor:
        """(1,C), of one bag."""
        logits_1C: Tensor = self.network(torch.from_numpy(features_ND)[None])
        return logits_1C

    def standardise(self, mean_D: np.ndarray, deviation_D: np.ndarray) -> None:
        """Take features as the encoder gives them, where those of the training were standardised."""
        first = self._linear_layers()[0]
        with torch.no_grad():
            first.weight /= torch.from_numpy(deviation_D)
            first.bias -= first.weight @ torch.from_numpy(mean_D)

    def soften(self, temperature: float) -> None:
        """Divide the logits by the temperature."""
        last = self._linear_layers()[-1]
        with torch.no_grad():
            last.weight /= temperature
            last.bias /= temperature

    def _linear_layers(self) -> list[nn.Linear]:
        return [module for module in self.network.modules() if isinstance(module, nn.Linear)]
