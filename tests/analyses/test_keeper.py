"""The keeper with a real Triton: it loads what is chosen, wished for and in use, and unloads the rest."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from gateway.analyses.keeper import EngineKeeper
from gateway.analyses.ledger import Ledger
from gateway.analyses.ledger.choices import Action, Outcome
from gateway.analyses.ledger.turns import workflow_id
from gateway.analyses.pins import Pins
from gateway.domain.analysis import State
from gateway.domain.order import Order
from gateway.inference import ModelRepository
from gateway.inference.embedded import read_record
from gateway.inference.stubs import Stub, living_stubs
from gateway.operations.errors import PathserveError
from gateway.operations.operator import operator
from gateway.operations.settings import Settings
from tests.inference import models
from tests.support.gateway import eventually
from tests.support.models import seal, two_versions
from tests.support.triton import loaded

pytestmark = pytest.mark.triton

MODEL = "tissue_classification"
FIRST = {"tile_encoder", "tissue_head", MODEL}
SECOND = {"tile_encoder", "tissue_head-v2", f"{MODEL}-v2"}


class Site:
    """A state folder with a keeper at work on it."""

    def __init__(self, folder: Path) -> None:
        repository = two_versions(folder / "repository")
        self.settings = Settings(state=folder / "state", model_repository=repository)
        self.repository = ModelRepository(repository)
        self.ledger = Ledger.open(self.settings.ledger_url, self.settings.state)
        self.keeper = EngineKeeper(self.settings, self.ledger)

    def loaded(self) -> set[str]:
        return loaded(self.settings.state)

    def states(self) -> dict[str, tuple[str, bool]]:
        return {each["folder"]: (each["state"], each["ready"]) for each in self.keeper.models()}

    def promote(self, model: str, version: str) -> tuple[Outcome, str | None]:
        wish = self.ledger.choices.wish(model, version, Action.PROMOTE, "ann")
        eventually(lambda: self.ledger.choices.get(wish.number).outcome is not Outcome.PENDING, "it is settled", 120)
        settled = self.ledger.choices.get(wish.number)
        return settled.outcome, settled.reason

    def begin(self, folder: str) -> str:
        """An analysis that is pinned to a folder and at work."""
        analysis_id = self.ledger.accept(Order("tissue-classification", ()), operator())[0].analysis.id
        assert self.ledger.runs.begin(workflow_id(analysis_id, 1, "fetch"), "w") is not None
        self.ledger.pin(analysis_id, Pins.of({MODEL: folder}, self.repository).to_json())
        return analysis_id

    def well(self) -> bool:
        try:
            self.keeper.check()
        except PathserveError:
            return False
        return True


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"))
    made.keeper.start()
    eventually(made.well, "the keeper is ready", 120)
    yield made
    made.keeper.stop()
    made.ledger.close()


def test_the_first_version_serves_and_that_is_noted(site: Site) -> None:
    eventually(lambda: site.ledger.choices.read().current(MODEL) == "1", "it is noted")
    assert set(site.ledger.choices.read().models) == {MODEL, "tile_encoder"}
    assert site.loaded() == FIRST
    eventually(lambda: {name for name, (state, ready) in site.states().items() if ready} == FIRST, "they are ready")


def test_an_old_version_is_unloaded_when_its_last_analysis_ends(site: Site) -> None:
    analysis_id = site.begin(MODEL)
    assert site.promote(MODEL, "2") == (Outcome.SERVING, None)
    eventually(lambda: site.states()[MODEL] == ("draining", True), "the old version drains")
    assert site.states()[f"{MODEL}-v2"] == ("serving", True)
    assert site.loaded() == FIRST | SECOND
    turn = site.ledger.runs.begin(workflow_id(analysis_id, 1, "fetch"), "w")
    assert turn is not None
    site.ledger.runs.finish(turn, State.COMPLETED)
    eventually(lambda: site.loaded() == SECOND, "the old version is unloaded")
    eventually(lambda: site.states()[MODEL] == ("standby", False), "the old version stands by")
    assert site.well()


def test_what_is_not_there_is_refused_and_what_serves_serves_on(site: Site) -> None:
    outcome, reason = site.promote(MODEL, "7")
    assert (outcome, "no model tissue_classification-v7" in str(reason)) == (Outcome.REFUSED, True)
    assert site.states()[f"{MODEL}-v2"] == ("serving", True)
    assert site.loaded() == SECOND
    assert site.well()


def test_the_one_that_serves_is_refused_when_its_file_changes_and_serves_when_it_is_back(site: Site) -> None:
    card = site.settings.model_repository / f"{MODEL}-v2" / "card.json"
    right = card.read_bytes()
    card.write_bytes(right.replace(b"Adipose", b"Adiposa"))
    eventually(lambda: site.states()[f"{MODEL}-v2"] == ("refused", False), "it is refused")
    assert not site.well()
    card.write_bytes(right)
    eventually(lambda: site.states()[f"{MODEL}-v2"] == ("serving", True), "it serves again")
    assert site.well()


def test_a_wish_that_a_worker_left_is_settled_by_the_next(site: Site) -> None:
    site.keeper.stop()
    wish = site.ledger.choices.wish(MODEL, "1", Action.PROMOTE, "ann")
    site.keeper = EngineKeeper(site.settings, site.ledger)
    site.keeper.start()
    eventually(lambda: site.ledger.choices.get(wish.number).outcome is Outcome.SERVING, "it is settled", 60)
    eventually(lambda: site.loaded() == FIRST, "the version before is unloaded")
    eventually(site.well, "the keeper is ready")


@pytest.mark.parametrize("file", ["gate.json", "card.json"])
def test_a_damaged_first_version_is_refused_and_no_other_serves_in_its_place(tmp_path: Path, file: str) -> None:
    site = Site(tmp_path)
    damaged = site.settings.model_repository / MODEL / file
    os.truncate(damaged, damaged.stat().st_size // 2)
    site.keeper.start()
    try:
        eventually(lambda: site.states().get(MODEL) == ("refused", False), "it is refused", 60)
        assert site.states()[f"{MODEL}-v2"] == ("standby", False)
        assert f"{MODEL}-v2" not in site.loaded()
        assert not site.well()
        assert MODEL not in site.ledger.choices.read().models
    finally:
        site.keeper.stop()
        site.ledger.close()


def test_a_keeper_stops_in_the_middle_of_a_load(tmp_path: Path) -> None:
    backends = shutil.copytree(Settings().triton_backends, tmp_path / "backends")
    (backends / "sleepy").mkdir()
    (backends / "sleepy" / "model.py").write_text(
        "import time\n\n\nclass TritonPythonModel:\n    def initialize(self, args):\n        time.sleep(100)\n"
    )
    config = models.write_encoder(tmp_path / "repository", "encoder") / "config.pbtxt"
    config.write_text(config.read_text().replace('"onnxruntime"', '"sleepy"'))
    seal(config.parent)
    settings = Settings(state=tmp_path / "state", model_repository=tmp_path / "repository", triton_backends=backends)
    ledger = Ledger.open(settings.ledger_url, settings.state)
    keeper = EngineKeeper(settings, ledger)

    def stubs() -> list[Stub]:
        record = read_record(settings.state)
        return [] if record is None else list(living_stubs(record.pid, Path(record.directory)))

    keeper.start()
    try:
        eventually(stubs, "it is loaded", 60)
        [loading] = stubs()
    finally:
        asked_s = time.monotonic()
        keeper.stop()
        ledger.close()
    assert time.monotonic() - asked_s < 15, "a SIGTERM has 15 s"
    assert not psutil.pid_exists(loading.pid)
    assert read_record(settings.state) is None
