"""What an encoder must pass when its weights are met for the first time, and its reference embedding ever after.

Users of public encoders have evaluated silently random networks, skipped transforms and swapped normalisations; each
of these changes the embedding of one known image. The record lies beside fetched weights, else in the runs folder.
"""

import hashlib
import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from training.files import json_bytes, write_atomic
from training.nn.vit import LayerScale
from training.pathbench.encoders.encoder import Encoder
from training.pathbench.encoders.errors import EncoderInvalid
from training.runs import runs_folder

SCHEMA = "pathserve-encoder-self-test-1"
FILE = "self-test.json"
TOLERANCE = 1e-3
"""Of the reference figures, relative: another processor's sums differ by far less, a wrong constant by far more."""
_FIGURES = 8
_ORDER = 1e-5
_ALIKE = 1e-6
"""Below it, of the embedding's magnitude, two embeddings are the same. An encoder that has hardly been trained tells
images apart by little more."""
_TOOLS = ("torch", "numpy", "pillow")


def reference_image() -> np.ndarray:
    """(512,512,3) uint8, the same on every machine: products of sines that differ from channel to channel."""
    y, x, c = np.mgrid[0:512, 0:512, 0:3].astype(np.float64)
    waves = np.sin(0.05 * x * (c + 1) + 0.03 * y) * np.cos(0.02 * y * (c + 1))
    return np.clip(np.floor(127.5 * (1 + waves)), 0, 255).astype(np.uint8)


def record_path(encoder_id: str, weights: Path | None) -> Path:
    """Beside the fetched file, or in the runs folder."""
    return (weights.parent if weights else runs_folder() / "encoders" / encoder_id) / FILE


def recorded(path: Path, checksum: str, toolkit: str) -> dict[str, Any] | None:
    """The record of these weights under a toolkit's transform, where there is one."""
    return _records(path).get(f"{checksum}/{toolkit}")


def prints(network: nn.Module) -> dict[str, bytes]:
    """A digest of each matrix, to see later which of them were never loaded."""
    return {key: _digest(value) for key, value in network.state_dict().items() if value.ndim > 1}


def demand_learned(encoder_id: str, network: nn.Module, before: dict[str, bytes]) -> None:
    """Raises EncoderInvalid where the weights are those that a network begins with.

    No matrix may be as it was `before` loading, no LayerScale at one constant, and not most of the vectors (norms,
    biases) at the constant 0 or 1 that they begin with.
    """
    after = prints(network)
    if untouched := [key for key, digest in before.items() if after[key] == digest]:
        raise EncoderInvalid(f"{untouched[0]} of {encoder_id} is as a fresh network has it: it was never trained.")
    for module in network.modules():
        if isinstance(module, LayerScale) and bool((module.gamma == module.gamma[0]).all()):
            raise EncoderInvalid(f"The LayerScale of {encoder_id} is one constant: the weights were never trained.")
    vectors = [parameter for parameter in network.parameters() if parameter.ndim == 1]
    still = sum(bool((vector == vector[0]).all()) for vector in vectors)
    if vectors and still > len(vectors) / 2:
        raise EncoderInvalid(
            f"{still} of the {len(vectors)} norms and biases of {encoder_id} are constants, as in a fresh network: the "
            "weights were never trained."
        )


def _digest(value: Tensor) -> bytes:
    return hashlib.blake2b(value.detach().contiguous().numpy().tobytes(), digest_size=16).digest()


def verify(encoder: Encoder, path: Path) -> None:
    """Hold an encoder to its record; the first time, test its transform and write the record.

    Raises EncoderInvalid where the reference embedding is another one, and where the first test fails.
    """
    found = _reference(encoder)
    meta = encoder.meta
    held = recorded(path, meta.checksum, meta.toolkit)
    if held is None:
        record = {**found, **_first_test(encoder), "tools": _tools()}
        _write(path, f"{meta.checksum}/{meta.toolkit}", record)
        return
    gap = float(np.max([_gap(found[name], held[name]) for name in ("first", "mean", "std", "norm")]))
    if not gap <= TOLERANCE:
        changed = [
            f"{name} {held['tools'][name]} → {now}" for name, now in _tools().items() if held["tools"][name] != now
        ]
        reason = f"the transform was “{held['transform']}”, now it is “{found['transform']}”"
        if held["transform"] == found["transform"]:
            reason = f"since then changed: {', '.join(changed) or 'nothing that is recorded'}"
        raise EncoderInvalid(
            f"{meta.id} gives another embedding of the reference image than at first (by {gap:.1e}); {reason}."
        )


def _reference(encoder: Encoder) -> dict[str, Any]:
    (embedding_D,) = encoder.embed([reference_image()]).astype(np.float64)
    if embedding_D.shape != (encoder.meta.dim,) or not np.isfinite(embedding_D).all():
        raise EncoderInvalid(
            f"{encoder.meta.id} gives {embedding_D.shape[0]} values for the reference image, or values that are not "
            f"finite; its card says {encoder.meta.dim}."
        )
    return {
        "transform": encoder.meta.transform,
        "first": embedding_D[:_FIGURES].tolist(),
        "mean": float(embedding_D.mean()),
        "std": float(embedding_D.std()),
        "norm": float(np.linalg.norm(embedding_D)),
    }


def _gap(found: Any, held: Any) -> float:
    """Greatest difference, in units of the held figures' magnitude."""
    return float(np.abs(np.subtract(found, held)).max() / max(np.abs(held).max(), 1e-12))


def _first_test(encoder: Encoder) -> dict[str, Any]:
    """Order in the batch means nothing, unlike images differ, and so do unlike constants. Raises EncoderInvalid."""
    images = [reference_image(), 255 - reference_image(), np.ascontiguousarray(reference_image()[:256, ::-1])]
    straight, turned = encoder.embed(images), encoder.embed(images[::-1])[::-1]
    scale = max(float(np.abs(straight).max()), 1e-12)
    order = float(np.abs(straight - turned).max()) / scale
    if order > _ORDER:
        raise EncoderInvalid(
            f"The embedding that {encoder.meta.id} gives depends on the order of the batch ({order:.1e})."
        )
    apart = min(float(np.abs(straight[i] - straight[j]).max()) for i, j in ((0, 1), (0, 2), (1, 2))) / scale
    if apart < _ALIKE:
        raise EncoderInvalid(f"{encoder.meta.id} gives the same embedding for different images.")
    figures = {"order": order, "apart": apart}
    if encoder.transform.mean is not None:
        swapped = replace(encoder.transform, mean=(0.1, 0.6, 0.9), std=(0.9, 0.5, 0.2))
        other = replace(encoder, transform=swapped).embed(images[:1])
        figures["normalisation"] = float(np.abs(other - straight[:1]).max()) / scale
        if figures["normalisation"] < TOLERANCE:
            raise EncoderInvalid(f"The embedding that {encoder.meta.id} gives does not depend on its normalisation.")
    return figures


def _tools() -> dict[str, str]:
    return {name: metadata.version(name) for name in _TOOLS}


def _records(path: Path) -> dict[str, Any]:
    """The file's records; none where it is absent or is no such file."""
    try:
        return dict(json.loads(path.read_bytes())["records"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write(path: Path, key: str, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json_bytes({"schema": SCHEMA, "records": _records(path) | {key: record}}))
