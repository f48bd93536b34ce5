"""What adaptation rests on besides the shift: how many commissioning slides are abnormal, in which order and how many
at once slides come, and whether a centre that was seen changes another's answers. Experiments E6 and E8.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gateway.domain.bethesda import NILM
from gateway.slides.site_fit import LEAST_SLIDES
from gateway.slides.site_state import SiteState
from training.errors import TaskInvalid
from training.smartccs.adapt import BATCH, all_alike
from training.smartccs.bags import PREVALENCE, Bag, bags
from training.smartccs.mode_figures import against, area, difference_of_areas
from training.smartccs.modes import (
    BATCH_ANCHORED,
    BATCH_PLAIN,
    NONE,
    SITE,
    TOGETHER,
    crops_of,
    fitted_to,
    in_batches,
    state_of,
    with_state,
)
from training.smartccs.norm_tuning import Method, NormTuning
from training.smartccs.slide_fit import Slides, auc_of, logits_of
from training.smartccs.trial import AtCentre, Found, Shown, Trial, answered, batches, plain_logits

SHARES = (0.0, 0.06, 0.5, 1.0)
"""Of commissioning slides that are abnormal."""
SIZES = (1, 4, 16)
COMMISSIONED = 64
"""Bags that a site is fitted to here."""
ANCHORED, ALL_ALIKE = "anchored", "all cells alike"
_ENCODED, _FEWER = 4, 10
"""Test bags whose crops are encoded anew; sets of validation bags, of as many as a site needs, that it is fitted to."""
_CARRIED: tuple[Method, ...] = ("tent", "sar", "ema")
"""Methods that go on from batch to batch."""


def prevalence_at(trial: Trial, centre: AtCentre) -> Found:
    """E6 at a centre: features fitted to bags of which a share is abnormal, whatever a gate would say, with cells
    weighed by how surely they are NILM and, as the negative control, all alike. Colours are mapped before, as all
    validation fields of the centre have them: no share is in that. Raises TaskInvalid."""
    asked, count = centre.coloured.slides("test"), trial.recipe.bootstrap
    none_RNC = answered(trial, plain_logits(centre.raw.slides("test")))
    points = [each.point for each in trial.answerers]
    rows = {}
    for share in SHARES:
        dealt = commissioned(trial, centre.coloured, share)
        for kind in (ANCHORED, ALL_ALIKE):
            given = []
            for each in trial.answerers:
                cells = centre.coloured.site(each.head, dealt)
                cells = cells if kind == ANCHORED else all_alike(cells.features_ND)
                given.append(each.probabilities(fitted_to(centre.coloured, each, asked, cells)))
            rows[f"{kind}, {share:.0%}"] = {"share": share, "fit": kind} | against(
                np.stack(given), none_RNC, asked.labels_B, points, count
            )
    return {
        "centre": centre.name,
        "commissioned": COMMISSIONED,
        "none": area(none_RNC, asked.labels_B, count),
        "fits": rows,
    }


def commissioned(trial: Trial, shown: Shown, share: float) -> tuple[Bag, ...]:
    """Bags of the validation cells of which exactly this share is abnormal, of the classes that have cells there, in
    screening's proportions. Raises TaskInvalid where none has."""
    rng = np.random.default_rng((trial.recipe.seed, round(100 * share)))
    abnormal = round(share * COMMISSIONED)
    among_K = np.flatnonzero(shown.cells.parts() == "validation")
    there = [number for number in range(NILM + 1, len(PREVALENCE)) if (shown.cells.classes_N[among_K] == number).any()]
    if not there:
        raise TaskInvalid("No abnormal cell is found at this centre: no share of its bags can be abnormal.")
    chances = np.array(PREVALENCE)[there]
    drawn = rng.choice(there, abnormal, p=chances / chances.sum())
    labels = rng.permutation(np.append(drawn, np.full(COMMISSIONED - abnormal, NILM))).tolist()
    dealt = trial.recipe.bags
    return bags(
        shown.cells.classes_N, among_K, COMMISSIONED, rng, PREVALENCE, dealt.cells, labels, unknown=dealt.unknown
    )


def sorted_stream(trial: Trial, centre: AtCentre) -> Found:
    """E6: batches of a stream that is sorted by label, and of the same in the order of chance. The negative control are
    plain moments, which take the sorting for a shift."""
    count = trial.recipe.bootstrap
    rows = {}
    for order in ("as dealt", "sorted"):
        shown = _in_order(centre.raw, order)
        labels_N = shown.slides("test").labels_B
        none_RNC = answered(trial, plain_logits(shown.slides("test")))
        given = {
            NONE: none_RNC,
            BATCH_PLAIN: answered(trial, lambda each, shown=shown: in_batches(shown, each, anchored=False)),
            BATCH_ANCHORED: answered(trial, lambda each, shown=shown: in_batches(shown, each, anchored=True)),
        }
        rows[order] = {
            mode: {
                "auc": area(mode_RNC, labels_N, count),
                "auc_gain": difference_of_areas(mode_RNC, none_RNC, labels_N, count),
            }
            for mode, mode_RNC in given.items()
        }
    return {"centre": centre.name, "batch": BATCH, "streams": rows}


def order_at(trial: Trial, centre: AtCentre) -> Found:
    """E8: the served head's answers to the test bags in batches of other sizes and in another order: greatest change of
    a probability, and AUC. Of `site` besides: fitted anew to the validation bags in another order, and with the crops
    of a few bags encoded so many at once. Only `site` must not change; of floating point no more than rounding may be
    left. And, which does change it, fitted to some of the validation bags only. Raises TrainingError."""
    answerer, count = trial.served, trial.recipe.bootstrap
    state, rng = state_of(centre, answerer), np.random.default_rng(trial.recipe.seed)
    labels_N = centre.raw.slides("test").labels_B
    order_B = rng.permutation(len(labels_N))
    straight_B, back_B = np.arange(len(labels_N)), np.argsort(order_B)

    def given(mode: str, size: int, order: np.ndarray, of: SiteState = state) -> np.ndarray:
        raw, coloured = (_chosen(shown, order) for shown in (centre.raw, centre.coloured))
        if mode != SITE:
            return answerer.probabilities(in_batches(raw, answerer, anchored=mode == BATCH_ANCHORED, size=size))
        parts = [
            with_state(replace(centre, raw=_part(raw, part), coloured=_part(coloured, part)), answerer, of)
            for part in batches(len(labels_N), size)
        ]
        return answerer.probabilities(np.concatenate(parts))

    commissioned_B = np.arange(len(centre.raw.dealt["validation"]))
    refitted = state_of(_commissioned_by(centre, rng.permutation(commissioned_B), rng), answerer)
    rows: Found = {}
    for mode in (SITE, BATCH_PLAIN, BATCH_ANCHORED):
        by_size = {size: given(mode, size, straight_B) for size in SIZES}
        moved_NC = given(mode, BATCH, order_B, refitted)[back_B]
        rows[mode] = {
            "auc_by_batch": {str(size): area(each_NC[None], labels_N, count) for size, each_NC in by_size.items()},
            "greatest_change_by_batch": {
                str(size): float(np.abs(each_NC - by_size[BATCH]).max()) for size, each_NC in by_size.items()
            },
            "greatest_change_by_order": float(np.abs(moved_NC - by_size[BATCH]).max()),
        }
    rows[SITE]["greatest_change_by_crops"] = _by_crops(trial, centre, state)
    usual_NC = given(SITE, BATCH, straight_B)
    fewer = []
    for _ in range(_FEWER):
        found = state_of(_commissioned_by(centre, rng.permutation(commissioned_B)[:LEAST_SLIDES], rng), answerer)
        fewer.append((found, given(SITE, BATCH, straight_B, found)))
    areas = [auc_of(each_NC, labels_N) for _, each_NC in fewer]
    return {
        "centre": centre.name,
        "verdict": state.verdict,
        "modes": rows,
        "fewer": {
            "slides": LEAST_SLIDES,
            "sets": _FEWER,
            "verdicts": sorted({found.verdict for found, _ in fewer}),
            "auc": auc_of(usual_NC, labels_N),
            "least": min(areas),
            "greatest": max(areas),
            "greatest_change": max(float(np.abs(each_NC - usual_NC).max()) for _, each_NC in fewer),
        },
    }


def _by_crops(trial: Trial, centre: AtCentre, state: SiteState) -> dict[str, float]:
    """Greatest change of a probability of a few test bags under a state, by how many crops are encoded at once."""
    shown, look = (centre.raw, centre.look) if state.colour is None else (centre.coloured, centre.coloured_look)
    bags, crops_NHWC = shown.dealt["test"][:_ENCODED], crops_of(trial, replace(centre, look=look))
    used_K, given = np.unique(np.concatenate([bag.cells_K for bag in bags])), {}
    for size in SIZES:
        features_ND = shown.cells.features_ND.copy()
        features_ND[used_K] = np.concatenate(
            [trial.eye(crops_NHWC[used_K[part]]) for part in batches(len(used_K), size)]
        )
        features = Slides.of(bags, features_ND).features
        given[size] = trial.served.probabilities(logits_of(trial.served.head, features, state.gamma_D, state.beta_D))
    return {str(size): float(np.abs(each_NC - given[BATCH]).max()) for size, each_NC in given.items()}


def _commissioned_by(centre: AtCentre, places_B: np.ndarray, rng: np.random.Generator) -> AtCentre:
    """The centre with these of its validation bags only, in this order, the cells of each in an order of chance."""

    def of(shown: Shown) -> Shown:
        chosen = [shown.dealt["validation"][place] for place in places_B]
        mixed = [replace(bag, cells_K=rng.permutation(bag.cells_K)) for bag in chosen]
        return replace(shown, dealt={**shown.dealt, "validation": mixed})

    return replace(centre, raw=of(centre.raw), coloured=of(centre.coloured))


def forgetting(trial: Trial, source: AtCentre, target: AtCentre) -> Found:
    """E8: the source, a target centre, the source again, all with one encoder and head: whether states that are fitted
    anew, and answers that are computed anew from crops, are the same bits after the other centre was fitted and norms
    were tuned on it. (What tuned norms forget is measured where they are tuned, by `modes.norms_at`.)"""
    answerer, crops = trial.served, {of.name: crops_of(trial, of) for of in (source, target)}

    def seen(of: AtCentre) -> tuple[str, np.ndarray]:
        bags = of.raw.dealt["test"][:_ENCODED]
        features = [trial.eye(crops[of.name][bag.cells_K]) for bag in bags]
        state = state_of(of, answerer)
        fresh_NC = logits_of(answerer.head, features, state.gamma_D, state.beta_D)
        return state.digest, answerer.probabilities(np.concatenate([with_state(of, answerer, state), fresh_NC]))

    before = [seen(source), seen(target)]
    for method in _CARRIED:
        tuning = NormTuning(trial.eye.network, answerer.head, answerer.source, method)
        tuning.update([crops[target.name][bag.cells_K] for bag in target.raw.dealt["validation"][:TOGETHER]])
    after = [seen(source), seen(target)]
    return {
        "source": source.name,
        "target": target.name,
        "same_states": [first[0] for first in before] == [second[0] for second in after],
        "greatest_change": max(
            float(np.abs(second[1] - first[1]).max()) for first, second in zip(before, after, strict=True)
        ),
    }


def _in_order(shown: Shown, order: str) -> Shown:
    labels_N = shown.slides("test").labels_B
    return _chosen(shown, np.argsort(labels_N, kind="stable") if order == "sorted" else np.arange(len(labels_N)))


def _chosen(shown: Shown, order_B: np.ndarray) -> Shown:
    """The same with its test bags in another order."""
    dealt: Sequence[Bag] = [shown.dealt["test"][place] for place in order_B]
    return replace(shown, dealt={**shown.dealt, "test": dealt})


def _part(shown: Shown, part: slice) -> Shown:
    return replace(shown, dealt={**shown.dealt, "test": shown.dealt["test"][part]})
