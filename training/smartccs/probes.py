"""What encoders of cells are worth before anything is trained on top but a probe: experiment E1.

Every encoder sees the same annotated cells, of the same parts. Its features are measured by 20 nearest neighbours and
by a linear probe (cells of the test part, classes with enough of them), and by slide heads from several seeds on
synthetic bags. Intervals resample fields, and bags; differences are on the same resamples.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import stats
from scipy.special import softmax

from gateway.domain.bethesda import NAMES
from training.errors import DataMissing, RunInvalid
from training.files import sha256_bytes, write_atomic
from training.pathbench.probes import Labelled, knn, linear
from training.pathbench.recipe import Linear, Neighbours
from training.runs import runs_folder
from training.smartccs import data, slide
from training.smartccs.embed import CellEncoder, CellSet, EncoderSettings, encoder, kept
from training.smartccs.mode_figures import area, difference_of_areas
from training.smartccs.slide import SlideRecipe
from training.smartccs.slide_fit import Slides, fit_head, logits_of
from training.smartccs.trial import Found
from training.statistics import ItemScore, RunsScore, balanced_accuracy, bootstrap, interval, macro_auroc, replicates

OURS, FRESH, PIXELS = "cytology (ours)", "fresh weights", "control: pixel-shuffled cytology"
_PRETRAIN, _SHUFFLED = "smartccs-pretrain-small", "smartccs-pretrain-shuffled-small"
ENCODERS: Mapping[str, EncoderSettings] = {
    OURS: EncoderSettings(kind="teacher", recipe=_PRETRAIN, side_px=64),
    "cytology from ImageNet, 128 px": EncoderSettings(
        kind="teacher", recipe="smartccs-pretrain-lite0-small", side_px=128
    ),
    FRESH: EncoderSettings(kind="fresh", recipe=_PRETRAIN, side_px=64),
    "ImageNet, 64 px": EncoderSettings(kind="imagenet", side_px=64),
    "ImageNet, 128 px": EncoderSettings(kind="imagenet", side_px=128),
    "tile_encoder, 128 px": EncoderSettings(kind="tile_encoder", recipe="tissue-encoder-small", side_px=128),
    PIXELS: EncoderSettings(kind="teacher", recipe=_SHUFFLED, side_px=64),
}
"""By name. A cell's square is of 101 px in CRIC's fields: at a side of 128 px nothing of it is lost."""
_NEIGHBOURS = Neighbours(k=(20,))
_LINEAR = Linear(optimiser="lbfgs", penalties=(0.001, 0.01, 0.1))
MEASURES = ("neighbours", "probe", "bags")
_CONTROL = "control_shuffled_labels"
SHUFFLES = 12
_FAMILY = 0.05
"""Of the control's intervals, that any of all encoders' leaves out chance where there is nothing to find."""
_EPOCHS = 20
"""Of a probe's heads, at most: there are five for each encoder, and encoders are compared, not served."""


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Of one encoder: class scores of the test cells by neighbours and by the probe, (N,C); control_S: macro AUROC of
    probes that learned from shuffled labels; probabilities (R,B,7) of the test bags by head; fields_N, labels_N of
    those cells, and labels_B of the bags."""

    neighbours_NC: np.ndarray
    probe_NC: np.ndarray
    control_S: np.ndarray
    bags_RBC: np.ndarray
    fields_N: np.ndarray
    labels_N: np.ndarray
    labels_B: np.ndarray


_FIELDS = ("neighbours_NC", "probe_NC", "control_S", "bags_RBC", "fields_N", "labels_N", "labels_B")


def classes_of(fields: Sequence[data.Field]) -> tuple[int, ...]:
    """The numbers of the classes with enough cells to learn from and cells in every part."""
    return tuple(int(number) for number in np.flatnonzero(data.supported(data.counts(fields))))


def answers(eye: CellEncoder, fields: Sequence[data.Field], recipe: SlideRecipe) -> Answers:
    """An encoder's answers, from the runs folder's cache where they are there. Bags and heads are those of a slide
    head's recipe. Raises DataMissing, RunInvalid, TaskInvalid."""
    training = recipe.training.model_copy(update={"epochs": min(_EPOCHS, recipe.training.epochs)})
    recipe = recipe.model_copy(update={"training": training})
    said = f"{eye.weights_sha256} {eye.crops.digest} {recipe.model_dump_json(exclude={'encoder', 'name'})}"
    path = runs_folder() / "cache" / f"probed-{sha256_bytes(said.encode())[:16]}.npz"
    if not path.is_file():
        found, held = _answers(eye, fields, recipe), io.BytesIO()
        np.savez(held, **{name: getattr(found, name) for name in _FIELDS})
        write_atomic(path, held.getvalue())
    return _read(path)


def _answers(eye: CellEncoder, fields: Sequence[data.Field], recipe: SlideRecipe) -> Answers:
    cells, numbers = kept(eye, fields, slide.look_at(None)), classes_of(fields)
    train, validation, test = (_labelled(cells, part, numbers) for part in ("train", "validation", "test"))
    rng, classes = np.random.default_rng(recipe.seed), len(numbers)
    asked = [test.features_ND]
    probe = linear(train, validation, asked, classes, _LINEAR, (recipe.seed,))
    dealt = recipe.deal(cells)
    slides = {part: Slides.of(bags, cells.features_ND) for part, bags in dealt.items()}
    heads = [
        fit_head(
            recipe.head, recipe.hidden, recipe.training, slides["train"], slides["validation"], recipe.seed + number
        ).head
        for number in range(recipe.seeds)
    ]
    return Answers(
        knn(train, validation, asked, classes, _NEIGHBOURS).scores[0][0],
        probe.scores[0][0],
        shuffled_areas(train, validation, test, classes, float(probe.choices["penalty"]), rng),
        np.stack([softmax(logits_of(head, slides["test"].features), axis=1) for head in heads]),
        cells.fields_N[_of(cells, "test", numbers)],
        test.labels_N,
        slides["test"].labels_B,
    )


def shuffled_areas(
    train: Labelled, validation: Labelled, test: Labelled, classes: int, penalty: float, rng: np.random.Generator
) -> np.ndarray:
    """(S,) macro AUROC of the test cells by probes that learned from the train cells under labels of each other: 0.5 on
    the whole. (Balanced accuracy would be chance whatever they knew, since such probes name the commonest class only;
    and one probe alone may be far from 0.5, since features of a class are alike.)"""
    settings, found = Linear(optimiser="lbfgs", penalties=(penalty,)), []
    for _ in range(SHUFFLES):
        mixed = Labelled(train.features_ND, rng.permutation(train.labels_N))
        scores_NC = linear(mixed, validation, [test.features_ND], classes, settings, (0,)).scores[0][0]
        found.append(macro_auroc(scores_NC, test.labels_N))
    return np.array(found)


def chance(areas_S: np.ndarray, encoders: int) -> Found:
    """The mean over shuffles with its interval by Student's t, which holds 0.5 for all encoders at once in 95 % where
    labels tell nothing; and every shuffle's."""
    away = float(stats.t.ppf(1 - _FAMILY / encoders / 2, len(areas_S) - 1) * areas_S.std(ddof=1) / len(areas_S) ** 0.5)
    mean = float(areas_S.mean())
    return {"value": mean, "low": mean - away, "high": mean + away, "shuffles": areas_S.tolist()}


def _of(cells: CellSet, part: str, numbers: Sequence[int]) -> np.ndarray:
    return np.flatnonzero((cells.parts() == part) & np.isin(cells.classes_N, numbers))


def _labelled(cells: CellSet, part: str, numbers: Sequence[int]) -> Labelled:
    """Cells of these classes, numbered by their place among them."""
    index = _of(cells, part, numbers)
    return Labelled(cells.features_ND[index], np.searchsorted(np.array(numbers), cells.classes_N[index]))


def _read(path: Path) -> Answers:
    try:
        with np.load(path) as file:
            return Answers(*(file[name] for name in _FIELDS))
    except (OSError, ValueError, KeyError, EOFError):
        raise RunInvalid(f"{path.name} is damaged. Remove it, and the encoder is measured anew.") from None


def probes(recipe: SlideRecipe, named: Mapping[str, EncoderSettings]) -> Found:
    """E1: every encoder that is there, each with its figures, and ours minus each other. An encoder whose run is not
    there is left out. Raises DataMissing, TaskInvalid."""
    fields, count = data.load(), recipe.bootstrap
    found, weights = {}, {}
    for name, settings in named.items():
        try:
            eye = encoder(settings, recipe.seed)
        except (RunInvalid, DataMissing):
            continue
        found[name], weights[name] = answers(eye, fields, recipe), eye.weights_sha256
    rows = {
        name: {"weights_sha256": weights[name], "side_px": named[name].side_px} | _figures(each, count, len(found))
        for name, each in found.items()
    }
    return {
        "classes": [NAMES[number] for number in classes_of(fields)],
        "heads": recipe.seeds,
        "encoders": rows,
        "ours_minus": {name: _gains(found[OURS], each, count) for name, each in found.items() if name != OURS}
        if OURS in found
        else {},
        "fresh_minus_control": _gains(found[FRESH], found[PIXELS], count) if {FRESH, PIXELS} <= found.keys() else {},
    }


def _figures(each: Answers, count: int, encoders: int) -> Found:
    cells = {"neighbours": each.neighbours_NC, "probe": each.probe_NC}
    areas = RunsScore(macro_auroc, each.probe_NC[None], each.labels_N)
    return {
        **{
            name: asdict(bootstrap(_balanced(scores_NC, each.labels_N), each.fields_N, each.labels_N, count))
            for name, scores_NC in cells.items()
        },
        "probe_auroc": asdict(bootstrap(areas, each.fields_N, each.labels_N, count)),
        _CONTROL: chance(each.control_S, encoders),
        "bags": area(each.bags_RBC, each.labels_B, count),
        "cells": len(each.labels_N),
        "fields": len(np.unique(each.fields_N)),
    }


def _gains(first: Answers, second: Answers, count: int) -> Found:
    found = {}
    for name in ("neighbours", "probe"):
        scores = [_balanced(getattr(each, f"{name}_NC"), each.labels_N) for each in (first, second)]
        every = np.arange(len(first.labels_N))
        drawn_B2 = replicates(scores, first.fields_N, first.labels_N, count).scores_BK
        gap = scores[0](every) - scores[1](every)
        found[name] = asdict(interval(gap, drawn_B2[:, 0] - drawn_B2[:, 1]))
    return found | {"bags": difference_of_areas(first.bags_RBC, second.bags_RBC, first.labels_B, count)}


def _balanced(scores_NC: np.ndarray, labels_N: np.ndarray) -> ItemScore:
    return lambda index: balanced_accuracy(scores_NC[index], labels_N[index])
