"""What a slide head owes to the cells that it learned from, and to its labels (E3); and what the published
adaptation changes of its answers (E4)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from training.errors import TaskInvalid
from training.smartccs import slide
from training.smartccs.adapt import BATCH, Bank, Released
from training.smartccs.embed import kept
from training.smartccs.heads import HeadKind, SlideHead
from training.smartccs.mode_figures import area, difference_of_areas
from training.smartccs.slide_fit import Slides, chances_of, fit_head, logits_of
from training.smartccs.trial import Found, Trial, batches

_SHUFFLED_HEADS = 3


def cells_against(trial: Trial) -> Found:
    """E3: heads that learned from bags of detected cells and heads that learned from bags of annotated ones, on test
    bags of either; and, the negative control, heads that learned from detected cells under the labels of others, by
    seed. Raises TaskInvalid where the run's own cells are annotated."""
    recipe, count = trial.recipe, trial.recipe.bootstrap
    if trial.found is None:
        raise TaskInvalid("This run's bags are of annotated cells. Name a run with a detector to compare them.")
    cells = kept(trial.eye, trial.fields, slide.look_at(None))
    dealt = recipe.deal(cells, labels={part: _labels(trial, part) for part in trial.dealt})
    annotated = {part: Slides.of(bags, cells.features_ND) for part, bags in dealt.items()}
    detected = {part: trial.slides(part) for part in trial.dealt}
    of_annotated = [_fit(trial, annotated, recipe.seed + number) for number in range(recipe.seeds)]
    of_detected = [each.head for each in trial.answerers]
    rng = np.random.default_rng(recipe.seed)
    shuffled = [
        _fit(
            trial,
            {part: replace(slides, labels_B=rng.permutation(slides.labels_B)) for part, slides in detected.items()},
            recipe.seed + number,
        )
        for number in range(min(_SHUFFLED_HEADS, recipe.seeds))
    ]
    tests = {"detected": detected["test"], "annotated": annotated["test"]}
    given = {
        f"learned from {kind}, asked of {where}": _given(heads, slides)
        for kind, heads in (("detected", of_detected), ("annotated", of_annotated))
        for where, slides in tests.items()
    }
    labels_N = detected["test"].labels_B
    return {
        "bags": len(labels_N),
        "auc": {name: area(given_RNC, labels_N, count) for name, given_RNC in given.items()},
        "gap": difference_of_areas(
            given["learned from detected, asked of detected"],
            given["learned from annotated, asked of annotated"],
            labels_N,
            count,
        ),
        "gap_of_learning": difference_of_areas(
            given["learned from detected, asked of detected"],
            given["learned from annotated, asked of detected"],
            labels_N,
            count,
        ),
        "control_shuffled_labels": [area(_given([head], tests["detected"]), labels_N, count) for head in shuffled],
    }


def released(trial: Trial) -> Found:
    """E4: the published adaptation on batches of the source's test bags, by kind of head: the greatest change of a
    probability, how many bags' most probable class changes, whether its alignment gives the classifier a gradient, and
    the greatest gradient that it has at all."""
    bank, asked = Bank.of(trial.slides("train")), trial.slides("test").features
    kinds: Sequence[HeadKind] = ("mean", "abmil")
    rows = {}
    for kind in kinds:
        head = trial.served.head if kind == trial.recipe.head else _of_kind(trial, kind)
        plain_NC, mode = logits_of(head, asked), Released(head, bank, trial.recipe.seed)
        steps = [mode(asked[part]) for part in batches(len(asked), BATCH)]
        given_NC = np.concatenate([step.logits_BC for step in steps])
        rows[kind] = {
            "bags": len(asked),
            "greatest_change": float(np.abs(chances_of(given_NC) - chances_of(plain_NC)).max()),
            "class_changes": int((given_NC.argmax(1) != plain_NC.argmax(1)).sum()),
            "classifier_has_gradient": any(step.aligned for step in steps),
            "greatest_slope": max(step.slope for step in steps),
        }
    return {"heads": rows}


def _labels(trial: Trial, part: str) -> list[int]:
    return [bag.label for bag in trial.dealt[part]]


def _fit(trial: Trial, slides: dict[str, Slides], seed: int) -> SlideHead:
    recipe = trial.recipe
    return fit_head(recipe.head, recipe.hidden, recipe.training, slides["train"], slides["validation"], seed).head


def _of_kind(trial: Trial, kind: HeadKind) -> SlideHead:
    recipe = trial.recipe
    parts = (trial.slides(part) for part in ("train", "validation"))
    return fit_head(kind, recipe.hidden, recipe.training, *parts, recipe.seed).head


def _given(heads: Sequence[SlideHead], slides: Slides) -> np.ndarray:
    """(R,N,7), not calibrated."""
    return np.stack([chances_of(logits_of(head, slides.features)) for head in heads])
