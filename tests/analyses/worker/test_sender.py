"""One try of a delivery: the right patient first, every object once and in order, and every end written down."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pydicom
import pytest

from gateway.analyses.ledger import Ledger
from gateway.analyses.ledger.revisions import first_revision
from gateway.analyses.ledger.schema import ANALYSES
from gateway.analyses.worker.sender import Sender
from gateway.archive import FolderArchive
from gateway.domain.analysis import State
from gateway.domain.delivery import Delivery, DeliveryState
from gateway.domain.order import Order, Patient, SlideReference, Specimen
from gateway.operations.errors import ArchiveRefused, ArchiveUnavailable, DatabaseUnavailable, InvalidSetting
from gateway.operations.operator import operator
from gateway.operations.settings import Settings
from tests.delivery.receiver import SECRET, Receiver, running_receiver
from tests.reports.conftest import (
    COMMITTED,
    encoded,
    header_of,
    reading_of,
    report_of,
    result_of,
    source_of,
    volume_headers,
)

OBJECTS = [f"tissue-1.{kind}.dcm" for kind in ("seg", "pm", "ann")] + [
    f"report.{kind}.dcm" for kind in ("sr", "pdf", "ko")
]
IMAGE = volume_headers(COMMITTED)[0]
HEADER = header_of(IMAGE)


def order_of(**more: object) -> Order:
    """The order of the committed slide, as its header has it."""
    slides = (SlideReference(HEADER.study_uid, (HEADER.series_uid,)),)
    order = Order(
        "tissue-classification",
        (Specimen(slides=slides, container=HEADER.container_id),),
        accession=HEADER.accession,
        patient=Patient(HEADER.patient_id),
    )
    return replace(order, **more)  # type: ignore[arg-type]


class Watched(FolderArchive):
    """A folder that remembers what it was given, and fails on demand: `failing[n]` before its n-th store."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.root = folder
        self.stored: list[str] = []
        self.failing: dict[int, Exception] = {}
        self.tried = 0

    def store(self, files: Sequence[Path]) -> None:
        self.tried += 1
        if error := self.failing.get(self.tried):
            raise error
        super().store(files)
        self.stored += [file.name for file in files]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    slide = reading_of(IMAGE)
    result = result_of(slide)
    report = replace(report_of([slide], [result]), order=order_of())
    folder = tmp_path_factory.mktemp("artifacts")
    for name, data in encoded(report, [source_of(IMAGE, result)])[1].items():
        (folder / name).write_bytes(data)
    return folder


@dataclass
class House:
    """A ledger, an archive and a sender, with one analysis whose report waits to be stored."""

    state: Path
    settings: Settings
    archive: Watched
    analysis: str = ""
    ledger: Ledger = field(init=False)

    def __post_init__(self) -> None:
        url = f"sqlite:///{self.state / 'pathserve.db'}"
        self.ledger = Ledger.open(url, self.state, self.settings.webhooks)

    @property
    def pacs(self) -> Path:
        return self.archive.root

    @property
    def folder(self) -> Path:
        return self.state / "analyses" / self.analysis / "artifacts"

    def place(self, artifacts: Path) -> None:
        self.analysis = self.ledger.accept(order_of(), operator())[0].analysis.id
        shutil.copytree(artifacts, self.folder)
        running = {"state": State.RUNNING.value, "stage": "deliver"}
        with self.ledger._write() as connection:
            connection.execute(ANALYSES.update().values(**running))
            self.ledger.revisions.add(connection, first_revision(self.analysis, self.folder))
            self.ledger.outbox.add_stow(connection, self.analysis, 1)

    def attempt(self, stopped: Callable[[], bool] = lambda: False) -> Delivery:
        """Make the next try, and say how the row stands then."""
        sender = Sender(self.settings, self.ledger, self.archive, "w-1")
        due = self.ledger.outbox.due(1)[0]
        sender.attempt(due.workflow, stopped)
        return next(each for each in self.ledger.outbox.listing() if each.id == due.id)


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with running_receiver() as running:
        yield running


@pytest.fixture
def house(tmp_path: Path, artifacts: Path) -> Iterator[House]:
    shutil.copytree(COMMITTED, tmp_path / "pacs" / "slide")
    settings = Settings(state=tmp_path / "state", delivery_attempts=3, delivery_delay_s=0.0)
    (tmp_path / "state").mkdir()
    made = House(settings.state, settings, Watched(tmp_path / "pacs"))
    made.place(artifacts)
    yield made
    made.ledger.close()


def steps(house: House) -> list[str]:
    return [each.data["status"] for each in house.ledger.events(house.analysis) if each.kind == "step"]


def test_each_object_is_stored_once_and_the_key_objects_last(house: House) -> None:
    settled = house.attempt()
    assert (settled.state, settled.done, settled.tries) == (DeliveryState.DELIVERED, 6, 1)
    assert house.archive.stored == OBJECTS
    sent = [pydicom.dcmread(path, stop_before_pixels=True) for path in house.pacs.rglob("*.dcm")]
    assert {each.Modality for each in sent} == {"SM", "SEG", "OT", "ANN", "SR", "DOC", "KO"}
    assert len({each.SOPInstanceUID for each in sent}) == len(sent)
    progress = house.ledger.get(house.analysis).progress
    assert progress is not None
    assert (progress.done, progress.total, progress.unit) == (6, 6, "objects")
    assert steps(house) == ["started", "finished"]


def test_a_later_try_goes_on_after_the_last_stored_object(house: House) -> None:
    house.archive.failing = {3: ArchiveUnavailable("The PACS is away.")}
    waiting = house.attempt()
    assert (waiting.state, waiting.done, waiting.reason) == (DeliveryState.PENDING, 2, "archive-unavailable")
    settled = house.attempt()
    assert settled.state is DeliveryState.DELIVERED
    assert house.archive.stored == OBJECTS
    assert steps(house) == ["started", "retry", "started", "finished"]


def test_after_the_last_try_it_is_a_dead_letter_until_it_is_replayed(house: House) -> None:
    house.archive.failing = {number: ArchiveUnavailable("The PACS is away.") for number in (1, 2, 3)}
    states = [house.attempt().state for _ in range(3)]
    assert states == [DeliveryState.PENDING, DeliveryState.PENDING, DeliveryState.DEAD]
    (dead,) = house.ledger.outbox.dead_letters()
    house.ledger.outbox.replay(dead.id, operator())
    assert house.attempt().state is DeliveryState.DELIVERED
    assert house.archive.stored == OBJECTS


def test_what_the_archive_refuses_is_dead_at_once(house: House) -> None:
    house.archive.failing = {2: ArchiveRefused("The PACS did not store tissue-1.pm.dcm.")}
    dead = house.attempt()
    assert (dead.state, dead.reason, dead.tries) == (DeliveryState.DEAD, "archive-refused", 1)
    assert dead.detail == "The PACS did not store tissue-1.pm.dcm."


def test_an_error_of_ours_is_no_end(house: House) -> None:
    house.archive.failing = {1: RuntimeError("a bug")}
    waiting = house.attempt()
    assert (waiting.state, waiting.reason) == (DeliveryState.PENDING, "internal")
    assert "bug" not in str(waiting.detail)


@pytest.mark.parametrize("gone", ["report.json", "report.sr.dcm"])
def test_a_report_that_is_not_whole_is_not_sent(house: House, gone: str) -> None:
    (house.folder / gone).unlink()
    dead = house.attempt()
    assert (dead.state, dead.reason) == (DeliveryState.DEAD, "state")
    assert "gone" in str(dead.detail)
    assert house.archive.stored == []


def test_a_worker_that_stops_gives_it_back_between_two_objects(house: House) -> None:
    given_back = house.attempt(lambda: len(house.archive.stored) == 2)
    assert (given_back.state, given_back.done, given_back.worker) == (DeliveryState.PENDING, 2, None)
    assert house.attempt().state is DeliveryState.DELIVERED
    assert house.archive.stored == OBJECTS


def test_who_was_taken_over_writes_nothing_more(house: House) -> None:
    def taken_over() -> bool:
        if house.archive.stored == OBJECTS[:2]:
            house.ledger.outbox.free("w-1")
        return False

    left = house.attempt(taken_over)
    assert (left.state, left.done, left.worker) == (DeliveryState.PENDING, 2, None)
    assert steps(house) == ["started"]
    # One object more than it could say; the next try stores it again, with no further effect.
    assert house.archive.stored == OBJECTS[:3]
    assert house.attempt().state is DeliveryState.DELIVERED
    assert len(list(house.pacs.glob("**/*.dcm"))) == len(list(COMMITTED.glob("*.dcm"))) + 6


def test_nothing_leaves_for_another_patient(house: House) -> None:
    # The PACS corrected the patient between fetch and deliver.
    for path in (house.pacs / "slide").glob("*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.PatientID = "ANOTHER"
        dataset.save_as(path)
    held = house.attempt()
    assert held.state is DeliveryState.HELD
    assert house.archive.stored == []
    record = house.ledger.get(house.analysis)
    assert record.analysis.state is State.HELD_IDENTITY
    assert [each.attribute for each in record.held] == ["patient id"]
    house.ledger.release(house.analysis, "The PACS was wrong before.", operator())
    # What was made names the patient before the correction: nobody can release that.
    dead = house.attempt()
    assert (dead.state, dead.reason) == (DeliveryState.DEAD, "identity-mismatch")
    assert house.archive.stored == []


def test_what_the_database_does_not_take_is_written_later(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox, failures = house.ledger.outbox, iter((True, True, False))
    delivered = outbox.delivered

    def flaky(delivery: Delivery, seconds: float) -> None:
        if next(failures):
            raise DatabaseUnavailable("The database is away.")
        delivered(delivery, seconds)

    monkeypatch.setattr(outbox, "delivered", flaky)
    assert house.attempt().state is DeliveryState.DELIVERED
    assert house.archive.stored == OBJECTS


def test_webhooks_are_sent_by_the_same_outbox(tmp_path: Path, artifacts: Path, receiver: Receiver) -> None:
    settings = Settings(
        state=tmp_path, webhooks=(receiver.url,), webhook_secrets=(SECRET,), delivery_delay_s=0.0, delivery_attempts=5
    )
    house = House(tmp_path, settings, Watched(tmp_path))
    house.analysis = house.ledger.accept(order_of(), operator())[0].analysis.id
    house.ledger.cancel(house.analysis, operator())
    receiver.fail_with(503, 500)
    states = [house.attempt().state for _ in range(3)]
    assert states == [DeliveryState.PENDING, DeliveryState.PENDING, DeliveryState.DELIVERED]
    (row,) = house.ledger.outbox.of(house.analysis)
    assert receiver.taken() == {row.id: 1}
    assert receiver.received()[-1]["body"]["data"]["state"] == "cancelled"
    house.ledger.close()


def test_wrong_webhooks_stop_a_worker_at_its_start(house: House) -> None:
    settings = house.settings.model_copy(update={"webhooks": ("https://lis.example/",)})
    with pytest.raises(InvalidSetting):
        Sender(settings, house.ledger, house.archive, "w-1")
