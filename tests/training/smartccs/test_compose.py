"""Composed slides: what lies on them, that it is where the truth says, of one part only, and has no telling border."""

import json
import tracemalloc
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest

from gateway.domain.bethesda import HSIL, LSIL, NAMES, NILM
from gateway.slides import Slide
from tests.training.data import made
from training.errors import TaskInvalid
from training.smartccs import compose_scene
from training.smartccs.compose import Wanted, compose, drawn_class, main
from training.smartccs.compose_faults import FAULTS, Strokes, without_nuclei
from training.smartccs.compose_layout import Layout, disc_of, lay_out, nearest, turned, turned_offset, window_of
from training.smartccs.compose_paint import Painter, pasted_into
from training.smartccs.compose_scene import RADIUS_PX, REACH_PX, Scene
from training.smartccs.data import PARTS, Field

pytestmark = pytest.mark.training

SIDE_PX = 1200
COLOURS = {"NILM": (70, 60, 120), "LSIL": (40, 160, 60), "HSIL": (160, 40, 40)}
"""Of the nuclei of made fields, by class, on glass that is nearly white."""
NUCLEUS_PX = 14


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six blocks of three fields, 957 x 1280 px: the first without abnormal nuclei, the others with LSIL and HSIL at
    their right edge; NILM nuclei elsewhere. Each has its own grain and glass."""
    folder = made.Made(tmp_path_factory.mktemp("made"))
    cells = []
    for number in range(18):
        file = f"cric_{number:03}.jpg"
        kinds = ("NILM",) if number % 3 == 0 else ("LSIL", "HSIL")
        picture = 240 + folder.mosaic(957, 1280) // 64 * 4
        drawn = [("NILM", 150 + 200 * i, 150 + 160 * j) for i in range(4) for j in range(4)]
        drawn += [(kind, 1150, 200 + 250 * place) for place, kind in enumerate(kinds * 2)]
        for label, left, top in drawn:
            cv2.circle(picture, (left, top), NUCLEUS_PX, COLOURS[label], -1)
            cells.append({"file_name": file, "label": label, "x": str(left), "y": str(top)})
        folder.image(f"cytology_cric/images/{file}", picture, "", f"cric_block_{number // 3:02}")
    folder.table("cytology_cric/cells.csv", cells)
    names = dict.fromkeys(row["file_name"] for row in cells)
    folder.table("cytology_cric/fields.csv", [{"file_name": name, "leak_risk": "0"} for name in names])
    return folder.finish()


@pytest.fixture(autouse=True)
def made_data(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real_data" not in request.fixturenames:
        monkeypatch.setenv("PATHSERVE_DATA", str(request.getfixturevalue("fields")))


def layout(scene: Scene, label: int, seed: int = 0, side_px: int = SIDE_PX) -> Layout:
    return lay_out(scene, np.random.default_rng(seed), side_px, label)


def pixels_of(folder: Path) -> np.ndarray:
    with Slide.open(sorted(folder.glob("*.dcm"))) as slide:
        return slide.read_level(0)


def test_cells_lie_where_the_truth_says(tmp_path: Path) -> None:
    (said,) = compose(Wanted(side_px=SIDE_PX, seed=2, kind=HSIL, part="train"), tmp_path / "out")
    assert said == json.loads((tmp_path / "out" / "truth.json").read_text())["slides"][0]
    image = pixels_of(tmp_path / "out" / said["folder"])
    assert image.shape == (SIDE_PX, SIDE_PX, 3)
    assert said["cells"]
    for cell in said["cells"]:
        assert cell["class"] == "HSIL"
        left, top, width, height = cell["box"]
        middle = image[round(top + height / 2), round(left + width / 2)].astype(int)
        assert np.abs(middle - COLOURS["HSIL"]).max() < 40  # the light of another field's glass, and JPEG
    red = (np.abs(image.astype(int) - COLOURS["HSIL"]) < 40).all(2).sum()
    assert red == pytest.approx(len(said["cells"]) * np.pi * NUCLEUS_PX**2, rel=0.1)  # and nowhere else


def test_parts_share_no_field_and_no_block(tmp_path: Path) -> None:
    used: dict[str, set[str]] = {}
    for part in PARTS:
        for said in compose(Wanted(part=part, side_px=SIDE_PX, slides=2, kind=LSIL), tmp_path / part):
            used.setdefault(part, set()).update(row["group"] for row in said["fields"])
            names = {row["field"] for row in said["fields"] if "cells" in row["use"]}
            assert {cell["field"] for cell in said["cells"]} == names
    assert all(used.values())
    assert not any(used[one] & used[other] for one, other in combinations(PARTS, 2))


def test_same_arguments_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        compose(Wanted(side_px=SIDE_PX, slides=2, seed=seed, prevalence=1), tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) > 6
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert (tmp_path / "a" / "truth.json").read_bytes() != (tmp_path / "c" / "truth.json").read_bytes()


def test_the_nearest_point_is_the_first_of_those_as_near() -> None:
    """As all distances at once say it, with points that are there twice and such as lie alike."""
    rng = np.random.default_rng(0)
    at_N2 = np.stack(np.meshgrid(np.arange(40.0), np.arange(40.0)), -1).reshape(-1, 2)
    for shift in ((0.0, 0.0), (0.5, 0.5), (0.3, -0.2)):
        for count in (1, 3, 250):
            points_K2 = at_N2[rng.integers(len(at_N2), size=count)] + shift
            expected_N = np.square(at_N2[:, None] - points_K2[None]).sum(2).argmin(1)
            np.testing.assert_array_equal(nearest(at_N2, points_K2), expected_N)


def test_a_wide_slides_places_need_no_memory_for_all_pairs() -> None:
    """240² places, as of 100,000 px: all pairs with a sixth as many points are 9 GB."""
    at_N2 = np.stack(np.meshgrid(np.arange(240.0), np.arange(240.0)), -1).reshape(-1, 2)
    points_K2 = at_N2[::6] + np.array([0.3, -0.2])
    tracemalloc.start()
    try:
        nearest(at_N2, points_K2)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_few_fields_are_held_and_none_is_decoded_for_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene("train", background="regions")
    with monkeypatch.context() as without:
        without.setattr(Field, "read", lambda field: pytest.fail("decoded"))
        assert scene.windows
        assert scene.cells[HSIL]
    whole = Painter(scene, layout(scene, HSIL, 3), 1).draw(0, 0, SIDE_PX, SIDE_PX)
    monkeypatch.setattr(compose_scene, "MOST_SHOWN", 2)
    short = Scene("train", background="regions")
    assert np.array_equal(Painter(short, layout(short, HSIL, 3), 1).draw(0, 0, SIDE_PX, SIDE_PX), whole)
    held = short._shown.cache_info()
    assert held.currsize == 2 < held.misses


@pytest.mark.parametrize("background", ["negative", "regions"])
def test_background_holds_no_abnormal_nucleus(background: str) -> None:
    scene = Scene("train", background=background)
    placed = layout(scene, NILM, side_px=4000)
    assert placed.nuclei > 0
    for patch in placed.patches.values():
        field = scene.fields[patch.field]
        assert background == "regions" or field.negative
        middles_N2 = field.boxes_N4[field.abnormal][:, :2] + field.boxes_N4[field.abnormal][:, 2:] / 2
        away_N2 = middles_N2 - (patch.left_px, patch.top_px)
        near_N = ((away_N2 > -50) & (away_N2 < scene.window_px + 50)).all(1)
        assert not near_N.any()
        assert all(pasted.cell.kind == NILM for pasted in patch.pasted)


def test_as_many_cells_are_pasted_in_normal_slides_as_in_abnormal_ones() -> None:
    scene = Scene("train", background="regions")
    counts = []
    for label in (NILM, LSIL):
        placed = layout(scene, label, 5, 4000)
        counts.append(sum(len(patch.pasted) for patch in placed.patches.values()))
        part = sum(1 + len(pasted.cell.also) for patch in placed.patches.values() for pasted in patch.pasted)
        assert part / (part + placed.nuclei) == pytest.approx(placed.share, abs=0.02)
    assert counts[0] == counts[1] > 3


def test_any_region_gives_the_same_pixels() -> None:
    scene = Scene("train", background="regions")
    placed = layout(scene, LSIL, 3)
    whole = Painter(scene, placed, 1).draw(0, 0, SIDE_PX, SIDE_PX)
    painter = Painter(scene, placed, 1)
    for left, top, width, height in ((0, 0, 300, 200), (401, 380, 511, 333), (1000, 900, 200, 300)):
        part = painter.draw(left, top, width, height)
        assert np.array_equal(part, whole[top : top + height, left : left + width])


def test_patches_fade_into_one_another_and_glass_is_around() -> None:
    """No row or column of the grid is an edge: pixels beside its lines differ no more than elsewhere."""
    scene = Scene("train", background="regions")
    placed = layout(scene, NILM, 3, 2400)
    image = Painter(scene, placed, 1).draw(0, 0, 2400, 2400).astype(np.float64).mean(2)
    assert np.abs(image[:32] - placed.glass_3.mean()).max() < 5
    across = np.abs(np.diff(image, axis=1)).mean(0)
    lines = placed.origin_px + placed.pitch_px * np.arange(1, placed.columns)
    at = np.concatenate([across[line - REACH_PX : line + REACH_PX] for line in lines])
    assert at.mean() < 1.3 * across[placed.origin_px + 60 : -placed.origin_px - 60].mean()


def test_a_turn_moves_pixels_as_it_moves_offsets() -> None:
    image = np.zeros((21, 21, 1), np.uint8)
    image[10 + 3, 10 + 7] = 1
    for turn in range(8):
        dx, dy = turned_offset(7, 3, turn)
        assert turned(image, turn)[round(10 + dy), round(10 + dx), 0] == 1


def border_found(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Area under the curve of the plainest detector of a pasted disc, the change across its rim over the change along
    it, between pairs of squares: natural and pasted."""
    y, x = np.mgrid[-RADIUS_PX : RADIUS_PX + 1, -RADIUS_PX : RADIUS_PX + 1]
    away = np.hypot(x, y)
    ring = (away > 0.6 * RADIUS_PX) & (away < 1.0 * RADIUS_PX)
    out_y, out_x = (axis[ring] / away[ring] for axis in (y, x))

    def score(square: np.ndarray) -> float:
        down, right = np.gradient(square.astype(np.float64).mean(2))
        across = np.abs(down[ring] * out_y + right[ring] * out_x).mean()
        along = np.abs(right[ring] * out_y - down[ring] * out_x).mean()
        return float(across / along)

    natural, pasted = (np.array([score(pair[side]) for pair in pairs]) for side in (0, 1))
    return float((pasted[:, None] > natural[None]).mean() + 0.5 * (pasted[:, None] == natural[None]).mean())


def pairs_of(scene: Scene, placed: Layout, paste: Callable[..., np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each pasted cell as it lies in its own field, and as `paste` lays it over its place."""
    pairs = []
    for patch in placed.patches.values():
        window = scene.lit(patch.field, np.ascontiguousarray(window_of(scene, patch)), placed.glass_3)
        for one in patch.pasted:
            rows, columns = (slice(at - RADIUS_PX, at + RADIUS_PX + 1) for at in (one.y_px, one.x_px))
            own = scene.lit(one.cell.field, np.ascontiguousarray(disc_of(scene, one.cell, one.turn)), placed.glass_3)
            pairs.append((own, paste(window[rows, columns], own, placed.glass_3)))
    return pairs


def hard(under: np.ndarray, own: np.ndarray, glass: np.ndarray) -> np.ndarray:
    """The control: a disc cut out and laid on."""
    y, x = np.mgrid[-RADIUS_PX : RADIUS_PX + 1, -RADIUS_PX : RADIUS_PX + 1]
    return np.where((np.hypot(x, y) < 0.8 * RADIUS_PX)[..., None], own, under)


def test_a_pasted_border_is_not_found_by_its_gradient(real_data: None) -> None:
    """Figures of larger slides, and of a class whose border is told, are in docs/smart-ccs.md."""
    scene = Scene("test")
    placed = [layout(scene, label, seed, 6000) for label, seed in ((NILM, 4), (LSIL, 9))]
    soft, cut = (
        border_found([pair for each in placed for pair in pairs_of(scene, each, paste)])
        for paste in (pasted_into, hard)
    )
    assert cut > 0.7
    assert 0.35 < soft < 0.6


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_degraded_slides(tmp_path: Path, fault: str | None) -> None:
    (said,) = compose(Wanted(side_px=SIDE_PX, seed=2, prevalence=0, fault=fault), tmp_path / "out")
    image = pixels_of(tmp_path / "out" / said["folder"]).astype(np.float64)
    dark = float((image.max(2) < 150).mean())
    detail = float(np.abs(np.diff(image, axis=0)).mean())
    assert said["degraded"] == fault
    assert said["simulated"] == (fault is not None)
    assert bool(said["cells"]) == (fault not in ("empty", "no-candidate"))
    expected = {
        None: dark > 0.005 and detail > 0.35,
        "blurred": detail < 0.3,
        "empty": image.min() > 200,
        "blood": image[..., 2].mean() < image[..., 0].mean() - 25,
        "air-dried": dark == 0 and detail > 0.2,
        "pen": float((image[..., 0] < 60).mean()) > 0.3,
        "giemsa": image[..., 1].mean() < image[..., 2].mean() - 3,
        "few-cells": said["background_nuclei"] < 20,
        "no-candidate": dark == 0,
    }
    assert expected[fault]


def test_strokes_are_the_same_whatever_region_they_are_drawn_in() -> None:
    strokes = Strokes(SIDE_PX, 3)
    white = np.full((SIDE_PX, SIDE_PX, 3), 240, np.uint8)
    whole = strokes(white, 0, 0)
    assert np.array_equal(strokes(white[:200, :300], 500, 333), whole[333:533, 500:800])


def test_a_liquid_preparation_is_named_and_is_a_disc(tmp_path: Path) -> None:
    codes = []
    for preparation in ("smear", "liquid"):
        out = tmp_path / preparation
        compose(Wanted(side_px=SIDE_PX, preparation=preparation, background="regions"), out)
        header = pydicom.dcmread(out / "slide-000" / "level-0.dcm", stop_before_pixels=True)
        (specimen,) = header.SpecimenDescriptionSequence
        assert specimen.PrimaryAnatomicStructureSequence[0].CodeValue == "71252005"
        codes.append(specimen.SpecimenPreparationSequence[1].SpecimenPreparationStepContentItemSequence[-1])
        assert "NOT A PATIENT" in str(header.PatientName)
        assert "no patient" in header.SeriesDescription
    said = [code.ConceptCodeSequence[0].CodeMeaning for code in codes]
    assert said == ["Smear sample", "Liquid based cytologic material"]


def test_a_simulated_centre_changes_every_field(tmp_path: Path) -> None:
    images = []
    for centre in ("source", "stain A"):
        (said,) = compose(Wanted(side_px=SIDE_PX, centre=centre, kind=NILM, seed=1), tmp_path / centre)
        assert said["simulated"] == (centre != "source")
        images.append(pixels_of(tmp_path / centre / said["folder"]).astype(int))
    assert np.abs(images[0] - images[1]).mean() > 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--centre", "stain C"], "no centre 'stain C'. Name one of: source, stain A, stain B, scanner, both"),
        (["--class", "AGC"], "The part test has no cell of AGC to place. It has: NILM, LSIL, HSIL."),
        (["--size-px", "500"], "500 px is too small. Ask for 1024 px or more"),
        (["--part", "all"], "no part 'all'"),
        (["--degrade", "torn"], "not degraded as 'torn'. Name one of: blurred, empty"),
        (["--degrade", "empty", "--class", "HSIL"], "holds no cell of HSIL. Ask for NILM"),
        (["--slides", "0"], "one slide at least"),
        (["--prevalence", "1.5"], "a prevalence from 0 to 1"),
    ],
)
def test_errors_are_one_clear_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["--size-px", "1200", *arguments, "--out", str(tmp_path / "out")]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["--out", str(tmp_path)]) == 1
    assert "is not an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_classes_come_as_often_as_asked() -> None:
    scene = Scene("train", background="regions")
    rng = np.random.default_rng(1)
    drawn = [drawn_class(scene, rng, 0.4) for _ in range(600)]
    assert np.mean([label != NILM for label in drawn]) == pytest.approx(0.4, abs=0.08)
    assert set(drawn) == {NILM, LSIL, HSIL}
    assert drawn.count(LSIL) / drawn.count(HSIL) == pytest.approx(0.06 / 0.04, rel=0.4)
    with pytest.raises(TaskInvalid, match="no cell of SCC"):
        scene.require(NAMES.index("SCC"))


def test_nuclei_are_taken_away_and_cells_stay() -> None:
    image = np.full((200, 200, 3), 240, np.uint8)
    cv2.circle(image, (100, 100), 80, (200, 220, 225), -1)
    cv2.circle(image, (100, 100), 14, (60, 40, 110), -1)
    bare = without_nuclei(image)
    assert np.abs(bare[90:111, 90:111].astype(int) - (200, 220, 225)).max() <= 3
    assert (bare[20:30, 20:30] == 240).all()
    assert np.abs(bare[100, 40].astype(int) - (200, 220, 225)).max() <= 3
