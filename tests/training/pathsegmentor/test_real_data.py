"""The real sets: how many images each part has, and that no picture or group stands on two sides."""

from collections import Counter

import numpy as np
import pytest
from skimage.measure import regionprops

from gateway.domain.prompts import Level
from training.data.hashes import SAME_IMAGE_BITS, near_pairs
from training.pathsegmentor.data import crop, load
from training.pathsegmentor.measuring import windows_of
from training.pathsegmentor.parts import PARTS, overlaps
from training.pathsegmentor.sets import SETS, listed

pytestmark = pytest.mark.training


def test_the_real_sets_stand_apart(real_data: None) -> None:
    found = {part: load(part) for part in PARTS}
    counts = {part: dict(Counter(one.set for one in items)) for part, items in found.items()}
    assert counts == {
        "train": {"consep": 224, "dsb2018": 18, "glomeruli": 12, "ebhi": 24, "camelyon": 16},
        "val": {"consep": 80, "dsb2018": 6, "glomeruli": 5, "ebhi": 7, "camelyon": 6},
        "test": {"consep": 128, "dsb2018": 15, "glomeruli": 7, "ebhi": 12, "camelyon": 10},
        "external": {"monuseg": 30, "monusac": 39},
    }
    hashes = {part: np.array([one.hash for one in items], np.uint64) for part, items in found.items()}
    for part in PARTS[1:]:
        assert not len(near_pairs(hashes["train"], hashes[part], SAME_IMAGE_BITS))
        assert not {one.group for one in found["train"]} & {one.group for one in found[part]}
    colours = np.array([one.image_HWC.mean((0, 1)) for one in found["external"] if one.set == "monusac"])
    assert colours[:, 0].mean() > colours[:, 2].mean()  # a popular copy has red and blue exchanged
    rng = np.random.default_rng(0)
    for one in load("external", ["monuseg"])[:5]:
        for triple in listed():
            if triple.level == Level.NUCLEI:
                assert crop(rng, one, triple, 128, aim=False).present is not False
    tissue = [one for part in ("val", "test") for one in found[part] if one.level == Level.TISSUE]
    empty = Counter(one.set for one in tissue for window in windows_of(one) if not window.category_HW.any())
    assert empty == {"glomeruli": 45}  # no lymph node without tumor, and no colon without glands
    assert {(row.first, row.second): row.groups for row in overlaps() if row.groups or row.pictures} == {
        ("monuseg", "monusac"): 1
    }


def test_the_kinds_of_nuclei_are_what_they_are_called(real_data: None) -> None:
    """CoNSeP's numbers differ between copies: epithelial nuclei are the largest, inflammatory the roundest, spindle-
    shaped the longest for their width."""
    area: dict[int, list[float]] = {number: [] for number in range(1, 5)}
    roundness: dict[int, list[float]] = {number: [] for number in range(1, 5)}
    for one in load("test", ["consep"])[::4]:
        for region in regionprops(one.instances_HW):
            number = int(np.bincount(one.category_HW[tuple(region.coords.T)], minlength=5)[1:].argmax()) + 1
            area[number].append(region.area)
            roundness[number].append(region.axis_minor_length / max(region.axis_major_length, 1.0))
    names = {number: annotated[0] for number, annotated in SETS["consep"].objects.items()}
    areas = {names[number]: np.median(values) for number, values in area.items()}
    shapes = {names[number]: np.median(values) for number, values in roundness.items()}
    assert max(areas, key=areas.__getitem__) == "epithelial"
    assert max(shapes, key=shapes.__getitem__) == "inflammatory"
    assert min(shapes, key=shapes.__getitem__) == "spindle"
