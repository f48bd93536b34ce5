"""A slide as one bag of tile embeddings: what the slide's model says of it, and how much each tile weighs in that.

Ilse et al., "Attention-based deep multiple instance learning" (ICML 2018): a head that attends says itself what each
tile weighs. One that does not is asked by occlusion (Zeiler & Fergus, ECCV 2014, section 4.2): groups of tiles that
follow each other are left out in turn, and a group weighs as much as the answer's probability falls without it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gateway.analyses.kept_arrays import kept
from gateway.analyses.probabilities import softmax
from gateway.analyses.slide_half import Engine, ServedModel
from gateway.domain.report import EvidenceSource
from gateway.operations.disk import disk_errors, written_whole
from gateway.operations.errors import Cancelled, InferenceError, ModelRefused

OCCLUDED_GROUPS = 48
"""Calls by occlusion, at most: each sees nearly the whole bag."""
DEADLINE_S = 300.0


@dataclass(frozen=True, slots=True, eq=False)
class BagAnswer:
    """What the model said of a bag of M tiles: `probabilities_C` (C,), and `weights_M` (M,), not negative, sum 1."""

    probabilities_C: npt.NDArray[np.float64]
    weights_M: npt.NDArray[np.float64]
    evidence: EvidenceSource

    def save(self, path: Path, of: dict[str, Any]) -> None:
        """Write it whole, with what it belongs to. Raises DiskFull."""
        meta = json.dumps({"of": of, "evidence": self.evidence}, sort_keys=True)
        with disk_errors(), written_whole(path) as out:
            np.savez(out, meta=meta, probabilities=self.probabilities_C, weights=self.weights_M)

    @classmethod
    def load(cls, path: Path, of: dict[str, Any]) -> "BagAnswer | None":
        """What lies there; None where there is nothing, or it is damaged, or belongs to anything else."""

        def read(data: Mapping[str, npt.NDArray[Any]]) -> BagAnswer | None:
            meta = json.loads(str(data["meta"]))
            if meta["of"] != of:
                return None
            return cls(data["probabilities"], data["weights"], EvidenceSource(meta["evidence"]))

        return kept(path, read)


def picked(rows_N: npt.NDArray[np.int32], columns_N: npt.NDArray[np.int32], most: int) -> npt.NDArray[np.int64]:
    """Which of a slide's N tiles its bag holds, row by row of the grid: all, or `most` of them evenly spaced.

    In this order, since to some heads the order of a bag says where its tiles lie.
    """
    reading_N = np.lexsort((columns_N, rows_N))
    tiles = len(reading_N)
    return reading_N if tiles <= most else reading_N[(np.arange(most) * tiles) // most]


async def ask(
    model: ServedModel,
    features_MD: npt.NDArray[np.float32],
    xy_um_M2: npt.NDArray[np.float32],
    engine: Engine,
    *,
    cancelled: Callable[[], bool],
) -> BagAnswer:
    """Put a bag through the slide's model. `xy_um_M2`: the tiles' centres, µm from the slide image's top left corner.

    Raises InferenceError; Cancelled, between two calls; ModelRefused where the model asks for what is not known here.
    """

    async def outputs(kept_M: npt.NDArray[np.bool_] | None = None) -> dict[str, npt.NDArray[Any]]:
        if cancelled():
            raise Cancelled("The analysis was cancelled.")
        if kept_M is None:
            return await said_of(model, features_MD, xy_um_M2, engine)
        return await said_of(model, features_MD[kept_M], xy_um_M2[kept_M], engine)

    answer = await outputs()
    probabilities_C = _probabilities(answer)
    if "attention" in answer:
        weights_M = np.maximum(answer["attention"].astype(np.float64).reshape(-1), 0)
        if len(weights_M) != len(features_MD):
            raise InferenceError(f"The model {model.folder} attends to another number of tiles than it was given.")
        return BagAnswer(probabilities_C, _shares(weights_M), EvidenceSource.ATTENTION)
    top = int(probabilities_C.argmax())
    least = (model.card.tiles or (1, 1))[0]
    tiles = len(features_MD)
    weights_M = np.zeros(tiles)
    groups = np.array_split(np.arange(tiles), min(tiles, OCCLUDED_GROUPS))
    for group in groups:
        if tiles - len(group) < max(least, 1):
            break  # nothing may be left out of so small a bag
        kept_M = np.ones(tiles, np.bool_)
        kept_M[group] = False
        without_C = _probabilities(await outputs(kept_M))
        weights_M[group] = max(0.0, probabilities_C[top] - without_C[top]) / len(group)
    return BagAnswer(probabilities_C, _shares(weights_M), EvidenceSource.OCCLUSION)


async def said_of(
    model: ServedModel, features_MD: npt.NDArray[np.float32], xy_um_M2: npt.NDArray[np.float32], engine: Engine
) -> dict[str, npt.NDArray[Any]]:
    """The model's own outputs for a bag: `logits` of as many classes as its card has. Raises as `ask` does."""
    given = await engine.infer(model.folder, _batch(model, features_MD, xy_um_M2), deadline_s=DEADLINE_S)
    if not all(np.isfinite(array).all() for array in given.values()):
        raise InferenceError(f"The model {model.folder} answered with what is no finite number.")
    if given["logits"].size != len(model.card.labels):
        raise InferenceError(f"The model {model.folder} answers with another number of classes than its card has.")
    return given


def _batch(
    model: ServedModel, features_MD: npt.NDArray[np.float32], xy_um_M2: npt.NDArray[np.float32]
) -> dict[str, npt.NDArray[Any]]:
    """The bag as the model takes it: only the inputs that it lists. Raises ModelRefused."""
    dtypes = {spec.name: spec.dtype for spec in model.contract.inputs}
    known = {"features": features_MD, "xy_um": xy_um_M2, "mask": np.ones(len(features_MD), np.bool_)}
    if strange := sorted(dtypes.keys() - known.keys()):
        raise ModelRefused(
            f"The model {model.folder} asks for {', '.join(strange)}, which the gateway does not have. Promote another."
        )
    return {name: np.ascontiguousarray(known[name][None], dtype=dtype) for name, dtype in dtypes.items()}


def _probabilities(answer: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
    """(C,), in double precision: by occlusion small differences count."""
    return softmax(answer["logits"].astype(np.float64).reshape(1, -1)).reshape(-1)


def _shares(weights_M: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """As parts of their sum; where no tile weighs anything, all weigh the same."""
    total = weights_M.sum()
    return weights_M / total if total > 0 else np.full(len(weights_M), 1 / len(weights_M))
