"""The audit trail on both databases: what goes in comes out, only the end grows, and every damage is found."""

import json
import math
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from gateway.operations.audit import Action, AuditEvent, AuditLife, AuditQuery, AuditTrail, EventType, Outcome, append
from gateway.operations.audit import life as life_module
from gateway.operations.audit.anchors import Anchors
from gateway.operations.audit.canonical import MOST_DETAIL, digest_of
from gateway.operations.audit.evidence import read_only
from gateway.operations.audit.records import BATCH, AuditRecord, records
from gateway.operations.audit.table import AUDIT, AUDIT_HEAD
from gateway.operations.audit.verify import Damage, Verdict, verify
from gateway.operations.database import open_database
from gateway.operations.errors import DiskFull, NotFound, StateError

Database = tuple[str, sa.Engine, Path]


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """URL, engine and state folder of a fresh database."""
    state = tmp_path / "state"
    state.mkdir()
    url = f"sqlite:///{state / 'pathserve.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres")
    engine = open_database(url, state)
    yield url, engine, state
    engine.dispose()


def event(subtype: str = "tested", **more: Any) -> AuditEvent:
    given = {"type": EventType.QUERY, "action": Action.READ, "tenant": "default", "actor": "key:default", **more}
    return AuditEvent(subtype=subtype, **given)


def write(engine: sa.Engine, *events: AuditEvent) -> None:
    with engine.execution_options(ledger_writes=True).begin() as connection:
        append(connection, *events)


def trail(engine: sa.Engine) -> list[AuditRecord]:
    return list(records(engine, AuditQuery(), 2**62))


def checked(database: Database, expected: tuple[int, str] | None = None) -> Verdict:
    url, _, state = database
    with read_only(url) as engine:
        return verify(engine, state, expected)


def tampered(database: Database, *statements: str, **values: Any) -> Verdict:
    """The verdict after somebody with all rights over the database has run these statements."""
    _, engine, _ = database
    with engine.execution_options(ledger_writes=True).begin() as connection:
        if engine.dialect.name == "sqlite":
            for name in ("audit_no_update", "audit_no_delete", "audit_no_replace"):
                connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {name}")
        else:
            connection.exec_driver_sql("ALTER TABLE audit DISABLE TRIGGER ALL")
        for statement in statements:
            connection.execute(sa.text(statement), values)
    return checked(database)


def broken(verdict: Verdict) -> tuple[int, Damage]:
    assert verdict.broken is not None
    assert verdict.broken.sentence.endswith(".")
    return verdict.broken.seq, verdict.broken.damage


def rewrite(engine: sa.Engine, first: int, change: Callable[[dict[str, Any]], None]) -> None:
    """What only the anchors show: record `first` changed, every hash from there on and the head made to fit."""
    with engine.execution_options(ledger_writes=True).begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("DROP TRIGGER audit_no_update")
        else:
            connection.exec_driver_sql("ALTER TABLE audit DISABLE TRIGGER ALL")
        previous = None
        for record in [record for record in trail(engine) if record.seq >= first]:
            row = {name: getattr(record, name) for name in AuditRecord.__slots__}
            if previous is None:
                change(row)
            else:
                row["previous"] = previous
            previous = row["hash"] = digest_of(row)
            written = {name: row[name] for name in ("actor", "previous", "hash")}
            connection.execute(AUDIT.update().where(AUDIT.c.seq == record.seq).values(**written))
        connection.execute(AUDIT_HEAD.update().values(hash=previous))


def test_what_goes_in_comes_out(database: Database) -> None:
    _, engine, _ = database
    detail = {"text": "Größe „µ“ 𝛼", "number": 0.1 + 0.2, "small": 5e-324, "big": 2**62, "none": None, "list": [1, [2]]}
    before = datetime.now(UTC)
    write(engine, event(detail=detail, address="2001:db8::1", entity_kind="analysis", entity="an-1"), event("other"))
    first, second = trail(engine)
    assert first.details == detail
    assert (first.seq, first.address, first.entity_kind, first.entity) == (1, "2001:db8::1", "analysis", "an-1")
    assert (second.seq, second.address, second.entity, second.details) == (2, None, None, {})
    assert second.previous == first.hash
    assert before <= first.time <= datetime.now(UTC)
    assert checked(database) == Verdict(2, second.hash, 0, None)


def test_times_are_kept_to_the_microsecond(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    _, engine, _ = database
    times = [datetime(2026, 1, 1, 12, 0, 0, micro, UTC) for micro in (0, 1, 999_999)]
    for time in times:
        monkeypatch.setattr("gateway.operations.audit.trail.now", lambda time=time: time)
        write(engine, event())
    assert [record.time for record in trail(engine)] == times
    assert checked(database).broken is None


def test_odd_texts_are_bounded_never_refused(database: Database) -> None:
    _, engine, _ = database
    odds = ("\x00NUL", "\ud800 surrogate", "a\nline\r\u2028", "\x1b[31m", "\ufffe", "x" * 5000, "é" * 300)
    for odd in odds:
        columns = dict.fromkeys(("tenant", "actor", "actor_kind", "address", "entity_kind", "entity"), odd)
        write(engine, event(odd, **columns, detail={odd: odd}))
    found = trail(engine)
    assert len(found) == len(odds)
    for record in found:
        for text, most in ((record.actor, 255), (record.tenant, 64), (record.subtype, 64), (record.entity or "", 255)):
            assert 0 < len(text) <= most
            assert text.isprintable()
        assert "\\u0000" not in record.detail
    assert checked(database).broken is None


def test_odd_values_are_bounded_never_refused(database: Database) -> None:
    _, engine, _ = database
    deep = {"a": {"b": {"c": {"d": {"e": 1}}}}}
    for value in (math.nan, math.inf, 10**30, -0.0, deep, {3: 4}, {"z", "y"}, b"bytes", datetime.min, True, Outcome):
        write(engine, event(detail={"value": value}))
    for record in trail(engine):
        assert json.loads(record.detail) == record.details
    assert checked(database).broken is None


def test_details_that_are_too_large_leave_their_names(database: Database) -> None:
    _, engine, _ = database
    write(engine, event(detail={f"name{number}": "x" * 500 for number in range(20)}))
    [record] = trail(engine)
    assert len(record.detail) <= MOST_DETAIL
    assert record.details["too_large"][0] == "name0"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET actor = 'me' WHERE seq = 1",
        "DELETE FROM audit WHERE seq = 1",
        "DELETE FROM audit",
    ],
)
def test_the_table_takes_no_change(database: Database, statement: str) -> None:
    _, engine, _ = database
    write(engine, event(), event())
    with pytest.raises(DBAPIError, match="append-only"), engine.begin() as connection:
        connection.exec_driver_sql(statement)
    assert checked(database).records == 2


def test_a_record_cannot_be_replaced(database: Database) -> None:
    """INSERT OR REPLACE would delete without the trigger of DELETE; PostgreSQL has no such statement, but TRUNCATE."""
    _, engine, _ = database
    write(engine, event())
    statement = (
        "INSERT OR REPLACE INTO audit SELECT * FROM audit" if engine.dialect.name == "sqlite" else "TRUNCATE audit"
    )
    with pytest.raises(DBAPIError, match="append-only"), engine.begin() as connection:
        connection.exec_driver_sql(statement)


def test_a_transaction_that_fails_leaves_no_record(database: Database) -> None:
    _, engine, _ = database
    write(engine, event())
    with engine.execution_options(ledger_writes=True).connect() as connection:
        append(connection, event("never"))
        connection.rollback()
    write(engine, event("after"))
    assert [record.subtype for record in trail(engine)] == ["tested", "after"]
    assert checked(database).broken is None


def test_many_writers_make_one_chain(database: Database) -> None:
    _, engine, _ = database

    def work() -> None:
        for _ in range(20):
            write(engine, event(), event())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    verdict = checked(database)
    assert (verdict.records, verdict.broken) == (160, None)


def test_a_change_of_any_column_is_found(database: Database) -> None:
    _, engine, _ = database
    write(engine, *[event(address="::1", entity_kind="k", entity="e", detail={"a": 1}) for _ in range(5)])
    kept = "CREATE TABLE kept AS SELECT * FROM audit WHERE seq = 3"
    for column in AuditRecord.__slots__:
        if column in ("seq", "hash"):
            continue
        # Written in another way, the same JSON too: what is hashed is the text.
        value = {"detail": '{"a": 1}', "time": "2001-01-01 00:00:00.000001"}.get(column, "x")
        verdict = tampered(database, kept, f"UPDATE audit SET {column} = '{value}' WHERE seq = 3")
        assert broken(verdict) == (3, Damage.CHANGED), column
        restored = f"UPDATE audit SET {column} = (SELECT {column} FROM kept) WHERE seq = 3"
        assert tampered(database, restored, "DROP TABLE kept").broken is None


def test_a_null_made_of_a_text_is_found(database: Database) -> None:
    _, engine, _ = database
    write(engine, event(address="::1"))
    assert broken(tampered(database, "UPDATE audit SET address = NULL")) == (1, Damage.CHANGED)


def test_a_record_hashed_anew_is_found_by_the_next(database: Database) -> None:
    _, engine, _ = database
    write(engine, *[event()] * 5)
    record = trail(engine)[2]
    row = {name: getattr(record, name) for name in AuditRecord.__slots__} | {"actor": "nobody"}
    verdict = tampered(database, "UPDATE audit SET actor = 'nobody', hash = :hash WHERE seq = 3", hash=digest_of(row))
    assert broken(verdict) == (3, Damage.CHANGED)


def test_a_removed_record_is_found(database: Database) -> None:
    _, engine, _ = database
    write(engine, *[event()] * 5)
    assert broken(tampered(database, "DELETE FROM audit WHERE seq IN (2, 3)")) == (2, Damage.MISSING)


def test_a_removed_beginning_is_found(database: Database) -> None:
    _, engine, _ = database
    write(engine, *[event()] * 5)
    assert broken(tampered(database, "DELETE FROM audit WHERE seq = 1")) == (1, Damage.MISSING)


def test_a_cut_end_is_found(database: Database) -> None:
    _, engine, _ = database
    write(engine, *[event()] * 5)
    assert broken(tampered(database, "DELETE FROM audit WHERE seq > 3")) == (4, Damage.CUT)


def test_an_emptied_table_is_found(database: Database) -> None:
    _, engine, _ = database
    write(engine, *[event()] * 5)
    assert broken(tampered(database, "DELETE FROM audit")) == (1, Damage.CUT)


def test_a_lost_head_is_found(database: Database) -> None:
    _, engine, _ = database
    write(engine, *[event()] * 5)
    assert broken(tampered(database, "DELETE FROM audit_head")) == (5, Damage.CUT)


def test_an_inserted_record_is_found(database: Database) -> None:
    _, engine, _ = database
    write(engine, *[event()] * 3)
    columns = ", ".join(name for name in AuditRecord.__slots__ if name != "seq")
    copy = f"INSERT INTO audit (seq, {columns}) SELECT :seq, {columns} FROM audit WHERE seq = 2"
    assert broken(tampered(database, copy, seq=4)) == (4, Damage.CHANGED)
    # Put there past the trigger that moves the head.
    head = "UPDATE audit_head SET seq = 3, hash = (SELECT hash FROM audit WHERE seq = 3)"
    assert broken(tampered(database, "DELETE FROM audit WHERE seq = 4", copy, head, seq=0)) == (0, Damage.INSERTED)


def test_a_genuine_record_after_the_head_is_found(database: Database) -> None:
    _, engine, _ = database
    write(engine, *[event()] * 3)
    verdict = tampered(database, "UPDATE audit_head SET seq = 2, hash = (SELECT hash FROM audit WHERE seq = 2)")
    assert broken(verdict) == (3, Damage.INSERTED)


def test_a_rewritten_trail_is_found_by_an_anchor(database: Database) -> None:
    _, engine, state = database
    write(engine, *[event()] * 5)
    last = trail(engine)[-1]
    Anchors(state).add(last.seq, last.hash)
    write(engine, *[event()] * 2)
    assert checked(database).anchors == 1
    expected = trail(engine)[-1]
    rewrite(engine, 3, lambda row: row.update(actor="nobody"))
    assert broken(checked(database)) == (5, Damage.REWRITTEN)
    (state / "audit-anchors.jsonl").unlink()
    (state / "audit-key").unlink()
    # Who may write the state folder can hide it from this server, not from whoever noted the end elsewhere.
    assert checked(database).broken is None
    assert broken(checked(database, (expected.seq, expected.hash))) == (7, Damage.REWRITTEN)


def test_an_end_cut_with_its_head_is_found_by_an_anchor(database: Database) -> None:
    _, engine, state = database
    write(engine, *[event()] * 5)
    last = trail(engine)[-1]
    Anchors(state).add(last.seq, last.hash)
    cut = (
        "DELETE FROM audit WHERE seq > 3",
        "UPDATE audit_head SET seq = 3, hash = (SELECT hash FROM audit WHERE seq = 3)",
    )
    assert broken(tampered(database, *cut)) == (4, Damage.CUT)


def test_a_forged_anchor_is_found(database: Database) -> None:
    _, engine, state = database
    write(engine, *[event()] * 5)
    Anchors(state).add(5, trail(engine)[-1].hash)
    file = state / "audit-anchors.jsonl"
    file.write_text(file.read_text().replace('"seq": 5', '"seq": 4'))
    assert broken(checked(database))[1] is Damage.ANCHOR
    file.write_text("no anchor\n")
    assert broken(checked(database))[1] is Damage.ANCHOR


def test_a_disk_that_is_full_leaves_no_half_of_an_anchor(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    _, engine, state = database
    write(engine, *[event()] * 2)
    first, second = trail(engine)
    Anchors(state).add(1, first.hash)
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda handle, text, write=os.write: write(handle, text[:40]))
        with pytest.raises(DiskFull):
            Anchors(state).add(2, second.hash)
    assert checked(database).anchors == 1
    Anchors(state).add(2, second.hash)
    assert checked(database).anchors == 2


def test_removed_anchors_are_found(database: Database) -> None:
    _, engine, state = database
    write(engine, event())
    Anchors(state).add(1, trail(engine)[-1].hash)
    (state / "audit-anchors.jsonl").unlink()
    with pytest.raises(StateError, match="anchors"):
        checked(database)


def test_key_and_anchors_are_their_owners_alone(tmp_path: Path) -> None:
    makers = [threading.Thread(target=Anchors(tmp_path).add, args=(number, "0" * 64)) for number in range(8)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {
        "audit-key": "0o600",
        "audit-anchors.jsonl": "0o600",
    }
    anchors = list(Anchors(tmp_path).read())
    assert sorted(anchor.seq for anchor in anchors) == list(range(8))
    assert all(anchor.genuine for anchor in anchors)


def test_a_process_tells_its_life_and_anchors_the_end(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    _, engine, state = database
    monkeypatch.setattr(life_module, "ANCHOR_S", 0.02)

    def write_transaction() -> Any:
        return engine.execution_options(ledger_writes=True).begin()

    kept = AuditTrail(engine.begin, write_transaction)
    with AuditLife(kept, state, "server", "host-1"):
        kept.append(event())
    told = trail(engine)
    assert [record.subtype for record in told] == ["application-started", "tested", "application-stopped"]
    assert [(record.actor, record.entity) for record in told if record.type == "110100"] == [("server", "host-1")] * 2
    assert list(Anchors(state).read())[-1].hash == told[-1].hash
    assert checked(database).anchors >= 1


def test_the_trail_outlives_more_than_a_batch(database: Database) -> None:
    _, engine, _ = database
    write(engine, *[event(detail={"n": number}) for number in range(2 * BATCH + 1)])
    assert checked(database).records == 2 * BATCH + 1
    assert broken(tampered(database, f"UPDATE audit SET actor = 'x' WHERE seq = {BATCH + 7}")) == (
        BATCH + 7,
        Damage.CHANGED,
    )


def test_records_are_found_by_tenant_and_time(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    _, engine, _ = database
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    for hour, tenant in enumerate("aabab"):
        monkeypatch.setattr("gateway.operations.audit.trail.now", lambda hour=hour: begin + timedelta(hours=hour))
        write(engine, event(tenant=tenant))
    query = AuditQuery(tenant="a", since=begin + timedelta(hours=1), until=begin + timedelta(hours=4))
    assert [record.seq for record in records(engine, query, 5)] == [2, 4]
    assert [record.seq for record in records(engine, AuditQuery(), 3)] == [1, 2, 3]


# A copy of a state folder


@pytest.fixture
def copied(tmp_path: Path) -> tuple[str, Path]:
    """URL and state folder of a copy, made in the midst of writing."""
    state, copy = tmp_path / "state", tmp_path / "a copy with 100 % & more"
    state.mkdir()
    engine = open_database(f"sqlite:///{state / 'pathserve.db'}", state)
    write(engine, *[event()] * 5)
    Anchors(state).add(5, trail(engine)[-1].hash)
    shutil.copytree(state, copy)
    assert (copy / "pathserve.db-wal").stat().st_size > 0
    engine.dispose()
    return f"sqlite:///{copy / 'pathserve.db'}", copy


def test_a_copy_is_verified(copied: tuple[str, Path]) -> None:
    url, state = copied
    before = {path.name: path.read_bytes() for path in state.iterdir() if not path.name.endswith("-shm")}
    with read_only(url) as engine:
        verdict = verify(engine, state)
    assert (verdict.records, verdict.anchors, verdict.broken) == (5, 1, None)
    assert {path.name: path.read_bytes() for path in state.iterdir() if not path.name.endswith("-shm")} == before


def test_a_copy_without_its_index_of_the_log_is_verified(copied: tuple[str, Path]) -> None:
    url, state = copied
    (state / "pathserve.db-shm").unlink()
    with read_only(url) as engine:
        assert verify(engine, state).records == 5


def test_a_copy_at_rest_gets_no_file_beside_it(tmp_path: Path) -> None:
    state = tmp_path / "state"
    engine = open_database(f"sqlite:///{state / 'pathserve.db'}", state)
    write(engine, event())
    engine.dispose()
    before = sorted(path.name for path in state.iterdir())
    with read_only(f"sqlite:///{state / 'pathserve.db'}") as found:
        assert verify(found, state).records == 1
        with pytest.raises(DBAPIError), found.begin() as connection:
            connection.exec_driver_sql("DROP TABLE audit_head")
    assert sorted(path.name for path in state.iterdir()) == before


def test_a_row_that_cannot_be_read_is_found(tmp_path: Path) -> None:
    """SQLite keeps anything in any column."""
    state = tmp_path / "state"
    url = f"sqlite:///{state / 'pathserve.db'}"
    engine = open_database(url, state)
    write(engine, *[event()] * 5)
    for column, value in (("actor", "CAST(x'ff' AS TEXT)"), ("time", "'never'"), ("detail", "x'00ff'")):
        with sqlite3.connect(state / "pathserve.db") as connection:
            connection.execute("DROP TRIGGER IF EXISTS audit_no_update")
            kept = connection.execute(f"SELECT {column} FROM audit WHERE seq = 2").fetchone()
            connection.execute(f"UPDATE audit SET {column} = {value} WHERE seq = 2")
        assert broken(checked((url, engine, state))) == (2, Damage.CHANGED)
        with sqlite3.connect(state / "pathserve.db") as connection:
            connection.execute(f"UPDATE audit SET {column} = ? WHERE seq = 2", kept)
    assert checked((url, engine, state)).broken is None
    engine.dispose()


def test_no_trail_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound), read_only(f"sqlite:///{tmp_path / 'pathserve.db'}"):
        pass
    sqlite3.connect(tmp_path / "empty.db").close()
    with pytest.raises(NotFound), read_only(f"sqlite:///{tmp_path / 'empty.db'}"):
        pass
