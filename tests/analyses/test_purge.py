"""`pathserve purge`: afterwards nothing below the state folder names the patient, and everybody else's is untouched."""

import io
import logging
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pydicom
import pytest
import sqlalchemy as sa
from dbos import DBOS, DBOSClient, DBOSConfig, DBOSPortableJSONSerializer

from gateway.analyses import purge as purge_module
from gateway.analyses import purge_command
from gateway.analyses.ledger import Ledger
from gateway.analyses.ledger.schema import ANALYSES, DELIVERIES, FEEDBACK, REVISIONS, STUDIES
from gateway.analyses.purge import Purge
from gateway.archive.cache import FrameCache
from gateway.cli import main
from gateway.domain.analysis import State
from gateway.domain.delivery import DeliveryState
from gateway.domain.order import Order, Patient, SlideReference, Specimen
from gateway.domain.principal import Principal, PrincipalKind, Scope
from gateway.operations.audit import AuditQuery
from gateway.operations.audit.verify import verify
from gateway.operations.database import open_database
from gateway.operations.settings import settings
from tests.support.dicom import dicom_file

CALLER = Principal("person:clerk", PrincipalKind.PERSON, "default", frozenset(Scope))
PATIENT, NAME, OTHER = "PAT-4711-X", "UNMISTAKABLE^NAME", "PAT-0815-Y"
Run = Callable[..., tuple[int, str, str]]


@dataclass
class World:
    """A state folder with analyses of two patients, as a server leaves it."""

    state: Path
    url: str
    engine: sa.Engine
    ledger: Ledger
    studies: dict[str, str] = field(default_factory=dict)

    def analysis(
        self,
        patient: str = PATIENT,
        issuer: str | None = "HOSPITAL",
        state: State = State.COMPLETED,
        study: str | None = None,
        tenant: str = "default",
        delivery: DeliveryState = DeliveryState.DELIVERED,
        age_days: int = 0,
    ) -> str:
        """An analysis with rows in every table, files, and its slide in the cache."""
        study = study or f"1.2.{len(self.studies) + 1}"
        order = Order(
            protocol="tissue-classification",
            specimens=(Specimen(slides=(SlideReference(study, (f"{study}.1",)),), container="C-1"),),
            accession="ACC-1",
            patient=Patient(patient, issuer),
        )
        by = Principal(CALLER.subject, CALLER.kind, tenant, CALLER.scopes)
        record, _ = self.ledger.accept(order, by)
        name = record.analysis.id
        self.studies[name] = study
        now = datetime.now(UTC)
        with self.engine.execution_options(ledger_writes=True).begin() as connection:
            connection.execute(
                ANALYSES.update()
                .where(ANALYSES.c.id == name)
                .values(state=state.value, updated=now - timedelta(days=age_days), failure_detail=f"Of {patient}.")
            )
            revision = {
                **{"analysis_id": name, "number": 1, "state": "preliminary", "folder": "artifacts", "made": now},
                **{"report_sha256": "0" * 64, "documents": []},
            }
            connection.execute(REVISIONS.insert().values(revision))
            row = {
                **{"id": f"d-{name}", "tenant": tenant, "analysis_id": name, "revision": 1, "channel": "stow"},
                **{"target": "archive", "event": "report", "state": delivery.value, "next": now, "created": now},
                "detail": f"The archive knows {patient} otherwise.",
            }
            connection.execute(DELIVERIES.insert().values(row))
            said = {"analysis_id": name, "revision": 1, "verdict": "agree", "by": "person:x", "time": now}
            connection.execute(FEEDBACK.insert().values({**said, "comment": f"Saw {patient}"}))
        artifacts = self.state / "analyses" / name / "artifacts"
        artifacts.mkdir(parents=True)
        (artifacts / "report.json").write_text(f'{{"patient": "{patient}"}}')
        (artifacts.parent / "fetched.json").write_text(f'[{{"study": "{study}", "series": "{study}.1"}}]')
        self.cached(study, patient)
        with closing(self.client()) as client:
            for workflow in (f"{name}.1.fetch", f"{name}.1.infer", f"d-{name}.0.1"):
                options = {"queue_name": "fetch", "workflow_name": "stage", "workflow_id": workflow}
                client.enqueue(options, workflow)
        return name

    def cached(self, study: str, patient: str) -> Path:
        cache = FrameCache(self.state / "cache", 2**30)
        with cache.filling("dicomweb://pacs", study, f"{study}.1", lambda: False) as folder:
            header = pydicom.dcmread(io.BytesIO(dicom_file(study, f"{study}.1", f"{study}.1.1")))
            header.PatientID, header.PatientName = patient, NAME if patient == PATIENT else "SOMEBODY^ELSE"
            header.save_as(folder / "1.dcm")
            return folder

    def client(self) -> "Client":
        return Client(
            system_database_url=self.url if self.url.startswith("postgres") else f"sqlite:///{self.state / 'dbos.db'}",
            serializer=DBOSPortableJSONSerializer(),
        )

    def rows(self) -> dict[str, set[str]]:
        """The analyses that each table has rows of."""
        with self.engine.connect() as connection:
            found = {
                table.name: set(connection.execute(sa.select(table.c.analysis_id)).scalars())
                for table in (REVISIONS, DELIVERIES, FEEDBACK, STUDIES)
            }
            return found | {"analyses": set(connection.execute(sa.select(ANALYSES.c.id)).scalars())}

    def workflows(self) -> set[str]:
        with closing(self.client()) as client:
            return {each.workflow_id for each in client.list_workflows()}

    def naming(self, *words: str) -> list[str]:
        """The files below the state folder in which one of these words stands."""
        files = [path for path in self.state.rglob("*") if path.is_file()]
        return [path.name for path in files if any(word.encode() in path.read_bytes() for word in words)]

    def records(self) -> list[tuple[str, str | None]]:
        told = self.ledger.trail.page(AuditQuery(), limit=1000)
        assert not [record for record in told if PATIENT in f"{record}" or NAME in f"{record}"]
        return [(record.subtype, record.entity) for record in told if "purge" in record.subtype]


class Client(DBOSClient):
    def close(self) -> None:
        self.destroy()


@pytest.fixture(scope="module")
def workflows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workflow engine's database as its first start leaves it."""
    path = tmp_path_factory.mktemp("engine") / "dbos.db"
    launched(f"sqlite:///{path}")
    return path


def launched(url: str) -> None:
    """Have the workflow engine make its tables."""
    serializer = DBOSPortableJSONSerializer()
    DBOS(config=DBOSConfig(name="pathserve", system_database_url=url, serializer=serializer, log_level="WARNING"))
    DBOS.launch()
    DBOS.destroy()


@pytest.fixture
def world(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workflows: Path
) -> Iterator[World]:
    """On SQLite, or where the test asks for it on PostgreSQL."""
    state = tmp_path / "state"
    state.mkdir()
    if getattr(request, "param", "sqlite") == "sqlite":
        url, given = f"sqlite:///{state / 'pathserve.db'}", ""
        shutil.copy(workflows, state)
    else:
        url = given = request.getfixturevalue("postgres")
        launched(url)
    monkeypatch.setattr(logging.root, "handlers", [])  # the command sets its own
    monkeypatch.setenv("PATHSERVE_STATE", str(state))
    monkeypatch.setenv("PATHSERVE_DATABASE_URL", given)
    settings.cache_clear()
    engine = open_database(url, state)
    yield World(state, url, engine, Ledger(engine))
    engine.dispose()
    settings.cache_clear()


on_both = pytest.mark.parametrize("world", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["purge", *arguments])
        return (status, *capsys.readouterr())

    return run


@on_both
def test_nothing_of_a_patient_is_left(world: World, run: Run) -> None:
    gone = {world.analysis(), world.analysis(state=State.FAILED), world.analysis(delivery=DeliveryState.DEAD)}
    stays = world.analysis(OTHER)
    world.cached("9.9", PATIENT)  # by `pathserve analyze`, without an order
    assert world.naming(PATIENT, NAME)
    status, said, complaint = run("--patient", PATIENT, "--yes")
    assert (status, complaint) == (0, "")
    assert PATIENT not in said
    assert list((world.state / "cache").glob(f"*/{world.studies[stays]}/*/1.dcm"))
    assert world.naming(PATIENT, NAME) == []
    assert set().union(*world.rows().values()) == {stays}
    assert world.workflows() == {f"{stays}.1.fetch", f"{stays}.1.infer", f"d-{stays}.0.1"}
    assert [path.name for path in (world.state / "analyses").iterdir()] == [stays]
    told = world.records()
    assert {entity for subtype, entity in told if subtype == "analysis-purged"} == gone
    assert [subtype for subtype, _ in told if subtype != "analysis-purged"] == ["purge-begun", "purge-finished"]
    assert verify(world.engine, world.state).broken is None


def test_a_purge_tells_what_it_would_do(world: World, run: Run) -> None:
    name = world.analysis()
    status, said, _ = run("--patient", PATIENT, "--dry-run")
    assert status == 0
    assert name in said
    status, _, complaint = run("--patient", PATIENT)
    assert (status, "--yes" in complaint) == (1, True)
    assert world.rows()["analyses"] == {name}
    assert world.records() == []


@on_both
def test_blanks_around_an_id_hide_nobody(world: World, run: Run) -> None:
    world.analysis(f"{PATIENT} ", issuer=" HOSPITAL")
    assert run("--patient", PATIENT, "--issuer", "HOSPITAL", "--yes")[0] == 0
    assert world.naming(PATIENT, NAME) == []


@on_both
def test_a_patient_of_another_issuer_stays(world: World, run: Run) -> None:
    own, unknown, other = world.analysis(), world.analysis(issuer=None), world.analysis(issuer="CLINIC")
    assert run("--patient", PATIENT, "--issuer", "HOSPITAL", "--yes")[0] == 0
    assert world.rows()["analyses"] == {other}
    assert {own, unknown} == {entity for subtype, entity in world.records() if subtype == "analysis-purged"}


def test_by_age_tenant_and_name(world: World, run: Run) -> None:
    old, young, foreign = world.analysis(age_days=40), world.analysis(age_days=20), world.analysis(tenant="clinic")
    assert run("--older-than", "30", "--yes")[0] == 0
    assert world.rows()["analyses"] == {young, foreign}
    assert run("--tenant", "clinic", "--yes")[0] == 0
    assert world.rows()["analyses"] == {young}
    assert run("--analysis", young, "--yes")[0] == 0
    assert world.rows()["analyses"] == set()
    assert old not in world.rows()["analyses"]


def test_a_slide_that_another_analysis_reads_stays_in_the_cache(world: World, run: Run) -> None:
    first = world.analysis(study="7.7")
    second = world.analysis(study="7.7")
    assert run("--analysis", first, "--yes")[0] == 0
    assert list((world.state / "cache").glob("*/7.7/7.7.1"))
    assert run("--analysis", second, "--yes")[0] == 0
    assert not list((world.state / "cache").glob("*/7.7"))


@pytest.mark.parametrize(
    ("state", "delivery"),
    [
        (State.ACCEPTED, DeliveryState.DELIVERED),
        (State.HELD_IDENTITY, DeliveryState.DELIVERED),
        (State.COMPLETED, DeliveryState.PENDING),
        (State.COMPLETED, DeliveryState.HELD),
    ],
)
def test_what_has_not_ended_stays_or_is_cancelled(
    world: World, run: Run, state: State, delivery: DeliveryState
) -> None:
    ended, waits = world.analysis(), world.analysis(state=state, delivery=delivery)
    status, _, complaint = run("--patient", PATIENT, "--yes")
    assert status == 1
    assert waits in complaint
    assert ended not in complaint
    assert world.rows()["analyses"] == {waits}
    assert run("--patient", PATIENT, "--yes", "--cancel")[0] == 0
    assert world.naming(PATIENT, NAME) == []


def test_what_is_at_work_is_not_torn_away(world: World, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purge_module, "_CANCEL_S", 0.3)
    name = world.analysis(state=State.RUNNING)
    with world.engine.begin() as connection:
        connection.execute(ANALYSES.update().where(ANALYSES.c.id == name).values(worker="a-worker-that-is-slow"))
    status, _, complaint = run("--patient", PATIENT, "--yes", "--cancel")
    assert status == 1
    assert name in complaint
    assert world.rows()["analyses"] == {name}
    assert world.ledger.get(name).cancel_requested


@on_both
def test_what_is_begun_again_or_signed_while_somebody_is_asked_is_left(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    again, signed, gone = world.analysis(state=State.FAILED), world.analysis(), world.analysis()
    workflows = {each for each in world.workflows() if gone not in each}

    def asked() -> None:
        world.ledger.retry(again, CALLER)
        with world.engine.execution_options(ledger_writes=True).begin() as connection:
            waits = DELIVERIES.update().where(DELIVERIES.c.analysis_id == signed)
            connection.execute(waits.values(state=DeliveryState.PENDING.value))

    monkeypatch.setattr(purge_command, "_ask", asked)
    status, _, complaint = run("--patient", PATIENT)
    assert status == 1
    assert "2 analyses were begun again or signed" in complaint
    assert world.rows()["analyses"] == {again, signed}
    assert {path.name for path in (world.state / "analyses").iterdir()} == {again, signed}
    assert world.workflows() == workflows


@pytest.mark.parametrize("where", ["_drop_slides", "_deliveries", "_remove_rows", "_remove_left_over"])
def test_an_interrupted_purge_is_finished_by_the_next(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    world.analysis(), world.analysis()

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(Purge, where, killed)
        assert run("--patient", PATIENT, "--yes")[0] == 130
    assert run("--patient", PATIENT, "--yes")[0] == 0
    assert world.naming(PATIENT, NAME) == []
    assert world.rows()["analyses"] == set()
    assert world.workflows() == set()


def test_what_another_machine_has_of_a_purged_analysis_goes_with_its_next_purge(world: World, run: Run) -> None:
    name = world.analysis()
    kept = shutil.copytree(world.state / "analyses" / name, world.state.with_name("kept"))
    assert run("--patient", PATIENT, "--yes")[0] == 0
    shutil.copytree(kept, world.state / "analyses" / name)
    world.cached(world.studies[name], PATIENT)
    nobody = world.state / "analyses" / "an-of-nobody"
    nobody.mkdir()
    assert run("--older-than", "36500", "--yes")[0] == 0
    assert world.naming(PATIENT, NAME) == []
    # A folder that the audit trail does not know as purged is not ours to remove: the database may be the wrong one.
    assert nobody.exists()


def test_a_slide_in_use_is_told(world: World, run: Run) -> None:
    name = world.analysis()
    file = next((world.state / "cache").glob(f"*/{world.studies[name]}/*/1.dcm"))
    with FrameCache(world.state / "cache", 2**30).hold([file]):
        status, _, complaint = run("--patient", PATIENT, "--yes")
    assert (status, "being read" in complaint) == (1, True)
    assert run("--patient", PATIENT, "--yes")[0] == 0
    assert world.naming(PATIENT, NAME) == []


def test_a_database_that_is_read_all_the_time_is_told(world: World, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.operations.free_pages._WAIT_S", 0.2)
    world.analysis()
    with closing(sqlite3.connect(world.state / "pathserve.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM analyses").fetchone()
        status, _, complaint = run("--patient", PATIENT, "--yes")
    assert (status, "quieter moment" in complaint) == (1, True)
    assert run("--patient", PATIENT, "--yes")[0] == 0
    assert world.naming(PATIENT, NAME) == []


def test_the_patient_may_come_by_standard_input(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world.analysis()
    line = tmp_path / "line"
    line.write_text(f"{PATIENT}\n")
    with line.open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert run("--patient", "-", "--yes")[0] == 0
    assert world.rows()["analyses"] == set()


@pytest.mark.parametrize("arguments", [("--patient", " "), ("--tenant", "a", "--issuer", "b")])
def test_what_cannot_be_understood_is_told(world: World, run: Run, arguments: tuple[str, ...]) -> None:
    assert run(*arguments, "--yes")[0] == 1
