"""Train the slide head on synthetic bags of cells; see training.smartccs.train.

Smart-CCS's fourth step (arXiv 2502.09662). Bags stand for slides, of which there are no public ones with all classes;
everything that is measured here is of bags. Several heads are trained from different seeds; the one of the best
validation is served, with the calibration that validation bags give it, and the operating point that bags of single
validation blocks do.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field as Setting
from torch import nn

from gateway.domain.bethesda import NAMES, NILM
from gateway.domain.screening import ScreeningPoint
from gateway.slides.cells import VERSION, Cells
from gateway.slides.site_colour import Densities, densities
from gateway.slides.site_fit import SiteCells, source_of
from gateway.slides.site_state import Source
from training.data.split import PARTS
from training.errors import TaskInvalid
from training.files import json_bytes, write_atomic
from training.nn.checkpoints import load_state, read_weights, save_weights
from training.repeatable import repeatable
from training.runs import Part, Recipe, Run, RunWriter, find_run, parse_recipe, runs_folder
from training.smartccs import bags as dealing
from training.smartccs import data, detecting
from training.smartccs.centres import CENTRES
from training.smartccs.detector import Detector
from training.smartccs.embed import CellEncoder, CellSet, EncoderSettings, Look, annotated, encoder, kept, tissue_counts
from training.smartccs.found_cells import kept_cells
from training.smartccs.heads import POOLS, HeadKind, SlideHead, build_head
from training.smartccs.recipe import DetectorRecipe, PublishedSlide
from training.smartccs.slide_figures import figures
from training.smartccs.slide_fit import (
    Calibration,
    Fitted,
    HeadTraining,
    Slides,
    auc_of,
    calibration_of,
    chances_of,
    fit_head,
    logits_of,
    operating_point,
    site_cells,
)
from training.ssl.checkpoint import occupy

_PREVALENCE = {"screening": dealing.PREVALENCE, "flat": dealing.FLAT}
SOURCE = "source"
"""The centre as it is, where nothing is simulated."""


class Bags(Part):
    """How many synthetic bags of each part, of how many cells each, and how often of each class. `unknown`: whether
    what a detector found beside annotated nuclei, in fields with abnormal ones, stands among the rest of all bags, as
    it does on a slide; else it is in none, and heads learn from what is surely normal, of which there is little."""

    train: int = Setting(gt=0)
    validation: int = Setting(gt=0)
    test: int = Setting(gt=0)
    cells: tuple[int, int] = dealing.CELLS
    prevalence: Literal["screening", "flat"] = "screening"
    unknown: bool = False

    def deal(
        self,
        cells: CellSet,
        seed: int,
        parts: Sequence[str] = PARTS,
        labels: Mapping[str, Sequence[int]] | None = None,
        within: str | None = None,
    ) -> dict[str, tuple[dealing.Bag, ...]]:
        """The bags of each part; `labels`: their classes, where these are known; `within`: of this group's cells alone.
        Raises LeakageRefused, TaskInvalid."""
        numbers = {part: int(getattr(self, part)) for part in parts}
        chances = _PREVALENCE[self.prevalence]
        classes_N, groups_N, parts_N = cells.classes_N, cells.groups(), cells.parts()
        if within is not None:
            parts_N = np.where(groups_N == within, parts_N, "none")
        return dealing.by_part(
            classes_N, groups_N, parts_N, numbers, seed, chances, self.cells, labels, unknown=self.unknown
        )


class SlideRecipe(Recipe):
    """The slide head. `detector`: the recipe of the run that finds the cells; without it, bags are of annotated cells,
    which flatters: on a real slide every candidate of a normal one is a false alarm. `sensitivity`: at which the
    operating point lies on the validation bags of each block, as `validation_centre` shows them; the lowest is taken.
    `top_k`: cells of each class that a served slide is answered from, and a bag too: `bags.cells` of detections are
    drawn, of which these are the surest. Without `publish` its runs are experiments, which nothing serves."""

    system: Literal["smartccs"]
    stage: Literal["slide"]
    encoder: EncoderSettings
    detector: str | None = None
    head: HeadKind
    hidden: int = Setting(default=512, gt=0)
    seeds: int = Setting(default=5, gt=0)
    bags: Bags
    training: HeadTraining = HeadTraining()
    sensitivity: float = Setting(default=0.95, gt=0, le=1)
    validation_centre: Literal["source", "stain A", "stain B", "scanner", "both"] = SOURCE
    top_k: int = Setting(gt=0)
    bootstrap: int = Setting(default=1000, gt=0)
    publish: PublishedSlide | None = None

    def deal(
        self,
        cells: CellSet,
        parts: Sequence[str] = PARTS,
        labels: Mapping[str, Sequence[int]] | None = None,
        within: str | None = None,
    ) -> dict[str, tuple[dealing.Bag, ...]]:
        """The bags of each part, as slides of theirs would be answered; else as `Bags.deal`."""
        dealt = self.bags.deal(cells, self.seed, parts, labels, within)
        return {
            part: tuple(dealing.surest(bag, cells.found_N, cells.scores_N, self.top_k) for bag in bags)
            for part, bags in dealt.items()
        }


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """The cells that the run of a detector finds in a picture of a field: what `Look.cells` wants."""

    network: Detector
    recipe: DetectorRecipe
    run: Run

    def __call__(self, field: data.Field, image_HWC: np.ndarray) -> Cells:
        settings, merging, mpp = self.recipe.data, self.recipe.merging, field.mpp or data.MPP

        def find() -> Cells:
            picture = detecting.at_scale(field, image_HWC, settings.mpp / mpp)
            return detecting.cells_of_field(self.network, picture, settings, merging, merging.score_threshold)

        return kept_cells(self.run, image_HWC, mpp, find)


def detections(recipe_name: str) -> Detections:
    """Of the run of a detector's recipe. Raises RunInvalid, RecipeInvalid."""
    run = find_run(recipe_name)
    recipe = parse_recipe(DetectorRecipe, run.recipe)
    network = Detector(recipe.network)
    load_state(network, read_weights(run.weights_path), run.name)
    return Detections(network.eval().requires_grad_(False), recipe, run)


def look_at(found: Detections | None, centre: str = SOURCE) -> Look:
    """How fields are looked at, as they are or at a simulated centre."""
    made = CENTRES.get(centre)
    changed = centre if made is None else f"{centre} {made}"  # a centre that was changed since shows other cells
    if found is None:
        return Look(f"annotated cells, {changed}", annotated, made)
    return Look(f"cells of the detector {found.run.weights_sha256} joined by {VERSION}, {changed}", found, made)


def train(
    recipe: SlideRecipe, text: bytes, out: Path | None = None, *, resume: bool = False, stop_after: int | None = None
) -> Run | None:
    """Train a recipe, whose `text` the run folder keeps, to a finished run, whose weights are those of all heads.

    None where it stopped after `stop_after` heads. Raises TrainingError.
    """
    repeatable()
    with ExitStack() as held:
        writer = RunWriter(out or runs_folder() / recipe.name, text, resume=resume)
        held.enter_context(occupy(writer.work))
        fields = data.load()
        found = detections(recipe.detector) if recipe.detector else None
        eye = encoder(recipe.encoder, recipe.seed)
        cells = kept(eye, fields, look_at(found))
        dealt = recipe.deal(cells)
        slides = {part: Slides.of(bags, cells.features_ND) for part, bags in dealt.items()}
        done = len(list(writer.work.glob("head-*.json")))
        last = recipe.seeds if stop_after is None else min(recipe.seeds, done + stop_after)
        heads = [_head(writer, recipe, slides["train"], slides["validation"], number) for number in range(last)]
        if last < recipe.seeds:
            print(f"Stopped after {last} of {recipe.seeds} heads; go on with --resume.", file=sys.stderr)
            return None
        best = max(range(recipe.seeds), key=lambda number: heads[number].auc)
        chosen = heads[best].head
        calibrated = calibration_of(logits_of(chosen, slides["validation"].features), slides["validation"].labels_B)
        supported = learnable(fields, cells)
        blocks = validation_blocks(recipe, pointing(recipe, eye, fields, cells, found))
        point = lowest_point(recipe, chosen, calibrated, blocks, supported)
        save_weights(writer.weights_path, nn.ModuleList(fitted.head for fitted in heads))
        scores_N = None if recipe.head == "mean" or found is None else cells.scores_N
        colours = densities(tissue_counts([field for field in fields if field.part == "train"], look_at(found)))
        source = source_of_bags(chosen, cells, dealt, scores_N, colours)
        metrics = {
            "heads": [
                {"epoch": fitted.epoch, "validation_auc": fitted.auc, "test_auc": _auc(fitted.head, slides["test"])}
                for fitted in heads
            ],
            "control_shuffled_labels": _auc(_shuffled(recipe, slides).head, slides["test"]),
            "cells": cell_counts(cells),
            "test": figures(
                calibrated(logits_of(chosen, slides["test"].features)),
                slides["test"].labels_B,
                point,
                recipe.bootstrap,
            ),
            "served": {
                "head": best,
                "width": cells.features_ND.shape[1],
                "temperature": calibrated.temperature,
                "biases": calibrated.biases,
                "abnormal_from": point.abnormal_from,
                "sensitivity": recipe.sensitivity,
                "validation_centre": recipe.validation_centre,
                "supported": dict(zip(NAMES, supported, strict=True)),
                "transform_sha256": eye.crops.digest,
                "crop_context": eye.crops.context,
                "crop_px": eye.crops.side_px,
                "encoder_sha256": eye.weights_sha256,
                "pool": POOLS[recipe.head],
                "top_k": recipe.top_k,
                "source": source.record(),
            },
        }
        learned = [field for field in fields if field.part != "test"]
        parents = {"encoder": eye.run, "detector": found and found.run}
        return writer.finish(
            metrics=metrics,
            seed=recipe.seed,
            data=[field.source for field in learned],
            pretraining=eye.pretraining,
            starts_from={role: run for role, run in parents.items() if run is not None},
            seen=data.seen(learned),
        )


def _head(writer: RunWriter, recipe: SlideRecipe, train: Slides, validation: Slides, number: int) -> Fitted:
    """The head of one seed; an interrupted run does not train it again."""
    said, weights = writer.work / f"head-{number}.json", writer.work / f"head-{number}.safetensors"
    if said.is_file():
        head = build_head(recipe.head, train.features[0].shape[1], recipe.hidden)
        load_state(head, read_weights(weights), "the interrupted run")
        return Fitted(head.eval().requires_grad_(False), **json.loads(said.read_text(encoding="utf-8")))
    fitted = fit_head(recipe.head, recipe.hidden, recipe.training, train, validation, recipe.seed + number)
    save_weights(weights, fitted.head)
    write_atomic(said, json_bytes({"epoch": fitted.epoch, "auc": fitted.auc}))
    writer.log("head", number=number, epoch=fitted.epoch, validation_auc=fitted.auc)
    return fitted


def _shuffled(recipe: SlideRecipe, slides: Mapping[str, Slides]) -> Fitted:
    """The control: a head that learned from bags with the labels of others."""
    rng = np.random.default_rng(recipe.seed)
    train, validation = (
        replace(slides[part], labels_B=rng.permutation(slides[part].labels_B)) for part in ("train", "validation")
    )
    return fit_head(recipe.head, recipe.hidden, recipe.training, train, validation, recipe.seed)


def pointing(
    recipe: SlideRecipe, eye: CellEncoder, fields: Sequence[data.Field], cells: CellSet, found: Detections | None
) -> CellSet:
    """The cells that the operating point is chosen on: the validation centre's, which are among `cells` where that is
    the source."""
    if recipe.validation_centre == SOURCE:
        return cells
    seen = [field for field in fields if field.part == "validation"]
    return kept(eye, seen, look_at(found, recipe.validation_centre))


def validation_blocks(recipe: SlideRecipe, cells: CellSet) -> tuple[Slides, ...]:
    """As many bags as there are to validate of the cells of each block of the validation part alone; a block that lacks
    NILM cells, or abnormal ones, has none. Raises TaskInvalid where no block has both."""
    part, found = "validation", []
    for group in np.unique(cells.groups()[cells.parts() == part]):
        if two_sided(block_classes(cells, part, group)):
            dealt = recipe.deal(cells, (part,), within=group)[part]
            found.append(Slides.of(dealt, cells.features_ND))
    if not found:
        raise TaskInvalid("No block of the validation part has both normal and abnormal cells: there is no point.")
    return tuple(found)


def block_classes(cells: CellSet, part: str, group: str) -> np.ndarray:
    """(K,) int64: the classes of a block's cells in a part."""
    return cells.classes_N[(cells.groups() == group) & (cells.parts() == part)]


def two_sided(classes_K: np.ndarray) -> bool:
    """Whether normal and abnormal cells are among them, so that bags of either can be dealt."""
    return bool((classes_K == NILM).any() and (classes_K > NILM).any())


def lowest_point(
    recipe: SlideRecipe,
    head: SlideHead,
    calibrated: Calibration,
    blocks: Sequence[Slides],
    supported: tuple[bool, ...],
) -> ScreeningPoint:
    """The lowest of the operating points that the bags of single blocks give: a slide is of one smear, whose look moves
    all its answers, and what is to hold on slides has to hold for every block, not for bags that mix them."""
    points = [
        operating_point(calibrated(logits_of(head, bags.features)), bags.labels_B, recipe.sensitivity, supported)
        for bags in blocks
    ]
    return min(points, key=lambda point: point.abnormal_from)


def source_of_bags(
    head: SlideHead,
    cells: CellSet,
    dealt: Mapping[str, Sequence[dealing.Bag]],
    scores_N: np.ndarray | None,
    colours: Densities,
) -> Source:
    """What a site is held against: the train bags' cells, and the validation bags, which are held out; see
    `site_cells` for `scores_N`."""

    def of(places_K: np.ndarray) -> SiteCells:
        return site_cells(head, cells.features_ND[places_K], None if scores_N is None else scores_N[places_K])

    learned = of(np.concatenate([bag.cells_K for bag in dealt["train"]]))
    return source_of(colours, learned, [of(bag.cells_K) for bag in dealt["validation"]])


def learnable(fields: Sequence[data.Field], cells: CellSet) -> tuple[bool, ...]:
    """By class, whether it may be answered alone: enough of it is annotated, and enough of that is among the cells
    that heads learn from, some of which a detector may have missed."""
    parts_N, known_N = cells.parts(), cells.classes_N >= 0
    found_PC = np.stack(
        [np.bincount(cells.classes_N[known_N & (parts_N == part)], minlength=len(NAMES)) for part in PARTS]
    )
    both = zip(data.supported(data.counts(fields)), data.supported(found_PC), strict=True)
    return tuple(annotated and found for annotated, found in both)


def _auc(head: SlideHead, slides: Slides) -> float:
    return auc_of(chances_of(logits_of(head, slides.features)), slides.labels_B)


def cell_counts(cells: CellSet) -> dict[str, dict[str, int]]:
    """The cells by part and class, those beside all classes under "other"."""
    parts_N, names = cells.parts(), (*NAMES, "other")
    classes_N = np.where(cells.classes_N < 0, len(NAMES), cells.classes_N)
    return {
        part: dict(zip(names, np.bincount(classes_N[parts_N == part], minlength=len(names)).tolist(), strict=True))
        for part in PARTS
    }


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A finished run of the slide head: all its heads, in eval mode, and what is served with the best."""

    recipe: SlideRecipe
    heads: tuple[SlideHead, ...]
    best: int
    calibrated: Calibration
    point: ScreeningPoint
    source: Source


def trained(run: Run) -> Trained:
    """What a run holds. Raises RecipeInvalid, WeightsInvalid."""
    recipe, served = parse_recipe(SlideRecipe, run.recipe), run.metrics["served"]
    heads = nn.ModuleList(build_head(recipe.head, served["width"], recipe.hidden) for _ in range(recipe.seeds))
    load_state(heads, read_weights(run.weights_path), run.name)
    point = ScreeningPoint(served["abnormal_from"], tuple(served["supported"][name] for name in NAMES))
    heads.eval().requires_grad_(False)
    source = Source.read(served["source"])
    calibrated = Calibration(served["temperature"], tuple(served["biases"]))
    return Trained(recipe, tuple(heads), served["head"], calibrated, point, source)


def describe(recipe: SlideRecipe) -> str:
    """What a recipe would train, without data or runs."""
    said, training = recipe.bags, recipe.training
    return "\n".join(
        [
            f"{recipe.name}: system {recipe.system}, stage {recipe.stage}",
            f"{recipe.seeds} heads, {recipe.head}; encoder: {recipe.encoder.kind}, {recipe.encoder.recipe}",
            f"cells: {'found by ' + recipe.detector if recipe.detector else 'annotated'}",
            f"synthetic bags: {said.train:,} to train, {said.validation:,} to choose, {said.test:,} to measure, of "
            f"{said.cells[0]} to {said.cells[1]} cells, {said.prevalence} prevalence",
            f"{training.epochs} epochs at rate {training.rate:g}; operating point at {recipe.sensitivity:.0%} of "
            f"abnormal bags, centre {recipe.validation_centre}",
        ]
    )
