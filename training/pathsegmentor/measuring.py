"""Every prompt of an image, and every way in which it is asked wrongly, to rows of a table."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Any

import cv2
import numpy as np

from gateway.domain.prompts import UNSPECIFIED, Level, Triple
from gateway.slides.tissue import tissue_of_picture
from training.pathsegmentor.baselines import box_instances, box_union, mask_statistics, otsu
from training.pathsegmentor.calibrate import Rules
from training.pathsegmentor.data import Item
from training.pathsegmentor.descriptors import describe, dice, instances
from training.pathsegmentor.pairs import Pair
from training.pathsegmentor.predictor import WINDOW_PX, Asked, Predicted, Predictor, starts
from training.pathsegmentor.sets import FEWEST_PX, MPP, impossible

COMMON_MPP = 0.5
"""The one scale at which all levels are asked, so that scale does not tell the level."""
LEAST_TISSUE = 0.01
"""Share of a window: a slide's windows with less are not read."""
ALL_NUCLEI = "nucleus"
_OTHER_LEVEL = {Level.TISSUE: Level.NUCLEI, Level.CELL: Level.TISSUE, Level.NUCLEI: Level.TISSUE}


def measure(
    predictor: Predictor, items: Sequence[Item], seed: int, *, variants: bool, rules: Rules | None = None
) -> Iterator[Pair]:
    """The pairs of all items; `served` hides what the rules call absent (nothing without them). With `variants` each
    prompt that is present is also asked with words left out, at one common scale, on the wrong level, for the wrong
    object, and replaced by another pair's prompt."""
    rng = np.random.default_rng(seed)
    prompts = [triple for item in items for triple in item.triples if _own(item, triple) and _present(item, triple)]
    everything = list(dict.fromkeys(prompts))
    for item in items:
        speaks = _everything if rules is None else rules[item.level].speaks
        exchanged = {triple: prompts[rng.integers(len(prompts))] for triple in item.triples} if prompts else {}
        wrong = {triple: _wrong_object(item, triple, everything, rng) for triple in item.triples}
        yield from _pairs(predictor, item, exchanged, wrong, speaks, variants=variants)


def measure_presence(
    predictor: Predictor, items: Iterable[Item], known: Collection[tuple[Level, str]]
) -> Iterator[Pair]:
    """Pairs of each window of all items: of what is annotated, and of those `known` objects that cannot be there.

    A presence rule is served window by window, so it is fitted and measured so. Whole images would not do: each of the
    sets' images of tissue holds its object, and only windows of some, and what is impossible in an organ, tell what is
    answered where it is not.
    """
    for item in items:
        elsewhere = [name for name in impossible(item.level, item.organ) if (item.level, name) in known]
        strange = [
            Triple(item.level, name, organ) for name in elsewhere for organ in dict.fromkeys((item.organ, UNSPECIFIED))
        ]
        for window in windows_of(item):
            asked = [*(triple for triple in item.triples if _known(window, triple)), *strange]
            if not asked:
                continue
            said = predictor(window.image_HWC, [Asked(triple) for triple in asked], item.set)
            for place, (triple, probability_HW) in enumerate(zip(asked, said.probabilities_PHW, strict=True)):
                yield Pair(**_asked(window, triple, said.presence_P[place], probability_HW > 0.5))


def windows_of(item: Item) -> Iterator[Item]:
    """The windows in which an image is read, as images of their own: as on slides, those with tissue."""
    height, width = item.category_HW.shape
    tissue_HW = tissue_of_picture(item.image_HWC, MPP[item.level])
    for top, left in product(starts(height), starts(width)):
        place = slice(top, top + WINDOW_PX), slice(left, left + WINDOW_PX)
        if tissue_HW[place].mean() < LEAST_TISSUE:
            continue
        yield replace(
            item,
            name=f"{item.name} {top},{left}",
            image_HWC=item.image_HWC[place],
            category_HW=item.category_HW[place],
            instances_HW=None if item.instances_HW is None else item.instances_HW[place],
        )


def _everything(presence_P: np.ndarray) -> np.ndarray:
    return np.ones(len(presence_P), bool)


def _pairs(
    predictor: Predictor,
    item: Item,
    exchanged: dict[Triple, Triple],
    wrong: dict[Triple, Triple | None],
    speaks: Callable[[np.ndarray], np.ndarray],
    *,
    variants: bool,
) -> Iterator[Pair]:
    asked = [triple for triple in item.triples if _known(item, triple)]
    if not asked:
        return
    image = item.image_HWC
    said = predictor(image, [Asked(triple) for triple in asked], item.set, queries=variants)
    probabilities_PHW, served_PHW, presence_P = said.probabilities_PHW, said.served(speaks), said.presence_P
    shown = [triple for triple in asked if _own(item, triple) and _present(item, triple)]
    ways = _asked_otherwise(predictor, item, shown, exchanged, wrong) if variants else {}
    stain = otsu(image) if any(triple.level != Level.TISSUE for triple in asked) else None
    largest_HW = max((item.mask(triple) for triple in asked), key=np.count_nonzero)
    outlines: dict[bytes, int] = {}
    for place, triple in enumerate(asked):
        truth = item.mask(triple)
        mask = probabilities_PHW[place] > 0.5
        inside, red, green, blue = mask_statistics(image, probabilities_PHW[place], mask)
        found: dict[str, Any] = {"inside": inside, "red": red, "green": green, "blue": blue}
        if truth.sum() >= FEWEST_PX:
            found |= _floor(item, triple, truth, stain) | {
                "largest_object": dice(largest_HW, truth),
                "dice": dice(mask, truth),
                "served": dice(served_PHW[place], truth),
                "recall": float(served_PHW[place][truth].mean()),
                "outline": outlines.setdefault(truth.tobytes(), len(outlines)),
            }
            if said.queries_PQHW is not None and _own(item, triple):
                found["best_query"] = max(dice(query, truth) for query in said.queries_PQHW[place])
        yield Pair(**_asked(item, triple, presence_P[place], mask), **found, **ways.get(triple, {}))


def _asked(item: Item, triple: Triple, presence: float, mask_HW: np.ndarray) -> dict[str, Any]:
    """What every pair tells."""
    return {
        "set": item.set,
        "external": item.part == "external",
        "part": item.part,
        "group": item.group,
        "image": item.name,
        "organ": item.organ,
        "stain": item.stain,
        "prompt": triple.text,
        "level": triple.level,
        "own": _own(item, triple),
        "present": _present(item, triple),
        "impossible": triple.object not in item.objects,
        "presence": float(presence),
        "area": float(mask_HW.mean()),
    }


def _known(item: Item, triple: Triple) -> bool:
    """Whether it is known that the object is here, or that it is not."""
    return item.mask(triple).any() or item.exhaustively(triple)


def _own(item: Item, triple: Triple) -> bool:
    return triple.region != UNSPECIFIED or item.organ == UNSPECIFIED


def _present(item: Item, triple: Triple) -> bool | None:
    pixels = int(item.mask(triple).sum())
    return None if 0 < pixels < FEWEST_PX else pixels > 0


def _floor(item: Item, triple: Triple, truth: np.ndarray, stain: np.ndarray | None) -> dict[str, float]:
    """Dice of the answers without a network, and what the truth looks like."""
    labels = instances(truth) if item.instances_HW is None else np.where(truth, item.instances_HW, 0)
    found = {
        "box_union": dice(box_union(truth), truth),
        "box_instances": dice(box_instances(truth, labels), truth),
        "whole_image": dice(np.ones_like(truth), truth),
        "pixels": truth.size,
        **asdict(describe(truth, labels)),
    }
    if stain is not None and triple.level != Level.TISSUE:
        found["otsu"] = dice(stain, truth)
    return found


def _asked_otherwise(
    predictor: Predictor,
    item: Item,
    shown: Sequence[Triple],
    exchanged: dict[Triple, Triple],
    wrong: dict[Triple, Triple | None],
) -> dict[Triple, dict[str, float]]:
    """Dice to the truth of a present prompt when it is asked otherwise, by column."""
    ways: list[tuple[Triple, str, Asked]] = []
    for triple in shown:
        ways += [
            (triple, "no_level", Asked(triple, ("level",))),
            (triple, "no_region", Asked(Triple(triple.level, triple.object, UNSPECIFIED))),
            (triple, "no_constant", Asked(triple, ("constant",))),
            (triple, "wrong_level", Asked(Triple(_OTHER_LEVEL[triple.level], triple.object, triple.region))),
            (triple, "permuted", Asked(exchanged[triple])),
        ]
        if (other := wrong[triple]) is not None:
            ways.append((triple, "wrong_object", Asked(other)))
    found: dict[Triple, dict[str, float]] = {triple: {} for triple in shown}
    if not shown:
        return found
    _score(found, item, ways, predictor(item.image_HWC, [ask for _, _, ask in ways], item.set))

    ways = [(triple, "common_scale", Asked(triple)) for triple in shown]
    ways += [(triple, "common_scale_no_level", Asked(triple, ("level",))) for triple in shown]
    factor = MPP[item.level] / COMMON_MPP
    shape = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    image = cv2.resize(item.image_HWC, None, fx=factor, fy=factor, interpolation=shape)
    _score(found, item, ways, predictor(image, [ask for _, _, ask in ways], item.set))
    return found


def _score(
    found: dict[Triple, dict[str, float]], item: Item, ways: Iterable[tuple[Triple, str, Asked]], said: Predicted
) -> None:
    height, width = item.image_HWC.shape[:2]
    for (triple, column, _), probability in zip(ways, said.probabilities_PHW, strict=True):
        if probability.shape != (height, width):
            probability = cv2.resize(probability, (width, height), interpolation=cv2.INTER_LINEAR)
        found[triple][column] = dice(probability > 0.5, item.mask(triple))


def _wrong_object(item: Item, triple: Triple, every: Collection[Triple], rng: np.random.Generator) -> Triple | None:
    """Another object of the level that shares no pixel with this one: of the same set where it has one, else of
    another. None for all nuclei, of which every kind is a part."""
    if triple.object == ALL_NUCLEI:
        return None
    own = set(item.objects[triple.object])
    names = [name for name, numbers in item.objects.items() if not own & set(numbers)]
    if not names:
        strange = {other.object for other in every if other.level == triple.level}
        names = sorted(strange - set(item.objects) - {ALL_NUCLEI})
    return Triple(triple.level, names[rng.integers(len(names))], triple.region) if names else None
