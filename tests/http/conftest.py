"""The API in this process, over a real ledger; no worker: the tests move the analyses themselves."""

import contextlib
import copy
import shutil
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from gateway.analyses.ledger import Ledger
from gateway.analyses.ledger.turns import Turn, workflow_id
from gateway.domain.analysis import Failure, State
from gateway.domain.identity import Difference, Problem
from gateway.domain.principal import Principal, PrincipalKind, Scope
from gateway.domain.report import ReportState
from gateway.domain.revision import Revision
from gateway.http.app import create_app
from gateway.operations.audit.table import AUDIT
from gateway.operations.auth import ApiKey
from gateway.operations.settings import Settings

KEY = "the-key"
ORDER: dict[str, Any] = {
    "protocol": "tissue-classification",
    "specimens": [{"container": "C-1", "stain": "HE", "slides": [{"study": "1.2.3", "series": ["1.2.3.4"]}]}],
}


FILES = {
    "report.json": b'{"schema_version": "1.0"}',
    "report.html": b"<!doctype html><title>Report</title>",
    "report.sr.dcm": b"\0" * 128 + b"DICM",
    "report.pdf": b"%PDF-1.7",
    "tissue-1.seg.dcm": b"\0" * 128 + b"DICM",
    "tissue-1.geojson": b'{"type": "FeatureCollection", "features": []}',
    "tissue-map-1.png": b"\x89PNG",
}


@pytest.fixture
def order() -> dict[str, Any]:
    return copy.deepcopy(ORDER)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture(scope="package")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new database, made once."""
    folder = tmp_path_factory.mktemp("migrated")
    Ledger.open(f"sqlite:///{folder / 'pathserve.db'}", folder).close()
    return folder / "pathserve.db"


@pytest.fixture
def ledger(state: Path, migrated: Path) -> Iterator[Ledger]:
    state.mkdir()
    shutil.copy(migrated, state)
    opened = Ledger.open(f"sqlite:///{state / 'pathserve.db'}", state)
    yield opened
    opened.close()


def settings_of(state: Path, **more: Any) -> Settings:
    return Settings(state=state, model_repository=state / "models", login_limit=100_000, rate_limit=100_000, **more)


@pytest.fixture
async def stranger(state: Path, ledger: Ledger) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a key."""
    app, _ = create_app(settings_of(state), ledger, ApiKey.of(KEY))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://pathserve") as client:
        yield client


@pytest.fixture
async def client(stranger: httpx.AsyncClient) -> httpx.AsyncClient:
    stranger.headers["Authorization"] = f"Bearer {KEY}"
    return stranger


class Hand:
    """Moves accepted analyses as a worker would, step by step."""

    def __init__(self, ledger: Ledger, state: Path) -> None:
        self._ledger = ledger
        self._state = state

    def begin(self, analysis_id: str) -> Turn:
        """The analysis is running; its turn."""
        record = self._ledger.get(analysis_id)
        turn = self._ledger.runs.begin(workflow_id(analysis_id, record.run, record.stage), "w")
        assert turn is not None
        return turn

    def pause(self, turn: Turn) -> None:
        self._ledger.runs.give_back(turn.analysis, turn.worker, turn.attempt)

    def report(self, analysis_id: str) -> None:
        """Its report is made; the analysis waits for its delivery."""
        self._ledger.runs.advance(self.begin(analysis_id))
        artifacts = self._state / "analyses" / analysis_id / "artifacts"
        artifacts.mkdir(parents=True)
        artifacts.with_name("headers").mkdir()
        for name, content in FILES.items():
            (artifacts / name).write_bytes(content)
        revision = Revision(
            analysis_id=analysis_id,
            number=1,
            state=ReportState.PRELIMINARY,
            folder="artifacts",
            report_sha256="0" * 64,
            documents=("1.2.3.9",),
            made=datetime.now(UTC),
        )
        self._ledger.runs.reported(self.begin(analysis_id), revision)

    def complete(self, analysis_id: str) -> None:
        self.report(analysis_id)
        assert self._ledger.runs.complete_delivered(0.0) == (analysis_id,)

    def revise(self, analysis_id: str, by: Principal) -> None:
        """A person's revision, as signing makes it."""
        number = self._ledger.revisions.get(analysis_id).number + 1
        folder = self._state / "analyses" / analysis_id / "revisions" / str(number)
        folder.mkdir(parents=True)
        for name in ("report.json", "report.html", "report.sr.dcm"):
            (folder / name).write_bytes(f"revision {number}".encode())
        revision = Revision(
            analysis_id=analysis_id,
            number=number,
            state=ReportState.FINAL,
            folder=f"revisions/{number}",
            report_sha256="1" * 64,
            documents=(f"1.2.3.9.{number}",),
            made=datetime.now(UTC),
            by=by.subject,
            by_name=by.name,
        )
        self._ledger.revisions.publish(by, revision, self._ledger.outbox, lambda: None, amended=False)

    def fail(self, analysis_id: str, reason: str, detail: str) -> None:
        self._ledger.runs.finish(self.begin(analysis_id), State.FAILED, Failure(reason, detail))

    def hold(self, analysis_id: str) -> None:
        difference = Difference("PatientID", "1.2.3.4", Problem.DIFFERS, "d" * 64)
        self._ledger.runs.hold(self.begin(analysis_id), [difference])


@pytest.fixture
def hand(ledger: Ledger, state: Path) -> Hand:
    return Hand(ledger, state)


def audited(ledger: Ledger) -> list[dict[str, Any]]:
    """All records of the audit trail, oldest first."""
    with ledger._engine.connect() as connection:
        return [dict(row) for row in connection.execute(sa.select(AUDIT).order_by(AUDIT.c.seq)).mappings()]


def principal(*scopes: Scope, kind: PrincipalKind = PrincipalKind.PERSON, tenant: str = "default") -> Principal:
    return Principal(f"{kind.value}:somebody", kind, tenant, frozenset(scopes), name="Somebody", address="127.0.0.1")


@contextlib.asynccontextmanager
async def calling_as(state: Path, ledger: Ledger, by: Principal) -> AsyncIterator[httpx.AsyncClient]:
    """A client that the server takes for this principal."""
    app, context = create_app(settings_of(state), ledger, ApiKey.of(KEY))
    context.access.authenticator.known = lambda *_: by  # type: ignore[method-assign]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://pathserve") as client:
        yield client
