"""One image with what is outlined in it, at the scale of its level."""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from gateway.domain.prompts import UNSPECIFIED, Level, Triple
from training.data.common import Source
from training.pathsegmentor.sets import FEWEST_PX, MPP, Annotated, impossible

UNKNOWN = 255
"""The category of a pixel of which nothing is known: no loss and no figure counts it."""

_POINTS = 512
"""Pixels of an object, spread over it, of which a crop is laid around one."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Item:
    """One image of a set. stain: as a card names it; image_HWC: uint8 RGB at MPP[level]; category_HW: uint8 numbers of
    what each pixel is, 0 none of it, UNKNOWN not annotated; instances_HW: int32, where the set tells one object from
    its neighbour; objects: which numbers belong to each object that is annotated here; exhaustive: those of which none
    is left out; points: (K,2) y, x of some pixels of each object that is here; hash: the perceptual hash of the picture
    as its file has it."""

    name: str
    set: str
    tier: str
    group: str
    part: str
    organ: str
    stain: str
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


def scaled(
    image_HWC: np.ndarray, category_HW: np.ndarray, instances_HW: np.ndarray | None, factor: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """An image and its maps at another scale: the image smoothly, the maps by the pixel whose centre is nearest."""
    if round(factor, 6) == 1.0:
        return image_HWC, category_HW, instances_HW
    size = round(image_HWC.shape[1] * factor), round(image_HWC.shape[0] * factor)
    image_HWC = cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA if factor < 1.0 else cv2.INTER_CUBIC)
    category_HW = cv2.resize(category_HW, size, interpolation=cv2.INTER_NEAREST_EXACT)
    if instances_HW is not None:
        instances_HW = cv2.resize(instances_HW, size, interpolation=cv2.INTER_NEAREST_EXACT)
    return image_HWC, category_HW, instances_HW


def item_of(
    annotated: Annotated,
    *,
    name: str,
    of_set: str,
    group: str,
    part: str,
    organ: str,
    sources: tuple[Source, ...],
    image_HWC: np.ndarray,
    category_HW: np.ndarray,
    instances_HW: np.ndarray | None,
    mpp: float,
    hash_of_file: np.uint64,
) -> Item:
    """An item of maps at their files' own scale, of `mpp` µm per pixel; its licence tier is its files' least free."""
    factor = mpp / MPP[annotated.level]
    image_HWC, category_HW, instances_HW = scaled(image_HWC, category_HW, instances_HW, factor)
    here = set(np.unique(category_HW).tolist())
    objects: dict[str, tuple[int, ...]] = {}
    for number, names in annotated.objects.items():
        for named in names if annotated.everywhere or number in here else ():
            objects[named] = (*objects.get(named, ()), number)
    return Item(
        name=name,
        set=of_set,
        tier=max(source.tier for source in sources),
        group=group,
        part=part,
        organ=organ,
        stain=annotated.stain,
        level=annotated.level,
        mpp_known=annotated.mpp_known,
        sources=sources,
        image_HWC=image_HWC,
        category_HW=category_HW,
        instances_HW=instances_HW,
        objects=objects,
        exhaustive=annotated.exhaustive & objects.keys(),
        points=_points(category_HW, objects),
        hash=hash_of_file,
    )


def _points(category_HW: np.ndarray, objects: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Of each object with enough pixels, some of them, spread evenly."""
    points = {}
    for name, numbers in objects.items():
        places_K2 = np.argwhere(np.isin(category_HW, numbers))
        if len(places_K2) >= FEWEST_PX:
            points[name] = places_K2[np.linspace(0, len(places_K2) - 1, min(_POINTS, len(places_K2))).astype(int)]
    return points
