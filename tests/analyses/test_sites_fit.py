"""A site fitted to slides that are drawn, by the tests' own engines: what it says of a site like the source and of a
shifted one, which slides it takes, and what a kill leaves."""

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pydicom
import pytest

from gateway.analyses import sites_fit
from gateway.analyses.ledger import Ledger
from gateway.analyses.protocols import options_of, protocol_named
from gateway.analyses.screening import CervicalScreening
from gateway.analyses.screening_tiles import AS_IT_IS
from gateway.analyses.sites import FitNotes, SiteStore, signed_state
from gateway.analyses.sites_seen import Seen, see
from gateway.analyses.slide_half import SlideTask
from gateway.archive import FetchedSeries, FolderArchive
from gateway.domain.bethesda import HSIL, LSIL, NILM
from gateway.domain.codes import Code
from gateway.domain.order import Order, Specimen
from gateway.domain.screened import ScreeningResult
from gateway.operations.audit import AuditQuery
from gateway.operations.disk import locked_folder
from gateway.operations.errors import (
    ArchiveUnavailable,
    Conflict,
    FramesNotFetched,
    InferenceError,
    InvalidInput,
    ModelChanged,
    ModelNotLoaded,
    StateError,
)
from gateway.operations.settings import Settings, settings
from gateway.slides import Slide, site_fit
from gateway.slides.phantom_dicom import Identity
from gateway.slides.phantom_given import write_given
from gateway.slides.site_colour import densities
from gateway.slides.site_fit import SiteCells, SiteNotFittable, source_of
from gateway.slides.site_state import Source
from tests.analyses.frugal import FrugalArchive
from tests.support.bags import OnnxEngine
from tests.support.commands import commands_on
from tests.support.forked import command
from tests.support.screening import CERVIX
from tests.support.screening_models import DETECT_MPP, TILE_PX, paint, write_screening
from tests.support.served import served_models

FEW, FEW_CELLS, SLIDES = 6, 30.0, 32
STAINS = (Code("12710003", "SCT", "hematoxylin stain"), Code("54221006", "SCT", "orange G stain"))
CYTOPLASM = ((180, 220, 220), (225, 160, 130))
"""Blue-green and orange, as of Papanicolaou's counterstains; pale enough for nuclei to have an edge in it."""

GATE = 0.01
"""The drawn slides differ from each other in next to nothing: their own gate would be none."""

View = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]


def as_it_is(image_HW3: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return image_HW3


def paler(image_HW3: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Another laboratory: nine tenths of the densities."""
    return np.rint(255 * (image_HW3 / 255.0) ** 0.9).astype(np.uint8)


def purple(image_HW3: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """All that is stained in hues from blue to pink, as haematoxylin and eosin leave it."""
    rng = np.random.default_rng(4)
    stained_HW = image_HW3.min(-1) < 230
    hues = np.array([(150, 120, 190), (230, 150, 190), (190, 110, 170)])[rng.integers(0, 3, image_HW3.shape[:2])]
    return np.where(stained_HW[..., None], hues, image_HW3).astype(np.uint8)


def grey(image_HW3: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Not stained, or not scanned in colour, but for one cell."""
    image = np.repeat(image_HW3.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    paint(image, HSIL, 250, 250, DETECT_MPP)
    return image


def lone(image_HW3: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Two cells far from each other on glass, each smaller than what counts as a piece of tissue."""
    image = np.full_like(image_HW3, 243)
    for place in (120, 390):
        image[place - 30 : place + 30, place - 30 : place + 30] = CYTOPLASM[0]
        paint(image, NILM, place, place, DETECT_MPP)
    return image


def without_nuclei(image_HW3: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Cytoplasm alone."""
    return np.where(image_HW3.min(-1, keepdims=True) < 90, np.uint8(200), image_HW3)


def one_cell(image_HW3: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Cytoplasm, and one nucleus in it."""
    image = without_nuclei(image_HW3)
    paint(image, NILM, 60, 60, DETECT_MPP)
    return image


def out_of_focus(image_HW3: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """All of it seen through a blur of 4 pixels."""
    return cv2.GaussianBlur(image_HW3, (0, 0), 4).astype(np.uint8)


def bloody(image_HW3: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Two thirds of it red cells, of 6 µm."""
    image = image_HW3.copy()
    image[len(image) // 3 :] = 243
    rows, columns = (np.arange(side) % 24 < 16 for side in image.shape[:2])
    rows[: len(image) // 3] = False
    image[np.ix_(rows, columns)] = (215, 110, 100)
    return image


def drawn(number: int) -> npt.NDArray[np.uint8]:
    """A smear of one tile: cytoplasm with nuclei in it, and every fourth with a few abnormal cells."""
    rng = np.random.default_rng(number)
    image = np.full((TILE_PX, TILE_PX, 3), 243, np.uint8)
    for row in range(6):
        for column in range(6):
            x, y = 60 + 78 * column + rng.integers(-8, 9), 60 + 78 * row + rng.integers(-8, 9)
            image[y - 30 : y + 30, x - 30 : x + 30] = CYTOPLASM[(row + column) % 2]
            abnormal = number % 4 == 0 and rng.random() < 0.1
            paint(image, (HSIL if rng.random() < 0.5 else LSIL) if abnormal else NILM, x, y, DETECT_MPP)
    return image


def write_slides(
    folder: Path, view: View = as_it_is, count: int = FEW, tiles: int = 1, organ: Code | None = CERVIX
) -> Path:
    """Slides of one site, `tiles` high and wide."""
    for number in range(count):
        image = np.tile(view(drawn(number)), (tiles, tiles, 1))
        name = f"{folder.name}-{number}"
        identity = Identity(patient_id=f"P-{name}", container=f"C-{name}").completed(
            f"{folder.name}/{number}", "cytology", STAINS, organ
        )
        write_given(
            folder / f"{number:02}",
            lambda left, top, width, height, image=image: image[top : top + height, left : left + width],  # type: ignore[misc]
            width_px=image.shape[1],
            height_px=image.shape[0],
            mpp=DETECT_MPP,
            identity=identity,
            encoding="jpeg",
            quality=95,
        )
    for path in folder.rglob("*.dcm"):
        change(path, InstitutionName="North Hospital", DeviceSerialNumber="77")
    return folder


DETECTED = ("detected", "detected_coloured")


def audited(state: Path) -> list[dict[str, Any]]:
    """What the trail has of sites."""
    ledger = Ledger.open(f"sqlite:///{state / 'pathserve.db'}", state)
    try:
        records = ledger.trail.page(AuditQuery())
    finally:
        ledger.close()
    return [{"entity": each.entity, **json.loads(each.detail)} for each in records if each.entity_kind == "site"]


def rows(out: str) -> dict[str, str]:
    """What a version is shown as, by the first column."""
    parts = (line.split("  ", 1) for line in out.splitlines() if "  " in line)
    return {name: text.strip() for name, text in parts}


def change(path: Path, **header: str) -> None:
    dataset = pydicom.dcmread(path)
    for name, value in header.items():
        setattr(dataset, name, value)
    dataset.save_as(path)


@pytest.fixture(scope="module")
def like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slides(tmp_path_factory.mktemp("like") / "slides", count=FEW + 2)


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slides(tmp_path_factory.mktemp("shifted") / "slides", paler, SLIDES)


def task_of(repository: Path, folder: Path, slide: Slide) -> SlideTask:
    protocol = protocol_named("cervical-screening")
    order = Order(protocol=protocol.name, specimens=(Specimen(slides=()),))
    return SlideTask(
        slide=slide,
        models=served_models(repository, protocol.models),
        order=order,
        specimen=order.specimens[0],
        options=options_of(protocol, order),
        folder=folder,
    )


def seen(repository: Path, slides: Path, work: Path) -> list[Seen]:
    """What the tests' own engines see of slides as they are."""
    engine = OnnxEngine(repository)
    found = []
    for folder in sorted(path for path in slides.iterdir()):
        with Slide.open(sorted(folder.glob("*.dcm"))) as slide:
            task = task_of(repository, work / folder.name, slide)
            found.append(asyncio.run(see(task, AS_IT_IS, engine, cancelled=lambda: False)))
    return found


@pytest.fixture(scope="module")
def source(like: Path, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Of a model that learned from the slides that are like it."""
    work = tmp_path_factory.mktemp("source")
    looked = seen(write_screening(work / "models"), like, work)
    cells = [SiteCells(each.features_ND, lambda _, each=each: 1 - each.scores_N) for each in looked]  # type: ignore[misc]
    scores_N = np.concatenate([each.scores_N for each in looked])
    together = SiteCells(np.concatenate([each.features_ND for each in looked]), lambda _: 1 - scores_N)
    made = source_of(densities(np.sum([each.counts_3V for each in looked], axis=0)), together, cells, FEW)
    return replace(made, gate=GATE)


@pytest.fixture(scope="module")
def models(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_screening(tmp_path_factory.mktemp("models") / "repository", source=source)


class Counting(OnnxEngine):
    """The tests' engines without Triton; after `most` answers comes `at_end`, and no more where that `ends` it."""

    def __init__(
        self,
        repository: Path,
        most: int | None = None,
        at_end: Callable[[], None] = lambda: None,
        *,
        ends: bool = True,
    ) -> None:
        super().__init__(repository)
        self._left = most
        self._at_end = at_end
        self._ends = ends

    async def infer(
        self, model: str, batch: Mapping[str, npt.NDArray[Any]], *, deadline_s: float = 120.0
    ) -> dict[str, npt.NDArray[Any]]:
        if self._left == 0:
            self._at_end()
            if self._ends:
                raise InferenceError("No more answers.")
            self._left = None
        elif self._left is not None:
            self._left -= 1
        return await super().infer(model, batch, deadline_s=deadline_s)


@dataclass
class Place:
    """A state folder with a repository, in which sites are fitted in this process."""

    state: Path
    models: Path
    shown: pytest.CaptureFixture[str]

    def fit(
        self, slides: Path, site: str = "north", *, engine: Counting | None = None, turned: bool = False, **more: Any
    ) -> str:
        """Fit a site to a folder of slides; what is printed."""

        @asynccontextmanager
        async def opening(settings: Settings, folders: Sequence[str]) -> AsyncIterator[OnnxEngine]:
            yield engine or Counting(self.models)

        entries = FolderArchive(slides).entries()
        archive = more.get("archive", FolderArchive(slides))
        self.shown.readouterr()
        entries = entries[::-1] if turned else entries
        sites_fit.fit_site(
            site,
            archive,
            entries,
            more.get("stain"),
            lambda progress: None,
            opening,
            cervical=more.get("cervical", False),
        )
        return self.shown.readouterr().out

    @property
    def store(self) -> SiteStore:
        return SiteStore(self.state)


@pytest.fixture
def place(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Place]:
    with commands_on(tmp_path / "state", models, monkeypatch):
        yield Place(tmp_path / "state", models, capsys)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites of few slides with few cells, where how many there are is not the question."""
    for module in (site_fit, sites_fit):
        monkeypatch.setattr(module, "LEAST_SLIDES", FEW)
    monkeypatch.setattr(site_fit, "LEAST_CELLS", FEW_CELLS)
    monkeypatch.setattr(site_fit, "LEAST_BEARING", 1)


def part(slides: Path, folder: Path, count: int = FEW) -> Path:
    """The first slides of a folder."""
    for path in sorted(slides.iterdir())[:count]:
        shutil.copytree(path, folder / path.name)
    return folder


def test_a_site_like_the_source_is_left_alone(place: Place, like: Path, source: Source, few: None) -> None:
    out = place.fit(like)
    [version] = place.store.versions("north")
    state = version.state
    assert (state.verdict, state.slides, state.changes_nothing) == ("like the source", FEW + 2, True)
    assert state.distance_raw is not None
    assert state.distance_raw <= source.gate == state.gate
    assert version.fit.origin.name == "North Hospital / pathserve / phantom / 77 / PAP"
    assert set(version.fit.models) == {"smartccs_detect", "smartccs_embed", "smartccs_slide"}
    assert version.fit.rule == site_fit.VERSION == "2"
    assert "pathserve site sign north 1 --by PERSON" in out
    assert "not looked at: the colours were not mapped" in out
    assert signed_state(place.state, "north", source) is None
    assert not (place.state / "sites" / "north" / "work").exists()


def test_a_slide_of_a_site_like_the_source_is_answered_to_the_bit_as_the_model_is(
    place: Place, like: Path, tmp_path: Path, few: None
) -> None:
    engine, half = OnnxEngine(place.models), CervicalScreening()

    def read(name: str, state: Path) -> ScreeningResult:
        with Slide.open(sorted((like / "04").glob("*.dcm"))) as slide:
            task = replace(task_of(place.models, tmp_path / name, slide), state_folder=state)
            plan = half.plan(task)
            asyncio.run(half.infer(task, plan, engine, progress=lambda done: None, cancelled=lambda: False))
            said = half.outcome(task).screening
        assert said is not None
        return said

    place.fit(like)
    place.store.sign("north", 1, "Dr. Ada North", "device:tester", datetime.now(UTC), lambda state: None)
    plain, signed = read("plain", tmp_path / "nowhere"), read("signed", place.state)
    assert (plain.adaptation.verdict, signed.adaptation.verdict) == ("not commissioned", "like the source")
    assert (signed.adaptation.signed_by, signed.adaptation.applied) == ("Dr. Ada North", False)
    assert (plain.adaptation.features_mapped, signed.adaptation.features_mapped) == (False, False)
    assert plain.classes == signed.classes
    assert all(each.probability == each.probability_unadapted for each in signed.classes)
    assert (plain.gallery, plain.detected, plain.bag) == (signed.gallery, signed.detected, signed.bag)
    assert signed.bag


def test_a_shifted_site_is_mapped_and_comes_near_in_whatever_order_its_slides_come(
    place: Place, shifted: Path, tmp_path: Path, few: None
) -> None:
    slides = part(shifted, tmp_path / "six")
    out = place.fit(slides)
    place.fit(slides, turned=True)
    first, second = place.store.versions("north")
    state = first.state
    assert state.verdict == "adapted"
    assert state.distance_raw is not None
    assert state.distance_coloured is not None
    assert state.gate is not None
    assert state.distance_coloured < 10 * state.gate < state.distance_raw
    before, after = (np.sum([getattr(slide, name) for slide in first.fit.slides], 0) for name in DETECTED)
    said = rows(out)
    assert said["detected before"].startswith(f"{before.sum()} cells (ASC-US {before[0]}, LSIL {before[1]}, ")
    assert said["detected after"].startswith(f"{after.sum()} cells (ASC-US {after[0]}, LSIL {after[1]}, ")
    assert replace(state, version=2).to_bytes() == second.state.to_bytes()
    assert first.fit.slides == second.fit.slides
    [fitted, _] = audited(place.state)
    assert (fitted["entity"], fitted["state_sha256"], fitted["verdict"]) == ("north 1", state.digest, "adapted")


def _killed(state: Path, models: Path, slides: Path, answers: int) -> None:
    """A fit whose process is killed when it asks once more than so often."""
    os.environ |= {"PATHSERVE_STATE": str(state), "PATHSERVE_MODEL_REPOSITORY": str(models)}
    for module in (site_fit, sites_fit):
        module.LEAST_SLIDES = FEW  # type: ignore[misc]
    site_fit.LEAST_CELLS, site_fit.LEAST_BEARING = FEW_CELLS, 1

    @asynccontextmanager
    async def opening(settings: Settings, folders: Sequence[str]) -> AsyncIterator[OnnxEngine]:
        yield Counting(models, answers, at_end=lambda: os.kill(os.getpid(), signal.SIGKILL))

    archive = FolderArchive(slides)
    sites_fit.fit_site("north", archive, archive.entries(), None, lambda progress: None, opening)


def test_a_killed_fit_leaves_nothing_half_and_goes_on(place: Place, shifted: Path, tmp_path: Path, few: None) -> None:
    slides = part(shifted, tmp_path / "slides")
    whole = Counting(place.models)
    place.fit(slides, "whole", engine=whole)
    expected = place.store.version("whole", 1).state
    shutil.rmtree(place.state / "sites" / "whole")
    answers = sum(whole.calls.values()) - 5
    killed = get_context("forkserver").Process(target=_killed, args=(place.state, place.models, slides, answers))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert place.store.sites() == ()
    assert [each["entity"] for each in audited(place.state)] == ["whole 1"]
    rest = Counting(place.models)
    place.fit(slides, engine=rest)
    assert sum(rest.calls.values()) <= 6
    state = place.store.version("north", 1).state
    assert replace(state, site="whole").to_bytes() == expected.to_bytes()


def test_slides_that_cannot_be_used_are_named_and_the_others_go_on(
    place: Place, like: Path, tmp_path: Path, few: None
) -> None:
    slides = part(like, tmp_path / "slides", 8)
    for view in (purple, grey):
        shutil.move(write_slides(tmp_path / view.__name__, view, count=1, tiles=3) / "00", slides / view.__name__)
    [level] = (slides / "01").glob("level-0*.dcm")
    level.write_bytes(level.read_bytes()[: level.stat().st_size // 2])
    for path in (slides / "02").glob("level-*.dcm"):
        dataset = pydicom.dcmread(path)
        del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
        dataset.save_as(path)
    out = place.fit(slides)
    left_out = [line for line in out.splitlines() if line.startswith("left out: series ")]
    assert len(left_out) == 4
    told = " ".join(left_out)
    assert "The slide's colours are not those of Papanicolaou's stain: " in told
    assert "What is on the slide has hardly any colour: whether it is stained by Papanicolaou's method" in told
    assert "no pixel spacing" in told
    [version] = place.store.versions("north")
    assert (version.state.slides, version.fit.left_out) == (6, 4)
    reasons = version.fit.reasons
    assert reasons is not None
    assert sum(reasons.values()) == 4
    assert (reasons["stain-not-papanicolaou"], reasons["stain-colourless"], reasons["missing-pixel-spacing"]) == (
        1,
        1,
        1,
    )
    assert rows(out)["slides"].startswith("6, 4 left out (")
    assert "stain-colourless: 1" in rows(out)["slides"]


def test_a_slide_on_which_too_little_is_stained_is_taken_at_its_word_and_noted(
    place: Place, like: Path, tmp_path: Path, few: None
) -> None:
    slides = part(like, tmp_path / "slides", FEW - 1)
    shutil.move(write_slides(tmp_path / "wide", count=1, tiles=2) / "00", slides / "wide")
    out = place.fit(slides)
    [version] = place.store.versions("north")
    assert version.fit.notes == FitNotes(cervical_by=None, silent=0, stain_unmeasured=FEW - 1)
    assert rows(out)["stain"] == f"measured on 1 of {FEW} slides; on 5 too little is stained, and it is what was stated"
    assert rows(out)["specimen"] == "cervix by the headers of all slides"


def test_cells_that_lie_alone_are_counted_as_screening_reads_them(models: Path, tmp_path: Path) -> None:
    [found] = seen(models, write_slides(tmp_path / "slides", lone, count=1), tmp_path / "work")
    assert found.detected_6.sum() == 2
    stained = 2 * 60**2
    assert stained / 2 < found.counts_3V[0].sum() < 2 * stained
    assert not found.stain_measured


@pytest.mark.parametrize("said", [np.nan, np.inf])
def test_weights_that_are_no_number_fit_nothing(
    place: Place,
    like: Path,
    source: Source,
    tmp_path: Path,
    few: None,
    said: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a model that weighs cells itself."""

    class Wrong(Counting):
        async def infer(
            self, model: str, batch: Mapping[str, npt.NDArray[Any]], *, deadline_s: float = 120.0
        ) -> dict[str, npt.NDArray[Any]]:
            answer = await super().infer(model, batch, deadline_s=deadline_s)
            if model == "smartccs_slide":
                answer["cell_logits"][0, 0, 0] = said
            return answer

    weighing = write_screening(tmp_path / "weighing", source=source, annotated=True)
    monkeypatch.setenv("PATHSERVE_MODEL_REPOSITORY", str(weighing))
    settings.cache_clear()
    with pytest.raises(InferenceError, match="does not answer with finite cell_logits"):
        place.fit(like, engine=Wrong(weighing))
    assert place.store.sites() == ()


def test_a_hung_model_leaves_what_was_seen_and_the_next_fit_goes_on(
    place: Place, like: Path, tmp_path: Path, few: None
) -> None:
    slides = part(like, tmp_path / "slides")
    hung = Counting(place.models, most=7)
    with pytest.raises(InferenceError):
        place.fit(slides, engine=hung)
    assert place.store.sites() == ()
    rest = Counting(place.models)
    place.fit(slides, engine=rest)
    whole = Counting(place.models)
    place.fit(slides, "north", engine=whole)
    assert rest.calls["smartccs_detect"] < whole.calls["smartccs_detect"]
    first, second = place.store.versions("north")
    assert replace(first.state, version=2).to_bytes() == second.state.to_bytes()


def test_too_few_slides_are_refused_before_anything_is_computed(place: Place, like: Path, tmp_path: Path) -> None:
    engine = Counting(place.models, most=0)
    with pytest.raises(SiteNotFittable, match=r"fitted to 32 slides or more, and these are 2\. Add"):
        place.fit(part(like, tmp_path / "two", 2), engine=engine)
    assert place.store.sites() == ()


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ({"DeviceSerialNumber": "78"}, r"serial_number is 77 \(5 slides\), 78 \(1 slide\)\. Fit each by itself"),
        ({"InstitutionName": ""}, r"institution is North Hospital \(5 slides\), not stated \(1 slide\)"),
    ],
)
def test_slides_of_several_scanners_are_refused(
    place: Place, like: Path, tmp_path: Path, few: None, header: dict[str, str], sentence: str
) -> None:
    slides = part(like, tmp_path / "slides")
    for path in (slides / "03").glob("*.dcm"):
        change(path, **header)
    with pytest.raises(InvalidInput, match=sentence):
        place.fit(slides, engine=Counting(place.models, most=0))


def test_slides_that_do_not_say_where_they_are_from_are_refused(
    place: Place, like: Path, tmp_path: Path, few: None
) -> None:
    slides = part(like, tmp_path / "slides")
    engine = Counting(place.models, most=0)
    for path in slides.rglob("*.dcm"):
        change(path, InstitutionName="", DeviceSerialNumber="")
    with pytest.raises(InvalidInput, match="name neither the scanner's serial number nor"):
        place.fit(slides, engine=engine)
    for path in slides.rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.SpecimenDescriptionSequence[0].SpecimenPreparationSequence = []
        dataset.DeviceSerialNumber = "77"
        dataset.save_as(path)
    with pytest.raises(InvalidInput, match=r"do not state the stain\. Give --stain PAP"):
        place.fit(slides, engine=engine)
    with pytest.raises(InvalidInput, match="The slides' stain is HE; the model is for PAP"):
        place.fit(slides, engine=engine, stain="HE")
    with pytest.raises(InferenceError):  # with the stain they are taken
        place.fit(slides, engine=engine, stain="PAP")


def test_slides_of_something_else_are_left_out_and_such_that_do_not_say_are_asked_for(
    place: Place, tmp_path: Path, few: None
) -> None:
    bladder = Code("89837001", "SCT", "Urinary bladder structure")
    slides = write_slides(tmp_path / "slides", organ=None)
    shutil.move(write_slides(tmp_path / "urine", count=1, organ=bladder) / "00", slides / "urine")
    engine = Counting(place.models, most=0)
    with pytest.raises(
        InvalidInput, match=r"The headers of 6 slides do not state a specimen of the cervix\. Give --cerv"
    ):
        place.fit(slides, engine=engine)
    out = place.fit(slides, cervical=True)  # told, they are taken, and who told it is noted
    [version] = place.store.versions("north")
    assert version.fit.notes == FitNotes(cervical_by=version.fit.user, silent=6, stain_unmeasured=6)
    assert rows(out)["specimen"] == f"cervix, declared by {version.fit.user}; the headers of 6 of 6 do not state it"
    left_out = [line for line in out.splitlines() if line.startswith("left out: ")]
    assert len(left_out) == 1
    assert "contradicts that it is a smear of the cervix; it states 'Urinary bladder structure', 'Slide'" in left_out[0]
    shutil.rmtree(slides / "05")
    with pytest.raises(SiteNotFittable, match="these are 5, and 1 more could not be used"):
        place.fit(slides, engine=engine, cervical=True)


def test_a_laboratorys_own_code_of_the_cervix_declares_a_slide(
    place: Place, tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    slides = write_slides(tmp_path / "slides", organ=Code("CX", "99LAB", "Cervix"))
    engine = Counting(place.models, most=0)
    with pytest.raises(InvalidInput, match="specimen_codes"):
        place.fit(slides, engine=engine)
    monkeypatch.setenv("PATHSERVE_SPECIMEN_CODES", json.dumps({"99LAB|CX": CERVIX.code}))
    settings.cache_clear()
    with pytest.raises(InferenceError):
        place.fit(slides, engine=engine)


def test_slides_without_a_cell_are_nothing_to_fit_to(place: Place, tmp_path: Path, few: None) -> None:
    slides = write_slides(tmp_path / "bare", without_nuclei)
    with pytest.raises(SiteNotFittable, match="these are 0, and 6 more could not be used"):
        place.fit(slides)
    assert place.store.sites() == ()
    assert place.shown.readouterr().out.count("No cell was found on the slide.") == FEW


def left_out_of(place: Place, slides: Path, why: str) -> str:
    """What is printed of the one slide that does not count, for this reason and no other; the others are fitted to."""
    out = place.fit(slides)
    [version] = place.store.versions("north")
    assert (version.state.slides, version.fit.left_out, version.fit.reasons) == (FEW, 1, {why: 1})
    [line] = [line for line in out.splitlines() if line.startswith("left out: ")]
    return line


def test_a_slide_without_cells_does_not_make_up_the_number(place: Place, like: Path, tmp_path: Path, few: None) -> None:
    slides = part(like, tmp_path / "slides")
    shutil.move(write_slides(tmp_path / "bare", without_nuclei, count=1) / "00", slides / "bare")
    assert "No cell was found on the slide." in left_out_of(place, slides, "no-cell")
    shutil.rmtree(slides / "05")
    with pytest.raises(SiteNotFittable, match="these are 5, and 1 more could not be used"):
        place.fit(slides)


@pytest.mark.parametrize(("view", "said"), [(out_of_focus, "out of focus"), (bloody, "is blood")])
def test_a_slide_that_screening_would_not_judge_does_not_shift_a_site(
    place: Place, like: Path, tmp_path: Path, few: None, view: View, said: str
) -> None:
    slides = part(like, tmp_path / "slides")
    place.fit(slides, "alone")
    alone = place.store.version("alone", 1).state
    shutil.rmtree(place.state / "sites" / "alone")
    shutil.move(write_slides(tmp_path / view.__name__, view, count=1) / "00", slides / "spoilt")
    assert said in left_out_of(place, slides, "smear-unsatisfactory")
    state = place.store.version("north", 1).state
    assert replace(state, site="alone").to_bytes() == alone.to_bytes()


@pytest.mark.parametrize("same", ["container", "specimen"])
def test_a_glass_that_was_scanned_twice_counts_once(
    place: Place, like: Path, tmp_path: Path, few: None, same: str
) -> None:
    slides = part(like, tmp_path / "slides")
    shutil.move(write_slides(tmp_path / "again", count=1) / "00", slides / "zz")
    [first, *_] = sorted((slides / "03").glob("*.dcm"))
    of = pydicom.dcmread(first, stop_before_pixels=True)
    for path in (slides / "zz").glob("*.dcm"):
        if same == "container":
            change(path, PatientID=of.PatientID, ContainerIdentifier=of.ContainerIdentifier)
        else:
            dataset = pydicom.dcmread(path)
            dataset.SpecimenDescriptionSequence[0].SpecimenUID = of.SpecimenDescriptionSequence[0].SpecimenUID
            dataset.save_as(path)
    line = left_out_of(place, slides, "specimen-twice")
    assert "It is of the same specimen as the series" in line
    shutil.rmtree(slides / "05")
    with pytest.raises(SiteNotFittable, match="these are 5"):  # before anything is computed
        place.fit(slides, engine=Counting(place.models, most=0))


def test_one_slide_does_not_bring_all_cells(
    place: Place, like: Path, tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 200 cells asked for: one slide of nine times 36, and others of one cell each."""
    monkeypatch.setattr(site_fit, "LEAST_CELLS", 200.0)
    monkeypatch.setattr(site_fit, "LEAST_BEARING", 8)
    slides = write_slides(tmp_path / "slides", one_cell)
    shutil.move(write_slides(tmp_path / "wide", count=1, tiles=3) / "00", slides / "wide")
    with pytest.raises(SiteNotFittable, match="of which no slide brings more than 25; its slides show"):
        place.fit(slides)
    assert place.store.sites() == ()


def test_frames_that_are_not_there_in_time_are_fetched_again_and_given_up_in_the_end(
    place: Place, like: Path, tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    slides = part(like, tmp_path / "slides")
    left, real = [0], sites_fit.see

    async def pressed(*asked: Any, **more: Any) -> Seen:
        if left[0]:
            left[0] -= 1
            raise FramesNotFetched("Another pull needed the room.")
        return await real(*asked, **more)

    monkeypatch.setattr(sites_fit, "see", pressed)
    left[0] = 4
    place.fit(slides)
    assert left == [0]
    left[0] = 5
    shutil.rmtree(place.state / "sites" / "north")
    with pytest.raises(FramesNotFetched, match=r"fetched 5 times, .* Give the frame cache more room"):
        place.fit(slides)
    assert place.store.sites() == ()


class Lost(FrugalArchive):
    """An archive that is there no more after so many fetches."""

    def __init__(self, folder: Path, fetches: int) -> None:
        super().__init__(folder)
        self.left = fetches

    def fetch(self, *asked: Any, **more: Any) -> FetchedSeries:
        if not self.left:
            raise ArchiveUnavailable("The archive cannot be reached.")
        self.left -= 1
        return super().fetch(*asked, **more)


def test_a_fit_whose_archive_is_lost_says_so_and_goes_on_where_it_stopped(
    place: Place, like: Path, tmp_path: Path, few: None
) -> None:
    slides = part(like, tmp_path / "slides")
    archive = FrugalArchive(slides)
    whole = Counting(place.models)
    place.fit(slides, "whole", engine=whole, archive=archive)
    expected = place.store.version("whole", 1).state
    shutil.rmtree(place.state / "sites" / "whole")
    shutil.rmtree(place.state / "cache")
    said = r"cannot be reached\. What was seen of 3 of the site's slides is kept: call the fit again once the archive"
    each = (len(archive.asked) - FEW) // FEW
    lost = Lost(slides, FEW + 3 * each + 1)
    with pytest.raises(ArchiveUnavailable, match=said):
        place.fit(slides, archive=lost)
    assert place.store.sites() == ()
    rest = Counting(place.models)
    place.fit(slides, engine=rest, archive=FrugalArchive(slides))
    assert rest.calls["smartccs_detect"] <= whole.calls["smartccs_detect"] // 2
    state = place.store.version("north", 1).state
    assert replace(state, site="whole").to_bytes() == expected.to_bytes()


def test_cells_that_are_gone_from_the_work_folder_are_said_to_be(tmp_path: Path) -> None:
    seen = Seen(
        features_ND=np.ones((2, 3), np.float32),
        scores_N=np.ones(2),
        detected_6=np.ones(6, np.int64),
        counts_3V=np.zeros((3, 256), np.int64),
        stain_measured=True,
    )
    path = tmp_path / "seen.npz"
    seen.save(path, {"slide": "1"})
    held = seen.held(path, {"slide": "1"})
    assert (held.cells, held.detected) == (2, (1,) * 6)
    np.testing.assert_array_equal(held.seen().features_ND, seen.features_ND)
    path.unlink()
    with pytest.raises(StateError, match="gone from its work folder"):
        held.seen()


def test_without_the_models_there_is_nothing_to_fit(
    place: Place, like: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "none").mkdir()
    monkeypatch.setenv("PATHSERVE_MODEL_REPOSITORY", str(tmp_path / "none"))
    settings.cache_clear()
    with pytest.raises(ModelNotLoaded, match="smartccs_detect"):
        place.fit(like)


def test_a_model_that_is_changed_meanwhile_fits_nothing(
    place: Place, like: Path, tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = shutil.copytree(place.models, tmp_path / "models")
    monkeypatch.setenv("PATHSERVE_MODEL_REPOSITORY", str(mine))
    settings.cache_clear()

    def change_card() -> None:
        path = mine / "smartccs_slide" / "card.json"
        path.write_text(path.read_text().replace("Chosen for a test", "Chosen anew"))

    engine = Counting(mine, 1, at_end=change_card, ends=False)
    with pytest.raises(ModelChanged, match=r"was changed while the site was fitted"):
        place.fit(like, engine=engine)
    assert place.store.sites() == ()


def test_a_site_is_fitted_once_at_a_time(place: Place, like: Path) -> None:
    with locked_folder(place.store.work_folder("north")), pytest.raises(Conflict, match="Another fit of north runs"):
        place.fit(like)


def test_an_archive_that_brings_frames_alone_gives_the_same(
    place: Place, like: Path, tmp_path: Path, few: None
) -> None:
    slides = part(like, tmp_path / "slides")
    place.fit(slides)
    place.fit(slides, archive=FrugalArchive(slides))
    whole, parts = place.store.versions("north")
    assert replace(parts.state, version=1).to_bytes() == whole.state.to_bytes()
    assert parts.fit.slides == whole.fit.slides


def test_a_name_that_is_another_places_is_refused_before_anything_is_computed(
    place: Place, like: Path, tmp_path: Path, few: None
) -> None:
    slides = part(like, tmp_path / "slides")
    place.fit(slides)
    with pytest.raises(Conflict, match="are those of the site north"):
        place.fit(slides, "copy", engine=Counting(place.models, most=0))


def test_a_site_is_fitted_signed_and_used_by_the_engines_that_serve(
    shifted: Path, models: Path, source: Source, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    environment = {**os.environ, "PATHSERVE_STATE": str(state), "PATHSERVE_MODEL_REPOSITORY": str(models)}

    def pathserve(*arguments: str) -> str:
        printed = tmp_path / "printed"
        shutil.rmtree(printed, ignore_errors=True)
        printed.mkdir()
        done = command(arguments, environment, printed, 300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = rows(pathserve("site", "fit", "--site", "north", "--slides", str(shifted)))
    assert (said["slides"], said["state"]) == (str(SLIDES), "unsigned")
    fitted = SiteStore(state).version("north", 1).state
    assert fitted.verdict == "adapted"
    pathserve("site", "sign", "north", "1", "--by", "Dr. Ada North")
    out = tmp_path / "out"
    pathserve("analyze", "--protocol", "cervical-screening", "--slide", str(shifted / "04"), "--out", str(out))
    [screening] = json.loads((out / "report.json").read_text())["screenings"]
    used = screening["adaptation"]
    assert (used["site"], used["version"], used["verdict"]) == ("north", 1, "adapted")
    assert (used["digest"], used["signed_by"], used["applied"]) == (fitted.digest, "Dr. Ada North", True)
    assert (used["gate"], used["distance_raw"]) == (GATE, fitted.distance_raw)
