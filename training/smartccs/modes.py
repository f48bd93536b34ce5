"""Every mode of adaptation at one centre, beside none and beside negative controls: what experiment E5 measures.

The weights of encoder and heads stay but in the modes of the encoder's norms, which are measured of the served head
alone. See training.smartccs.adapt, norm_tuning and reinhard for the modes.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import get_args

import numpy as np

from gateway.slides.site_colour import ColourMap
from gateway.slides.site_fit import LEAST_SLIDES, SiteCells, SiteNotFittable, affine, fit
from gateway.slides.site_state import SiteState, Source, not_commissioned
from training.errors import DataMissing
from training.smartccs.adapt import BATCH, Bank, Gradient, all_alike, batch
from training.smartccs.mode_figures import against, area, difference_of_areas, right_class, served
from training.smartccs.norm_tuning import Method, NormTuning
from training.smartccs.slide_fit import Slides, logits_of
from training.smartccs.strangers import sources_of_tissue
from training.smartccs.trial import (
    Answerer,
    AtCentre,
    Found,
    Shown,
    Trial,
    answered,
    batches,
    mirrored,
    normalised,
    plain_logits,
)

NONE, COLOUR, SITE, BOTH, FEATURES, ALL_CELLS = "none", "colour", "site", "A+B", "features", "all cells"
BATCH_PLAIN, BATCH_ANCHORED, GRADIENT, REINHARD = "batch", "batch, anchored", "gradient", "Reinhard"
SHUFFLED_BANK, OTHER_ORGAN = "control: bank with shuffled labels", "control: statistics of another organ"
SHORT = (NONE, COLOUR, SITE, BOTH, FEATURES, ALL_CELLS, BATCH_PLAIN, BATCH_ANCHORED)
"""The modes that need no other look at a centre than the two that all share: a minute in place of many."""

TOGETHER = 8
"""Slides of a batch that norms are tuned on."""
_TOLD_AFTER = 8

Logits = Callable[[int, Answerer], np.ndarray]
"""Of a head, by number: the logits (N,7) of the test bags."""


def state_of(centre: AtCentre, answerer: Answerer) -> SiteState:
    """The site's state that a head is served with: fitted to the validation bags; where it cannot be fitted, that of a
    site that nobody commissioned."""

    def cells(colour: ColourMap | None) -> SiteCells:
        return (centre.raw if colour is None else centre.coloured).site(answerer.head)

    bags = len(centre.raw.dealt["validation"])
    try:
        return fit(centre.name, 1, answerer.source, bags, centre.counts_3V, cells)
    except SiteNotFittable:
        return not_commissioned(centre.name, answerer.source)


def with_state(centre: AtCentre, answerer: Answerer, state: SiteState, part: str = "test") -> np.ndarray:
    """(N,7): the logits of a part's bags under a site's state."""
    seen = centre.raw if state.colour is None else centre.coloured
    return logits_of(answerer.head, seen.slides(part).features, state.gamma_D, state.beta_D)


def fitted_to(
    shown: Shown, answerer: Answerer, asked: Slides, cells: SiteCells | None = None, source: Source | None = None
) -> np.ndarray:
    """(N,7): the logits of bags under moments of a centre's validation bags, whatever a gate would say."""
    found = shown.site(answerer.head) if cells is None else cells
    return logits_of(answerer.head, asked.features, *affine(found, answerer.source if source is None else source))


def in_batches(shown: Shown, answerer: Answerer, *, anchored: bool, size: int = BATCH) -> np.ndarray:
    """(N,7): the logits of the test bags, in their order, each batch under its own moments."""
    asked, scores = shown.slides("test").features, shown.scores("test")
    return np.concatenate(
        [
            batch(
                answerer.head, answerer.source, asked[part], None if scores is None else scores[part], anchored=anchored
            )
            for part in batches(len(asked), size)
        ]
    )


def _modes(trial: Trial, centre: AtCentre, states: Sequence[SiteState], only: Sequence[str]) -> dict[str, Logits]:
    raw, coloured = centre.raw.slides("test"), centre.coloured.slides("test")
    found: dict[str, Logits] = {
        NONE: lambda _, each: plain_logits(raw)(each),
        COLOUR: lambda _, each: plain_logits(coloured)(each),
        SITE: lambda number, each: with_state(centre, each, states[number]),
        BOTH: lambda _, each: fitted_to(centre.coloured, each, coloured),
        FEATURES: lambda _, each: fitted_to(centre.raw, each, raw),
        ALL_CELLS: lambda _, each: fitted_to(centre.raw, each, raw, all_alike(centre.raw.site(each.head).features_ND)),
        BATCH_PLAIN: lambda _, each: in_batches(centre.raw, each, anchored=False),
        BATCH_ANCHORED: lambda _, each: in_batches(centre.raw, each, anchored=True),
    }
    if only:
        return {mode: found[mode] for mode in only}
    view = mirrored(trial, centre).slides("test").features
    restained = normalised(trial, centre).slides("test")
    bank = Bank.of(trial.slides("train"))
    mixed = _shuffled(trial)

    def gradient(of: Bank) -> Logits:
        def steps(_: int, each: Answerer) -> np.ndarray:
            move = Gradient(each.head, of)
            return np.concatenate([move(raw.features[part], view[part]) for part in batches(len(view), BATCH)])

        return steps

    found |= {
        GRADIENT: gradient(bank),
        REINHARD: lambda _, each: plain_logits(restained)(each),
        SHUFFLED_BANK: gradient(mixed),
    }
    try:
        strangers = sources_of_tissue(trial)
    except DataMissing:
        return found
    return found | {
        OTHER_ORGAN: lambda number, each: fitted_to(centre.coloured, each, coloured, source=strangers[number])
    }


def _shuffled(trial: Trial) -> Bank:
    """Prototypes that stand under classes of chance."""
    slides = trial.slides("train")
    return Bank.of(replace(slides, labels_B=np.random.default_rng(trial.recipe.seed).permutation(slides.labels_B)))


def modes_at(trial: Trial, centre: AtCentre, only: Sequence[str] = ()) -> Found:
    """E5 at a centre: each mode, or some, over all heads and of the served one; distances and verdicts of the gate by
    head. Raises TrainingError."""
    labels_N, count = centre.raw.slides("test").labels_B, trial.recipe.bootstrap
    points = [each.point for each in trial.answerers]
    states = [state_of(centre, each) for each in trial.answerers]
    best, rows = trial.trained.best, {}
    none_RNC = answered(trial, plain_logits(centre.raw.slides("test")))
    for mode, logits in _modes(trial, centre, states, only).items():
        given_RNC = np.stack([each.probabilities(logits(number, each)) for number, each in enumerate(trial.answerers)])
        print(f"{centre.name}: {mode}", file=sys.stderr)
        far = mode == SITE and states[best].verdict == "out of scope"
        rows[mode] = {
            **against(given_RNC, none_RNC, labels_N, points, count),
            "right_class": right_class(given_RNC[best], labels_N, points[best]),
            "served": served(given_RNC[best], none_RNC[best], labels_N, points[best], count, out_of_scope=far),
        }
    return {
        "centre": centre.name,
        "bags": len(labels_N),
        "abnormal": int((labels_N != 0).sum()),
        "detected": {"raw": len(centre.raw.cells.scores_N), "coloured": len(centre.coloured.cells.scores_N)},
        "states": [
            {
                "verdict": state.verdict,
                "distance_raw": state.distance_raw,
                "distance_coloured": state.distance_coloured,
                "gate": state.gate,
            }
            for state in states
        ],
        "best": best,
        "modes": rows,
    }


def norms_at(trial: Trial, source: AtCentre, centre: AtCentre, updates: int) -> Found:
    """The encoder's norms tuned on a centre's validation bags, in batches, by so many updates, and then left as they
    are for all its test bags, with the served head; beside them none and the site's state, of the same validation bags.
    Of the source's test bags with the same norms, what is left (E8). Raises TrainingError."""
    answerer, count = trial.served, trial.recipe.bootstrap
    labels_N, source_N = (of.raw.slides("test").labels_B for of in (centre, source))
    none_NC, before_NC = (
        answerer.probabilities(plain_logits(of.raw.slides("test"))(answerer)) for of in (centre, source)
    )
    site_NC = answerer.probabilities(with_state(centre, answerer, state_of(centre, answerer)))

    def row(given_NC: np.ndarray) -> Found:
        figures = against(given_NC[None], none_NC[None], labels_N, [answerer.point], count)
        return figures | {"served": served(given_NC, none_NC, labels_N, answerer.point, count)}

    rows = {NONE: row(none_NC), SITE: row(site_NC)}
    crops = {of.name: crops_of(trial, of) for of in (centre, source)}
    stream = centre.raw.dealt["validation"]
    for method in get_args(Method):
        tuning = NormTuning(trial.eye.network, answerer.head, answerer.source, method)
        # `stat` begins anew with each batch: it is fitted once, to as many slides as a site is.
        size, number = (LEAST_SLIDES, 1) if method == "stat" else (TOGETHER, updates)
        for done, part in enumerate(islice(cycle(batches(len(stream), size)), number), 1):
            tuning.update([crops[centre.name][bag.cells_K] for bag in stream[part]])
            if done % _TOLD_AFTER == 0 or done == number:
                print(f"{centre.name}, {method}: {done} of {number} batches", file=sys.stderr)
        tuned_NC, after_NC = (
            answerer.probabilities(_with_norms(tuning, of, answerer, crops[of.name])) for of in (centre, source)
        )
        rows[method] = row(tuned_NC) | {
            "steps": tuning.steps,
            "begun_anew": tuning.begun_anew,
            "slides_together": size,
            "source": {
                "before": area(before_NC[None], source_N, count),
                "after": area(after_NC[None], source_N, count),
                "change": difference_of_areas(after_NC[None], before_NC[None], source_N, count),
            },
        }
    return {"bags": len(labels_N), "abnormal": int((labels_N != 0).sum()), "modes": rows}


def _with_norms(tuning: NormTuning, centre: AtCentre, answerer: Answerer, crops_NHWC: np.ndarray) -> np.ndarray:
    """(N,7): the logits of the test bags by features of tuned norms, of which each cell's are computed once."""
    bags = centre.raw.dealt["test"]
    used_K, features_ND = np.unique(np.concatenate([bag.cells_K for bag in bags])), centre.raw.cells.features_ND.copy()
    features_ND[used_K] = tuning.features(crops_NHWC[used_K])
    return logits_of(answerer.head, Slides.of(bags, features_ND).features)


def crops_of(trial: Trial, centre: AtCentre) -> np.ndarray:
    """(N,S,S,3) uint8: the crops of a centre's cells as they are, in their order."""
    crops = [centre.look.crops(field, trial.eye.crops)[1] for field in centre.fields]
    return np.concatenate([part for part in crops if len(part)])
