"""Who may come in, by real TLS and a real identity provider: a refused login is 401 or 403 and one audit record."""

import json
import os
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import jwt
import psutil
import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gateway.analyses.ledger import Ledger
from gateway.cli import main
from gateway.http.app import create_app
from gateway.operations.auth import ApiKey, server_context
from gateway.operations.auth.tokens import thumbprint
from gateway.operations.errors import InvalidSetting
from gateway.operations.settings import Settings, settings
from tests.http.serving import KEY, Server, until
from tests.operations.access import records
from tests.support.certificates import Authority, Issued
from tests.support.oidc_issuer import Issuer, SigningKey, key_set, running_issuer
from tests.support.orthanc import free_port

PATHSERVE = Path(sys.prefix) / "bin" / "pathserve"
TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
LIS = SigningKey.new("lis-1", "ES384")
RSA_KEY = SigningKey.new("rsa", "RS256")


@dataclass
class Hospital:
    """A server with everything: TLS, client certificates, an identity provider, registered clients."""

    server: Server
    issuer: Issuer
    authority: Path
    registered: Issued
    unknown: Issued
    foreign: Issued
    engine: sa.Engine

    @property
    def url(self) -> str:
        return self.server.url.replace("127.0.0.1", "localhost")

    def trust(self, shown: Issued | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.authority)
        if shown is not None:
            context.load_cert_chain(shown.certificate, shown.key)
        return context

    def get(self, path: str, token: str | None = None, shown: Issued | None = None, **more: Any) -> httpx.Response:
        return self.request("GET", path, token, shown, **more)

    def request(
        self, method: str, path: str, token: str | None = None, shown: Issued | None = None, **more: Any
    ) -> httpx.Response:
        headers = [*more.pop("headers", []), *([] if token is None else [("Authorization", f"Bearer {token}")])]
        with httpx.Client(verify=self.trust(shown), trust_env=False, timeout=20) as client:
            return client.request(method, self.url + path, headers=headers, **more)

    def refused(self, status: int, token: str | None = None, shown: Issued | None = None, **more: Any) -> Any:
        """The one record of a request that has to be refused."""
        before = len(records(self.engine))
        answer = self.get("/v1/analyses", token, shown, **more)
        reason = "unauthenticated" if status == 401 else answer.json()["reason"]
        assert (answer.status_code, answer.json()["reason"]) == (status, reason)
        assert answer.headers["content-type"] == "application/problem+json"
        assert ("www-authenticate" in answer.headers) == (status == 401)
        [record] = [row for row in records(self.engine)[before:] if row.subtype != "login"]
        assert record.address == "127.0.0.1"
        assert token is None or token not in answer.text + str(record)
        return record


def command(state: Path, *words: str) -> None:
    """A command on the server's state."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATHSERVE_STATE", str(state))
        settings.cache_clear()
        assert main(words) == 0
    settings.cache_clear()


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    folder = tmp_path_factory.mktemp("hospital")
    ours = Authority(folder / "ours")
    site = ours.issue("server", folder, name="localhost")
    scanner, unknown = (ours.issue(name, folder, name=name) for name in ("scanner", "unknown"))
    foreign = Authority(folder / "theirs", "Another Authority").issue("foreign", folder, name="scanner")
    keys = folder / "keys.json"
    keys.write_text(json.dumps(key_set(LIS)))
    with running_issuer(Issuer([SigningKey.new("first"), RSA_KEY])) as issuer:
        server = Server(
            folder / "state",
            workers=0,
            PATHSERVE_OIDC_ISSUER=issuer.url,
            PATHSERVE_TLS_CERTIFICATE=str(site.certificate),
            PATHSERVE_TLS_KEY=str(site.key),
            PATHSERVE_TLS_CLIENT_AUTHORITIES=str(ours.certificate),
            PATHSERVE_LOGIN_LIMIT="10000",
        )
        engine = sa.create_engine(f"sqlite:///{server.state / 'pathserve.db'}")
        try:
            command(server.state, "clients", "add", "lis", "--jwks", str(keys), "--scope", "analyses:read")
            add = ("clients", "add", "scanner", "--certificate", str(scanner.certificate))
            command(server.state, *add, "--scope", "analyses:read")
            yield Hospital(server, issuer, ours.certificate, scanner, unknown, foreign, engine)
            assert server.terminate() < 15
        finally:
            server.kill()
            engine.dispose()


def test_people_come_in_by_their_tokens(hospital: Hospital) -> None:
    assert hospital.server.url.startswith("https://127.0.0.1:")
    assert hospital.get("/v1/analyses", hospital.issuer.token()).status_code == 200
    assert records(hospital.engine, "login")[-1].actor == "person:dr-anna"
    assert hospital.get("/v1/analyses", KEY).status_code == 200


def hostile(hospital: Hospital) -> Mapping[str, tuple[int, str, str]]:
    """By name: the status, the token, and the reason in the audit trail."""
    issuer, now = hospital.issuer, int(time.time())
    stranger = SigningKey("first", "ES256", SigningKey.new("x").private)
    pem = RSA_KEY.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    unsigned = jwt.encode(issuer.claims(), None, "none", {"kid": "first"})
    # PyJWT does not sign with a public key: its text in another form does as well.
    symmetric = jwt.encode(issuer.claims(), pem.hex(), "HS256", {"kid": "rsa"})
    return {
        "expired": (401, issuer.token(exp=now - 3600), "expired"),
        "of tomorrow": (401, issuer.token(nbf=now + 86400), "not-yet-valid"),
        "wrong audience": (401, issuer.token(aud="another"), "audience"),
        "wrong issuer": (401, issuer.token(iss="https://login.example.org"), "issuer"),
        "an ID token": (401, issuer.token(nonce="n"), "id-token"),
        "alg none": (401, unsigned, "algorithm"),
        "HMAC": (401, symmetric, "algorithm"),
        "a path for a kid": (401, issuer.token(head={"kid": "../../../dev/null"}), "unknown-key"),
        "another's key": (401, stranger.sign(issuer.claims()), "signature"),
        "huge": (401, issuer.token(more="x" * 20_000), "too-large"),
        "no tenant": (403, issuer.token(tenant=None), "no-tenant"),
        "bound to a certificate": (401, issuer.token(cnf={"x5t#S256": "abc"}), "certificate"),
        "a guessed key": (401, "pathserve_key_" + "x" * 43, "unknown"),
        "a guessed token": (401, "pathserve_token_" + "x" * 43, "unknown"),
        "anything": (401, "anything", "unknown"),
    }


def test_hostile_tokens_are_one_record_each(hospital: Hospital) -> None:
    for name, (status, token, reason) in hostile(hospital).items():
        record = hospital.refused(status, token)
        assert (name, record.subtype, record.detail["reason"]) == (name, "login-refused", reason)
    assert hospital.refused(401).detail == {"credential": "none", "reason": "none"}


def test_two_authorization_headers(hospital: Hospital) -> None:
    good = ("Authorization", f"Bearer {hospital.issuer.token()}")
    for other in (good, ("authorization", f"Bearer {KEY}"), ("Authorization", "Basic eA==")):
        assert hospital.refused(401, headers=[good, other]).detail["reason"] in ("malformed", "unknown")


def test_a_wrong_scope_is_one_record_too(hospital: Hospital) -> None:
    record = hospital.refused(403, hospital.issuer.token(scope="models:read"))
    assert (record.actor, record.outcome != "0") == ("person:dr-anna", True)
    # A system's token never signs, whatever it says; neither does a key.
    system = hospital.issuer.token(sub="lis", azp="lis", scope="analyses:read analyses:sign")
    path = f"/v1/analyses/{uuid.uuid4()}/sign"
    for token in (system, KEY):
        answer = hospital.request("POST", path, token, json={})
        assert (answer.status_code, answer.json()["reason"]) == (403, "wrong-scope")


def test_only_tls(hospital: Hospital) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(hospital.url.replace("https", "http") + "/livez", trust_env=False)
    old = hospital.trust()
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(httpx.TransportError):
        httpx.get(hospital.url + "/livez", verify=old, trust_env=False)
    assert hospital.get("/livez").status_code == 200  # no client certificate is needed


def test_client_certificates(hospital: Hospital) -> None:
    assert hospital.get("/v1/analyses", shown=hospital.registered).status_code == 200
    record = hospital.refused(401, shown=hospital.unknown)
    assert record.detail == {"credential": "certificate", "reason": "unknown"}
    with pytest.raises(httpx.TransportError):  # of an authority that nobody trusts
        hospital.get("/livez", shown=hospital.foreign)
    # Beside a certificate a wrong token is wrong, and a good one counts.
    assert hospital.refused(401, "guess", hospital.registered).detail["reason"] == "unknown"
    assert hospital.get("/v1/models", KEY, hospital.registered).status_code == 200


def test_tokens_that_are_bound_to_a_certificate(hospital: Hospital) -> None:
    der = ssl.PEM_cert_to_DER_cert(hospital.registered.certificate.read_text())
    bound = hospital.issuer.token(cnf={"x5t#S256": thumbprint(der)})
    assert hospital.get("/v1/analyses", bound, hospital.registered).status_code == 200
    assert hospital.refused(401, bound, hospital.unknown).detail["reason"] == "certificate"
    assert hospital.refused(401, bound).detail["reason"] == "certificate"


def assertion(hospital: Hospital, **changes: Any) -> str:
    claims = {"iss": "lis", "sub": "lis", "aud": f"{hospital.server.url}/oauth/token", "jti": uuid.uuid4().hex}
    return LIS.sign({**claims, "exp": int(time.time()) + 240, **changes})


def form(assertion: str, **more: str) -> dict[str, str]:
    return {"grant_type": "client_credentials", "client_assertion_type": TYPE, "client_assertion": assertion, **more}


def test_a_system_gets_a_token(hospital: Hospital) -> None:
    asked = form(assertion(hospital))
    answer = hospital.request("POST", "/oauth/token", data=asked)
    granted = answer.json()
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    assert (granted["token_type"], granted["expires_in"], granted["scope"]) == ("Bearer", 300, "analyses:read")
    assert hospital.get("/v1/analyses", granted["access_token"]).status_code == 200
    before = len(records(hospital.engine))
    again = hospital.request("POST", "/oauth/token", data=asked)
    assert (again.status_code, again.json()["error"], again.json()["reason"]) == (
        401,
        "invalid_client",
        "unauthenticated",
    )
    [record] = records(hospital.engine)[before:]
    assert (record.subtype, record.detail["reason"], record.actor) == ("login-refused", "replayed", "client:lis")


def test_token_requests_that_are_refused(hospital: Hospital) -> None:
    as_form = [("Content-Type", "application/x-www-form-urlencoded")]
    requests: list[dict[str, Any]] = [
        {},
        {"data": {"grant_type": "client_credentials"}},
        {"data": form("guess")},
        {"data": form(assertion(hospital, aud="https://other.example.org/oauth/token"))},
        {"content": b"\xff\xfe=&&&", "headers": as_form},
        {"content": b"&".join(b"a=b" for _ in range(5000)), "headers": as_form},
        {"json": form(assertion(hospital))},
        {"content": b"x", "headers": [("Content-Type", "text/plain")]},
    ]
    for more in requests:
        before = len(records(hospital.engine))
        answer = hospital.request("POST", "/oauth/token", **more)
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")
        assert answer.headers["content-type"] == "application/json"
        assert len(records(hospital.engine)) == before + 1
    for changes, error in (
        ({"grant_type": "authorization_code"}, "unsupported_grant_type"),
        ({"scope": "analyses:sign"}, "invalid_scope"),
    ):
        answer = hospital.request("POST", "/oauth/token", data=form(assertion(hospital), **changes))
        assert (answer.status_code, answer.json()["error"]) == (400, error)
    # The token endpoint is open for one method only.
    assert hospital.get("/oauth/token").status_code == 401
    assert hospital.get("/oauth/token", KEY).status_code == 405
    assert hospital.get("/.well-known/openid-configuration").status_code == 401


def test_refused_logins_are_counted(hospital: Hospital) -> None:
    hospital.refused(401, "guess")
    shown = httpx.get(hospital.server.metrics_url, trust_env=False).text
    assert 'logins_refused_total{credential="other",reason="unknown"}' in shown


async def test_the_limit_of_refused_logins_behind_a_proxy(ledger: Ledger, state: Path) -> None:
    app, _ = create_app(Settings(state=state, login_limit=3, tls_elsewhere=True), ledger, ApiKey.of(KEY))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://pathserve") as client:

        async def ask(forwarded: str, token: str = "guess") -> httpx.Response:
            headers = {"Authorization": f"Bearer {token}", "X-Forwarded-For": forwarded}
            return await client.get("/v1/analyses", headers=headers)

        answers = [await ask(f"10.0.0.{number}, 192.0.2.1") for number in range(5)]
        assert [answer.status_code for answer in answers] == [401, 401, 401, 429, 429]
        assert answers[-1].json()["reason"] == "too-many-requests"
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 61
        assert (await ask("192.0.2.1", KEY)).status_code == 200
        assert (await ask("192.0.2.1, 192.0.2.2")).status_code == 401
        assert (await ask("not an address")).status_code == 401
    addresses = [row.address for row in records(ledger._engine, "login-refused")]
    assert addresses == ["192.0.2.1"] * 3 + ["192.0.2.2", "127.0.0.1"]
    assert [row.address for row in records(ledger._engine, "logins-limited")] == ["192.0.2.1"]


async def test_without_a_proxy_nobody_names_his_address(stranger: httpx.AsyncClient, ledger: Ledger) -> None:
    await stranger.get("/v1/analyses", headers={"X-Forwarded-For": "192.0.2.1"})
    assert records(ledger._engine)[-1].address == "127.0.0.1"


async def test_an_issuer_that_is_down_at_the_start(
    ledger: Ledger, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.operations.auth.key_sets._FAILED_S", 0.2)
    issuer = Issuer(port=free_port())
    app, _ = create_app(Settings(state=state, oidc_issuer=issuer.url), ledger, ApiKey.of(KEY))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://pathserve") as client:

        async def ask(token: str) -> httpx.Response:
            return await client.get("/v1/analyses", headers={"Authorization": f"Bearer {token}"})

        for _ in range(3):
            answer = await ask(issuer.token())
            assert (answer.status_code, answer.json()["reason"]) == (503, "identity-provider-unavailable")
            assert int(answer.headers["retry-after"]) >= 1
        assert (await ask(KEY)).status_code == 200
        assert records(ledger._engine, "login-refused") == []  # nobody knows whether it was good
        with running_issuer(issuer):
            time.sleep(0.3)
            assert (await ask(issuer.token())).status_code == 200
            issuer.keys[:] = [SigningKey.new("second")]
            assert (await ask(issuer.token())).status_code == 401  # it asked less than 30 s ago
            monkeypatch.setattr("gateway.operations.auth.key_sets._AGAIN_S", 0.0)
            assert (await ask(issuer.token())).status_code == 200


# Where it listens


def serve(state: Path, *words: str) -> "subprocess.Popen[str]":
    """`pathserve serve` on a fresh state, without any further setting."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PATHSERVE_")}
    more = {"PATHSERVE_STATE": str(state), "PATHSERVE_METRICS_PORT": "0"}
    command = [PATHSERVE, "serve", "--port", "0", "--workers", "0", *words]
    return subprocess.Popen(command, env=clean | more, cwd=state.parent, stderr=subprocess.PIPE, text=True)


def test_nothing_but_loopback_in_the_clear(tmp_path: Path) -> None:
    with serve(tmp_path / "state", "--host", "0.0.0.0") as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.count("\n") == 1
    assert "PATHSERVE_TLS_CERTIFICATE" in said
    assert not (tmp_path / "state" / "api-key.sha256").exists()


def test_a_fresh_server_is_on_loopback_with_a_key_of_its_own(tmp_path: Path) -> None:
    with serve(tmp_path / "state") as process:
        try:
            assert process.stderr is not None
            lines = (line.strip() for line in process.stderr)
            key = next(line for line in lines if "API key" in line).rpartition(" ")[2]
            url = next(line for line in lines if "serving on" in line).rpartition(" ")[2]
            listening = [each for each in psutil.Process(process.pid).net_connections() if each.status == "LISTEN"]
            assert listening
            assert {each.laddr.ip for each in listening} == {"127.0.0.1"}
            for token, status in ((key, 200), (key + "x", 401)):
                assert until(partial(answers, url, {"Authorization": f"Bearer {token}"})) == status
        finally:
            process.terminate()


def answers(url: str, headers: dict[str, str]) -> int:
    """The status of a request; 0 while the server does not answer yet."""
    try:
        return httpx.get(f"{url}/v1/analyses", headers=headers, trust_env=False, timeout=20).status_code
    except httpx.ConnectError:
        return 0


def test_tls_files_that_are_none(tmp_path: Path) -> None:
    issued = Authority(tmp_path / "a").issue("x", tmp_path, name="localhost")
    other = Authority(tmp_path / "b").issue("y", tmp_path, name="localhost")
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n")
    cases: list[tuple[dict[str, Path], str]] = [
        ({"tls_certificate": nonsense}, "TLS_CERTIFICATE"),
        ({"tls_certificate": tmp_path / "none"}, "TLS_CERTIFICATE"),
        ({"tls_certificate": issued.certificate}, "TLS_KEY"),
        ({"tls_certificate": issued.certificate, "tls_key": other.key}, "TLS_KEY"),
        ({"tls_key": issued.key}, "TLS_CERTIFICATE"),
        ({"tls_client_authorities": issued.certificate}, "TLS_CERTIFICATE"),
        (
            {"tls_certificate": issued.certificate, "tls_key": issued.key, "tls_client_authorities": nonsense},
            "TLS_CLIENT_AUTHORITIES",
        ),
    ]
    for given, named in cases:
        with pytest.raises(InvalidSetting, match=f"PATHSERVE_{named}") as refused:
            server_context(Settings(**given))
        assert str(tmp_path) not in refused.value.detail
    assert server_context(Settings()) is None
