"""What the logits of a model that tells classes apart mean."""

from typing import TypeVar

import numpy as np
import numpy.typing as npt

Float = TypeVar("Float", np.float32, np.float64)


def softmax(logits_NC: npt.NDArray[Float]) -> npt.NDArray[Float]:
    """Probabilities (N, C) of logits (N, C), in their precision; each row depends on itself only."""
    shifted_NC = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    return np.asarray(shifted_NC / shifted_NC.sum(axis=1, keepdims=True), logits_NC.dtype)
