"""Images with what is outlined in them, at the scale of their level, and the crops and prompts that a network learns.

Everything is decoded once, into memory. Sets that do not tell their scale are taken at a nominal one and scaled more
widely: figures on them say little about scale.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from skimage.color import hed_from_rgb, rgb_from_hed

from gateway.domain.prompts import UNSPECIFIED, Level, Triple
from training.data.common import Source, data_root, read_image, read_mask
from training.data.dataset import Dataset, masks_of
from training.data.hashes import SAME_IMAGE_BITS, near_pairs
from training.data.seen import Seen
from training.errors import DataMissing, LeakageRefused, TaskInvalid
from training.pathsegmentor.items import UNKNOWN, Item, item_of
from training.pathsegmentor.parts import PARTS, dataset_of, parts
from training.pathsegmentor.published import READERS
from training.pathsegmentor.sets import EXTERNAL, FEWEST_PX, SETS, Annotated, impossible, listed
from training.pathsegmentor.sets import MPP as MPP  # with the items of its scale, for those who read them

_TRIES, _WITHOUT_REGION = 30, 0.1
_WITH_INSTANCES = frozenset({"consep", "dsb2018", "glomeruli", "monuseg", "monusac"})
_STRENGTH, _STAIN = 0.7, 0.5
"""Logarithms of the greatest factors of all stains together (sections are thick or thin) and of each beside that."""
_SHIFT, _HAZE_2 = 0.1, (0.5, 1.0)
"""Densities added everywhere: of any stain, up or down; and, to every second crop, of haematoxylin and of eosin, up to
these: between the nuclei of an overstained section it is dark."""
_TURN = 0.12
"""Share of a colour channel's density that may be told by another channel: no laboratory's dyes have quite one hue."""
_BLUR_PX, _FOCUS = 1.5, (-1.0, 1.5)
"""Detail finer than that is taken away (-1: all of it) or added once and a half again: optics differ in sharpness."""
_DENSITY_256 = -np.log(np.maximum(np.arange(256), 1) / 255).astype(np.float32)
"""Optical density (natural logarithm) by grey level; of black as of the next level."""


@dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """image_HWC: uint8 RGB; mask_HW, valid_HW: bool; not valid are pixels beyond the image's edge (mirrored), and those
    of which nothing is known; present: None where neither present nor absent may be learned."""

    image_HWC: np.ndarray
    mask_HW: np.ndarray
    valid_HW: np.ndarray
    present: bool | None


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """A crop and what it is asked for."""

    item: Item
    triple: Triple
    crop: Crop


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B crops of one side: image_BHWC uint8; mask_BHW, valid_BHW, present_B bool; what is asked of each; its set."""

    image_BHWC: np.ndarray
    mask_BHW: np.ndarray
    valid_BHW: np.ndarray
    present_B: np.ndarray
    triples: tuple[Triple, ...]
    sets: tuple[str, ...]


def load(part: str, sets: Sequence[str] | None = None) -> tuple[Item, ...]:
    """The images of a part of some sets (all where none is named), in a fixed order, decoded.

    Raises TaskInvalid for another set or part, LeakageRefused where a set that is for measuring only is to be trained
    or chosen on, DataMissing.
    """
    if part not in PARTS:
        raise TaskInvalid(f"There is no part {part!r} of a split. Name one of: {', '.join(PARTS)}.")
    known = (*SETS, *EXTERNAL, *READERS)
    chosen = list(EXTERNAL if part == "external" else SETS) if sets is None else list(sets)
    for name in chosen:
        if name not in known:
            raise TaskInvalid(f"Segmentation has no set {name!r}. Name some of: {', '.join(known)}.")
        if name in EXTERNAL and part != "external":
            raise LeakageRefused(f"The set {name} is for measuring only: no part of it may be trained or chosen on.")
    items = tuple(item for name in chosen for item in _items(data_root(), name) if item.part == part)
    if part in ("train", "val"):
        _require_apart(items)
    return items


def crop(
    rng: np.random.Generator, item: Item, triple: Triple, side_px: int, augment: bool = True, aim: bool = True
) -> Crop:
    """A square of an image at a place of chance: with `aim`, one that holds a pixel of the object where there is one.

    `augment`: scaled by 0.9 to 1.1 (0.7 to 1.4 where the scale is not known), flipped, turned, stained otherwise
    and in another focus.
    """
    scale = 1.0
    if augment:
        scale = float(rng.uniform(0.9, 1.1) if item.mpp_known else np.exp(rng.uniform(np.log(0.7), np.log(1.4))))
    side = max(1, round(side_px / scale))
    top, left = _corner(rng, item, triple, side, aim)
    height, width = item.category_HW.shape
    rows, columns = slice(max(top, 0), top + side), slice(max(left, 0), left + side)
    image, number = item.image_HWC[rows, columns], item.category_HW[rows, columns]
    beyond = max(-top, 0), max(top + side - height, 0), max(-left, 0), max(left + side - width, 0)
    if any(beyond):
        image = cv2.copyMakeBorder(image, *beyond, borderType=cv2.BORDER_REFLECT_101)
        number = cv2.copyMakeBorder(number, *beyond, borderType=cv2.BORDER_CONSTANT, value=UNKNOWN)
    if side != side_px:
        smooth = cv2.INTER_AREA if side > side_px else cv2.INTER_LINEAR
        image = cv2.resize(image, (side_px, side_px), interpolation=smooth)
        number = cv2.resize(number, (side_px, side_px), interpolation=cv2.INTER_NEAREST_EXACT)
    if augment:
        image = _seen_otherwise(rng, image)
        turned, flipped = rng.integers(2), rng.integers(-1, 3)
        image, number = (_placed(part, bool(turned), int(flipped)) for part in (image, number))
    mask = item.among(triple)[number]
    return Crop(np.ascontiguousarray(image), mask, number != UNKNOWN, _present(item, triple, mask))


def _seen_otherwise(rng: np.random.Generator, image_HWC: np.ndarray) -> np.ndarray:
    """uint8 RGB with other amounts of haematoxylin, eosin and the rest, unmixed as Ruifrok and Johnston (2001) do, of
    other hues and in another focus: colours and optics of a laboratory are not another's, and no set here holds those
    of many."""
    factor_3 = np.exp(rng.uniform(-_STRENGTH, _STRENGTH) + rng.uniform(-_STAIN, _STAIN, 3))
    shift_3 = rng.uniform(-_SHIFT, _SHIFT, 3)
    if rng.random() < 0.5:
        shift_3[:2] += rng.uniform(0, _HAZE_2)
    turn_33 = np.eye(3) + rng.uniform(-_TURN, _TURN, (3, 3))
    mixed_34 = turn_33 @ np.column_stack([(hed_from_rgb * factor_3 @ rgb_from_hed).T, shift_3 @ rgb_from_hed])
    density_HWC = cv2.transform(cv2.LUT(image_HWC, _DENSITY_256), mixed_34.astype(np.float32))
    image_HWC = np.clip(np.rint(255 * cv2.exp(-density_HWC)), 0, 255).astype(np.uint8)
    detail = rng.uniform(*_FOCUS)
    return cv2.addWeighted(image_HWC, 1 + detail, cv2.GaussianBlur(image_HWC, None, _BLUR_PX), -detail, 0)


def _placed(image: np.ndarray, turned: bool, flipped: int) -> np.ndarray:
    """One of the eight ways in which a square can lie; `flipped` as OpenCV counts axes, 2 for none."""
    lying = cv2.transpose(image) if turned else image
    return lying if flipped == 2 else cv2.flip(lying, flipped)


def _corner(rng: np.random.Generator, item: Item, triple: Triple, side: int, aim: bool) -> tuple[int, int]:
    """Top and left of a square: inside the image along every axis that is long enough, else with the image inside."""
    points_K2 = item.points.get(triple.object) if aim else None
    point = None if points_K2 is None else points_K2[rng.integers(len(points_K2))]
    corner = []
    for axis, length in enumerate(item.category_HW.shape):
        low, high = min(0, length - side), max(0, length - side)
        if point is not None:
            low, high = max(low, int(point[axis]) - side + 1), min(high, int(point[axis]))
        corner.append(int(rng.integers(low, high + 1)))
    return corner[0], corner[1]


def _present(item: Item, triple: Triple, mask_HW: np.ndarray) -> bool | None:
    pixels = int(np.count_nonzero(mask_HW))
    if pixels >= FEWEST_PX:
        return True
    return False if pixels == 0 and item.exhaustively(triple) else None


_Pool = dict[str, list[tuple[Item, list[Triple]]]]
"""By set (of hard prompts, by set and object): images with what can be asked of them."""


class Sampler:
    """Draws crops with a prompt each: sets uniformly, then images, then what is asked.

    A share `absent` of the prompts asks for what is not there: half of them for what the set annotates, at the same
    level and in the same organ (hard: a set's objects are drawn uniformly), half for what cannot be in that organ;
    where a draw finds none of its kind it takes the other. The region is left out of one prompt in ten. `naive` is the
    arm that takes "not annotated" for "absent", of every object that is listed: it shows what the partial-label rule
    prevents.
    """

    def __init__(self, items: Sequence[Item], side_px: int, absent: float = 0.22, naive: bool = False) -> None:
        self._side_px, self._absent, self._naive = side_px, absent, naive
        everything = sorted({(triple.level, triple.object) for item in items for triple in item.triples})
        self._present: _Pool = {}
        self._hard: _Pool = {}
        self._easy: _Pool = {}
        for item in items:
            own = [triple for triple in item.triples if triple.region == item.organ]
            unmarked = [
                Triple(level, name, item.organ)
                for level, name in dict.fromkeys((triple.level, triple.object) for triple in listed())
                if level == item.level and name not in item.objects
            ]
            _put(self._present, item.set, item, [triple for triple in own if triple.object in item.points])
            for triple in [triple for triple in own if item.exhaustively(triple)] + (unmarked if naive else []):
                _put(self._hard, f"{item.set} {triple.object}", item, [triple])
            elsewhere = [Triple(item.level, name, item.organ) for name in impossible(item.level, item.organ)]
            elsewhere = [triple for triple in elsewhere if (triple.level, triple.object) in everything]
            _put(self._easy, item.set, item, elsewhere)
        if not self._present:
            raise DataMissing("None of the images holds an object to learn. Name more sets.")

    def draw(self, rng: np.random.Generator) -> Drawn:
        """One crop whose object is known to be there, or known not to be. Raises DataMissing where tries find none."""
        absent = [self._hard, self._easy] if rng.random() < 0.5 else [self._easy, self._hard]
        pools = [*absent, self._present] if rng.random() < self._absent else [self._present]
        for pool in [pool for pool in pools if pool]:
            for _ in range(_TRIES):
                drawn = self._try(rng, pool)
                if drawn is not None:
                    return drawn
        raise DataMissing("The images hold no object that a crop can show. Name more sets, or a longer side.")

    def batch(self, rng: np.random.Generator, size: int) -> Batch:
        """`size` draws."""
        drawn = [self.draw(rng) for _ in range(size)]
        return Batch(
            np.stack([one.crop.image_HWC for one in drawn]),
            np.stack([one.crop.mask_HW for one in drawn]),
            np.stack([one.crop.valid_HW for one in drawn]),
            np.array([one.crop.present for one in drawn], bool),
            tuple(one.triple for one in drawn),
            tuple(one.item.set for one in drawn),
        )

    def _try(self, rng: np.random.Generator, pool: _Pool) -> Drawn | None:
        """One try of a pool; None where the crop does not show what the pool is for."""
        names = list(pool)
        rows = pool[names[rng.integers(len(names))]]
        item, triples = rows[rng.integers(len(rows))]
        triple = triples[rng.integers(len(triples))]
        wanted = pool is self._present
        found = crop(rng, item, triple, self._side_px, aim=wanted)
        if self._naive and found.present is None and not found.mask_HW.any():
            found = replace(found, present=False)
        if found.present is not wanted:
            return None
        if rng.random() < _WITHOUT_REGION:
            triple = replace(triple, region=UNSPECIFIED)
        return Drawn(item, triple, found)


def _put(pool: _Pool, key: str, item: Item, triples: list[Triple]) -> None:
    if triples:
        pool.setdefault(key, []).append((item, triples))


def sources(items: Iterable[Item]) -> tuple[Source, ...]:
    """The files of some images, pictures and masks; a file that holds many of them once."""
    return tuple(dict.fromkeys(source for item in items for source in item.sources))


def seen(items: Sequence[Item]) -> Seen:
    """What a run that learns from these images has seen, as its manifest says it."""
    groups: dict[str, set[str]] = {}
    for item in items:
        groups.setdefault(item.sources[0].set, set()).add(item.group)
    named = {name: tuple(sorted(members)) for name, members in sorted(groups.items())}
    return Seen(named, tuple(sorted({f"{item.hash:016x}" for item in items})))


def unmarked(sets: Iterable[str]) -> frozenset[tuple[Level, str]]:
    """Levels and objects that some sets do not annotate: what the naive arm calls absent in them."""
    return frozenset(
        (triple.level, triple.object)
        for name in sets
        for triple in listed()
        if triple.level == SETS[name].level and triple.object not in SETS[name].names
    )


def train_images(items: Iterable[Item]) -> dict[Triple, int]:
    """In how many images each listed triple is there; 0 where in none."""
    counts: Counter[Triple] = Counter()
    for item in items:
        counts.update(triple for triple in item.triples if triple.object in item.points)
    return {triple: counts[triple] for triple in listed()}


def _require_apart(items: Iterable[Item]) -> None:
    """Raises LeakageRefused where a picture or a group stands on a side of the split that may not see it."""
    outside = [dataset_of(data_root(), name) for name in EXTERNAL]
    hashes_N = np.concatenate([dataset.hashes() for dataset in outside])
    groups = {group for dataset in outside for group in dataset.groups_N.tolist()}
    for item in items:
        if item.group in groups or len(near_pairs(np.array([item.hash]), hashes_N, SAME_IMAGE_BITS)):
            raise LeakageRefused(f"{item.set}/{item.name} stands in a set that is for measuring only. Leave it out.")


@cache
def _items(root: Path, name: str) -> tuple[Item, ...]:
    """All images of a set, decoded. `root` is the data folder, so that another folder's are not taken for them."""
    if name in READERS:
        return tuple(READERS[name](root / name))
    annotated = {**SETS, **EXTERNAL}[name]
    dataset, parts_N = dataset_of(root, name), parts(root)[name]
    hashes_N = dataset.hashes()
    places = {source: index for index, source in reversed(list(enumerate(dataset.sources)))}
    items = tuple(
        _item(dataset, annotated, index, str(parts_N[index]), hashes_N[index])
        for index in sorted(places.values())
        if annotated.cohort is None or dataset.cohort_N[index] == annotated.cohort
    )
    if annotated.red and np.mean([np.diff(item.image_HWC[..., ::2].mean((0, 1))) for item in items]) >= 0:
        raise DataMissing(f"The images of {name} have red and blue exchanged. Fetch the data again.")
    return items


def _item(dataset: Dataset, annotated: Annotated, index: int, part: str, hash_of_file: np.uint64) -> Item:
    picture, mask = dataset.sources[index], dataset.masks[index]
    told = masks_of([picture], "instances") if dataset.name in _WITH_INSTANCES else ()
    return item_of(
        annotated,
        name=Path(picture.file).stem,
        of_set=dataset.name,
        group=str(dataset.groups_N[index]),
        part=part,
        organ=annotated.organs[0] if len(annotated.organs) == 1 else dataset.classes[dataset.labels_N[index]],
        sources=(picture, mask, *told),
        image_HWC=read_image(data_root(), picture, "AB"),
        category_HW=read_mask(data_root(), mask, "AB").astype(np.uint8),
        instances_HW=read_mask(data_root(), told[0], "AB").astype(np.int32) if told else None,
        mpp=annotated.nominal_mpp,
        hash_of_file=hash_of_file,
    )
