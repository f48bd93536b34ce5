"""Tokens of the hospital's identity provider: who they name, and every way in which they are no login."""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

import jwt
import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gateway.domain.principal import PrincipalKind, Scope
from gateway.operations.auth import Authenticator
from gateway.operations.auth.key_sets import FetchedKeys, find_key
from gateway.operations.auth.oidc import IdentityProvider
from gateway.operations.auth.tokens import thumbprint
from gateway.operations.database import open_database
from gateway.operations.errors import (
    Forbidden,
    IdentityProviderUnavailable,
    InvalidSetting,
    Unauthenticated,
    WrongTenant,
)
from gateway.operations.settings import Settings
from tests.operations.access import ADDRESS, SERVER_KEY, authenticator, login, records, refused
from tests.support.oidc_issuer import Issuer, SigningKey, key_set, running_issuer

RSA_KEY = SigningKey.new("rsa", "RS256")
SIGNS = Scope.ANALYSES_SIGN


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.Engine]:
    state = tmp_path_factory.mktemp("state")
    opened = open_database(f"sqlite:///{state / 'pathserve.db'}", state)
    yield opened
    opened.dispose()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with running_issuer(Issuer([SigningKey.new("first"), RSA_KEY])) as running:
        yield running


@pytest.fixture
def server(engine: sa.Engine, issuer: Issuer) -> Authenticator:
    return authenticator(engine, oidc_issuer=issuer.url, login_limit=100_000)


def unsigned(claims: dict[str, Any], head: dict[str, Any], signature: bytes = b"") -> str:
    """A token put together by hand."""
    parts = (json.dumps(head).encode(), json.dumps(claims).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def test_a_persons_token(server: Authenticator, issuer: Issuer, engine: sa.Engine) -> None:
    token = issuer.token()
    before = len(records(engine))
    assert server.known(f"Bearer {token}", None, ADDRESS) is None
    found = login(server, token)
    assert (found.subject, found.kind, found.tenant) == ("person:dr-anna", PrincipalKind.PERSON, "north")
    assert (found.name, found.address) == ("Dr. Anna Example", ADDRESS)
    assert found.scopes == {Scope.ANALYSES_READ, Scope.ANALYSES_WRITE, SIGNS}
    assert found.may(SIGNS)
    assert server.known(f"Bearer {token}", None, "198.51.100.1") is not None  # for some seconds, without any look-up
    login(server, token)
    [record] = records(engine)[before:]  # of the login, once, however many requests
    assert (record.subtype, record.actor, record.tenant, record.outcome) == ("login", "person:dr-anna", "north", "0")


def test_every_algorithm_by_public_keys(server: Authenticator, issuer: Issuer) -> None:
    rsa = [SigningKey(name, name, RSA_KEY.private) for name in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")]
    issuer.keys[:] = rsa + [SigningKey.new(name, name) for name in ("ES256", "ES384", "ES512", "EdDSA")]
    for key in issuer.keys:
        assert login(server, issuer.token(key=key)).subject == "person:dr-anna", key.algorithm


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": "lis", "azp": "lis"},
        {"sub": "lis", "client_id": "lis"},
        {"sub": "0a1b", "idtyp": "app"},
        {"sub": "abc@clients", "gty": "client-credentials"},
        {"sub": "abc@clients", "client_id": "abc"},
        {"sub": "0a1b", "azp": "lis", "preferred_username": "service-account-lis"},
        {"sub": "lis", "cid": "lis"},
    ],
)
def test_a_system_never_signs(server: Authenticator, issuer: Issuer, claims: dict[str, Any]) -> None:
    found = login(server, issuer.token(scope="analyses:read analyses:sign admin", **claims))
    assert found.kind is PrincipalKind.SYSTEM
    assert found.subject == f"system:{claims['sub']}"
    assert found.scopes == {Scope.ANALYSES_READ, Scope.ADMIN}
    assert not found.may(SIGNS)


@pytest.mark.parametrize(
    ("claims", "scopes"),
    [
        ({"scope": None, "scp": "analyses:read"}, {"analyses:read"}),
        ({"scope": None, "scp": ["analyses:read", "models:read"]}, {"analyses:read", "models:read"}),
        ({"scope": "analyses:reader analyses:*"}, set()),
        ({"scope": None}, set()),
        ({"scope": {"analyses:read": True}}, set()),
        ({"scope": [["analyses:read"], 7]}, set()),
    ],
)
def test_scopes(server: Authenticator, issuer: Issuer, claims: dict[str, Any], scopes: set[str]) -> None:
    assert login(server, issuer.token(**claims)).scopes == scopes


CRITICAL = {"alg": "ES256", "kid": "first", "crit": ["b64"], "b64": True}
NOW = int(time.time())
BAD_CLAIMS: dict[str, dict[str, Any]] = {
    "expired": {"exp": NOW - 3600},
    "not-yet-valid": {"nbf": NOW + 3600},
    "not-yet-valid of iat": {"iat": NOW + 3600},
    "audience": {"aud": "another"},
    "audience of many": {"aud": ["another", "third"]},
    "issuer": {"iss": "https://login.example.org"},
    "issuer with a slash": {"iss": "/"},
    "missing-claim exp": {"exp": None},
    "missing-claim sub": {"sub": None},
    "missing-claim aud": {"aud": None},
    "missing-claim iss": {"iss": None},
    "id-token": {"nonce": "n-0S6"},
    "id-token of a hash": {"at_hash": "x"},
    "id-token of Keycloak": {"typ": "ID"},
    "id-token that is an offline token": {"typ": "Offline"},
    "certificate": {"cnf": {"x5t#S256": "abc"}},
    "certificate of another proof": {"cnf": {"jkt": "abc"}},
    "certificate of no proof": {"cnf": "abc"},
    "malformed sub": {"sub": "a\nb"},
    "malformed long sub": {"sub": "x" * 300},
    "malformed sub of another type": {"sub": 7},
    "malformed exp": {"exp": "soon"},
    "malformed infinite exp": {"exp": float("inf")},
}


def test_claims_that_are_no_login(server: Authenticator, issuer: Issuer, engine: sa.Engine) -> None:
    for what, changes in BAD_CLAIMS.items():
        if changes.get("iss") == "/":
            changes = {"iss": issuer.url + "/"}
        record = refused(server, engine, Unauthenticated, issuer.token(**changes))
        assert (what, record.detail["reason"]) == (what, what.split()[0])
        # Its signature is good: whose it was is known, where it says so at all.
        named = "unknown" if "sub" in changes or what.startswith("malformed") else "person:dr-anna"
        assert (what, record.actor) == (what, named)


STRANGE: tuple[Any, ...] = (
    *(0, -1, 1e308, 10**30, True, "", "x", "1", "\0", "\ud800", "\u202e", "ä" * 300),
    *([], {}, [[]], [None], ["x", 7], {"x": {}}, [{"x5t#S256": "y"}]),
)


def test_claims_of_any_type_end_in_a_login_or_a_refusal(server: Authenticator, issuer: Issuer) -> None:
    names = ("exp", "nbf", "iat", "aud", "iss", "sub", "jti", "scope", "scp", "tenant", "cnf", "azp", "client_id")
    ends: Counter[str] = Counter()
    for name in (*names, "appid", "cid", "idtyp", "gty", "name", "preferred_username", "typ", "nonce"):
        for value in STRANGE:
            try:
                found = login(server, issuer.token(**{name: value}))
                ends["came in"] += 1
                assert (found.subject.isprintable(), found.name is None or found.name.isprintable()) == (True, True)
            except (Unauthenticated, Forbidden) as error:
                ends[error.reason] += 1
    assert min(ends["came in"], ends["unauthenticated"], ends["forbidden"]) > 10
    assert sum(ends.values()) == 21 * len(STRANGE)


def test_headers_of_any_bytes_end_in_a_refusal(server: Authenticator, issuer: Issuer) -> None:
    random = Random(7)
    good = f"Bearer {issuer.token()}"
    for _ in range(150):
        text = list(good if random.random() < 0.7 else "".join(chr(random.randrange(256)) for _ in range(60)))
        for _ in range(random.randrange(1, 6)):
            # Not in the signature's last character: not all of its bits count.
            text[random.randrange(len(text) - 1)] = chr(random.randrange(256))
        header = "".join(text)
        if header != good:
            with pytest.raises(Unauthenticated):
                server.principal(header, None, ADDRESS)
    assert server.principal(good, None, ADDRESS).subject == "person:dr-anna"


def test_the_leeway_of_clocks(server: Authenticator, issuer: Issuer) -> None:
    now = int(time.time())
    assert login(server, issuer.token(exp=now - 10, nbf=now + 10, iat=now + 10)).tenant == "north"


def test_hostile_tokens(server: Authenticator, issuer: Issuer, engine: sa.Engine) -> None:
    claims, good = issuer.claims(), issuer.token()
    stranger = SigningKey("first", "ES256", SigningKey.new("x").private)
    public = json.dumps(RSA_KEY.public)
    head, payload, signature = good.split(".")
    payload_of_admin = unsigned(claims | {"scope": "admin"}, {}).split(".")[1]
    pem = RSA_KEY.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    attacks = {
        "no algorithm": (unsigned(claims, {"alg": "none", "kid": "first"}), "algorithm"),
        "none in another case": (unsigned(claims, {"alg": "nOnE", "kid": "first"}), "algorithm"),
        "HMAC with the public key": (_hmac(claims, pem), "algorithm"),
        "HMAC with the JWK": (_hmac(claims, public.encode()), "algorithm"),
        "another key under its name": (stranger.sign(claims), "signature"),
        "its own key in the head": (stranger.sign(claims, kid="mine", jwk=stranger.public), "unknown-key"),
        "keys from an address": (stranger.sign(claims, kid="mine", jku=f"{issuer.url}/certs"), "unknown-key"),
        "a certificate's address": (stranger.sign(claims, kid="mine", x5u="http://127.0.0.1:1/"), "unknown-key"),
        "a path for a kid": (stranger.sign(claims, kid="../../../../dev/null"), "unknown-key"),
        "SQL for a kid": (stranger.sign(claims, kid="' OR 1=1 --"), "unknown-key"),
        "a long kid": (stranger.sign(claims, kid="k" * 1000), "malformed"),
        "an algorithm of another key": (SigningKey("rsa", "ES256", stranger.private).sign(claims), "unknown-key"),
        "no kid among several": (stranger.sign(claims, kid=None, alg="ES256"), "signature"),
        "a critical extension": (unsigned(claims, CRITICAL), "critical-extension"),
        "another type": (issuer.token(head={"typ": "logout+jwt"}), "type"),
        "a type that is none": (issuer.token(head={"typ": ["JWT"]}), "type"),
        "changed claims": (f"{head}.{payload_of_admin}.{signature}", "signature"),
        "no signature": (f"{head}.{payload}.", "signature"),
        "huge": (issuer.token(more="x" * 9000), "too-large"),
        "deep": (unsigned_text(b'{"alg":' + b"[" * 5000, b"{}"), "malformed"),
        "no JSON": (unsigned_text(b"no", b"no"), "malformed"),
        "no object": (unsigned_text(b"[]", b"[]"), "malformed"),
        "no base64": ("a!.b!.c!", "malformed"),
        "empty parts": ("..", "malformed"),
        "claims that are a list": (issuer_raw(issuer, b"[1]"), "malformed"),
        "claims that are deep": (issuer_raw(issuer, b"[" * 4000), "malformed"),
    }
    for name, (token, reason) in attacks.items():
        record = refused(server, engine, Unauthenticated, token)
        assert (name, record.detail) == (name, {"credential": "token", "reason": reason})
        assert record.actor == "unknown"
    assert set(issuer.asked) == {"/realms/hospital/.well-known/openid-configuration", "/realms/hospital/certs"}
    assert login(server, good).subject == "person:dr-anna"


def unsigned_text(head: bytes, payload: bytes) -> str:
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (head, payload, b"x"))


def issuer_raw(issuer: Issuer, payload: bytes) -> str:
    """A token with a good signature over what are no claims."""
    return jwt.api_jws.encode(payload, issuer.keys[0].private, "ES256", {"kid": "first"})


def _hmac(claims: dict[str, Any], secret: bytes) -> str:
    """PyJWT itself refuses to sign so."""
    text = unsigned(claims, {"alg": "HS256", "typ": "JWT", "kid": "rsa"}).rstrip(".")
    digest = hmac.new(secret, text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


@pytest.mark.parametrize(
    ("header", "credential"),
    [
        (None, "none"),
        ("", "other"),
        ("Bearer", "other"),
        ("Basic Zm9vOmJhcg==", "other"),
        ("Bearer one, Bearer two", "other"),
        ("Bearer \xff\xfe", "other"),
        ("Bearer pathserve_key_unknown", "api-key"),
        ("Bearer pathserve_token_unknown", "token"),
    ],
)
def test_headers_that_are_no_login(
    server: Authenticator, engine: sa.Engine, header: str | None, credential: str
) -> None:
    before = len(records(engine))
    with pytest.raises(Unauthenticated):
        server.principal(header, None, ADDRESS)
    [record] = records(engine)[before:]
    assert (record.subtype, record.detail["credential"], record.outcome) == ("login-refused", credential, "4")


def test_tenants_of_a_server_for_many(server: Authenticator, issuer: Issuer, engine: sa.Engine) -> None:
    assert login(server, issuer.token(tenant="south")).tenant == "south"
    for tenant in (None, "", "a b", "x" * 65, 7, ["north"], "../north"):
        record = refused(server, engine, Forbidden, issuer.token(tenant=tenant))
        assert (record.detail["reason"], record.outcome) == ("no-tenant", "8")
        assert record.actor == "person:dr-anna"


def test_tenants_of_a_server_for_one(engine: sa.Engine, issuer: Issuer) -> None:
    server = authenticator(engine, oidc_issuer=issuer.url, tenant="north")
    assert login(server, issuer.token()).tenant == "north"
    assert login(server, issuer.token(tenant=None)).tenant == "north"
    record = refused(server, engine, WrongTenant, issuer.token(tenant="south"))
    assert (record.detail["reason"], record.tenant, record.actor) == ("wrong-tenant", "south", "person:dr-anna")


def test_a_bound_token_needs_its_certificate(server: Authenticator, issuer: Issuer, engine: sa.Engine) -> None:
    bound = issuer.token(cnf={"x5t#S256": thumbprint(b"the certificate")})
    assert login(server, bound, b"the certificate").subject == "person:dr-anna"
    assert refused(server, engine, Unauthenticated, bound).detail["reason"] == "certificate"
    assert refused(server, engine, Unauthenticated, bound, b"another").detail["reason"] == "certificate"


def test_a_token_without_kid_where_there_is_one_key(server: Authenticator, issuer: Issuer) -> None:
    assert login(server, issuer.token(head={"kid": None})).tenant == "north"


def test_no_issuer_no_tokens(engine: sa.Engine, issuer: Issuer) -> None:
    server = authenticator(engine)
    assert refused(server, engine, Unauthenticated, issuer.token()).detail == {
        "credential": "other",
        "reason": "unknown",
    }
    assert issuer.asked == []


@pytest.mark.parametrize("address", ["http://login.example.org", "login.example.org", "https://u:p@h/", "ftp://h/"])
def test_an_issuer_that_is_no_safe_address(engine: sa.Engine, address: str) -> None:
    with pytest.raises(InvalidSetting, match="PATHSERVE_OIDC_ISSUER"):
        authenticator(engine, oidc_issuer=address)


# The issuer's keys


class Clock:
    """Time that passes when the test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(issuer: Issuer, clock: Clock) -> FetchedKeys:
    provider = IdentityProvider(Settings(oidc_issuer=issuer.url))
    return FetchedKeys(provider._fetch, clock)


def test_a_new_key_is_found_and_an_old_one_dropped(keys: FetchedKeys, issuer: Issuer, clock: Clock) -> None:
    assert keys.find("first", "ES256") is not None
    assert len(issuer.asked) == 2
    issuer.keys[:] = [SigningKey.new("second")]
    assert keys.find("second", "ES256") is None  # asked less than 30 s ago
    assert keys.find("first", "ES256") is not None
    assert len(issuer.asked) == 2
    clock.now += 31
    assert keys.find("second", "ES256") is not None
    assert keys.find("first", "ES256") is None
    assert len(issuer.asked) == 4
    for kid in range(1000):
        assert keys.find(f"k{kid}", "ES256") is None
    assert len(issuer.asked) == 4
    clock.now += 601  # even where no token asks for a new one
    assert keys.find("second", "ES256") is not None
    assert len(issuer.asked) == 6


def test_an_issuer_that_is_down(keys: FetchedKeys, issuer: Issuer, clock: Clock) -> None:
    issuer.status = 503
    for _ in range(10):
        with pytest.raises(IdentityProviderUnavailable):
            keys.find("first", "ES256")
    assert len(issuer.asked) == 1  # not once a token
    issuer.status = 200
    clock.now += 6
    assert keys.find("first", "ES256") is not None
    issuer.status = 503
    clock.now += 700
    assert keys.find("first", "ES256") is not None  # it was good ten minutes ago
    with pytest.raises(IdentityProviderUnavailable):
        keys.find("second", "ES256")  # it may be a new one
    clock.now += 3600
    with pytest.raises(IdentityProviderUnavailable):
        keys.find("first", "ES256")


@pytest.mark.parametrize(
    "answer",
    [b"", b"no", b"[]", b'{"keys": 1}', b'{"keys": [1]}', b"[" * 100_000, b'{"keys": []' + b" " * 600_000 + b"}"],
)
def test_an_issuer_that_talks_nonsense(keys: FetchedKeys, issuer: Issuer, answer: bytes) -> None:
    issuer.answer = answer
    with pytest.raises(IdentityProviderUnavailable):
        keys.find("first", "ES256")


def test_metadata_that_lead_elsewhere(keys: FetchedKeys, issuer: Issuer, clock: Clock) -> None:
    for metadata in (
        {"issuer": "https://login.example.org", "jwks_uri": f"{issuer.url}/certs"},
        {"issuer": issuer.url, "jwks_uri": "http://169.254.169.254/latest"},
        {"issuer": issuer.url, "jwks_uri": "https://keys.example.org/"},
        {"issuer": issuer.url, "jwks_uri": f"http://localhost:{issuer.port}/realms/hospital/certs"},
        {"issuer": issuer.url, "jwks_uri": "file:///etc/passwd"},
        {"issuer": issuer.url, "jwks_uri": 7},
        {"issuer": issuer.url},
    ):
        issuer.metadata = metadata
        clock.now += 10
        with pytest.raises(IdentityProviderUnavailable):
            keys.find("first", "ES256")
    assert "/realms/hospital/certs" not in issuer.asked
    issuer.metadata = None
    clock.now += 10
    assert keys.find("first", "ES256") is not None


def test_keys_at_another_port_or_a_listed_host(issuer: Issuer, clock: Clock) -> None:
    with running_issuer(Issuer(issuer.keys)) as place:
        for host, listed in (("127.0.0.1", ()), ("localhost", ("localhost",))):
            issuer.metadata = {"issuer": issuer.url, "jwks_uri": f"http://{host}:{place.port}/realms/hospital/certs"}
            provider = IdentityProvider(Settings(oidc_issuer=issuer.url, outbound_hosts=listed))
            assert FetchedKeys(provider._fetch, clock).find("first", "ES256") is not None
    assert place.asked == ["/realms/hospital/certs"] * 2


def test_redirects_are_not_followed(keys: FetchedKeys, issuer: Issuer) -> None:
    issuer.status = 302
    with pytest.raises(IdentityProviderUnavailable):
        keys.find("first", "ES256")
    assert len(issuer.asked) == 1


def test_a_slow_issuer_holds_up_few_and_nobody_else(
    engine: sa.Engine, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.operations.auth.fetch.TIMEOUT_S", 2.0)
    issuer.pause_s = 12.0
    server = authenticator(engine, oidc_issuer=issuer.url)
    took: list[float] = []

    def come() -> None:
        began = time.monotonic()
        with pytest.raises(IdentityProviderUnavailable):
            login(server, issuer.token())
        took.append(time.monotonic() - began)

    threads = [threading.Thread(target=come) for _ in range(12)]
    for thread in threads:
        thread.start()
    assert login(server, SERVER_KEY).subject == "key:default"
    for thread in threads:
        thread.join()
    assert max(took) < 10
    assert sum(each < 1.8 for each in took) >= 7  # one asks, four wait for it
    assert len(issuer.asked) == 1
    issuer.pause_s = 0.0


def test_keys_that_may_not_verify() -> None:
    small, good = SigningKey.new("small", "RS256", bits=1024), SigningKey.new("good")
    private = {**RSA_KEY.public, "d": "AQAB"}
    cases: list[tuple[dict[str, Any], str]] = [
        (small.public, "RS256"),
        ({**good.public, "use": "enc"}, "ES256"),
        ({**good.public, "alg": "ES384"}, "ES256"),
        ({**good.public, "key_ops": ["sign"]}, "ES256"),
        ({**good.public, "crv": "P-384"}, "ES384"),
        ({**good.public, "x": "AA"}, "ES256"),
        (good.public, "RS256"),
        (good.public, "ES384"),
        (private, "RS256"),
        ({**RSA_KEY.public, "e": "A" * 400}, "RS256"),
        ({**RSA_KEY.public, "n": "A" * 100_000}, "RS256"),
        ({**RSA_KEY.public, "n": 5}, "RS256"),
        ({"kty": "oct", "k": "AAAA", "kid": "x"}, "RS256"),
        ({}, "RS256"),
    ]
    for key, algorithm in cases:
        assert find_key([key], key.get("kid"), algorithm) is None, key
    assert find_key([good.public], "good", "ES256") is not None
    assert find_key(key_set(good, SigningKey.new("other"))["keys"], None, "ES256") is None  # which of them?
