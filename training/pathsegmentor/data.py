"""Images with what is outlined in them, at the scale of their level, and the crops and prompts that a network learns.

Everything is decoded once, into memory. Sets that do not tell their scale are taken at a nominal one and scaled more
widely: figures on them say little about scale.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from gateway.domain.prompts import UNSPECIFIED, Level, Triple
from training.data.common import Source, data_root, read_image, read_mask
from training.data.dataset import Dataset, masks_of
from training.data.dataset import load as load_dataset
from training.data.seen import Seen
from training.errors import DataMissing, LeakageRefused, TaskInvalid
from training.pathsegmentor.parts import PARTS, parts
from training.pathsegmentor.sets import EXTERNAL, FEWEST_PX, MPP, SETS, Annotated, impossible, listed

_TRIES, _WITHOUT_REGION = 20, 0.1
_WITH_INSTANCES = frozenset({"consep", "dsb2018", "glomeruli", "monuseg", "monusac"})
_POINTS = 512
"""Pixels of an object, spread over it, of which a crop is laid around one."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Item:
    """One image of a set. image_HWC: uint8 RGB at MPP[level]; category_HW: uint8 numbers of what each pixel is, 0 none
    of it; instances_HW: int32, where the set tells one object from its neighbour; objects: which numbers belong to each
    object that is annotated here; exhaustive: those of which none is left out; points: (K,2) y, x of some pixels of
    each object that is here; hash: the perceptual hash of the picture as its file has it."""

    name: str
    set: str
    tier: str
    group: str
    part: str
    organ: str
    level: Level
    mpp_known: bool
    sources: tuple[Source, ...]
    image_HWC: np.ndarray
    category_HW: np.ndarray
    instances_HW: np.ndarray | None
    objects: Mapping[str, tuple[int, ...]]
    exhaustive: frozenset[str]
    points: Mapping[str, np.ndarray]
    hash: np.uint64

    @property
    def triples(self) -> tuple[Triple, ...]:
        """What is annotated here, in its own organ and then without one; whether it is here is another question."""
        organs = dict.fromkeys((self.organ, UNSPECIFIED))
        return tuple(Triple(self.level, name, organ) for organ in organs for name in self.objects)

    def mask(self, triple: Triple) -> np.ndarray:
        """(H,W) bool: the object's pixels; none where it is not annotated here."""
        return self.among(triple)[self.category_HW]

    def among(self, triple: Triple) -> np.ndarray:
        """(256,) bool: whether pixels of a number belong to the triple."""
        table = np.zeros(256, bool)
        if self._asks(triple):
            table[list(self.objects.get(triple.object, ()))] = True
        return table

    def exhaustively(self, triple: Triple) -> bool:
        """Whether an empty mask means that the object is not here."""
        if triple.level == self.level and triple.object in impossible(self.level, self.organ):
            return True
        return self._asks(triple) and triple.object in self.exhaustive

    def _asks(self, triple: Triple) -> bool:
        return triple.level == self.level and triple.region in (self.organ, UNSPECIFIED)


@dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """image_HWC: uint8 RGB; mask_HW, valid_HW: bool, pixels beyond the image's edge (mirrored) are not valid; present:
    None where neither present nor absent may be learned."""

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
    known = {**SETS, **EXTERNAL}
    chosen = list(EXTERNAL if part == "external" else SETS) if sets is None else list(sets)
    for name in chosen:
        if name not in known:
            raise TaskInvalid(f"Segmentation has no set {name!r}. Name some of: {', '.join(known)}.")
        if name in EXTERNAL and part != "external":
            raise LeakageRefused(f"The set {name} is for measuring only: no part of it may be trained or chosen on.")
    items = tuple(item for name in chosen for item in _items(data_root(), name) if item.part == part)
    for item in items:
        if part in ("train", "val") and item.tier != "A":
            raise LeakageRefused(
                f"{item.set}/{item.name} is of tier {item.tier}; what ships is trained on tier A only."
            )
    return items


def crop(
    rng: np.random.Generator, item: Item, triple: Triple, side_px: int, augment: bool = True, aim: bool = True
) -> Crop:
    """A square of an image at a place of chance: with `aim`, one that holds a pixel of the object where there is one.

    `augment`: scaled by 0.9 to 1.1 (0.7 to 1.4 where the scale is not known), flipped, turned, and each channel's
    optical density scaled by 0.9 to 1.1.
    """
    scale = 1.0
    if augment:
        scale = float(rng.uniform(0.9, 1.1) if item.mpp_known else np.exp(rng.uniform(np.log(0.7), np.log(1.4))))
    side = max(1, round(side_px / scale))
    top, left = _corner(rng, item, triple, side, aim)
    height, width = item.category_HW.shape
    rows, columns = slice(max(top, 0), top + side), slice(max(left, 0), left + side)
    image, number = item.image_HWC[rows, columns], item.category_HW[rows, columns]
    valid = np.ones(number.shape, np.uint8)
    beyond = max(-top, 0), max(top + side - height, 0), max(-left, 0), max(left + side - width, 0)
    if any(beyond):
        image = cv2.copyMakeBorder(image, *beyond, borderType=cv2.BORDER_REFLECT_101)
        number, valid = (cv2.copyMakeBorder(part, *beyond, borderType=cv2.BORDER_CONSTANT) for part in (number, valid))
    if side != side_px:
        smooth = cv2.INTER_AREA if side > side_px else cv2.INTER_LINEAR
        image = cv2.resize(image, (side_px, side_px), interpolation=smooth)
        number, valid = (
            cv2.resize(part, (side_px, side_px), interpolation=cv2.INTER_NEAREST) for part in (number, valid)
        )
    if augment:
        image = cv2.LUT(image, _stains(rng))
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        image, number, valid = (np.rot90(part[:, ::-1] if flip else part, turns) for part in (image, number, valid))
    mask = item.among(triple)[number]
    return Crop(np.ascontiguousarray(image), mask, np.ascontiguousarray(valid).view(bool), _present(item, triple, mask))


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


def _stains(rng: np.random.Generator) -> np.ndarray:
    """(256,1,3) uint8: grey levels whose optical density is scaled, each channel's by its own factor."""
    levels_K = np.arange(256)[:, None] / 255.0
    return np.rint(255.0 * levels_K ** rng.uniform(0.9, 1.1, 3)).astype(np.uint8)[:, None]


class Sampler:
    """Draws crops with a prompt each: sets uniformly, then images, then what is asked.

    A share `absent` of the prompts asks for what is not there: half of them for another object of the same level and
    organ (hard), half for what cannot be in that organ; where a draw finds none of its kind it takes the other. The
    region is left out of one prompt in ten. `naive` is the arm that takes "not annotated" for "absent": it shows what
    the partial-label rule prevents.
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
                for level, name in everything
                if level == item.level and name not in item.objects
            ]
            _put(self._present, item, [triple for triple in own if triple.object in item.points])
            _put(self._hard, item, [triple for triple in own if item.exhaustively(triple)] + unmarked * naive)
            elsewhere = [Triple(item.level, name, item.organ) for name in impossible(item.level, item.organ)]
            _put(self._easy, item, [triple for triple in elsewhere if (triple.level, triple.object) in everything])
        if not self._present:
            raise DataMissing("None of the images holds an object to learn. Name more sets.")

    def draw(self, rng: np.random.Generator) -> Drawn:
        """One crop whose object is known to be there, or known not to be."""
        pools = [self._present]
        if rng.random() < self._absent:
            pools = [self._hard, self._easy] if rng.random() < 0.5 else [self._easy, self._hard]
            pools = [pool for pool in pools if pool] or [self._present]
        while True:
            for pool in pools:
                for _ in range(_TRIES):
                    drawn = self._try(rng, pool)
                    if drawn is not None:
                        return drawn
            pools = [self._present]

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

    def _try(self, rng: np.random.Generator, pool: "_Pool") -> Drawn | None:
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


_Pool = dict[str, list[tuple[Item, list[Triple]]]]
"""By set: its images with what can be asked of them."""


def _put(pool: _Pool, item: Item, triples: list[Triple]) -> None:
    if triples:
        pool.setdefault(item.set, []).append((item, triples))


def sources(items: Iterable[Item]) -> tuple[Source, ...]:
    """The files of some images: pictures and masks."""
    return tuple(source for item in items for source in item.sources)


def seen(items: Sequence[Item]) -> Seen:
    """What a run that learns from these images has seen, as its manifest says it."""
    groups: dict[str, set[str]] = {}
    for item in items:
        groups.setdefault(item.sources[0].set, set()).add(item.group)
    named = {name: tuple(sorted(members)) for name, members in sorted(groups.items())}
    return Seen(named, tuple(sorted({f"{item.hash:016x}" for item in items})))


def train_images(items: Iterable[Item]) -> dict[Triple, int]:
    """In how many images each listed triple is there; 0 where in none."""
    counts: Counter[Triple] = Counter()
    for item in items:
        counts.update(triple for triple in item.triples if triple.object in item.points)
    return {triple: counts[triple] for triple in listed()}


@cache
def _items(root: Path, name: str) -> tuple[Item, ...]:
    annotated = {**SETS, **EXTERNAL}[name]
    dataset, parts_N = load_dataset(name), parts(root)[name]
    items = []
    done: set[Source] = set()
    for index, source in enumerate(dataset.sources):
        outside = annotated.stain is not None and dataset.cohort_N[index] != annotated.stain
        if source not in done and not outside:  # a source may hold several items: its boxes
            done.add(source)
            items.append(_item(dataset, annotated, index, str(parts_N[index])))
    if (
        annotated.red
        and np.mean([item.image_HWC[..., 0].mean() - item.image_HWC[..., 2].mean() for item in items]) <= 0
    ):
        raise DataMissing(f"The images of {name} have red and blue exchanged. Fetch the data again.")
    return tuple(items)


def _item(dataset: Dataset, annotated: Annotated, index: int, part: str) -> Item:
    source, mask_source = dataset.sources[index], dataset.masks[index]
    tier = max(source.tier, mask_source.tier)
    image = read_image(data_root(), source, "AB")
    category = read_mask(data_root(), mask_source, "AB").astype(np.uint8)
    told: tuple[Source, ...] = ()
    instances = None
    if dataset.name in _WITH_INSTANCES:
        told = masks_of([source], "instances")
        instances = read_mask(data_root(), told[0], "AB").astype(np.int32)
    factor = annotated.nominal_mpp / MPP[annotated.level]
    if factor != 1.0:
        size = round(image.shape[1] * factor), round(image.shape[0] * factor)
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1.0 else cv2.INTER_CUBIC)
        category = cv2.resize(category, size, interpolation=cv2.INTER_NEAREST)
        if instances is not None:
            instances = cv2.resize(instances, size, interpolation=cv2.INTER_NEAREST)
    organ = annotated.organs[0]
    if len(annotated.organs) > 1:
        organ = dataset.classes[dataset.labels_N[index]]
    here = set(np.unique(category).tolist()) - {0}
    numbers = {number: names for number, names in annotated.objects.items() if annotated.everywhere or number in here}
    objects: dict[str, tuple[int, ...]] = {}
    for number, names in numbers.items():
        for name in names:
            objects[name] = (*objects.get(name, ()), number)
    return Item(
        name=Path(source.file).stem,
        set=dataset.name,
        tier=tier,
        group=str(dataset.groups_N[index]),
        part=part,
        organ=organ,
        level=annotated.level,
        mpp_known=annotated.mpp_known,
        sources=(source, mask_source, *told),
        image_HWC=image,
        category_HW=category,
        instances_HW=instances,
        objects=objects,
        exhaustive=annotated.exhaustive & objects.keys(),
        points=_points(category, objects),
        hash=dataset.hashes()[index],
    )


def _points(category_HW: np.ndarray, objects: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Of each object with enough pixels, some of them, spread evenly."""
    points = {}
    for name, numbers in objects.items():
        places_K2 = np.argwhere(np.isin(category_HW, numbers))
        if len(places_K2) >= FEWEST_PX:
            points[name] = places_K2[np.linspace(0, len(places_K2) - 1, min(_POINTS, len(places_K2))).astype(int)]
    return points
