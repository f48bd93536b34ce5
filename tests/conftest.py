"""What all tests share: where the data lie, and the one slide of the repository."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog

if TYPE_CHECKING:
    from tests.support.postgres import Postgres
    from tests.support.segmenting import SegmentSite

# gRPC's handlers of forks abort a child whose parent has threads in gRPC, as this process has in some tests.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

ROOT = Path(__file__).parents[1]


def data_path(*parts: str) -> Path:
    """A file or folder of the public data sets; skips the test, with a reason, where it is absent."""
    base = Path(os.environ.get("PATHSERVE_DATA", ROOT.parent / "shared" / "data"))
    path = base.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"data set not present: {'/'.join(parts)} (set PATHSERVE_DATA)")
    return path


@pytest.fixture(autouse=True, scope="session")
def plain_logs() -> Iterator[None]:
    """Without this, structlog draws every expected exception with all its frames' variables: seconds each."""
    structlog.configure(processors=[structlog.processors.KeyValueRenderer()])
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def cmu_slide() -> Path:
    """The CC0 CMU small region as a folder of DICOM files: H&E, 2,220 × 2,967 pixels at 0.499 µm."""
    return ROOT / "tests" / "data" / "cmu_small_he"


@pytest.fixture(scope="session")
def metaplasia_slide() -> Path:
    """H&E of the stomach, 13,198 × 11,685 pixels at 0.5 µm (outside the repository)."""
    return data_path("slides", "metaplasia_he")


@pytest.fixture(scope="session")
def segments(cmu_slide: Path, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[SegmentSite]":
    """One site that segments by words, for the tests of every door."""
    from tests.support.segmenting import segment_site

    with segment_site(tmp_path_factory.mktemp("segments"), cmu_slide) as site:
        yield site


@pytest.fixture(scope="session")
def postgres_server() -> "Iterator[Postgres]":
    """One PostgreSQL for all tests that do not stop it."""
    # Not every environment of the tests has its client.
    from tests.support.postgres import running_postgres

    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres_server: "Postgres", tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a database with our tables, migrated once, to be copied."""
    from gateway.operations.database import open_database

    url = postgres_server.new_database()
    open_database(url, tmp_path_factory.mktemp("template")).dispose()
    return url


@pytest.fixture
def postgres(postgres_server: "Postgres", postgres_template: str) -> Iterator[str]:
    """The URL of a database with our tables, and nothing in them."""
    url = postgres_server.new_database(postgres_template)
    yield url
    postgres_server.drop(url)


@pytest.fixture
def empty_postgres(postgres_server: "Postgres") -> Iterator[str]:
    """The URL of a database without tables."""
    url = postgres_server.new_database()
    yield url
    postgres_server.drop(url)
