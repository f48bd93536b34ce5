"""What the slide's model says of a slide's cells, with and without the state of the slide's site.

The model is called once for each look at the slide, and where the state changes features but no colours twice for the
one look; where it changes nothing, once: both answers are then the same, to the bit. They are kept on disk.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gateway.analyses.kept_arrays import kept
from gateway.analyses.probabilities import softmax
from gateway.analyses.screening_cells import SlideCells
from gateway.analyses.screening_models import ScreeningModels, answered
from gateway.analyses.slide_half import Engine
from gateway.domain.bethesda import CLASSES
from gateway.domain.model import ScreeningRule
from gateway.operations.disk import disk_errors, written_whole
from gateway.operations.errors import ModelRefused
from gateway.slides.cell_evidence import contributions
from gateway.slides.site_state import SiteState

_DEADLINE_S = 300.0
_SAME = "same"
_ARRAYS = ("logits_C", "parts_NC")


@dataclass(frozen=True, slots=True, eq=False)
class BagSaid:
    """`logits_C` (7,) of the slide, and `parts_NC` (N, 7): what each of its cells adds to them."""

    logits_C: npt.NDArray[np.float32]
    parts_NC: npt.NDArray[np.float32]

    def probabilities(self, rule: ScreeningRule) -> npt.NDArray[np.float64]:
        """(7,) calibrated."""
        probabilities_1C = softmax(self.logits_C.astype(np.float64)[None] / rule.temperature + np.array(rule.biases))
        return np.asarray(probabilities_1C[0])


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """The answer with the site's state and the one without; None where there was no cell to be asked about. The same
    object where the state changes nothing."""

    adapted: BagSaid | None
    unadapted: BagSaid | None

    def save(self, path: Path, of: dict[str, str]) -> None:
        """Write them whole, with what they belong to. Raises DiskFull."""
        said = {"adapted": self.adapted, "unadapted": None if self._same else self.unadapted}
        arrays = {
            f"{name}-{array}": getattr(answer, array)
            for name, answer in said.items()
            if answer is not None
            for array in _ARRAYS
        }
        meta = json.dumps({"of": of, _SAME: self._same}, sort_keys=True)
        with disk_errors(), written_whole(path) as out:
            np.savez(out, meta=meta, **arrays)

    @classmethod
    def load(cls, path: Path, of: dict[str, str]) -> "Answers | None":
        """What lies there; None where there is nothing, or it is damaged, or belongs to anything else."""

        def read(data: Mapping[str, npt.NDArray[Any]]) -> Answers | None:
            meta = json.loads(str(data["meta"]))
            if meta["of"] != of:
                return None
            adapted, unadapted = (
                BagSaid(*(data[f"{name}-{array}"] for array in _ARRAYS)) if f"{name}-logits_C" in data else None
                for name in ("adapted", "unadapted")
            )
            return cls(adapted, adapted if meta[_SAME] else unadapted)

        return kept(path, read)

    @property
    def _same(self) -> bool:
        return self.adapted is self.unadapted


async def ask(
    models: ScreeningModels, state: SiteState, plain: SlideCells, site: SlideCells, engine: Engine
) -> Answers:
    """Ask the slide's model about the cells of the slide as it is, and as its site's state shows it (the same object
    where no colours are mapped). Raises RowsOutdated, InferenceError, ModelRefused."""
    width = models.width
    gamma_D, beta_D = np.ones(width, np.float32), np.zeros(width, np.float32)
    unadapted = await _said(models, plain, gamma_D, beta_D, engine)
    if state.changes_nothing:
        return Answers(unadapted, unadapted)
    return Answers(await _said(models, site, state.gamma_D, state.beta_D, engine), unadapted)


async def _said(
    models: ScreeningModels,
    cells: SlideCells,
    gamma_D: npt.NDArray[np.float32],
    beta_D: npt.NDArray[np.float32],
    engine: Engine,
) -> BagSaid | None:
    count = len(cells.chosen)
    if not count:
        return None
    known: dict[str, npt.NDArray[Any]] = {
        "features": cells.features()[None],
        "mask": np.ones((1, count), np.bool_),
        "gamma": gamma_D[None],
        "beta": beta_D[None],
    }
    folder = models.slide.folder
    names = {spec.name for spec in models.slide.contract.inputs}
    if names != known.keys():
        raise ModelRefused(
            f"The model {folder} takes {', '.join(sorted(names))}; a slide's cells come as {', '.join(sorted(known))}. "
            "Promote another."
        )
    answer = await engine.infer(folder, known, deadline_s=_DEADLINE_S)
    logits_C = answered(folder, answer, "logits", (1, len(CLASSES)))[0]
    cell_logits_NC = answered(folder, answer, "cell_logits", (1, count, len(CLASSES)))[0]
    attention_N = answered(folder, answer, "attention", (1, count))[0] if models.rule.pool == "attention" else None
    return BagSaid(logits_C, contributions(models.rule.pool, cell_logits_NC, attention_N))
