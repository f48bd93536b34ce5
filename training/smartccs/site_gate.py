"""The gate of a site: closed on slides of the source that nothing was chosen by, open on shifts, and out of scope where
what is shown is no smear. Experiment E7."""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from gateway.domain.bethesda import NILM
from gateway.slides.site_colour import ColourMap
from gateway.slides.site_fit import LEAST_SLIDES, SiteCells, SiteNotFittable, distance, fit, moments
from gateway.slides.site_state import SiteState
from training.errors import DataMissing, TaskInvalid
from training.smartccs.bags import PREVALENCE, Bag, bags, surest
from training.smartccs.data import Field
from training.smartccs.embed import CellSet, Look, kept, tissue_counts
from training.smartccs.mode_figures import against, area, difference_of_areas
from training.smartccs.modes import NONE, SITE, with_state
from training.smartccs.slide import block_classes, two_sided
from training.smartccs.slide_fit import Slides, logits_of, odds_of, site_cells
from training.smartccs.strangers import NOISE_LOOK, TISSUE, TISSUE_LOOK, all_counts, mapped, tissue_fields
from training.smartccs.trial import Answerer, AtCentre, Found, Shown, Trial

_SETS = 200


def third_source_set(trial: Trial, source: AtCentre) -> Found:
    """Of the source's test bags, by which nothing was chosen: how often sets of 32 lie within the gate, and whether the
    answers with the state that all of them give are, to the bit, those without."""
    answerer, shown = trial.served, source.raw
    held = shown.dealt["test"]
    state = fit(
        "third source set",
        1,
        answerer.source,
        len(held),
        source.counts_3V,
        lambda colour: (shown if colour is None else source.coloured).site(answerer.head, held),
    )
    plain_NC = logits_of(answerer.head, shown.slides("test").features)
    return {
        **_by_sets(answerer, shown, held, trial.recipe.seed),
        "verdict": state.verdict,
        "same_bits": bool(np.array_equal(with_state(source, answerer, state), plain_NC)),
    }


def one_block(trial: Trial, source: AtCentre, group: str) -> Found:
    """A site of the source that shows the smears of one test block alone, by which no gate was chosen: what a state
    that is fitted to 32 bags of its cells is found to be, and its gain of AUC over none on the test bags of all blocks,
    of the served head; then, of bags of the block's cells alone, the answers without the state and with it ("own"; None
    where it has no abnormal cell, or no NILM one). Raises DataMissing."""
    answerer, recipe, fields = trial.served, trial.recipe, trial.unseen("test")
    counts_3V = tissue_counts([field for field in fields if field.group == group], source.look)
    seen: dict[bool, CellSet] = {}

    def cells(colour: ColourMap | None) -> SiteCells:
        look = source.look if colour is None else mapped(source.look, colour)
        found = seen[colour is not None] = kept(trial.eye, fields, look)
        among_K, rng = np.flatnonzero(found.groups() == group), np.random.default_rng(recipe.seed)
        dealt = bags(
            found.classes_N,
            among_K,
            LEAST_SLIDES,
            rng,
            PREVALENCE,
            recipe.bags.cells,
            unknown=recipe.bags.unknown,
        )
        places_K = np.concatenate([surest(bag, found.found_N, found.scores_N, recipe.top_k).cells_K for bag in dealt])
        scores_N = found.scores_N[places_K] if trial.scored else None
        return site_cells(answerer.head, found.features_ND[places_K], scores_N)

    try:
        state = fit(group, 1, answerer.source, LEAST_SLIDES, counts_3V, cells)
    except (SiteNotFittable, TaskInvalid) as error:
        own = own_bags(trial, source.raw.cells, source.raw.cells, group, None)
        return {"verdict": "cannot be fitted", "reason": error.detail, "own": own}
    labels_N = source.raw.slides("test").labels_B
    none_NC = answerer.probabilities(logits_of(answerer.head, source.raw.slides("test").features))
    shown = seen[state.colour is not None]
    dealt = recipe.deal(shown, ("test",), {"test": labels_N.tolist()})["test"]
    features = Slides.of(dealt, shown.features_ND).features
    site_NC = answerer.probabilities(logits_of(answerer.head, features, state.gamma_D, state.beta_D))
    return {
        **{name: getattr(state, name) for name in ("verdict", "distance_raw", "distance_coloured", "gate")},
        "auc": area(site_NC[None], labels_N, recipe.bootstrap),
        "auc_gain": difference_of_areas(site_NC[None], none_NC[None], labels_N, recipe.bootstrap),
        "own": own_bags(trial, source.raw.cells, shown, group, state),
    }


def own_bags(trial: Trial, plain: CellSet, seen: CellSet, group: str, state: SiteState | None) -> Found | None:
    """Bags of a test block's cells alone, as they are, and under a state as a site that has it sees them, of the same
    classes: figures of both, and the median of the log odds of abnormal over NILM bags, which says where the look of
    the block moves them."""
    answerer, recipe, part = trial.served, trial.recipe, "test"
    if not two_sided(block_classes(plain, part, group)):
        return None
    bags_N = recipe.deal(plain, (part,), within=group)[part]
    labels_N = np.array([bag.label for bag in bags_N])
    none_NC = answerer.probabilities(logits_of(answerer.head, Slides.of(bags_N, plain.features_ND).features))
    rows = {NONE: none_NC}
    if state is not None and (block_classes(seen, part, group) == NILM).any():
        dealt = recipe.deal(seen, (part,), {part: labels_N.tolist()}, within=group)[part]
        features = Slides.of(dealt, seen.features_ND).features
        rows[SITE] = answerer.probabilities(logits_of(answerer.head, features, state.gamma_D, state.beta_D))
    return {
        mode: against(given_NC[None], none_NC[None], labels_N, [answerer.point], recipe.bootstrap)
        | {"odds_of_nilm": float(np.median(odds_of(given_NC)[labels_N == NILM]))}
        for mode, given_NC in rows.items()
    }


def shift(trial: Trial, centre: AtCentre) -> Found:
    """Sets of 32 of a shifted centre's test bags, raw, and with its colours mapped."""
    held = centre.raw.dealt["test"]
    raw = _by_sets(trial.served, centre.raw, held, trial.recipe.seed)
    mapped = _by_sets(trial.served, centre.coloured, centre.coloured.dealt["test"], trial.recipe.seed)
    return {"raw": raw, "coloured": mapped}


def strangers(trial: Trial) -> Found:
    """What a site that shows noise, or tissue, is found to be: the state's verdict and distances. Tissue is left out
    where the data lack it."""
    found = {"noise": _verdict(trial, trial.unseen("validation"), NOISE_LOOK)}
    with suppress(DataMissing):
        found[f"tissue ({TISSUE})"] = _verdict(trial, tissue_fields(), TISSUE_LOOK)
    return found


def _verdict(trial: Trial, fields: Sequence[Field], look: Look) -> Found:
    """Of the cells at the annotated places of fields, as if they were of 32 slides."""
    answerer = trial.served

    def cells(colour: ColourMap | None) -> SiteCells:
        shown = kept(trial.eye, fields, look if colour is None else mapped(look, colour))
        # No detector looked at these: where its scores would weigh, all cells count the same.
        return site_cells(answerer.head, shown.features_ND, np.zeros(len(shown.features_ND)) if trial.scored else None)

    try:
        state = fit("stranger", 1, answerer.source, LEAST_SLIDES, all_counts(fields, look), cells)
    except SiteNotFittable:
        gate = answerer.source.gate
        return {"verdict": "cannot be fitted", "distance_raw": None, "distance_coloured": None, "gate": gate}
    return {name: getattr(state, name) for name in ("verdict", "distance_raw", "distance_coloured", "gate")}


def _by_sets(answerer: Answerer, shown: Shown, held: Sequence[Bag], seed: int) -> Found:
    """Distances of sets of 32 bags: the share within the gate, their median and greatest, and the gate."""
    rng, distances = np.random.default_rng(seed), []
    cells = [shown.site(answerer.head, [bag]) for bag in held]
    weights = [each.weigh(each.features_ND) for each in cells]
    for _ in range(_SETS):
        chosen = rng.choice(len(held), LEAST_SLIDES, replace=len(held) < LEAST_SLIDES)
        features_ND = np.concatenate([cells[place].features_ND for place in chosen])
        distances.append(
            distance(moments(features_ND, np.concatenate([weights[place] for place in chosen])), answerer.source)
        )
    return {
        "sets": _SETS,
        "within": float(np.mean(np.array(distances) <= answerer.source.gate)),
        "median": float(np.median(distances)),
        "least": float(np.min(distances)),
        "greatest": float(np.max(distances)),
        "gate": answerer.source.gate,
    }
