"""Registered clients: signed assertions for short tokens, each taken once; certificates; on both databases."""

import hashlib
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.domain.principal import PrincipalKind, Scope
from gateway.operations.auth import Authenticator, GrantRefused
from gateway.operations.auth.clients import Client, Clients
from gateway.operations.auth.grants import PREFIX, Grants
from gateway.operations.auth.refusal import Refused
from gateway.operations.auth.store import Store
from gateway.operations.auth.table import ACCESS_TOKENS, USED_ASSERTIONS
from gateway.operations.errors import (
    Conflict,
    IdentityProviderUnavailable,
    InvalidInput,
    NotFound,
    TooManyRequests,
    Unauthenticated,
    WrongTenant,
)
from gateway.operations.limits import RequestLimit
from tests.operations.access import ADDRESS, authenticator, login, records, refused
from tests.support.oidc_issuer import Issuer, SigningKey, key_set, running_issuer

URL = "https://pathserve.example.org"
AUDIENCE = f"{URL}/oauth/token"
TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
KEY = SigningKey.new("lis-1", "ES384")
RSA_KEY = SigningKey.new("lis-2", "RS384")
SCOPES = frozenset({Scope.ANALYSES_READ, Scope.ANALYSES_WRITE})


@pytest.fixture
def clients(engine: sa.Engine) -> Clients:
    return Clients(Store(engine))


@pytest.fixture
def client(clients: Clients) -> str:
    """A registered client of two keys."""
    name = f"lis-{uuid.uuid4().hex[:8]}"
    shown = {"id": name, "name": "The LIS", "tenant": "north", "scopes": SCOPES}
    clients.add(Client(jwks=key_set(KEY, RSA_KEY), **shown), "device:it")
    return name


@pytest.fixture(scope="module")
def server(engine: sa.Engine) -> Authenticator:
    return authenticator(engine, public_url=URL, login_limit=100_000)


def assertion(client: str, key: SigningKey = KEY, head: dict[str, Any] | None = None, **changes: Any) -> str:
    claims = {
        "iss": client,
        "sub": client,
        "aud": AUDIENCE,
        "jti": uuid.uuid4().hex,
        "exp": int(time.time()) + 240,
        **changes,
    }
    return key.sign({name: value for name, value in claims.items() if value is not None}, **head or {})


def self_signed(ends: datetime) -> bytes:
    """A client's certificate (DER)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "scanner")])
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(ends - timedelta(days=30)).not_valid_after(ends)
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def form(assertion: str, **more: str) -> dict[str, list[str]]:
    found = {
        "grant_type": "client_credentials",
        "client_assertion_type": TYPE,
        "client_assertion": assertion,
        **more,
    }
    return {name: [value] for name, value in found.items()}


@pytest.mark.parametrize("key", [KEY, RSA_KEY], ids=["ES384", "RS384"])
def test_a_token_for_an_assertion(
    server: Authenticator, engine: sa.Engine, clients: Clients, client: str, key: SigningKey
) -> None:
    grant = server.grant(form(assertion(client, key), client_id=client), ADDRESS)
    assert grant.token.startswith(PREFIX)
    assert (grant.expires_s, grant.scope) == (300, "analyses:read analyses:write")
    found = login(server, grant.token)
    assert (found.subject, found.kind, found.tenant) == (f"client:{client}", PrincipalKind.SYSTEM, "north")
    assert (found.scopes, found.name, found.address) == (SCOPES, "The LIS", ADDRESS)
    assert not found.may(Scope.ANALYSES_SIGN)
    # Any server of this database knows it.
    assert login(authenticator(engine, public_url="https://other.example.org"), grant.token).subject == found.subject
    issued = records(engine, "token-issued")[-1]
    assert (issued.actor, issued.tenant, issued.address) == (found.subject, "north", ADDRESS)
    with engine.connect() as connection:
        assert grant.token not in str(connection.execute(sa.select(ACCESS_TOKENS)).all()) + str(issued)


def test_fewer_scopes_on_request(server: Authenticator, client: str) -> None:
    grant = server.grant(form(assertion(client), scope="analyses:read"), ADDRESS)
    assert grant.scope == "analyses:read"
    assert login(server, grant.token).scopes == {Scope.ANALYSES_READ}


def grants_refused(server: Authenticator, engine: sa.Engine, asked: dict[str, list[str]]) -> Any:
    """The record of a token request that has to be refused, with exactly one."""
    before = len(records(engine))
    with pytest.raises(Unauthenticated):
        server.grant(asked, ADDRESS)
    [record] = records(engine)[before:]
    assert record.subtype == "login-refused"
    return record


def test_an_assertion_is_taken_once(server: Authenticator, engine: sa.Engine, client: str) -> None:
    asked = form(assertion(client))
    server.grant(asked, ADDRESS)
    record = grants_refused(server, engine, asked)
    assert (record.detail["reason"], record.actor, record.tenant) == ("replayed", f"client:{client}", "north")
    # Not by many at the same time either, nor by another server.
    both = (server, authenticator(engine, public_url=URL, login_limit=1000))
    asked = form(assertion(client))

    def ask(number: int) -> bool:
        try:
            both[number % 2].grant(asked, ADDRESS)
        except Unauthenticated:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, range(16))) == 1


def test_assertions_that_prove_nothing(server: Authenticator, engine: sa.Engine, clients: Clients, client: str) -> None:
    now = int(time.time())
    stranger = SigningKey("lis-1", "ES384", SigningKey.new("x", "ES384").private)
    other = f"{client}-other"
    clients.add(
        Client(id=other, name=other, tenant="north", scopes=SCOPES, jwks=key_set(SigningKey.new("lis-1"))), "device:it"
    )
    for text, reason in (
        (assertion(client, exp=now - 60), "expired"),
        (assertion(client, exp=now + 3600), "lives-too-long"),
        (assertion(client, exp=10**400), "lives-too-long"),
        (assertion(client, exp=None), "missing-claim"),
        (assertion(client, jti=None), "missing-claim"),
        (assertion(client, jti="j" * 300), "malformed"),
        (assertion(client, jti="a\0b"), "malformed"),
        (assertion(client, jti=7), "malformed"),
        (assertion(client, nbf=now + 3600), "not-yet-valid"),
        (assertion(client, aud="https://other.example.org/oauth/token"), "audience"),
        (assertion(client, aud=URL), "audience"),
        (assertion(client, iss="another"), "issuer"),
        (assertion(other), "unknown-key"),  # the key of another client
        (assertion("nobody"), "unknown"),
        (assertion("' OR 1=1 --"), "unknown"),
        (assertion(client, stranger), "signature"),
        (assertion(client, head={"kid": "lis-9"}), "unknown-key"),
        (assertion(client, head={"typ": "at+jwt"}), "type"),
        (assertion(client, SigningKey.new("lis-1", "EdDSA")), "algorithm"),
        (assertion(client, more="x" * 9000), "too-large"),
        ("no.jwt.this", "malformed"),
        ("", "malformed"),
    ):
        assert grants_refused(server, engine, form(text)).detail == {"credential": "client-assertion", "reason": reason}
    assert grants_refused(server, engine, form(assertion(client), client_id=other)).detail["reason"] == "client-id"
    for asked in (
        {},
        {"client_id": [client], "client_secret": ["x"]},
        form(assertion(client)) | {"client_assertion": []},
    ):
        assert grants_refused(server, engine, asked).detail == {"credential": "none", "reason": "no-assertion"}
    twice = form(assertion(client)) | {"client_assertion": [assertion(client), assertion(client)]}
    assert grants_refused(server, engine, twice).detail["reason"] == "no-assertion"
    assert grants_refused(server, engine, form(assertion(client), client_assertion_type="x")).actor == "unknown"


def test_what_a_known_client_cannot_have(server: Authenticator, client: str) -> None:
    for more, error in (
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({"scope": "analyses:sign"}, "invalid_scope"),
        ({"scope": "admin"}, "invalid_scope"),
        ({"scope": "analyses:read something"}, "invalid_scope"),
        ({"scope": ""}, "invalid_scope"),
    ):
        with pytest.raises(GrantRefused) as raised:
            server.grant(form(assertion(client), **more), ADDRESS)
        assert raised.value.error == error


def test_tokens_end_with_time_and_with_their_client(
    server: Authenticator, engine: sa.Engine, clients: Clients, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.operations.auth.authenticator._REMEMBERED_S", 0.0)
    grant = server.grant(form(assertion(client)), ADDRESS)
    past = datetime.now(UTC) - timedelta(seconds=1)
    with engine.begin() as connection:
        connection.execute(ACCESS_TOKENS.update().where(ACCESS_TOKENS.c.client == client).values(expires=past))
        connection.execute(USED_ASSERTIONS.update().where(USED_ASSERTIONS.c.client == client).values(expires=past))
    record = refused(server, engine, Unauthenticated, grant.token)
    assert (record.detail["reason"], record.actor) == ("expired", f"client:{client}")
    following = server.grant(form(assertion(client)), ADDRESS)
    with engine.connect() as connection:  # what is over is not kept
        for table in (ACCESS_TOKENS, USED_ASSERTIONS):
            kept = connection.execute(sa.select(table).where(table.c.client == client)).all()
            assert len(kept) == 1
    assert login(server, following.token).name == "The LIS"
    clients.revoke(client, "device:it")
    assert refused(server, engine, Unauthenticated, following.token).detail["reason"] == "unknown"
    assert grants_refused(server, engine, form(assertion(client))).detail["reason"] == "unknown"
    with pytest.raises(NotFound):
        clients.revoke("nobody", "device:it")
    # Registered anew: the old token does not come back.
    again = Client(id=client, name="Again", tenant="north", scopes=frozenset({Scope.ANALYSES_READ}), jwks=key_set(KEY))
    clients.add(again, "device:it")
    assert refused(server, engine, Unauthenticated, following.token).actor == "unknown"
    assert login(server, server.grant(form(assertion(client)), ADDRESS).token).scopes == {Scope.ANALYSES_READ}


def test_a_remembered_token_still_ends_in_time(
    server: Authenticator, engine: sa.Engine, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant = server.grant(form(assertion(client)), ADDRESS)
    login(server, grant.token)
    assert server.known(f"Bearer {grant.token}", None, ADDRESS) is not None
    now = time.time()
    monkeypatch.setattr("gateway.operations.auth.authenticator.time.time", lambda: now + 301)
    assert server.known(f"Bearer {grant.token}", None, ADDRESS) is None


def test_keys_that_a_client_publishes(server: Authenticator, engine: sa.Engine, clients: Clients, client: str) -> None:
    name = f"{client}-url"
    with running_issuer(Issuer([KEY])) as place:
        shown = {"id": name, "name": name, "tenant": "north", "scopes": SCOPES}
        clients.add(Client(jwks_url=f"{place.url}/certs", **shown), "device:it")
        assert server.grant(form(assertion(name)), ADDRESS).expires_s == 300
        assert place.asked == ["/realms/hospital/certs"]
        stranger = SigningKey.new("lis-7", "ES384")
        for _ in range(5):
            assert grants_refused(server, engine, form(assertion(name, stranger))).detail["reason"] == "unknown-key"
        assert len(place.asked) == 1
    with pytest.raises(IdentityProviderUnavailable):
        authenticator(engine, public_url=URL).grant(form(assertion(name)), ADDRESS)


def test_a_certificate(server: Authenticator, engine: sa.Engine, clients: Clients) -> None:
    certificate = self_signed(datetime.now(UTC) + timedelta(days=1))
    digest = hashlib.sha256(certificate).hexdigest()
    name = f"scanner-{uuid.uuid4().hex[:8]}"
    shown = {"name": "Scanner", "tenant": "north", "scopes": SCOPES, "certificate_sha256": digest}
    record = refused(server, engine, Unauthenticated, None, certificate)
    assert record.detail == {"credential": "certificate", "reason": "unknown"}
    clients.add(Client(id=name, **shown), "device:it")
    found = server.principal(None, certificate, ADDRESS)
    assert (found.subject, found.kind, found.scopes) == (f"client:{name}", PrincipalKind.SYSTEM, SCOPES)
    # It is no key for assertions, and a wrong token beside it is a wrong token.
    assert grants_refused(server, engine, form(assertion(name))).detail["reason"] == "unknown"
    assert refused(server, engine, Unauthenticated, "guess", certificate).detail["reason"] == "unknown"
    with pytest.raises(Conflict):
        clients.add(Client(id=f"{name}-2", **shown), "device:it")
    clients.revoke(name, "device:it")
    clients.add(Client(id=f"{name}-2", **shown), "device:it")
    assert authenticator(engine).principal(None, certificate, ADDRESS).subject == f"client:{name}-2"
    other = authenticator(engine, tenant="south")
    assert refused(other, engine, WrongTenant, None, certificate).detail["reason"] == "wrong-tenant"


def test_a_certificate_that_ended_on_an_open_connection(
    server: Authenticator, engine: sa.Engine, clients: Clients
) -> None:
    certificate = self_signed(datetime.now(UTC) - timedelta(seconds=1))
    name, digest = f"scanner-{uuid.uuid4().hex[:8]}", hashlib.sha256(certificate).hexdigest()
    clients.add(Client(id=name, name=name, tenant="north", scopes=SCOPES, certificate_sha256=digest), "device:it")
    record = refused(server, engine, Unauthenticated, None, certificate)
    assert (record.actor, record.tenant) == (f"client:{name}", "north")
    assert record.detail == {"credential": "certificate", "reason": "expired"}


def test_a_client_may_not_ask_for_tokens_without_end(engine: sa.Engine, client: str) -> None:
    limit = RequestLimit(2)
    grants = Grants(Store(engine), Clients(Store(engine)), AUDIENCE, limit)

    def used_up() -> None:
        with suppress(TooManyRequests):
            while limit.check(f"client:{client}"):
                pass

    stolen = form(assertion(client))
    assert grants.issue(stolen, ADDRESS).token
    before = len(records(engine))
    used_up()
    with pytest.raises(TooManyRequests):
        grants.issue(form(assertion(client)), ADDRESS)
    assert len(records(engine)) == before
    # Whoever sends a stolen assertion again is refused as ever, and uses nothing up.
    used_up()
    with pytest.raises(Refused, match="replayed"):
        grants.issue(stolen, ADDRESS)


def test_clients_that_are_not_registered(clients: Clients, client: str) -> None:
    before = clients.all()
    good: dict[str, Any] = {"id": "x", "name": "x", "tenant": "north", "scopes": SCOPES, "jwks": key_set(KEY)}
    for changes in (
        {"scopes": frozenset({Scope.ANALYSES_SIGN})},
        {"scopes": frozenset()},
        {"id": "a b"},
        {"id": ""},
        {"id": "x" * 201},
        {"name": "a\0b"},
        {"jwks": None},
        {"jwks_url": "https://keys.example.org"},
        {"jwks": None, "jwks_url": "http://keys.example.org"},
        {"jwks": None, "jwks_url": "https://u:p@keys.example.org"},
        {"jwks": {"keys": []}},
        {"jwks": {"keys": "x"}},
        {"jwks": {"keys": [{**KEY.public, "d": "x"}]}},
        {"jwks": {"keys": [{"kty": "oct", "k": "x"}]}},
        {"jwks": key_set(SigningKey.new("small", "RS256", bits=1024))},
    ):
        with pytest.raises(InvalidInput):
            clients.add(Client(**good | changes), "device:it")
    with pytest.raises(Conflict):
        clients.add(Client(**good | {"id": client}), "device:it")
    assert clients.all() == before
