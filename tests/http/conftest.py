"""The API in this process, over a real ledger; no worker: the tests move the analyses themselves."""

import copy
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from gateway.analyses.ledger import Ledger
from gateway.domain.analysis import Failure, State
from gateway.http.app import create_app
from gateway.operations.auth import ApiKey
from gateway.operations.settings import Settings

KEY = "the-key"
ORDER: dict[str, Any] = {
    "protocol": "tissue-classification",
    "specimens": [{"container": "C-1", "stain": "HE", "slides": [{"study": "1.2.3", "series": ["1.2.3.4"]}]}],
}


@pytest.fixture(autouse=True, scope="package")
def plain_logs() -> Iterator[None]:
    """Without this, structlog draws every expected exception with all its frames' variables: seconds each."""
    structlog.configure(processors=[structlog.processors.KeyValueRenderer()])
    yield
    structlog.reset_defaults()


@pytest.fixture
def order() -> dict[str, Any]:
    return copy.deepcopy(ORDER)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def ledger(state: Path) -> Iterator[Ledger]:
    opened = Ledger.open(f"sqlite:///{state / 'pathserve.db'}", state)
    yield opened
    opened.close()


@pytest.fixture
async def stranger(state: Path, ledger: Ledger) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a key."""
    app, _ = create_app(
        Settings(state=state, model_repository=state / "models", login_limit=100_000), ledger, ApiKey.of(KEY)
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://pathserve") as client:
        yield client


@pytest.fixture
async def client(stranger: httpx.AsyncClient) -> httpx.AsyncClient:
    stranger.headers["Authorization"] = f"Bearer {KEY}"
    return stranger


@pytest.fixture
def finished(ledger: Ledger, state: Path) -> Callable[..., None]:
    """Brings an accepted analysis to an end as the worker would."""

    def finish(analysis_id: str, end: State = State.COMPLETED, failure: Failure | None = None) -> None:
        assert ledger.claim() == analysis_id
        if end is State.COMPLETED:
            artifacts = state / "analyses" / analysis_id / "artifacts"
            artifacts.mkdir(parents=True)
            for name, content in (
                ("report.json", b'{"schema_version": "1.0"}'),
                ("report.html", b"<!doctype html><title>Report</title>"),
                ("report.sr.dcm", b"\0" * 128 + b"DICM"),
                ("report.pdf", b"%PDF-1.7"),
                ("tissue-1.seg.dcm", b"\0" * 128 + b"DICM"),
                ("tissue-1.geojson", b'{"type": "FeatureCollection", "features": []}'),
                ("tissue-map-1.png", b"\x89PNG"),
            ):
                (artifacts / name).write_bytes(content)
        ledger.finish(analysis_id, end, failure)

    return finish
