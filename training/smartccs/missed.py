"""What a detector leaves of the annotated test cells at a centre, by class, and of bags of these: a part of E3.

Other bags are dealt of cells that were found, in assumed shares: however many cells of a class a detector misses, an
abnormal bag holds as many of it. So the test bags are dealt of annotated cells here, and a centre leaves of each bag
what the detector finds there: the same bags, less its losses. What it finds beside annotated nuclei is in none of them,
which still flatters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gateway.domain.bethesda import CLASSES, NAMES, NILM
from training.errors import TaskInvalid
from training.smartccs import slide
from training.smartccs.bags import Bag, surest
from training.smartccs.data import UNKNOWN, Field
from training.smartccs.embed import CellSet, Look, kept
from training.smartccs.mode_figures import against
from training.smartccs.modes import NONE, SITE, state_of
from training.smartccs.slide_fit import Slides, logits_of
from training.smartccs.trial import Answerer, AtCentre, Found, Shown, Trial, answered, plain_logits

_PART = "test"


@dataclass(frozen=True, slots=True, eq=False)
class Matched:
    """Which annotated nuclei of the test fields were found. cell_A: of each of them the surest of the cells that hit
    it, a place among the cells that a centre shows, or -1; nucleus_N: of each of those cells the nucleus, or -1."""

    cell_A: np.ndarray
    nucleus_N: np.ndarray

    @classmethod
    def of(cls, fields: Sequence[Field], look: Look, scores_N: np.ndarray) -> "Matched":
        """Of the cells that a look shows of fields, whose scores are these, in their order. Raises DataMissing."""
        found, nuclei = [np.zeros(0, np.int64)], 0
        for field in fields:
            cells = look.cells(field, look.picture(field))
            hit_K = field.at((cells.boxes_N4[:, :2] + cells.boxes_N4[:, 2:]) / 2)
            measured = field.part == _PART
            found.append(np.where((hit_K >= 0) & measured, nuclei + hit_K, -1))
            nuclei += len(field.classes_N) * measured
        nucleus_N, cell_A = np.concatenate(found), np.full(nuclei, -1, np.int64)
        for place in np.argsort(scores_N, kind="stable"):
            if nucleus_N[place] >= 0:
                cell_A[nucleus_N[place]] = place
        return cls(cell_A, nucleus_N)


def missed_at(trial: Trial, centre: AtCentre) -> Found:
    """At a centre, with its colours as they are and mapped: annotated and found nuclei of the test fields by class, and
    what else was found; then AUC, sensitivity and specificity of test bags of annotated cells, and of the same bags as
    the detector leaves them, without adaptation and with the site's state, with the gain over the annotated ones; how
    many abnormal bags have lost all cells of their class. Raises TaskInvalid where the run has no detector."""
    if trial.found is None:
        raise TaskInvalid(
            "This run's bags are of annotated cells, of which none is missed. Name a run with a detector."
        )
    fields = trial.unseen(_PART)
    whole = kept(trial.eye, fields, slide.look_at(None, centre.name))
    bags = trial.recipe.deal(whole, (_PART,))[_PART]
    labels_N, count = np.array([bag.label for bag in bags]), trial.recipe.bootstrap
    points = [each.point for each in trial.answerers]
    annotated_RNC = answered(trial, plain_logits(Slides.of(bags, whole.features_ND)))
    shown = {"raw": (centre.raw, centre.look), "coloured": (centre.coloured, centre.coloured_look)}
    matched = {kind: Matched.of(centre.fields, look, of.cells.scores_N) for kind, (of, look) in shown.items()}
    left = {
        kind: [_left(bag, matched[kind], of.cells, trial.recipe.top_k) for bag in bags]
        for kind, (of, _) in shown.items()
    }
    states = [state_of(centre, each) for each in trial.answerers]

    def given(number: int, each: Answerer, mode: str) -> np.ndarray:
        state = states[number]
        kind = "coloured" if mode == SITE and state.colour is not None else "raw"
        affine = (state.gamma_D, state.beta_D) if mode == SITE else (None, None)
        return _answers(each, left[kind], shown[kind][0], *affine)

    rows = {
        mode: against(
            np.stack([given(number, each, mode) for number, each in enumerate(trial.answerers)]),
            annotated_RNC,
            labels_N,
            points,
            count,
        )
        for mode in (NONE, SITE)
    }
    return {
        "annotated": _by_class(whole.classes_N),
        "found": {kind: _by_class(whole.classes_N[of.cell_A >= 0]) for kind, of in matched.items()},
        "detections": {kind: _kinds(shown[kind][0].cells, of) for kind, of in matched.items()},
        "bags": len(bags),
        "abnormal": int((labels_N != NILM).sum()),
        "annotated_bags": against(annotated_RNC, annotated_RNC, labels_N, points, count),
        "same_bags": rows,
        "lost": {kind: _lost(bags, whole, matched[kind]) for kind in shown},
        "empty": {kind: sum(not len(bag.cells_K) for bag in left[kind]) for kind in shown},
    }


def _left(bag: Bag, matched: Matched, cells: CellSet, top_k: int) -> Bag:
    """What a detector leaves of a bag of annotated cells, as a served slide would be answered."""
    found_K = matched.cell_A[bag.cells_K]
    return surest(Bag(bag.label, found_K[found_K >= 0], bag.fraction), cells.found_N, cells.scores_N, top_k)


def _answers(
    each: Answerer, bags: Sequence[Bag], shown: Shown, gamma_D: np.ndarray | None, beta_D: np.ndarray | None
) -> np.ndarray:
    """(N,7) probabilities; a bag without cells, of which a report would say that none was found, counts as NILM."""
    given_NC = np.tile(np.eye(len(CLASSES))[NILM], (len(bags), 1))
    there = [place for place, bag in enumerate(bags) if len(bag.cells_K)]
    if there:
        features = Slides.of([bags[place] for place in there], shown.cells.features_ND).features
        given_NC[there] = each.probabilities(logits_of(each.head, features, gamma_D, beta_D))
    return given_NC


def _lost(bags: Sequence[Bag], whole: CellSet, matched: Matched) -> int:
    """Abnormal bags of which no cell of their class was found."""
    return sum(
        bag.label != NILM and not (matched.cell_A[bag.cells_K[whole.classes_N[bag.cells_K] == bag.label]] >= 0).any()
        for bag in bags
    )


def _by_class(classes_N: np.ndarray) -> dict[str, int]:
    return {name: int((classes_N == number).sum()) for number, name in enumerate(NAMES)}


def _kinds(cells: CellSet, matched: Matched) -> dict[str, int]:
    """What was found in the test fields: nuclei, nuclei once more, places in fields where nothing is abnormal, and
    places of which nothing is known, which are in no bag."""
    measured_N = cells.parts() == _PART
    on_N = matched.nucleus_N >= 0
    unknown_N = measured_N & (cells.classes_N == UNKNOWN)
    return {
        "nuclei": int((matched.cell_A >= 0).sum()),
        "again": int(on_N.sum() - (matched.cell_A >= 0).sum()),
        "negative": int((measured_N & ~on_N & ~unknown_N).sum()),
        "unknown": int(unknown_N.sum()),
    }
