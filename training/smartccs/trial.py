"""What the experiments on a trained slide head share: its encoder and detector, and what each centre shows of its bags.

A site is fitted to a centre's validation bags, without their labels, and measured on its test bags, at the operating
points that the source's validation blocks gave. All is of synthetic bags and, but for the source, of simulated centres.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from gateway.domain.screening import ScreeningPoint
from gateway.slides.site_colour import ColourMap, Counts, densities
from gateway.slides.site_fit import SiteCells
from gateway.slides.site_state import Source
from training.errors import TaskInvalid
from training.files import sha256_bytes
from training.repeatable import repeatable
from training.runs import Run, find_run
from training.smartccs import data, slide
from training.smartccs.bags import Bag
from training.smartccs.embed import CellEncoder, CellSet, Look, encoder, kept, tissue_counts
from training.smartccs.heads import SlideHead
from training.smartccs.reinhard import Lab, Reinhard, lab_moments
from training.smartccs.slide_fit import Calibration, Slides, calibration_of, logits_of, site_cells

PARTS = ("validation", "test")


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """The validation and test bags of a centre as it shows them. `scored`: whether a site weighs cells by the
    detector's score; see `site_cells`."""

    cells: CellSet
    dealt: Mapping[str, Sequence[Bag]]
    scored: bool

    @property
    def labels(self) -> dict[str, list[int]]:
        """The bags' classes, by part."""
        return {part: [bag.label for bag in dealt] for part, dealt in self.dealt.items()}

    def slides(self, part: str) -> Slides:
        """A part's bags."""
        return Slides.of(self.dealt[part], self.cells.features_ND)

    def scores(self, part: str) -> list[np.ndarray] | None:
        """The detector's scores of each bag's cells, where they weigh."""
        return [self.cells.scores_N[bag.cells_K] for bag in self.dealt[part]] if self.scored else None

    def site(self, head: SlideHead, bags: Sequence[Bag] | None = None) -> SiteCells:
        """The cells of these bags, by default of the validation bags, to fit a site to."""
        places_K = np.concatenate([bag.cells_K for bag in (self.dealt["validation"] if bags is None else bags)])
        scores_N = self.cells.scores_N[places_K] if self.scored else None
        return site_cells(head, self.cells.features_ND[places_K], scores_N)


@dataclass(frozen=True, slots=True, eq=False)
class Answerer:
    """A head with what its own source bags gave: what sites are held against, calibration, operating point."""

    head: SlideHead
    source: Source
    calibrated: Calibration
    point: ScreeningPoint

    def probabilities(self, logits_NC: np.ndarray) -> np.ndarray:
        """(N,7) float64, calibrated."""
        return self.calibrated(logits_NC)


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """A finished run of the slide head, opened for experiments. `answerers` are its heads; the one that is served is
    `trained.best`. `cells`, `dealt`: of the source, of all parts."""

    run: Run
    trained: slide.Trained
    eye: CellEncoder
    found: slide.Detections | None
    fields: tuple[data.Field, ...]
    cells: CellSet
    dealt: Mapping[str, Sequence[Bag]]
    answerers: tuple[Answerer, ...]

    @property
    def recipe(self) -> slide.SlideRecipe:
        return self.trained.recipe

    @property
    def served(self) -> Answerer:
        return self.answerers[self.trained.best]

    @property
    def labels(self) -> dict[str, list[int]]:
        """The classes of the source's validation and test bags, in their order."""
        return {part: [bag.label for bag in self.dealt[part]] for part in PARTS}

    @property
    def scored(self) -> bool:
        return self.found is not None and self.recipe.head != "mean"

    def slides(self, part: str) -> Slides:
        """A part's bags of the source."""
        return Slides.of(self.dealt[part], self.cells.features_ND)

    def unseen(self, part: str | None = None) -> tuple[data.Field, ...]:
        """The fields of the validation and test parts, or of one."""
        return tuple(field for field in self.fields if field.part in (PARTS if part is None else (part,)))

    def look(self, centre: str = slide.SOURCE) -> Look:
        """How fields are looked at, as they are or at a simulated centre."""
        return slide.look_at(self.found, centre)

    def shown(
        self, look: Look, fields: Sequence[data.Field], labels: Mapping[str, Sequence[int]] | None = None
    ) -> Shown:
        """What a look shows of fields, in bags of these labels. Raises DataMissing, RunInvalid, TaskInvalid."""
        cells = kept(self.eye, fields, look)
        return Shown(cells, self.recipe.deal(cells, PARTS, labels), self.scored)


@dataclass(frozen=True, slots=True, eq=False)
class AtCentre:
    """A centre's bags as they are, and with its colours mapped to the source's; `counts_3V` are the pixels of the
    validation fields, which the map `colour` rests on. `look`, `coloured_look` and `fields` are for further views."""

    name: str
    look: Look
    coloured_look: Look
    fields: tuple[data.Field, ...]
    counts_3V: Counts
    colour: ColourMap
    raw: Shown
    coloured: Shown


def open_trial(recipe_name: str) -> Trial:
    """A run by its recipe's name. Raises RunInvalid, RecipeInvalid, DataMissing; TaskInvalid where its encoder or
    its detector was trained anew since."""
    repeatable()
    run = find_run(recipe_name)
    trained = slide.trained(run)
    recipe, fields = trained.recipe, data.load()
    eye = encoder(recipe.encoder, recipe.seed)
    if eye.weights_sha256 != run.metrics["served"]["encoder_sha256"]:
        raise TaskInvalid("The encoder was trained anew after the slide head. Train the head again.")
    found = slide.detections(recipe.detector) if recipe.detector else None
    if found is not None and found.run.weights_sha256 != run.manifest["starts_from"]["detector"]["weights_sha256"]:
        raise TaskInvalid("The detector was trained anew after the slide head. Train the head again.")
    cells = kept(eye, fields, slide.look_at(found, slide.SOURCE))
    dealt = recipe.deal(cells)
    chosen = Slides.of(dealt["validation"], cells.features_ND)
    blocks = slide.validation_blocks(recipe, slide.pointing(recipe, eye, fields, cells, found))
    scores_N = cells.scores_N if found is not None and recipe.head != "mean" else None
    answerers = []
    for number, head in enumerate(trained.heads):
        source = slide.source_of_bags(head, cells, dealt, scores_N, trained.source.densities)
        if number == trained.best:
            answerers.append(Answerer(head, source, trained.calibrated, trained.point))
            continue
        calibrated = calibration_of(logits_of(head, chosen.features), chosen.labels_B)
        point = slide.lowest_point(recipe, head, calibrated, blocks, trained.point.supported)
        answerers.append(Answerer(head, source, calibrated, point))
    return Trial(run, trained, eye, found, fields, cells, dealt, tuple(answerers))


def at_centre(
    trial: Trial, name: str, look: Look | None = None, fields: Sequence[data.Field] | None = None
) -> AtCentre:
    """A centre, by default a simulated one, or the source, of the unseen fields and of the source's bags. Raises
    DataMissing, RunInvalid, TaskInvalid."""
    look = trial.look(name) if look is None else look
    labels = trial.labels if fields is None else None
    fields = trial.unseen() if fields is None else tuple(fields)
    counts_3V = tissue_counts([field for field in fields if field.part == "validation"], look)
    colour = ColourMap(densities(counts_3V), trial.trained.source.densities)
    said = sha256_bytes(colour.table().tobytes())
    coloured = replace(look, name=f"{look.name}, colours {said}", colour=colour)
    raw = trial.shown(look, fields, labels)
    return AtCentre(name, look, coloured, fields, counts_3V, colour, raw, trial.shown(coloured, fields, raw.labels))


def mirrored(trial: Trial, centre: AtCentre) -> Shown:
    """The same cells with their crops mirrored: the view that answers are to agree with."""
    view = replace(centre.look, name=f"{centre.look.name}, mirrored", view=_mirrored)
    return trial.shown(view, centre.fields, centre.raw.labels)


def normalised(trial: Trial, centre: AtCentre) -> Shown:
    """The centre's bags after Reinhard's stain normalisation to the source's train fields, in place of our colours."""
    plain = trial.look()
    to = _lab(plain, [field for field in trial.fields if field.part == "train"])
    site = _lab(centre.look, [field for field in centre.fields if field.part == "validation"])
    said = sha256_bytes(b"".join(values.tobytes() for values in (*site, *to)))
    look = replace(centre.look, name=f"{centre.look.name}, Reinhard {said}", colour=Reinhard(site, to))
    return trial.shown(look, centre.fields, centre.raw.labels)


def batches(count: int, size: int) -> list[slice]:
    """Consecutive slices of `size` over `count` slides, the last one shorter."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def answered(trial: Trial, logits_of_head: Callable[[Answerer], np.ndarray]) -> np.ndarray:
    """(R,N,7) float64: each head's calibrated probabilities of the logits that it gives."""
    return np.stack([each.probabilities(logits_of_head(each)) for each in trial.answerers])


def _lab(look: Look, fields: Sequence[data.Field]) -> Lab:
    return lab_moments(look.picture(field) for field in fields)


def _mirrored(crops_NHWC: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(crops_NHWC[:, :, ::-1])


def plain_logits(slides: Slides) -> Callable[[Answerer], np.ndarray]:
    """What answers bags without any adaptation."""
    return partial(_plain, slides)


def _plain(slides: Slides, answerer: Answerer) -> np.ndarray:
    return logits_of(answerer.head, slides.features)


Found = dict[str, Any]
"""What an experiment writes."""
