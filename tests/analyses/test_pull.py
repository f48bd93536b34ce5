"""What a case asks of its archive: everybody's headers, a check of whose they are, no more pixels than are read."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gateway.analyses.fetched import Fetched
from gateway.analyses.steps import CaseRun
from gateway.archive import FolderArchive
from gateway.archive.cache import FrameCache
from gateway.domain.analysis import Progress
from gateway.domain.order import Order, Patient, SlideReference, Specimen
from gateway.inference import TritonEngine
from gateway.operations.errors import Cancelled, IdentityMismatch, InferenceUnavailable, NoTissue, SlideNotInArchive
from gateway.operations.settings import Settings
from gateway.slides import Slide, find_tissue, frames_of, overview_levels, plan_tiles, stream_tiles
from gateway.slides.phantom import Identity, write_phantom
from tests.analyses.frugal import FrugalArchive
from tests.support.models import read, seal, two_versions, write

STUDY = "2.25.7001"
TISSUE, EMPTY, STRANGER = "2.25.7011", "2.25.7012", "2.25.7013"


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of three slides: one with tissue, an empty one, and one of another patient."""
    folder = tmp_path_factory.mktemp("case")
    for seed, (series, patient) in enumerate(((TISSUE, "P-1"), (EMPTY, "P-1"), (STRANGER, "P-2"))):
        size = 3072 if series == TISSUE else 1024
        write_phantom(
            folder / series,
            width_px=size,
            height_px=size,
            seed=seed,
            coverage=0.1,
            tissue=series != EMPTY,
            identity=Identity(study_uid=STUDY, series_uid=series, patient_id=patient),
        )
    return folder


@pytest.fixture
def archive(case: Path) -> FrugalArchive:
    return FrugalArchive(case)


def ordered(*series: str, patient: str = "P-1") -> Order:
    """An order of some series of the study, with the identifiers that their headers have."""
    specimen = Specimen(slides=tuple(SlideReference(STUDY, (uid,)) for uid in series), container=Identity().container)
    return Order("tissue-classification", (specimen,), accession=Identity().accession, patient=Patient(patient))


@pytest.fixture
def run_of(tmp_path: Path, archive: FrugalArchive) -> Callable[..., CaseRun]:
    """An analysis of some series of the study."""

    def make(*series: str, patient: str = "P-1", **more: object) -> CaseRun:
        order = ordered(*series, patient=patient)
        settings = Settings(state=tmp_path)
        return CaseRun("a-1", order, tmp_path / "analyses" / "a-1", settings=settings, archive=archive, **more)

    return make


def fetched_by(run: CaseRun, state: Path) -> list[Fetched]:
    return [Fetched.from_json(entry, state) for entry in json.loads((run.folder / "fetched.json").read_text())]


async def test_headers_then_the_overview_then_the_frames_under_the_tiles(
    run_of: Callable[..., CaseRun], archive: FrugalArchive, case: Path, tmp_path: Path
) -> None:
    run = run_of(TISSUE)
    await run.fetch()
    with Slide.open(sorted((case / TISSUE).glob("*.dcm"))) as whole:
        plan = plan_tiles(whole, find_tissue(whole), mpp=0.5, tile_px=224)
        assert archive.asked == [
            (TISSUE, {}), (TISSUE, overview_levels(whole)), (TISSUE, frames_of(whole, plan)),
        ]  # fmt: skip
        frames = sum(image.frame_at_RC.size for image in whole.images)
        assert 0 < archive.frames_brought < 0.6 * frames
        [slide] = fetched_by(run, tmp_path)
        assert slide.partial
        with Slide.open(slide.files) as sparse:
            for one, other in zip(
                stream_tiles(whole, plan, batch=16), stream_tiles(sparse, plan, batch=16), strict=True
            ):
                assert np.array_equal(one.images_BHWC, other.images_BHWC)
            assert np.array_equal(whole.thumbnail(), sparse.thumbnail())


async def test_a_repeated_fetch_brings_no_frame_twice(run_of: Callable[..., CaseRun], archive: FrugalArchive) -> None:
    await run_of(TISSUE).fetch()
    brought = archive.frames_brought
    await run_of(TISSUE).fetch()
    assert archive.frames_brought == brought


async def test_what_was_evicted_is_fetched_again(
    run_of: Callable[..., CaseRun], archive: FrugalArchive, tmp_path: Path
) -> None:
    await run_of(TISSUE).fetch()
    brought = archive.frames_brought
    cache = FrameCache(tmp_path / "cache", 2**30)
    [series] = [path for path in (tmp_path / "cache").glob("*/*/*/") if path.name == TISSUE]
    with cache.filling(archive.address, STUDY, TISSUE, lambda: False):
        for path in series.glob("*.*"):
            path.unlink()
    await run_of(TISSUE).fetch()
    assert archive.frames_brought == 2 * brought


async def test_files_that_others_replace_meanwhile_are_fetched_again(
    run_of: Callable[..., CaseRun], archive: FrugalArchive, tmp_path: Path
) -> None:
    """Once, as a step does where the frame cache takes them away at each try."""

    def replaced() -> None:
        if len(archive.asked) == 2:
            for head in (tmp_path / "cache").rglob("*.header.dcm"):
                head.unlink()

    archive.after = replaced
    await run_of(TISSUE).fetch()
    assert [wanted == {} for _, wanted in archive.asked] == [True, False, True, False, False]


async def test_a_state_that_was_copied_elsewhere_has_its_slides_with_it(
    run_of: Callable[..., CaseRun], archive: FrugalArchive, tmp_path: Path
) -> None:
    run = run_of(TISSUE)
    await run.fetch()
    brought = archive.frames_brought
    moved = shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-copy"))
    shutil.rmtree(tmp_path / "cache")
    folder = moved / run.folder.relative_to(tmp_path)
    copied = CaseRun("a-1", run.order, folder, settings=Settings(state=moved), archive=archive)
    [slide] = fetched_by(copied, moved)
    assert {file.is_relative_to(moved) and file.exists() for file in slide.files} == {True}
    await copied.fetch()
    assert archive.frames_brought == brought


async def test_a_file_that_is_gone_from_a_folder_is_looked_for_again(case: Path, tmp_path: Path) -> None:
    slide = shutil.copytree(case / TISSUE, tmp_path / "slide")
    order = ordered(TISSUE)
    run = CaseRun("a-1", order, tmp_path / "a-1", settings=Settings(state=tmp_path), archive=FolderArchive(slide))
    await run.fetch()
    for file in slide.iterdir():
        file.unlink()
    with pytest.raises(SlideNotInArchive):
        await run.infer()


@pytest.mark.parametrize(
    ("series", "patient"), [((STRANGER,), "P-1"), ((TISSUE, STRANGER), "P-2"), ((TISSUE, STRANGER), "P-1")]
)
async def test_no_pixel_of_another_patient_is_fetched(
    run_of: Callable[..., CaseRun], archive: FrugalArchive, series: tuple[str, ...], patient: str
) -> None:
    with pytest.raises(IdentityMismatch):
        await run_of(*series, patient=patient).fetch()
    assert archive.asked == [(uid, {}) for uid in series]


async def test_two_patients_where_the_order_names_none(run_of: Callable[..., CaseRun], archive: FrugalArchive) -> None:
    run = run_of(TISSUE, STRANGER)
    run.order = replace(run.order, patient=Patient())
    with pytest.raises(IdentityMismatch):
        await run.fetch()
    assert archive.frames_brought == 0


async def test_a_slide_that_cannot_be_planned_is_noted_and_the_others_go_on(
    run_of: Callable[..., CaseRun], tmp_path: Path
) -> None:
    run = run_of(EMPTY, TISSUE, "2.25.404")
    await run.fetch()
    empty, read, absent = fetched_by(run, tmp_path)
    assert (empty.reason, empty.files) == (NoTissue.reason, ())
    assert (read.reason, bool(read.files)) == (None, True)
    assert (absent.series, absent.reason) == ("2.25.404", SlideNotInArchive.reason)


async def test_where_no_slide_can_be_read_the_reason_is_raised(
    run_of: Callable[..., CaseRun], archive: FrugalArchive
) -> None:
    with pytest.raises(NoTissue):
        await run_of(EMPTY).fetch()
    with pytest.raises(NoTissue):
        await run_of("2.25.404", EMPTY).fetch()
    with pytest.raises(SlideNotInArchive):
        await run_of("2.25.404").fetch()


async def test_progress_is_told_in_bytes_over_all_slides(run_of: Callable[..., CaseRun], tmp_path: Path) -> None:
    told: list[Progress] = []
    run = run_of(TISSUE, EMPTY, progress=told.append)
    await run.fetch()
    done = [each.done for each in told]
    assert done == sorted(done)
    assert told[-1].total == done[-1] > 0
    assert done[-1] == sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.frames"))
    assert {each.unit for each in told} == {"bytes"}


async def test_a_cancellation_ends_it(run_of: Callable[..., CaseRun], archive: FrugalArchive) -> None:
    with pytest.raises(Cancelled):
        await run_of(TISSUE, cancelled=lambda: len(archive.asked) == 2).fetch()
    assert len(archive.asked) == 2


async def test_a_folder_is_read_where_it_lies(case: Path, tmp_path: Path) -> None:
    order = ordered(TISSUE)
    archive = FolderArchive(case)
    run = CaseRun("a-1", order, tmp_path / "a-1", settings=Settings(state=tmp_path), archive=archive)
    await run.fetch()
    [slide] = fetched_by(run, tmp_path)
    assert {file.parent for file in slide.files} == {case / TISSUE}
    assert not (tmp_path / "cache").exists()


async def test_the_plan_is_made_once(
    run_of: Callable[..., CaseRun], archive: FrugalArchive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The tissue is looked for once, also after a kill; another setting makes another plan."""
    looked: list[object] = []

    def counted(slide: Slide) -> object:
        looked.append(slide)
        return find_tissue(slide)

    monkeypatch.setattr("gateway.analyses.planned.find_tissue", counted)
    await run_of(TISSUE).fetch()
    await run_of(TISSUE).fetch()
    assert len(looked) == 1
    run = run_of(TISSUE)
    changed = replace(run.order, settings=(("tissue.min_share", "0.9"),))
    again = CaseRun("a-1", changed, run.folder, settings=Settings(state=tmp_path), archive=archive)
    await again.fetch()
    assert len(looked) == 2


async def test_where_a_model_was_replaced_what_the_other_one_needs_is_fetched(
    archive: FrugalArchive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unreachable(*_: object) -> object:
        raise InferenceUnavailable("Triton does not answer; check that it runs.")  # at once, not after some seconds

    monkeypatch.setattr(TritonEngine, "open", unreachable)
    repository = two_versions(tmp_path / "models")
    settings = Settings(state=tmp_path, model_repository=repository)
    order = ordered(TISSUE)
    run = CaseRun("a-1", order, tmp_path / "a-1", settings=settings, archive=archive)
    await run.fetch()
    asked = archive.asked.copy()

    # The pinned version goes, and the one that is left reads at half the resolution.
    second = repository / "tissue_classification-v2"
    shutil.rmtree(repository / "tissue_classification")
    for folder in (repository / "tile_encoder", repository / "tissue_head-v2", second):
        write(folder, "card.json", read(folder, "card.json") | {"mpp": 1.0})
        seal(folder)
    with pytest.raises(InferenceUnavailable):
        await run.infer()
    again = archive.asked[len(asked) :]
    assert again[:2] == asked[:2]
    assert again[2] != asked[2]


async def test_a_slide_that_leaves_the_archive_meanwhile_is_noted(
    run_of: Callable[..., CaseRun], case: Path, tmp_path: Path
) -> None:
    study = shutil.copytree(case, tmp_path / "pacs")
    same = study / STRANGER
    shutil.rmtree(same)
    write_phantom(
        same,
        width_px=2048,
        height_px=2048,
        seed=5,
        identity=Identity(study_uid=STUDY, series_uid=STRANGER, patient_id="P-1"),
    )
    archive = FrugalArchive(study)
    run = CaseRun(
        "a-1", run_of(TISSUE, STRANGER).order, tmp_path / "a-1", settings=Settings(state=tmp_path), archive=archive
    )
    archive.after = lambda: shutil.rmtree(same, ignore_errors=True) if len(archive.asked) == 3 else None
    await run.fetch()
    assert [slide.reason for slide in fetched_by(run, tmp_path)] == [None, SlideNotInArchive.reason]
