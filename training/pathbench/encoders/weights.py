"""A card's weights into its network: from a file that a person fetched, a package, a run of ours, or a seed.

Nothing is ever downloaded. Files that a person fetched lie in PATHSERVE_WEIGHTS (default: `weights` beside the runs
folder), one folder an id, with the digest that the person has pinned.
"""

import hashlib
import os
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from training.errors import RunInvalid
from training.files import sha256_bytes, sha256_file
from training.graphs import Graph, declare
from training.nn.checkpoints import load_state
from training.nn.efficientnet_lite import EfficientNetLite0
from training.nn.pretrained import load_lite0, load_lite1
from training.pathbench.encoders import functions
from training.pathbench.encoders.cards import Card
from training.pathbench.encoders.errors import EncoderInvalid, EncoderMissing, LicenceNotAccepted
from training.pathbench.encoders.layouts import plain_names
from training.runs import Pretraining, Run, find_run, runs_folder

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
PIN = "sha256.txt"


def weights_folder() -> Path:
    """Where fetched weights lie: PATHSERVE_WEIGHTS, or `weights` beside the runs folder."""
    return Path(os.environ.get("PATHSERVE_WEIGHTS") or runs_folder().parent / "weights")


def demand_licence(encoder_id: str, card: Card, *, accepted: bool) -> None:
    """Raises LicenceNotAccepted where the licence asks a person for consent and none was given."""
    if not accepted:
        raise LicenceNotAccepted(
            f"{encoder_id} is licensed under {card.licence}{' (to be checked)' if 'licence' in card.inferred else ''}: "
            "read it, and say accept_licence where its terms allow your use."
        )


def weights_file(encoder_id: str, card: Card) -> Path:
    """The one weights file of an id's folder. Raises EncoderMissing with what to fetch and where to put it."""
    folder = weights_folder() / encoder_id
    files = sorted(path for path in folder.glob("*") if path.suffix in _SUFFIXES and path.is_file())
    if len(files) == 1:
        return files[0]
    if files:
        raise EncoderInvalid(
            f"There are {len(files)} weights files in the folder of {encoder_id}. Leave the right one."
        )
    access = "gated: ask for access there" if card.gated else "public"
    raise EncoderMissing(
        f"The weights of {encoder_id} are not here. Fetch {card.weights.file or 'the weights file'} of "
        f"{card.weights.hub} ({access}; licence {card.licence}) and put it into {encoder_id}/ in the folder "
        f"PATHSERVE_WEIGHTS."
    )


def verified_digest(encoder_id: str, card: Card, path: Path) -> str:
    """The file's sha256, which is the published one or the one that a person has pinned. Raises EncoderInvalid."""
    digest, weights, pin = sha256_file(path), card.weights, path.parent / PIN
    if weights.sha256 == digest or (weights.md5 is not None and weights.md5 == _md5(path)):
        return digest
    if not pin.is_file():
        raise EncoderInvalid(
            f"{path.name} of {encoder_id} has the sha256 {digest}, which its card does not name. Compare it with where "
            f"you fetched the file, and write it into {PIN} beside it."
        )
    if pin.read_bytes().split()[:1] != [digest.encode()]:
        raise EncoderInvalid(
            f"{path.name} of {encoder_id} differs from the digest that is pinned in {PIN}. Fetch it again."
        )
    return digest


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def read_tensors(encoder_id: str, card: Card, path: Path) -> dict[str, Tensor]:
    """A fetched file's tensors under the network's own names.

    Of a pickle only tensors and plain containers are read, never code. Raises EncoderInvalid where it cannot be read,
    or claims more values than it has bytes for.
    """
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            if zipfile.is_zipfile(path):
                _demand_stored(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
        tensors = plain_names(content, card.weights.layout)
        if not all(isinstance(key, str) for key in tensors):
            raise TypeError("keys that are no names")
        claimed = sum(value.numel() for value in tensors.values())
        if claimed > path.stat().st_size:  # no published file has values of less than one byte
            raise ValueError("more values than bytes")
        return {key: value.float() for key, value in tensors.items()}
    except Exception as error:  # pickle, zip and safetensors raise a dozen classes, and content of another form more
        raise EncoderInvalid(
            f"{path.name} of {encoder_id} cannot be read as weights ({type(error).__name__}). Fetch it again."
        ) from None


def _demand_stored(path: Path) -> None:
    """PyTorch never packs its archives: what unpacks to more than the file has bytes is no weights file."""
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise ValueError("packed content")


def load_fetched(encoder_id: str, card: Card, network: nn.Module, path: Path) -> None:
    """Load a fetched file strictly. Raises EncoderInvalid, and WeightsInvalid naming the first tensor that differs."""
    load_state(network, read_tensors(encoder_id, card, path), encoder_id)


def load_package(network: nn.Module) -> Pretraining:
    """Load the weights that a network's package carries. Raises DataMissing, WeightsInvalid."""
    return load_lite0(network) if isinstance(network, EfficientNetLite0) else load_lite1(network)


def load_run(encoder_id: str, card: Card) -> tuple[Run, Graph]:
    """The run of an encoder of ours, and its graph. Raises EncoderMissing naming the recipe and the command."""
    recipe = card.weights.run
    assert recipe is not None
    try:
        run = find_run(recipe)
    except RunInvalid as error:
        system = recipe.partition("-")[0]
        raise EncoderMissing(
            f"{encoder_id} is not trained here. {error.detail} "
            f"(python -m training.{system}.train training/recipes/{recipe}.toml)"
        ) from None
    graph = declare(run)
    if graph.kind != "encoder":
        raise EncoderInvalid(f"The run of the recipe {recipe} is a {graph.kind}, not an encoder.")
    return run, graph


def state_digest(network: nn.Module) -> str:
    """sha256 over names and values of the network's state."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def functions_digest(encoder_id: str) -> str:
    """Of an encoder without weights: over its name and its module's text, so that another function is another one."""
    return sha256_bytes(encoder_id.encode() + Path(functions.__file__).read_bytes())
