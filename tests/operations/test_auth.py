"""API keys: the server's own and further ones; refused logins as records; the limit of an address."""

import stat
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from gateway.domain.principal import PrincipalKind, Scope
from gateway.operations.auth import ApiKey, Authenticator, load_api_key, refusal
from gateway.operations.auth.api_key import HASH_FILE
from gateway.operations.auth.keys import PREFIX, Keys
from gateway.operations.auth.store import Store
from gateway.operations.database import open_database
from gateway.operations.errors import (
    InvalidInput,
    InvalidSetting,
    NotFound,
    StateError,
    TooManyRequests,
    Unauthenticated,
    WrongTenant,
)
from gateway.operations.settings import Settings
from tests.operations.access import ADDRESS, SERVER_KEY, authenticator, login, records, refused

Trail = Callable[..., list[Any]]
READS = frozenset({Scope.ANALYSES_READ})


@pytest.fixture
def trail(engine: sa.Engine) -> Callable[..., list[Any]]:
    """The records since the test began, all or of some subtypes."""
    before = len(records(engine))
    return lambda *subtypes: [row for row in records(engine)[before:] if not subtypes or row.subtype in subtypes]


@pytest.fixture
def keys(engine: sa.Engine) -> Keys:
    return Keys(Store(engine))


def test_a_key_is_generated_once(tmp_path: Path) -> None:
    key, text = load_api_key(None, tmp_path / "state")
    assert text is not None
    assert key.matches(text.encode())
    kept = tmp_path / "state" / HASH_FILE
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert text not in kept.read_text()
    again, shown = load_api_key(None, tmp_path / "state")
    assert shown is None
    assert again.matches(text.encode())


def test_the_configured_key_wins_and_is_not_kept(tmp_path: Path) -> None:
    key, shown = load_api_key(SecretStr("configured"), tmp_path)
    assert shown is None
    assert key.matches(b"configured")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["no hash", "", "abcd\n"])
def test_a_broken_hash_is_a_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / HASH_FILE).write_text(text)
    with pytest.raises(StateError, match=HASH_FILE):
        load_api_key(None, tmp_path)


def test_the_servers_key(engine: sa.Engine, trail: Trail) -> None:
    server = authenticator(engine)
    for scheme in ("Bearer", "bearer", "BEARER"):
        found = server.known(f"{scheme} {SERVER_KEY}", None, ADDRESS)
        assert found is not None
        assert (found.subject, found.kind, found.tenant) == ("key:default", PrincipalKind.KEY, "default")
        assert found.scopes == frozenset(Scope) - {Scope.ANALYSES_SIGN}
        assert not found.may(Scope.ANALYSES_SIGN)
    assert login(authenticator(engine, tenant="north"), SERVER_KEY).tenant == "north"
    for header in (None, "", "Bearer", "Bearer ", f"Bearer {SERVER_KEY} x", f"Basic {SERVER_KEY}", SERVER_KEY):
        assert server.known(header, None, ADDRESS) is None
    assert trail() == []
    # A header's bytes come as Latin-1.
    other = Authenticator(Settings(), engine, ApiKey.of("schlüssel"))
    assert other.known("Bearer " + "schlüssel".encode().decode("latin-1"), None, ADDRESS) is not None


def test_a_further_key(engine: sa.Engine, keys: Keys, trail: Trail) -> None:
    record, text = keys.create("LIS of the north", READS, "north", None, "device:it")
    assert text.startswith(PREFIX)
    assert len(text) == len(PREFIX) + 43
    found = login(authenticator(engine), text)
    assert (found.subject, found.kind, found.tenant) == (f"key:{record.id}", PrincipalKind.KEY, "north")
    assert (found.scopes, found.name, found.address) == (READS, "LIS of the north", ADDRESS)
    [created] = trail()
    assert (created.subtype, created.actor, created.entity) == ("key-created", "device:it", record.id)
    with engine.connect() as connection:
        kept = str(connection.execute(sa.text("SELECT * FROM api_keys")).all()) + str(created)
    assert text not in kept
    assert text.removeprefix(PREFIX) not in kept
    wrong = refused(authenticator(engine), engine, Unauthenticated, text[:-1] + ("a" if text[-1] != "a" else "b"))
    assert (wrong.detail, wrong.actor) == ({"credential": "api-key", "reason": "unknown"}, "unknown")


def test_a_key_that_ended(engine: sa.Engine, keys: Keys, trail: Trail) -> None:
    old, expired = keys.create("old", READS, "north", datetime.now(UTC) - timedelta(seconds=1), "device:it")
    lost, revoked = keys.create("lost", READS, "north", datetime.now(UTC) + timedelta(days=1), "device:it")
    login(authenticator(engine), revoked)
    keys.revoke(lost.id, "device:it")
    keys.revoke(lost.id, "device:it")  # once is enough, and one record
    with pytest.raises(NotFound):
        keys.revoke("none", "device:it")
    for record, text, reason in ((old, expired, "expired"), (lost, revoked, "revoked")):
        found = refused(authenticator(engine), engine, Unauthenticated, text)
        assert (found.detail["reason"], found.actor, found.tenant) == (reason, f"key:{record.id}", "north")
    assert len(trail("key-revoked")) == 1
    shown = {key.id: key for key in keys.all()}
    assert (shown[old.id].revoked is None, shown[lost.id].revoked is None) == (True, False)


def test_a_revocation_reaches_whoever_is_logged_in(
    engine: sa.Engine, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = authenticator(engine)
    record, text = keys.create("x", READS, "default", None, "device:it")
    login(server, text)
    keys.revoke(record.id, "device:it")
    assert login(server, text).name == "x"  # for five seconds at most
    monkeypatch.setattr("gateway.operations.auth.authenticator._REMEMBERED_S", 0.0)
    assert refused(server, engine, Unauthenticated, text).detail["reason"] == "revoked"


def test_a_key_of_another_tenant(engine: sa.Engine, keys: Keys) -> None:
    _, text = keys.create("south", READS, "south", None, "device:it")
    record = refused(authenticator(engine, tenant="north"), engine, WrongTenant, text)
    assert (record.detail["reason"], record.tenant, record.outcome) == ("wrong-tenant", "south", "8")


def test_keys_that_are_not_made(keys: Keys) -> None:
    before = keys.all()
    cases = [("x", {Scope.ANALYSES_SIGN}), ("x", set()), ("", READS), ("a\nb", READS), ("x" * 201, READS)]
    for name, scopes in cases:
        with pytest.raises(InvalidInput):
            keys.create(name, scopes, "north", None, "device:it")
    assert keys.all() == before


def test_a_public_address_that_is_none(engine: sa.Engine) -> None:
    for address in ("pathserve.example.org", "ftp://example.org", "https://", "https://h/?a=b"):
        with pytest.raises(InvalidSetting, match="PATHSERVE_PUBLIC_URL"):
            authenticator(engine, public_url=address)


def test_the_limit_of_an_address(engine: sa.Engine, keys: Keys, trail: Trail) -> None:
    server = authenticator(engine, login_limit=5)
    _, text = keys.create("x", READS, "default", None, "device:it")
    for _ in range(5):
        refused(server, engine, Unauthenticated, "guess")
    for _ in range(20):
        with pytest.raises(TooManyRequests) as limited:
            login(server, "guess")
        assert 1.0 <= limited.value.after_s <= 61.0
    [alert] = trail("logins-limited")
    assert (alert.type, alert.address, alert.detail) == ("110113", ADDRESS, {"a_minute": 5})
    assert len(trail("login-refused")) == 5
    # A whole hospital may come from this address: whoever can log in is not held up.
    assert login(server, text).name == "x"
    assert login(server, SERVER_KEY).subject == "key:default"
    # Others have their own count; an IPv6 host is its whole network.
    with pytest.raises(Unauthenticated):
        login(server, "guess", address="192.0.2.8")
    for number in range(5):
        with pytest.raises(Unauthenticated):
            login(server, "guess", address=f"2001:db8::{number:x}")
    with pytest.raises(TooManyRequests):
        login(server, "guess", address="2001:db8::ffff")
    # IPv4 hosts that are written as IPv6 are hosts of their own, and the same ones.
    for number in range(6):
        with pytest.raises(Unauthenticated):
            login(server, "guess", address=f"::ffff:192.0.2.{number + 100}")
    with pytest.raises(TooManyRequests):
        login(server, "guess", address=f"::ffff:{ADDRESS}")


def test_addresses_are_not_remembered_for_ever(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusal, "_ADDRESSES", 10)
    refusals = refusal.Refusals(Store(engine), a_minute=5)
    for number in range(50):
        refusals.note(refusal.Refused(refusal.Credential.NONE, "none"), f"2001:db8:{number:x}::1")
        assert len(refusals._counts.events) <= 11


def test_refused_logins_of_many_threads(engine: sa.Engine, trail: Trail) -> None:
    server = authenticator(engine, login_limit=30)
    seen: list[str] = []

    def guess() -> None:
        for _ in range(10):
            try:
                login(server, "guess")
            except (Unauthenticated, TooManyRequests) as error:
                seen.append(error.reason)

    threads = [threading.Thread(target=guess) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == ["too-many-requests"] * 20 + ["unauthenticated"] * 30
    assert len(trail("login-refused")) == 30
    assert len(trail("logins-limited")) == 1


def test_a_stranger_stays_outside_whatever_the_database_does(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'pathserve.db'}", tmp_path)
    server = authenticator(engine)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE audit_head"))
    with pytest.raises(Unauthenticated):
        login(server, "guess")
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE api_keys"))
    with pytest.raises(StateError):  # nobody can say whether this one is good
        login(server, f"{PREFIX}guess")
    assert login(server, SERVER_KEY).subject == "key:default"
    engine.dispose()
