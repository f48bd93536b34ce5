"""Which version serves: decisions in the ledger, what is loaded for them, and analyses that keep to their versions."""

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from gateway.analyses.ledger import Ledger
from gateway.analyses.ledger.choices import Action, Choices, Outcome
from gateway.analyses.ledger.turns import workflow_id
from gateway.analyses.local import analyze, case_of
from gateway.analyses.pins import Pins, serving
from gateway.analyses.replacement import changes
from gateway.analyses.served import Wanted, listed
from gateway.analyses.steps import CaseRun
from gateway.analyses.tiles import TileStore
from gateway.archive import FolderArchive
from gateway.domain.analysis import State
from gateway.domain.order import Order
from gateway.inference import ModelRepository
from gateway.operations.audit import AuditQuery
from gateway.operations.errors import Cancelled, Conflict, ModelNotLoaded, ModelRefused
from gateway.operations.operator import operator
from gateway.operations.settings import Settings
from gateway.slides.phantom import write_phantom
from tests.support.models import read, seal, two_versions, write
from tests.support.triton import held_triton

MODEL = "tissue_classification"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(f"sqlite:///{tmp_path / 'pathserve.db'}", tmp_path)
    yield opened
    opened.close()


def served(ledger: Ledger, version: str, action: Action = Action.PROMOTE) -> None:
    """A wish that the worker granted."""
    assert ledger.choices.settle(ledger.choices.wish("m", version, action, "ann").number, Outcome.SERVING)


def test_a_promotion_serves_once_it_is_settled(ledger: Ledger) -> None:
    ledger.choices.note_initial("m", "1", "worker")
    wish = ledger.choices.wish("m", "2", Action.PROMOTE, "ann")
    choices = ledger.choices.read()
    assert (choices.current("m"), choices.pending("m")) == ("1", wish)
    assert (wish.who, wish.action, wish.outcome, wish.settled) == ("ann", Action.PROMOTE, Outcome.PENDING, None)
    assert ledger.choices.settle(wish.number, Outcome.SERVING)
    choices = ledger.choices.read()
    assert (choices.current("m"), choices.pending("m"), choices.before("m")) == ("2", None, "1")
    assert ledger.choices.get(wish.number).settled is not None
    assert choices.current("other") is None


def test_decisions_are_in_the_audit_trail(ledger: Ledger) -> None:
    ledger.choices.note_initial("m", "1", "worker")
    served(ledger, "2")
    ledger.choices.wish("m", "3", Action.PROMOTE, "ann")
    ledger.choices.wish("m", "4", Action.PROMOTE, "bob")
    ledger.choices.retire("m", "1", "ann")
    told = ledger.trail.page(AuditQuery())
    assert [(each.subtype, each.actor, each.entity, each.details["outcome"]) for each in told] == [
        ("model-decided", "worker", "m 1", "serving"),
        ("model-decided", "device:ann", "m 2", "pending"),
        ("model-settled", "worker", "m 2", "serving"),
        ("model-decided", "device:ann", "m 3", "pending"),
        ("model-settled", "worker", "m 3", "refused"),
        ("model-decided", "device:bob", "m 4", "pending"),
        ("model-decided", "device:ann", "m 1", "retired"),
    ]


def test_a_refused_promotion_changes_nothing(ledger: Ledger) -> None:
    ledger.choices.note_initial("m", "1", "worker")
    wish = ledger.choices.wish("m", "2", Action.PROMOTE, "ann")
    ledger.choices.settle(wish.number, Outcome.REFUSED, "Its engine is another one.")
    choices = ledger.choices.read()
    assert (choices.current("m"), choices.pending("m"), choices.before("m")) == ("1", None, None)
    refused = choices.refused("m")
    assert refused is not None
    assert (refused.version, refused.reason) == ("2", "Its engine is another one.")
    served(ledger, "3")
    assert ledger.choices.read().refused("m") is None


def test_the_version_that_served_first_is_noted_once(ledger: Ledger) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda version: ledger.choices.note_initial("m", version, "worker"), "1234"))
    [only] = ledger.choices.read().decisions
    assert (only.action, only.outcome) == (Action.INITIAL, Outcome.SERVING)


def test_rolling_back_goes_back_and_never_forward(ledger: Ledger) -> None:
    ledger.choices.note_initial("m", "1", "worker")
    served(ledger, "2")
    served(ledger, "3")
    for current, before in (("3", "2"), ("2", "1"), ("1", None)):
        choices = ledger.choices.read()
        assert (choices.current("m"), choices.before("m")) == (current, before)
        if before is not None:
            served(ledger, before, Action.ROLLBACK)


def test_a_retired_version_is_passed_over_until_it_is_promoted_again(ledger: Ledger) -> None:
    ledger.choices.note_initial("m", "1", "worker")
    served(ledger, "2")
    served(ledger, "3")
    ledger.choices.retire("m", "2", "ann")
    choices = ledger.choices.read()
    assert [choices.retired("m", version) for version in "123"] == [False, True, False]
    assert (choices.current("m"), choices.before("m")) == ("3", "1")
    served(ledger, "2")
    assert not ledger.choices.read().retired("m", "2")


def test_the_latest_wish_is_the_one_that_counts(ledger: Ledger) -> None:
    first = ledger.choices.wish("m", "2", Action.PROMOTE, "ann")
    second = ledger.choices.wish("m", "3", Action.PROMOTE, "bob")
    other = ledger.choices.wish("n", "3", Action.PROMOTE, "bob")
    assert ledger.choices.get(first.number).outcome is Outcome.REFUSED
    assert ledger.choices.read().pending("m") == second
    assert ledger.choices.read().pending("n") == other
    assert not ledger.choices.settle(first.number, Outcome.SERVING)


def test_the_same_wish_again_is_the_one_that_is_there(ledger: Ledger) -> None:
    with ThreadPoolExecutor(4) as pool:
        wishes = set(pool.map(lambda who: ledger.choices.wish("m", "2", Action.PROMOTE, who), ["ann", "bob"] * 4))
    assert wishes == {ledger.choices.read().pending("m")}
    assert len(ledger.choices.read().decisions) == 1


def test_what_was_promoted_meanwhile_is_not_retired(ledger: Ledger) -> None:
    ledger.choices.note_initial("m", "1", "worker")
    wish = ledger.choices.wish("m", "2", Action.PROMOTE, "ann")
    for version in ("1", "2"):
        with pytest.raises(Conflict, match=f"version {version} of m"):
            ledger.choices.retire("m", version, "bob")
    ledger.choices.settle(wish.number, Outcome.SERVING)
    with pytest.raises(Conflict, match="version 2 of m"):
        ledger.choices.retire("m", "2", "bob")
    ledger.choices.retire("m", "1", "bob")
    assert ledger.choices.read().current("m") == "2"


def test_a_wish_is_settled_once_whoever_races(ledger: Ledger) -> None:
    wish = ledger.choices.wish("m", "2", Action.PROMOTE, "ann")
    with ThreadPoolExecutor(8) as pool:
        outcomes = [Outcome.SERVING, Outcome.REFUSED] * 4
        won = list(pool.map(lambda outcome: ledger.choices.settle(wish.number, outcome), outcomes))
    assert sum(won) == 1
    assert ledger.choices.get(wish.number).outcome is outcomes[won.index(True)]


def test_pins_are_noted_until_the_analysis_ends(ledger: Ledger) -> None:
    ids = [ledger.accept(Order("tissue-classification", ()), operator())[0].analysis.id for _ in range(3)]
    for analysis_id in ids[:2]:
        assert ledger.runs.begin(workflow_id(analysis_id, 1, "fetch"), "w") is not None
        ledger.pin(analysis_id, {"folders": {"m": analysis_id}, "pins": []})
    assert [pins["folders"]["m"] for pins in ledger.pinned()] == ids[:2]
    ledger.pin(ids[0], {"folders": {"m": "anew"}, "pins": []})
    turn = ledger.runs.begin(workflow_id(ids[1], 1, "fetch"), "w")
    assert turn is not None
    ledger.runs.finish(turn, State.COMPLETED)
    assert [pins["folders"]["m"] for pins in ledger.pinned()] == ["anew"]


# With the repository


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_versions(tmp_path_factory.mktemp("models") / "repository")


@pytest.fixture
def repository(twice: Path, tmp_path: Path) -> ModelRepository:
    """One that a test may change."""
    return ModelRepository(shutil.copytree(twice, tmp_path / "repository"))


def choices(ledger: Ledger, version: str) -> Choices:
    served_now = ledger.choices.wish(MODEL, version, Action.PROMOTE, "ann")
    ledger.choices.settle(served_now.number, Outcome.SERVING)
    return ledger.choices.read()


def test_without_a_decision_the_lowest_approved_version_serves(repository: ModelRepository, ledger: Ledger) -> None:
    assert serving(MODEL, Choices(), repository) == "1"
    seal(repository.path / MODEL, state="BUILT")
    assert serving(MODEL, Choices(), repository) == "2"
    # A decision stands whatever lies in the repository: a version that appears later never serves by itself.
    ledger.choices.note_initial(MODEL, "1", "worker")
    assert serving(MODEL, ledger.choices.read(), repository) == "1"
    assert serving(MODEL, choices(ledger, "2"), repository) == "2"
    with pytest.raises(ModelNotLoaded, match="no model nothing"):
        serving("nothing", Choices(), repository)


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes()[:99])])
def test_a_first_version_with_a_damaged_gate_is_not_passed_over(
    repository: ModelRepository, damage: Callable[[Path], object]
) -> None:
    damage(repository.path / MODEL / "gate.json")
    assert serving(MODEL, Choices(), repository) == "1"
    with pytest.raises(ModelRefused, match=r"^The model tissue_classification is refused: its gate\.json"):
        repository.check(MODEL)


def test_where_none_is_approved_the_lowest_is_asked_for_and_refused(repository: ModelRepository) -> None:
    for version in (MODEL, f"{MODEL}-v2"):
        seal(repository.path / version, state="PARSED")
    assert serving(MODEL, Choices(), repository) == "1"


def test_what_is_loaded(repository: ModelRepository, ledger: Ledger) -> None:
    first = Wanted.now(Choices(), (), repository)
    assert first.folders == ("tile_encoder", "tissue_head", MODEL)
    # The head, a step and nothing else, has no choice of its own.
    assert first.current == first.initial == {MODEL: MODEL, "tile_encoder": "tile_encoder"}
    ledger.choices.note_initial(MODEL, "1", "worker")
    ledger.choices.wish(MODEL, "2", Action.PROMOTE, "ann")
    wished = Wanted.now(ledger.choices.read(), (), repository)
    assert set(wished.folders) == {"tile_encoder", "tissue_head", MODEL, "tissue_head-v2", f"{MODEL}-v2"}
    assert f"{MODEL}-v2" not in wished.serving
    second = choices(ledger, "2")
    assert Wanted.now(second, (), repository).folders == ("tile_encoder", "tissue_head-v2", f"{MODEL}-v2")
    old = Pins.of({MODEL: MODEL}, repository).to_json()
    draining = Wanted.now(second, (old,), repository)
    assert set(draining.folders) == {"tile_encoder", "tissue_head-v2", f"{MODEL}-v2", "tissue_head", MODEL}
    items = listed(draining, {}, None, repository)
    assert not any(each["ready"] for each in items), "nothing is loaded yet"
    states = {(each["name"], each["version"]): each["state"] for each in items}
    assert states == {
        ("tile_encoder", "1"): "pending",
        ("tissue_head", "1"): "draining",
        ("tissue_head", "2"): "pending",
        (MODEL, "1"): "draining",
        (MODEL, "2"): "pending",
    }


def test_an_ensemble_that_names_no_folder_as_its_step_keeps_none_from_being_listed(
    repository: ModelRepository,
) -> None:
    folder = repository.path / f"{MODEL}-v2"
    config = folder / "config.pbtxt"
    config.write_text(config.read_text().replace("tissue_head-v2", "../tissue_head"))
    seal(folder)
    items = {each["folder"]: each for each in listed(Wanted.now(Choices(), (), repository), {}, None, repository)}
    assert set(items) == {"tile_encoder", "tissue_head", "tissue_head-v2", MODEL, folder.name}
    with pytest.raises(ModelRefused, match=rf"{folder.name} .* a step is no name of a model folder"):
        repository.contract(folder.name)


def test_versions_that_stand_by_say_what_keeps_them_from_serving(repository: ModelRepository, ledger: Ledger) -> None:
    items = listed(Wanted.now(Choices(), (), repository), {}, None, repository)
    reasons = {each["folder"]: each["reason"] for each in items if each["state"] == "standby"}
    assert reasons == {
        "tissue_head-v2": f"It does not serve; promote a version of {MODEL} with it.",
        f"{MODEL}-v2": "It does not serve; promote it.",
    }
    seal(repository.path / f"{MODEL}-v2", state="PARSED")
    ledger.choices.retire("tissue_head", "2", "ann")
    items = listed(Wanted.now(ledger.choices.read(), (), repository), {}, "No worker.", repository)
    found = {each["folder"]: (each["state"], each["ready"], each["reason"]) for each in items}
    assert found[MODEL] == ("pending", False, "No worker.")
    assert found["tissue_head-v2"] == ("retired", False, "It was retired.")
    state, ready, reason = found[f"{MODEL}-v2"]
    assert (state, ready) == ("standby", False)
    assert "never executed" in reason


def test_what_changes_is_said_and_another_form_is_refused(repository: ModelRepository) -> None:
    head = repository.path / "tissue_head-v2"
    assert changes(repository, "tissue_head", head.name) == ()
    card = read(head, "card.json")
    card["labels"][0]["code"] = {"code": "118957004", "scheme": "SCT", "display": "Fat"}
    card["operating_points"][0]["min_probability"] = 0.6
    card["mpp"] = 0.25
    write(head, "card.json", card)
    seal(head)
    tiles, codes, points = changes(repository, "tissue_head", head.name)
    assert "0.5 µm before" in tiles
    assert "0.25 µm after" in tiles
    assert "new Fat" in codes
    assert "0.7 before" in points
    with pytest.raises(ModelRefused, match="another kind"):
        changes(repository, "tile_encoder", "tissue_head")


# In a case


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> FolderArchive:
    folder = tmp_path_factory.mktemp("archive")
    write_phantom(folder, kind="he", width_px=600, height_px=600, seed=3)
    return FolderArchive(folder)


@pytest.fixture(scope="module")
def triton(twice: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A Triton on a repository that tests change only by adding and removing version 2 or 3."""
    repository = shutil.copytree(twice, tmp_path_factory.mktemp("served") / "repository")
    settings = Settings(state=tmp_path_factory.mktemp("work") / "state", model_repository=repository)
    with held_triton(settings):
        yield settings


class Case:
    """One analysis; each step by a new `CaseRun`, as after a kill."""

    def __init__(self, settings: Settings, slides: FolderArchive, folder: Path, ledger: Ledger) -> None:
        self.settings, self.slides, self.folder, self.ledger = settings, slides, folder, ledger
        self.noted: list[Pins] = []

    async def step(self, name: str) -> None:
        order = Order("tissue-classification", case_of(self.slides.entries()))
        run = CaseRun(
            "an-analysis",
            order,
            self.folder,
            settings=self.settings,
            archive=self.slides,
            choices=self.ledger.choices.read,
            note_pins=self.noted.append,
            released=None,
        )
        await getattr(run, name)()

    def report(self) -> tuple[list[tuple[str, str]], bool]:
        """The report's models, and whether its tiles were answered by the second version."""
        report = json.loads((self.folder / "artifacts" / "report.json").read_text())
        [tissue] = report["tissue"]
        adipose = next(each for each in tissue["classes"] if each["index"] == 0)
        return [(each["name"], each["version"]) for each in report["models"]], adipose["share"] == 1.0


async def test_what_an_analysis_uses_is_noted_before_it_is_kept_to(
    repository: ModelRepository, slides: FolderArchive, tmp_path: Path
) -> None:
    """A worker that ends between the two leaves no analysis at work with models that the ledger does not know of."""
    noted: list[Pins] = []

    def note(pins: Pins) -> None:
        if not noted:
            noted.append(pins)
            raise Cancelled("The ledger was locked until the worker ended.")
        noted.append(pins)

    def run() -> CaseRun:
        settings = Settings(state=tmp_path / "state", model_repository=repository.path)
        order = Order("tissue-classification", case_of(slides.entries()))
        case = tmp_path / "case"
        return CaseRun("an-analysis", order, case, settings=settings, archive=slides, note_pins=note, released=None)

    with pytest.raises(Cancelled):
        await run().fetch()
    await run().fetch()
    assert len(noted) == 2
    assert Pins.from_json(json.loads((tmp_path / "case" / "models.json").read_text())) == noted[-1]


@pytest.fixture
def case(triton: Settings, slides: FolderArchive, tmp_path: Path, ledger: Ledger) -> Case:
    return Case(triton, slides, tmp_path / "analysis", ledger)


FIRST = [("tile_encoder", "1"), ("tissue_head", "1"), (MODEL, "1")], False
SECOND = [("tile_encoder", "1"), ("tissue_head", "2"), (MODEL, "2")], True


@pytest.mark.triton
async def test_an_analysis_keeps_the_versions_that_it_began_with(case: Case, ledger: Ledger) -> None:
    await case.step("fetch")
    choices(ledger, "2")
    for step in ("fetch", "infer", "infer", "report"):  # each may be repeated after a kill
        await case.step(step)
    assert case.report() == FIRST
    assert [pins.folders for pins in case.noted] == [{MODEL: MODEL}]


@pytest.mark.triton
async def test_the_next_one_uses_what_was_promoted(case: Case, ledger: Ledger) -> None:
    choices(ledger, "2")
    for step in ("fetch", "infer", "report"):
        await case.step(step)
    assert case.report() == SECOND
    pinned = Pins.from_json(json.loads((case.folder / "models.json").read_text()))
    assert [(pin.model, pin.version) for pin in pinned.pins] == SECOND[0]


@pytest.mark.triton
@pytest.mark.parametrize("done", [1, 2], ids=["before its tiles", "after its tiles"])
async def test_where_a_version_vanished_all_tiles_are_computed_anew(
    case: Case, ledger: Ledger, triton: Settings, twice: Path, done: int
) -> None:
    second = triton.model_repository / f"{MODEL}-v2"
    choices(ledger, "2")
    for step in ("fetch", "infer")[:done]:
        await case.step(step)
    shutil.rmtree(second)
    try:
        choices(ledger, "1")
        for step in ("infer", "report")[done - 1 :]:
            await case.step(step)
        assert case.report() == FIRST
        assert [pins.folders[MODEL] for pins in case.noted] == [f"{MODEL}-v2", MODEL]
    finally:
        shutil.copytree(twice / second.name, second)


@pytest.mark.triton
async def test_rows_of_an_earlier_release_are_computed_anew(case: Case) -> None:
    """The gateway was upgraded between the steps: rows held less before."""
    for step in ("fetch", "infer"):
        await case.step(step)
    [rows] = case.folder.glob("tiles/*/tiles.bin")
    whole = rows.read_bytes()
    rows.unlink()
    with TileStore.open(rows, belongs_to={"plan": "as before"}, width=9) as store:
        store.append(np.zeros((4, 9), np.float32))
    await case.step("report")
    assert case.report() == FIRST
    assert rows.read_bytes() == whole


@pytest.mark.triton
async def test_where_a_card_was_changed_the_report_has_one_card(
    case: Case, ledger: Ledger, triton: Settings, twice: Path
) -> None:
    second = triton.model_repository / f"{MODEL}-v2"
    choices(ledger, "2")
    await case.step("fetch")
    await case.step("infer")
    try:
        write(second, "card.json", read(second, "card.json") | {"title": "Another title"})
        with pytest.raises(ModelRefused, match="card"):
            await case.step("report")
        seal(second)
        await case.step("report")
        assert case.report() == SECOND
        assert len(case.noted) == 2
    finally:
        shutil.rmtree(second)
        shutil.copytree(twice / second.name, second)


@pytest.mark.triton
async def test_without_a_server_the_choice_of_the_state_folder_counts(
    triton: Settings, slides: FolderArchive, tmp_path: Path
) -> None:
    async def models_of(out: Path) -> list[tuple[str, str]]:
        out.mkdir()
        await analyze(Order("tissue-classification", case_of(slides.entries())), slides, out, triton, lambda _: None)
        report = json.loads((out / "report.json").read_text())
        return [(each["name"], each["version"]) for each in report["models"]]

    assert await models_of(tmp_path / "first") == FIRST[0]
    assert not (triton.state / "pathserve.db").exists()
    ledger = Ledger.open(triton.ledger_url, triton.state)
    choices(ledger, "2")
    ledger.close()
    assert await models_of(tmp_path / "second") == SECOND[0]
