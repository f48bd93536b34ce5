"""What each cell adds to a slide's answer: parts of the logits that add up to them."""

import numpy as np
from numpy.typing import NDArray

from gateway.domain.model import Pool


def contributions(
    pool: Pool, cell_logits_NC: NDArray[np.float32], attention_N: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """(N,C): what each of a slide's N ≥ 1 cells (padding left out) adds to each class's logit; a column's sum is the
    slide's logit. Where the maximum counts, one cell adds all of it. `attention_N` is asked for by "attention" only."""
    if pool == "mean":
        return cell_logits_NC / np.float32(len(cell_logits_NC))
    if pool == "max":
        best_C = cell_logits_NC.argmax(0)
        return np.where(np.arange(len(cell_logits_NC))[:, None] == best_C, cell_logits_NC, np.float32(0))
    if attention_N is None:
        raise ValueError("a head with attention needs the attention of its cells")
    return attention_N[:, None] * cell_logits_NC
