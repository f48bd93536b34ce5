"""What adaptation rests on besides the shift: how many commissioning slides are abnormal, in which order and how many
at once slides come, and whether a centre that was seen changes another's answers. Experiments E6 and E8.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gateway.domain.bethesda import NILM
from training.errors import TaskInvalid
from training.smartccs.adapt import BATCH, all_alike
from training.smartccs.bags import PREVALENCE, Bag, bags
from training.smartccs.mode_figures import against, area, difference_of_areas
from training.smartccs.modes import (
    BATCH_ANCHORED,
    BATCH_PLAIN,
    NONE,
    SITE,
    crops_of,
    fitted_to,
    in_batches,
    state_of,
    with_state,
)
from training.smartccs.norm_tuning import Method, NormTuning
from training.smartccs.trial import AtCentre, Found, Shown, Trial, answered, batches, plain_logits

SHARES = (0.0, 0.06, 0.5, 1.0)
"""Of commissioning slides that are abnormal."""
SIZES = (1, 4, 16)
COMMISSIONED = 64
"""Bags that a site is fitted to here."""
ANCHORED, ALL_ALIKE = "anchored", "all cells alike"
_CARRIED: tuple[Method, ...] = ("tent", "sar", "ema")
"""Methods that go on from batch to batch."""


def prevalence_at(trial: Trial, centre: AtCentre) -> Found:
    """E6 at a centre: colours and features fitted to bags of which a share is abnormal, whatever a gate would say, with
    cells weighed by how surely they are NILM and, as the negative control, all alike. Raises TaskInvalid."""
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
    return bags(shown.cells.classes_N, among_K, COMMISSIONED, rng, PREVALENCE, trial.recipe.bags.cells, labels)


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
    """E8: the served head's answers by batch size and in another order: greatest change of a probability, and AUC. Only
    `site` must not change; of floating point no more than rounding may be left."""
    answerer, count = trial.served, trial.recipe.bootstrap
    states = {SITE: state_of(centre, answerer)}
    labels_N = centre.raw.slides("test").labels_B
    order_B = np.random.default_rng(trial.recipe.seed).permutation(len(labels_N))
    back_B = np.argsort(order_B)

    def given(mode: str, size: int, order: np.ndarray) -> np.ndarray:
        raw, coloured = (_chosen(shown, order) for shown in (centre.raw, centre.coloured))
        if mode != SITE:
            return answerer.probabilities(in_batches(raw, answerer, anchored=mode == BATCH_ANCHORED, size=size))
        parts = [
            with_state(replace(centre, raw=_part(raw, part), coloured=_part(coloured, part)), answerer, states[SITE])
            for part in batches(len(labels_N), size)
        ]
        return answerer.probabilities(np.concatenate(parts))

    rows = {}
    straight = np.arange(len(labels_N))
    for mode in (SITE, BATCH_PLAIN, BATCH_ANCHORED):
        by_size = {size: given(mode, size, straight) for size in SIZES}
        usual_NC = by_size[BATCH]
        moved_NC = given(mode, BATCH, order_B)[back_B]
        rows[mode] = {
            "auc_by_batch": {str(size): area(each_NC[None], labels_N, count) for size, each_NC in by_size.items()},
            "greatest_change_by_batch": {
                str(size): float(np.abs(each_NC - usual_NC).max()) for size, each_NC in by_size.items()
            },
            "greatest_change_by_order": float(np.abs(moved_NC - usual_NC).max()),
        }
    return {"centre": centre.name, "verdict": states[SITE].verdict, "modes": rows}


def forgetting(trial: Trial, source: AtCentre, target: AtCentre, count: int) -> Found:
    """E8: the source's first test bags, then a target centre's, then the source's again: what is left of the source. A
    site's state belongs to its site, so `site` gives the same bits again; methods that carry weights on may not."""
    answerer, bootstrap = trial.served, trial.recipe.bootstrap
    labels_N = source.raw.slides("test").labels_B[:count]
    here, there = (crops_of(trial, centre, count) for centre in (source, target))
    state = state_of(source, answerer)

    def of_site() -> np.ndarray:
        return answerer.probabilities(with_state(source, answerer, state)[:count])

    first_NC = of_site()
    with_state(target, answerer, state_of(target, answerer))
    rows = {SITE: _drift(first_NC, of_site(), labels_N, bootstrap)}
    for method in _CARRIED:
        tuning = NormTuning(trial.eye.network, answerer.head, answerer.source, method)
        first_NC, _, again_NC = (
            answerer.probabilities(np.concatenate([tuning(crops[part]) for part in batches(count, BATCH)]))
            for crops in (here, there, here)
        )
        rows[method] = _drift(first_NC, again_NC, labels_N, bootstrap)
    return {"source": source.name, "target": target.name, "bags": len(labels_N), "modes": rows}


def _drift(first_NC: np.ndarray, again_NC: np.ndarray, labels_N: np.ndarray, count: int) -> Found:
    return {
        "before": area(first_NC[None], labels_N, count),
        "after": area(again_NC[None], labels_N, count),
        "change": difference_of_areas(again_NC[None], first_NC[None], labels_N, count),
        "greatest_change": float(np.abs(again_NC - first_NC).max()),
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
