"""Which state of its site a slide is read with: chosen once a run, for the words that tell its site."""

from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway.analyses.screening_models import ScreeningModels
from gateway.analyses.screening_site import SiteUsed
from gateway.analyses.sites import Origin, SiteStore
from gateway.operations.errors import RowsOutdated
from gateway.slides.site_state import SiteStateInvalid, identity
from tests.analyses.test_sites import quietly, record, signed
from tests.support.bags import OnnxEngine
from tests.support.screening import CERVIX, screened, screening, smear, write_smear
from tests.support.screening_models import SOURCE, write_screening

NOW = datetime(2026, 11, 27, tzinfo=UTC)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_screening(tmp_path_factory.mktemp("models") / "repository")


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_smear(tmp_path_factory.mktemp("slides") / "slide", smear([], size_um=200))


class Case:
    """One slide of an analysis, whose folder stays from run to run."""

    def __init__(self, slide: Path, models: Path, folder: Path) -> None:
        self.open = partial(screening, slide, models, folder / "task", state_folder=folder, site=CERVIX)
        self.folder = folder
        self.store = SiteStore(folder)

    def add(self, site: str = "north", **origin: Any) -> None:
        """One more signed version of a site to which the slide belongs, but for what is said of its origin."""
        with self.open() as task:
            words = replace(Origin.of(task.slide.header, "PAP"), **origin)
        state = identity(site, 0, "like the source", SOURCE, slides=32, cells=400)
        added = self.store.add(state, record(words), quietly)
        signed(self.store, site, added.state.version)

    def retire(self, number: int) -> None:
        self.store.retire("north", number, "B", "device:tester", NOW, quietly)

    def chosen(self, run: int = 1, **more: Any) -> tuple[str, int]:
        """Site and version of what the slide's models run with."""
        with self.open(**more) as task:
            again = replace(task, run=run)
            state = SiteUsed.chosen(again, ScreeningModels.of_task(again)).state
            assert SiteUsed.of_task(again, ScreeningModels.of_task(again)).state.digest == state.digest
        return state.site, state.version


@pytest.fixture
def case(slide: Path, models: Path, tmp_path: Path) -> Case:
    return Case(slide, models, tmp_path)


def test_a_run_ends_with_the_state_that_it_began_with_and_a_retry_chooses_anew(case: Case) -> None:
    case.add()
    assert case.chosen() == ("north", 1)
    case.add()
    case.retire(1)
    assert case.chosen() == ("north", 1)
    with case.open() as task, pytest.raises(RowsOutdated):
        SiteUsed.of_task(replace(task, run=2), ScreeningModels.of_task(task))
    assert case.chosen(run=2) == ("north", 2)
    case.retire(2)
    assert case.chosen(run=2) == ("north", 2)
    site, version = case.chosen(run=3)
    assert (site.endswith("/ PAP"), version) == (True, 0)


def test_a_slide_that_is_from_elsewhere_now_gets_that_sites_state(case: Case) -> None:
    case.add()
    assert case.chosen() == ("north", 1)
    site, version = case.chosen(stain="HE")
    assert (site.endswith("/ HE"), version) == (True, 0)
    case.add("others", stain="HE")
    assert case.chosen() == ("north", 1)
    assert case.chosen(stain="HE") == ("others", 1)


async def test_a_retry_computes_anew_what_a_retired_state_answered(case: Case, models: Path) -> None:
    case.add()
    engine = OnnxEngine(models)
    read = []
    for run in (1, 2):
        with case.open() as task:
            outcome = await screened(replace(task, run=run), engine)
        assert outcome.screening is not None
        read.append(outcome.screening.adaptation.version)
        if run == 1:
            case.retire(1)
            asked = dict(engine.calls)
    assert read == [1, 0]
    assert engine.calls["smartccs_detect"] == asked["smartccs_detect"]  # the rows of the detector are the same


def test_a_damaged_site_stops_its_own_slides_and_no_others(case: Case) -> None:
    case.add("south", serial_number="elsewhere")
    path = case.folder / "sites" / "south" / "1.json"
    whole = path.read_bytes()
    path.write_bytes(b"{}")
    assert case.chosen()[1] == 0
    case.add()
    assert case.chosen(run=2) == ("north", 1)
    path.write_bytes(whole)
    (case.folder / "sites" / "north" / "1.json").write_bytes(b"{}")
    sentence = (
        r"Files of the site north are damaged or were changed \(1\.json\)\. Restore sites/north in the state folder "
        "from a copy, or move it away and fit the site again"
    )
    with pytest.raises(SiteStateInvalid, match=sentence):
        case.chosen(run=3)
