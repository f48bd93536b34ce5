"""Crops and prompts: what may be learned as absent, what is valid, and which pictures may be seen at all."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from gateway.domain.prompts import UNSPECIFIED, Level, Triple
from tests.training.data.made import Made
from training.data.common import Source
from training.errors import DataMissing, LeakageRefused, TaskInvalid
from training.pathsegmentor import data
from training.pathsegmentor.data import Sampler, crop, load
from training.pathsegmentor.items import UNKNOWN, Item, item_of
from training.pathsegmentor.parts import PARTS, farthest
from training.pathsegmentor.sets import EXTERNAL, SETS, Annotated, impossible, listed

pytestmark = pytest.mark.training

NUCLEUS = Triple(Level.NUCLEI, "nucleus", "colon")
SOURCE = Source("made/one.jpg", "made", "0" * 64, "CC0", "A", "")
GLOMERULUS = Triple(Level.TISSUE, "glomerulus", "kidney")


def item(
    category_HW: np.ndarray, *, exhaustive: bool = True, organ: str = "colon", level: Level = Level.NUCLEI
) -> Item:
    """One image of which categories 1 are nuclei."""
    annotated = Annotated(
        level=level, objects={1: ("nucleus",)}, organs=(organ,), exhaustive=frozenset({"nucleus"} if exhaustive else ())
    )
    image = np.random.default_rng(1).integers(0, 256, (*category_HW.shape, 3)).astype(np.uint8)
    return item_of(
        annotated, name="one", of_set="made", group="g", part="train", organ=organ, sources=(SOURCE,), image_HWC=image,
        category_HW=category_HW, instances_HW=None, mpp=data.MPP[level], hash_of_file=np.uint64(0),
    )  # fmt: skip


def squares(side_px: int, *objects_px: int) -> np.ndarray:
    """A map with a row of that many pixels for each object, from the top left."""
    category_HW = np.zeros((side_px, side_px), np.uint8)
    for row, length in enumerate(objects_px):
        category_HW[2 * row, :length] = 1
    return category_HW


def test_the_parts_hold_every_set_and_no_group_twice(segmentation_data: Path) -> None:
    found = {part: load(part) for part in PARTS}
    assert {one.set for one in found["train"]} == set(SETS)
    assert {one.set for one in found["external"]} == set(EXTERNAL)
    groups = {part: {(one.set, one.group) for one in items} for part, items in found.items()}
    assert sum(map(len, groups.values())) == len(set().union(*groups.values()))
    assert all(one.tier == "A" for part in ("train", "val", "test") for one in found[part])
    assert all(one.tier == "B" for one in found["external"])
    assert load("train") == found["train"]  # the same images, in the same order: decoded once


def test_external_sets_are_never_trained_or_chosen_on(segmentation_data: Path) -> None:
    for part in ("train", "val", "test"):
        with pytest.raises(LeakageRefused, match="for measuring only"):
            load(part, ["consep", "monuseg"])
    with pytest.raises(TaskInvalid, match="no set 'lizard'"):
        load("train", ["lizard"])
    with pytest.raises(TaskInvalid, match="no part"):
        load("validation")


def test_the_four_kinds_of_nuclei_are_all_nuclei(segmentation_data: Path) -> None:
    one = load("train", ["consep"])[0]
    kinds = [Triple(Level.NUCLEI, name, "colon") for name in ("miscellaneous", "inflammatory", "epithelial", "spindle")]
    assert set(one.triples) >= {*kinds, NUCLEUS, Triple(Level.NUCLEI, "nucleus")}
    assert np.array_equal(np.logical_or.reduce([one.mask(kind) for kind in kinds]), one.mask(NUCLEUS))
    assert np.array_equal(one.mask(NUCLEUS), one.instances_HW > 0)
    assert one.mask(Triple(Level.NUCLEI, "nucleus")).any()  # without a region it is the same question
    for other in (Triple(Level.TISSUE, "nucleus", "colon"), Triple(Level.NUCLEI, "nucleus", "lung")):
        assert not one.mask(other).any()
        assert not one.exhaustively(other)


def test_every_image_is_at_the_scale_of_its_level(segmentation_data: Path) -> None:
    (nuclei, *_), (gland, *_) = load("train", ["consep"]), load("train", ["ebhi"])
    assert (nuclei.level, nuclei.mpp_known, nuclei.image_HWC.shape) == (Level.NUCLEI, True, (160, 160, 3))
    assert (gland.level, gland.mpp_known, gland.image_HWC.shape) == (Level.TISSUE, False, (120, 120, 3))
    assert gland.category_HW.shape == (120, 120)
    assert set(np.unique(gland.category_HW)) <= {0, 1, 4, 5}


def test_an_image_says_only_what_its_category_says(segmentation_data: Path) -> None:
    polyps = [one for one in load("train", ["ebhi"]) if "polyp" in one.objects]
    assert polyps
    assert set(polyps[0].objects) == {"epithelial", "gland", "polyp"}
    assert not polyps[0].exhaustively(Triple(Level.TISSUE, "tumor", "colon"))
    assert polyps[0].exhaustively(GLOMERULUS)  # there is none in a colon


@pytest.mark.parametrize(("pixels", "present"), [(0, False), (1, None), (40, None), (41, True)])
def test_a_few_pixels_are_neither_present_nor_absent(pixels: int, present: bool | None) -> None:
    one = item(squares(64, pixels))
    for augment in (False, True):
        found = crop(np.random.default_rng(0), one, NUCLEUS, 64, augment=augment and pixels == 0)
        assert found.present is present


def test_what_nobody_annotated_is_never_absent(segmentation_data: Path) -> None:
    rng = np.random.default_rng(0)
    for one in load("external", ["monuseg"]):
        names = {triple.object for triple in listed() if triple.level == Level.NUCLEI}
        for name in names:
            for organ in (one.organ, UNSPECIFIED):
                assert crop(rng, one, Triple(Level.NUCLEI, name, organ), 32, aim=False).present is not False
    assert crop(rng, item(squares(64, 0), exhaustive=False), NUCLEUS, 64).present is None


def test_what_lies_beyond_the_edge_is_mirrored_and_does_not_count() -> None:
    one = item(squares(32, 30))
    found = crop(np.random.default_rng(0), one, NUCLEUS, 48, augment=False)
    assert found.image_HWC.shape == (48, 48, 3)
    assert found.valid_HW.sum() == 32 * 32
    assert not (found.mask_HW & ~found.valid_HW).any()
    assert found.mask_HW.sum() == 30
    rows = np.flatnonzero(found.valid_HW.any(1))
    top = rows[0]
    if top:
        assert np.array_equal(found.image_HWC[top - 1], found.image_HWC[top + 1])
    unknown = squares(32, 30)
    unknown[20:] = UNKNOWN
    assert crop(np.random.default_rng(0), item(unknown), NUCLEUS, 32, augment=False).valid_HW.sum() == 20 * 32


def test_a_crop_is_the_place_it_says_in_every_lie() -> None:
    """The object is where the image is darker, however the crop was turned, flipped, scaled and stained."""
    category = np.zeros((90, 90), np.uint8)
    category[30:52, 40:48] = 1
    one = item(category)
    one.image_HWC[:] = np.where(category[..., None] == 1, 20, 230)
    rng, lies = np.random.default_rng(3), set()
    for _ in range(40):
        found = crop(rng, one, NUCLEUS, 64)
        grey = found.image_HWC.mean(-1)
        dark = grey < (grey.min() + grey.max()) / 2
        assert (dark & found.mask_HW).sum() / (dark | found.mask_HW).sum() > 0.75
        assert found.present
        lies.add(tuple(np.argwhere(found.mask_HW).mean(0) > 32))
    assert len(lies) == 4


def test_a_crop_is_laid_around_a_pixel_of_the_object() -> None:
    category = np.zeros((400, 400), np.uint8)
    category[390:398, 380:390] = 1
    one = item(category)
    for seed in range(20):
        assert crop(np.random.default_rng(seed), one, NUCLEUS, 64, augment=False).mask_HW.any()
    aimless = [crop(np.random.default_rng(seed), one, NUCLEUS, 64, aim=False).mask_HW.any() for seed in range(20)]
    assert sum(aimless) < 10


def test_what_is_drawn_is_known_and_about_a_fifth_is_absent(segmentation_data: Path) -> None:
    sampler, rng = Sampler(load("train"), 64), np.random.default_rng(0)
    batch = sampler.batch(rng, 500)
    assert batch.image_BHWC.shape == (500, 64, 64, 3)
    assert 0.16 < 1 - batch.present_B.mean() < 0.28
    assert (batch.mask_BHW.sum((1, 2)) >= 41)[batch.present_B].all()
    assert not batch.mask_BHW[~batch.present_B].any()
    sets = Counter(batch.sets)
    assert set(sets) == set(SETS)
    # Images of dsb2018 have no region to leave out.
    regions = [triple.region for triple, of in zip(batch.triples, batch.sets, strict=True) if of != "dsb2018"]
    assert 0.05 < np.mean([region == UNSPECIFIED for region in regions]) < 0.16
    absent = [triple for triple, present in zip(batch.triples, batch.present_B, strict=True) if not present]
    easy = [triple for triple in absent if triple.object in impossible(triple.level, triple.region)]
    assert len(absent) * 0.2 < len(easy) < len(absent) * 0.8
    assert {Level.NUCLEI, Level.TISSUE} == {triple.level for triple in absent}
    again = Sampler(load("train"), 64).batch(np.random.default_rng(0), 500)
    assert np.array_equal(again.image_BHWC, batch.image_BHWC)
    assert again.triples == batch.triples


def test_the_naive_arm_takes_what_nobody_annotated_for_absent(segmentation_data: Path) -> None:
    items = load("train", ["consep", "dsb2018"])
    elsewhere = {"lymphocyte", "macrophage", "neutrophil"}
    kinds = {"miscellaneous", "inflammatory", "epithelial", "spindle"}

    def absent(naive: bool, name: str) -> set[str]:
        batch = Sampler(items, 64, absent=0.9, naive=naive).batch(np.random.default_rng(0), 300)
        drawn = zip(batch.triples, batch.sets, batch.present_B, strict=True)
        return {triple.object for triple, of_set, present in drawn if of_set == name and not present}

    annotated = {name: absent(False, name) for name in ("consep", "dsb2018")}
    assert not annotated["dsb2018"] - {"nucleus"}
    assert absent(True, "dsb2018") - {"nucleus"} == elsewhere | kinds
    assert absent(True, "consep") - annotated["consep"] == elsewhere
    assert data.unmarked(["consep"]) == {(Level.NUCLEI, name) for name in elsewhere}
    assert data.unmarked(["consep", "dsb2018"]) > {(Level.NUCLEI, name) for name in ("epithelial", *elsewhere)}


def test_nothing_to_learn_is_said() -> None:
    with pytest.raises(DataMissing, match="holds an object"):
        Sampler([item(squares(64, 0))], 64)
    with pytest.raises(DataMissing, match="a crop can show"):
        Sampler([item(squares(64, 20, *[0] * 8, 25))], 16, absent=0.0).draw(np.random.default_rng(0))


def test_groups_that_share_a_picture_go_to_the_farthest_part() -> None:
    hashes = np.array([0, 1, 2**40 - 1, 2**41 - 1, 0xAAAAAAAAAAAAAAAA], np.uint64)
    groups = np.array(["a/1", "b/1", "a/1", "c/1", "c/2"])
    train, test, external = (PARTS.index(part) for part in ("train", "test", "external"))
    found = farthest(np.array([train, test, train, external, train]), groups, hashes)
    assert found.tolist() == [external] * 4 + [train]


def test_a_run_says_what_it_has_seen(segmentation_data: Path) -> None:
    items = load("train", ["consep", "glomeruli"])
    seen = data.seen(items)
    assert set(seen.groups) == {"seg_consep", "seg_glomeruli"}
    assert seen.groups["seg_consep"] == tuple(sorted({one.group for one in items if one.set == "consep"}))
    assert len(seen.hashes) == len(items)
    files = [source.file for source in data.sources(items)]
    assert len(files) == len(set(files)) == 3 * len(items)  # picture, categories, instances


def test_the_prompts_that_are_listed_are_counted(segmentation_data: Path) -> None:
    counts = data.train_images(load("train"))
    assert tuple(counts) == listed()
    assert counts[NUCLEUS] == len(load("train", ["consep"]))
    assert counts[Triple(Level.NUCLEI, "nucleus")] == counts[NUCLEUS] + len(load("train", ["dsb2018"]))
    assert counts[Triple(Level.NUCLEI, "macrophage")] == 0  # in an external set alone
    needed = "nucleus epithelial inflammatory spindle lymphocyte macrophage neutrophil tumor glomerulus gland polyp"
    assert set(needed.split()) <= {triple.object for triple in listed() if triple.region == UNSPECIFIED}


def test_exchanged_colours_are_noticed(segmentation_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert data._items(segmentation_data, "monusac")
    read = data.read_image
    monkeypatch.setattr(data, "read_image", lambda *given: read(*given)[..., ::-1])
    with pytest.raises(DataMissing, match="red and blue"):
        data._items.__wrapped__(segmentation_data, "monusac")


def test_a_set_that_is_not_ours_is_checked_before_it_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_sets: Path
) -> None:
    """A picture of an external set under another name is refused, by its patient."""
    folder = tmp_path / "data"
    folder.mkdir()
    for entry in made_sets.iterdir():
        (folder / entry.name).symlink_to(entry)
    patient = "TCGA-EG-0000"
    monkeypatch.setenv("PATHSERVE_DATA", str(folder))
    monkeypatch.setattr("training.pathsegmentor.published._PARTS_OF_TEN", ("train",) * 10)
    made = Made(folder)
    name = f"{patient}-DX1_xmin0_ymin0_MPP-0.2500.png"
    made.mask(f"bcss/masks/{name}", np.full((200, 200), 1, np.uint8))
    made.mask(f"bcss/rgbs_colorNormalized/{name}", made.mosaic(200, 200))
    with pytest.raises(LeakageRefused, match="stands in a set that is for measuring only"):
        load("train", ["bcss"])
