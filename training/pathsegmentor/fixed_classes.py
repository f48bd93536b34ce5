"""The answers of fixed-class networks on whole images, as the text-prompted network's are read."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from training.pathsegmentor.predictor import Asked, Predicted, blended, padded
from training.pathsegmentor.specialists import Specialist


class Specialists:
    """Fixed-class networks, one a set, as a `Predictor`: the set chooses the network, the prompt its class. A prompt of
    no class is answered by nothing (logit -100)."""

    def __init__(self, networks: Mapping[str, Specialist]) -> None:
        self._networks = dict(networks)

    def __call__(
        self, image_HW3: np.ndarray, asked: Sequence[Asked], dataset: str, *, queries: bool = False
    ) -> Predicted:
        network = self._networks[dataset]
        places = [network.place(prompt.triple) for prompt in asked]

        @torch.inference_mode()
        def window(tile_HW3: np.ndarray) -> tuple[np.ndarray, np.ndarray, None]:
            height, width = tile_HW3.shape[:2]
            masks_1CHW, presence_1C = network(padded(tile_HW3, network.multiple))
            masks_CHW, presence_C = masks_1CHW[0, :, :height, :width].numpy(), presence_1C[0].numpy()
            nothing_HW = np.full((height, width), -100.0, np.float32)
            masks_PHW = np.stack([nothing_HW if place is None else masks_CHW[place] for place in places])
            return masks_PHW, np.array([-100.0 if place is None else presence_C[place] for place in places]), None

        return blended(image_HW3, window)
