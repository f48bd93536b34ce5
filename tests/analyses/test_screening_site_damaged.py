"""A site's files that are damaged, gone, or of another model, as orders of its slides meet them: a real worker."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.analyses.sites import Origin, SiteStore, signed_state, site_of
from gateway.archive import FolderArchive
from gateway.domain.analysis import State
from gateway.domain.bethesda import HSIL
from gateway.slides import Slide
from gateway.slides.site_state import SiteStateInvalid, Source, identity
from tests.analyses.screening_house import PATIENCE_S, House
from tests.analyses.screening_worker import asked
from tests.analyses.test_screening import case_run
from tests.analyses.test_sites import quietly, record, signed, source
from tests.support.bags import OnnxEngine
from tests.support.screening import CERVIX, smear, write_smear
from tests.support.screening_models import SOURCE

OTHER = source(gate=7.0)
"""Of another model."""


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an archive with one slide."""
    folder = tmp_path_factory.mktemp("archive")
    write_smear(folder / "slide", smear([(HSIL, 120, 130)], size_um=300), root="site", organ=CERVIX)
    return folder


@pytest.fixture
def house(slides: Path, screening_models: Path, tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path, f"folder:{slides}", screening_models)
    yield made
    made.close()


def commissioned(state: Path, slides: Path, *, fitted_to: Source = SOURCE) -> SiteStore:
    """The state folder with one signed version of the site that the slide is of."""
    with Slide.open(sorted((slides / "slide").glob("*.dcm"))) as opened:
        origin = Origin.of(opened.header, "PAP")
    store = SiteStore(state)
    fit = identity("north", 0, "like the source", fitted_to, slides=32, cells=400)
    version = store.add(fit, record(origin), quietly)
    signed(store, "north", version.state.version)
    return store


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, damage) for name in ("1.json", "1.fit.json", "1.signed.json") for damage in (cut, emptied)),
        ("1.json", Path.unlink),
        ("1.fit.json", Path.unlink),
    ],
)
def test_a_signed_state_of_which_a_file_is_damaged_or_gone_is_not_passed_over(
    slides: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    """Its slides would else be read as the model is, also where the site was found to be out of scope."""
    store = commissioned(tmp_path, slides)
    damage(tmp_path / "sites" / "north" / name)
    with Slide.open(sorted((slides / "slide").glob("*.dcm"))) as opened:
        header = opened.header
    for ask in (
        lambda: site_of(tmp_path, header, "PAP"),
        lambda: signed_state(tmp_path, "north", SOURCE),
        lambda: store.add(identity("north", 0, "adapted", SOURCE), record(Origin.of(header, "PAP")), quietly),
    ):
        with pytest.raises(SiteStateInvalid, match=r"of the site north are damaged or were changed"):
            ask()
    assert store.sites() == ("north",)


def test_an_order_fails_with_what_to_do_and_goes_on_once_the_file_is_restored(house: House, slides: Path) -> None:
    commissioned(house.state, slides)
    house.let_models_answer()
    house.worker(PATHSERVE_RETRY_ATTEMPTS="2")
    path = house.state / "sites" / "north" / "1.json"
    whole = path.read_bytes()
    for damage in (cut, Path.unlink):
        damage(path)
        analysis = house.order(slides / "slide")
        assert house.ended(analysis, PATIENCE_S) is State.FAILED
        failure = house.record(analysis).analysis.failure
        assert failure is not None
        assert failure.reason == "site-state-invalid"
        assert failure.detail == (
            "Files of the site north are damaged or were changed (1.json). Restore sites/north in the state folder "
            "from a copy, or move it away and fit the site again."
        )
        assert house.artifacts(analysis) == []
        path.write_bytes(whole)
    assert asked(house.state) == []
    house.retry(analysis)
    house.until(lambda: house.record(analysis).analysis.state is State.COMPLETED, PATIENCE_S)
    used = house.report(analysis)["screenings"][0]["adaptation"]
    assert (used["site"], used["version"], used["verdict"]) == ("north", 1, "like the source")


def test_a_file_that_is_damaged_while_the_slide_is_read_does_not_reach_its_report(house: House, slides: Path) -> None:
    digest = commissioned(house.state, slides).version("north", 1).state.digest
    house.worker()
    analysis = house.order(slides / "slide")
    chosen = house.state / "analyses" / analysis / "tiles"
    house.until(lambda: list(chosen.rglob("site.json")), PATIENCE_S)
    cut(house.state / "sites" / "north" / "1.json")
    house.let_models_answer()
    assert house.ended(analysis, PATIENCE_S) is State.COMPLETED
    used = house.report(analysis)["screenings"][0]["adaptation"]
    assert (used["version"], used["digest"]) == (1, digest)


def test_a_state_of_another_model_is_named_in_the_report_and_changes_nothing(house: House, slides: Path) -> None:
    commissioned(house.state, slides, fitted_to=OTHER)
    house.let_models_answer()
    house.worker()
    analysis = house.order(slides / "slide")
    assert house.ended(analysis, PATIENCE_S) is State.COMPLETED
    report = house.report(analysis)
    used = report["screenings"][0]["adaptation"]
    assert (used["site"], used["version"], used["verdict"]) == ("north", 0, "not commissioned")
    assert report["probabilities"] == report["probabilities_unadapted"]
    [said] = [each["text"] for each in report["findings"] if each["code"]["code"] == "site-not-commissioned"]
    assert "fitted to another model" in said
    page = (house.state / "analyses" / analysis / "artifacts" / "report.html").read_text()
    assert "fitted to another model" in page


async def test_a_chosen_state_whose_copy_is_damaged_is_chosen_again_before_the_report(
    slides: Path, screening_models: Path, tmp_path: Path
) -> None:
    """Of two models that lie beside an analysis: nothing is computed again but what the state decides."""
    state, engine = tmp_path / "state", OnnxEngine(screening_models)
    commissioned(state, slides)
    archive = FolderArchive(slides / "slide")
    async with case_run(slides / "slide", screening_models, tmp_path, engine, archive) as run:
        await run.fetch()
        await run.infer()
        calls = dict(engine.calls)
        [copy] = run.folder.rglob("site.json")
        cut(copy)
        await run.report()
    assert engine.calls == calls
    report = json.loads((run.artifacts / "report.json").read_text())
    assert report["screenings"][0]["adaptation"]["version"] == 1
