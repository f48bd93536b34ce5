"""The database: migrated up and down, opened by many at once, and every trouble of it a typed error."""

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import alembic.command
import alembic.config
import psutil
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from gateway.analyses.ledger import AnalysisQuery, Ledger
from gateway.analyses.ledger.schema import METADATA
from gateway.domain.order import Order, Patient, SlideReference, Specimen
from gateway.domain.principal import Principal, PrincipalKind
from gateway.operations import codec, migrations
from gateway.operations.audit.table import AUDIT
from gateway.operations.auth.table import API_KEYS
from gateway.operations.database import database_errors, open_database
from gateway.operations.errors import (
    DatabaseUnavailable,
    DiskFull,
    InvalidSetting,
    PathserveError,
    StateBusy,
    StateError,
    rim_of,
)
from tests.support.disk import largest_file
from tests.support.postgres import Postgres, running_postgres

LIS = Principal("system:lis", PrincipalKind.SYSTEM, "default", frozenset())
KEY_HOLDER = Principal("key:default", PrincipalKind.KEY, "default", frozenset())


def order() -> Order:
    slides = (SlideReference("1.2.3", ("1.2.3.4",)), SlideReference("1.2.3", ("1.2.3.5",)), SlideReference("1.2.4"))
    return Order(
        protocol="tissue-classification",
        specimens=(Specimen(slides=slides, container="C-1"),),
        accession="A-1",
        patient=Patient("P-1", "HOSPITAL"),
    )


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("empty_postgres"))
    return f"sqlite:///{tmp_path / 'pathserve.db'}"


def migrate(engine: sa.Engine, revision: str) -> None:
    """Up or down to a revision, as `open_database` does it."""
    with engine.execution_options(ledger_writes=True).begin() as connection:
        config = alembic.config.Config()
        config.set_main_option("script_location", str(Path(migrations.__path__[0])))
        config.attributes["connection"] = connection
        up = revision > (MigrationContext.configure(connection).get_current_revision() or "")
        (alembic.command.upgrade if up else alembic.command.downgrade)(config, revision)


def tables(engine: sa.Engine) -> dict[str, set[str]]:
    found = sa.inspect(engine)
    return {name: {column["name"] for column in found.get_columns(name)} for name in found.get_table_names()}


# Migrations


def test_the_migrations_make_the_declared_schema(url: str, tmp_path: Path) -> None:
    engine = open_database(url, tmp_path)
    with engine.connect() as connection:
        assert {AUDIT.metadata, API_KEYS.metadata} == {METADATA}
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    engine.dispose()


def test_a_migration_can_be_taken_back(url: str, tmp_path: Path) -> None:
    engine = open_database(url, tmp_path)
    newest = tables(engine)
    migrate(engine, "0002")
    before = tables(engine)
    assert "audit" not in before
    assert "tenant" not in before["analyses"]
    assert before.keys() < newest.keys()
    engine.dispose()
    engine = open_database(url, tmp_path)
    assert tables(engine) == newest
    engine.dispose()


def test_a_ledger_of_the_first_version_is_brought_up_to_date(url: str, tmp_path: Path) -> None:
    engine = open_database(url, tmp_path)
    migrate(engine, "0001")
    analyses = sa.Table("analyses", sa.MetaData(), autoload_with=engine)
    now = sa.func.current_timestamp()
    with engine.execution_options(ledger_writes=True).begin() as connection:
        values = {
            "id": "old",
            "order_json": codec.dumps(order()),
            "protocol": "tissue-classification",
            "priority": "ROUTINE",
            "rank": 2,
            "state": "running",
            "idempotency_key": "key-1",
            "body_sha256": "",
            "created": now,
            "updated": now,
            "cancel_requested": False,
            "delivering": False,
            "attempts": 1,
        }
        connection.execute(analyses.insert().values(**values))
    engine.dispose()

    ledger = Ledger.open(url, tmp_path)
    record = ledger.get("old", "default")
    assert record.analysis.order == order()
    assert (record.tenant, record.caller, record.run, record.stage) == ("default", "key:default", 1, "fetch")
    assert ledger.choices.read().decisions == ()
    for query in (AnalysisQuery(accession="A-1"), AnalysisQuery(patient_id="P-1"), AnalysisQuery(study="1.2.4")):
        assert [each.analysis.id for each in ledger.page("default", query, 10).items] == ["old"]
    # The key is the same caller's still: whoever sends the order again is answered with the analysis.
    with ledger._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE analyses SET body_sha256 = 'x'")
    with pytest.raises(PathserveError, match="Idempotency-Key"):
        ledger.accept(order(), KEY_HOLDER, "key-1")
    assert ledger.accept(order(), LIS, "key-1")[1]
    ledger.close()


def test_many_may_open_a_new_database_at_once(url: str, tmp_path: Path) -> None:
    """Each with a state folder of its own, as machines have: only the database can keep them apart."""
    shared = url.startswith("sqlite")
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda n: Ledger.open(url, tmp_path if shared else tmp_path / str(n)), range(4)))
    for each in opened:
        each.accept(order(), LIS)
    assert [len(each.page("default", AnalysisQuery(), 10).items) for each in opened] == [4, 4, 4, 4]
    for each in opened:
        each.close()


def test_a_ledger_of_a_newer_version_is_a_clear_error(url: str, tmp_path: Path) -> None:
    engine = open_database(url, tmp_path)
    with engine.execution_options(ledger_writes=True).begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'r9999'")
    engine.dispose()
    with pytest.raises(StateError, match="version"):
        Ledger.open(url, tmp_path)


# Addresses and files that are none


@pytest.mark.parametrize("address", ["nonsense", "nosuchdatabase://x/y", "sqlite://", "postgresql://h:port/d", ""])
def test_an_address_that_is_none_is_a_clear_error(tmp_path: Path, address: str) -> None:
    with pytest.raises(InvalidSetting, match="PATHSERVE_DATABASE_URL"):
        open_database(address, tmp_path)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_way_to_write_postgresql_is_psycopg_3(empty_postgres: str, tmp_path: Path, scheme: str) -> None:
    engine = open_database(scheme + empty_postgres.removeprefix("postgresql"), tmp_path)
    with engine.connect() as connection:
        assert connection.dialect.driver == "psycopg"
        names = connection.exec_driver_sql("SELECT DISTINCT application_name FROM pg_stat_activity").scalars().all()
        assert "pathserve" in names
    engine.dispose()


def test_a_state_that_is_no_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot be"):
        open_database(f"sqlite:///{tmp_path / 'file' / 'pathserve.db'}", tmp_path / "file")


def test_a_file_that_is_no_database_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "pathserve.db").write_bytes(b"not a database, but long enough to look at " * 50)
    with pytest.raises(StateError, match="database"):
        open_database(f"sqlite:///{tmp_path / 'pathserve.db'}", tmp_path)


def test_a_full_disk_is_said_to_be_full(tmp_path: Path) -> None:
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'pathserve.db'}", tmp_path)
    ledger.accept(order(), LIS)
    with largest_file(4096), pytest.raises(DiskFull):
        ledger.accept(order(), LIS)
    assert ledger.accept(order(), LIS)[1]
    ledger.close()


# PostgreSQL's troubles


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A cluster that may be stopped."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def ledger(server: Postgres, tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(server.new_database(), tmp_path)
    yield opened
    opened.close()


def test_a_restart_is_not_noticed_and_a_stop_is_said(server: Postgres, ledger: Ledger) -> None:
    analysis_id = ledger.accept(order(), LIS)[0].analysis.id
    for restart in (server.stop, server.kill):
        restart()
        for use in (lambda: ledger.accept(order(), LIS), lambda: ledger.get(analysis_id)):
            began = time.monotonic()
            with pytest.raises(DatabaseUnavailable) as raised:
                use()
            assert time.monotonic() - began < 10.0
            assert raised.value.retryable
            assert raised.value.after_s > 0
            assert rim_of(raised.value).http == 503
            assert "127.0.0.1" not in raised.value.detail
        server.start()
        assert ledger.get(analysis_id).analysis.id == analysis_id
        assert ledger.accept(order(), LIS)[1]


def test_connections_that_are_cut_are_replaced(server: Postgres, ledger: Ledger) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: ledger.accept(order(), LIS), range(16)))
        # With a time it answers when they have ended: a connection cut in the middle of a transaction is an error.
        cut = "SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity WHERE application_name = 'pathserve'"
        assert all(ended for (ended,) in server.execute(cut))
        made = list(pool.map(lambda _: ledger.accept(order(), LIS)[1], range(16)))
    assert all(made)


def test_a_database_that_hangs_is_not_waited_for(
    server: Postgres, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.operations.database._BoundedConnection.answer_s", 0.5)
    assert ledger.statistics().by_state == {}  # the connection is kept
    assert server.process is not None
    main = psutil.Process(server.process.pid)
    processes = [main, *main.children(recursive=True)]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # its own short-lived ones
            process.suspend()
    began = time.monotonic()
    try:
        with pytest.raises(DatabaseUnavailable):
            ledger.statistics()
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
    assert time.monotonic() - began < 20.0  # not for ever: 0.5 s, and 5 s for a new connection
    assert ledger.statistics().by_state == {}


def test_a_database_that_is_not_there_is_unavailable(server: Postgres, tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="answer"):
        open_database(server.url("nosuch"), tmp_path)


def test_waiting_for_a_lock_ends(server: Postgres, ledger: Ledger) -> None:
    """Somebody's forgotten transaction must not hang every order."""
    with ledger._engine.connect() as holder, ledger._engine.connect() as waiting:
        settings = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")
        assert [waiting.exec_driver_sql(f"SHOW {name}").scalar() for name in settings] == ["6s", "12s", "10s"]
        waiting.exec_driver_sql("SET lock_timeout = '200ms'")
        holder.exec_driver_sql("LOCK TABLE analyses")
        with pytest.raises(StateBusy) as raised, database_errors():
            waiting.exec_driver_sql("SELECT count(*) FROM analyses")
        assert raised.value.after_s > 0


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT pg_terminate_backend(pg_backend_pid())", DatabaseUnavailable),
        ("SET LOCAL statement_timeout = '50ms'; SELECT pg_sleep(5)", StateBusy),
        ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '53100'; END $$", DiskFull),
        ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '53300'; END $$", DatabaseUnavailable),
        ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '57P03'; END $$", DatabaseUnavailable),
        ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '25006'; END $$", DatabaseUnavailable),
        ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40P01'; END $$", StateBusy),
        ("DO $$ BEGIN RAISE EXCEPTION 'Mueller' USING ERRCODE = 'P0001'; END $$", StateError),
    ],
)
def test_what_postgresql_says_is_typed(ledger: Ledger, statement: str, expected: type[StateError]) -> None:
    with pytest.raises(StateError) as raised, database_errors(), ledger._engine.begin() as connection:
        connection.exec_driver_sql(statement)
    assert type(raised.value) is expected
    assert "Mueller" not in raised.value.detail


def test_a_locked_sqlite_is_busy(tmp_path: Path) -> None:
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'pathserve.db'}", tmp_path)
    sa.event.listen(ledger._engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout=100"))
    ledger._engine.dispose()
    with closing(sqlite3.connect(tmp_path / "pathserve.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StateBusy):
            ledger.accept(order(), LIS)
        other.execute("ROLLBACK")
    assert ledger.accept(order(), LIS)[1]
    ledger.close()
