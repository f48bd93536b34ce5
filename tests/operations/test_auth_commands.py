"""`pathserve keys` and `pathserve clients`: what is made opens the server, what is revoked does not."""

import json
import ssl
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.operations.audit.verify import verify
from gateway.operations.auth.keys import PREFIX
from gateway.operations.database import open_database
from gateway.operations.errors import Unauthenticated
from gateway.operations.settings import settings
from tests.operations.access import ADDRESS, authenticator, login, records
from tests.operations.test_auth_clients import KEY, assertion, form
from tests.support.certificates import Authority
from tests.support.oidc_issuer import key_set


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATHSERVE_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()
    return tmp_path / "state"


def said(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    """What the command prints; on error, its sentence."""
    assert main(words) == status
    out, error = capsys.readouterr()
    if status:
        assert out == ""
        return error
    assert error == ""
    return out


def test_keys(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scopes = ("--scope", "analyses:write", "--scope", "analyses:read")
    text = said(capsys, "keys", "create", "--name", "LIS", *scopes, "--tenant", "north", "--expires-days", "30").strip()
    assert text.startswith(PREFIX)
    [item] = json.loads(said(capsys, "keys", "list", "--json"))["items"]
    assert (item["name"], item["tenant"], item["scopes"]) == ("LIS", "north", ["analyses:read", "analyses:write"])
    assert (item["expires"][:2], item["revoked"]) == ("20", None)
    line = said(capsys, "keys", "list")
    assert item["id"] in line
    assert text not in line
    engine = open_database(f"sqlite:///{state / 'pathserve.db'}", state)
    assert login(authenticator(engine), text).subject == f"key:{item['id']}"
    said(capsys, "keys", "revoke", item["id"])
    assert " revoked 20" in said(capsys, "keys", "list")
    with pytest.raises(Unauthenticated):
        login(authenticator(engine), text)
    actors = {row.actor.partition(":")[0] for row in records(engine, "key-created", "key-revoked")}
    assert actors == {"device"}
    assert verify(engine, state).broken is None
    engine.dispose()
    for path in state.rglob("*"):
        assert not path.is_file() or text.encode() not in path.read_bytes()


def test_wrong_keys(state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    create = ("keys", "create", "--name", "LIS", "--scope", "analyses:read")
    assert "1 to 3650" in said(capsys, *create, "--expires-days", "0", status=1)
    assert "A tenant has" in said(capsys, *create, "--tenant", "a b", status=1)
    assert "no API key with this id" in said(capsys, "keys", "revoke", "abc", status=1)
    with pytest.raises(SystemExit):
        main(("keys", "create", "--name", "LIS", "--scope", "analyses:sign"))
    assert "analyses:sign" in capsys.readouterr().err
    monkeypatch.setenv("PATHSERVE_TENANT", "north")
    settings.cache_clear()
    assert "PATHSERVE_TENANT" in said(capsys, *create, "--tenant", "south", status=1)
    said(capsys, *create)
    [item] = json.loads(said(capsys, "keys", "list", "--json"))["items"]
    assert item["tenant"] == "north"


def test_clients(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    issued = Authority(tmp_path / "authority").issue("scanner", tmp_path / "made", name="scanner.hospital.example")
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps(key_set(KEY)))
    said(capsys, "clients", "add", "lis", "--jwks", str(keys), "--scope", "analyses:write", "--name", "The LIS")
    said(capsys, "clients", "add", "scanner", "--certificate", str(issued.certificate), "--scope", "analyses:write")
    url = "https://keys.hospital.example/jwks.json"
    said(capsys, "clients", "add", "ehr", "--jwks-url", url, "--scope", "analyses:read", "--tenant", "north")
    items = {item["id"]: item for item in json.loads(said(capsys, "clients", "list", "--json"))["items"]}
    assert {name: item["tenant"] for name, item in items.items()} == {
        "lis": "default",
        "scanner": "default",
        "ehr": "north",
    }
    assert url in said(capsys, "clients", "list")
    assert (items["lis"]["name"], items["scanner"]["name"]) == ("The LIS", "scanner")
    engine = open_database(f"sqlite:///{state / 'pathserve.db'}", state)
    server = authenticator(engine, public_url="https://pathserve.example.org")
    assert login(server, server.grant(form(assertion("lis")), ADDRESS).token).subject == "client:lis"
    der = ssl.PEM_cert_to_DER_cert(issued.certificate.read_text())
    assert server.principal(None, der, ADDRESS).subject == "client:scanner"
    said(capsys, "clients", "revoke", "lis")
    with pytest.raises(Unauthenticated):
        server.grant(form(assertion("lis")), ADDRESS)
    assert "no client with this id" in said(capsys, "clients", "revoke", "nobody", status=1)
    engine.dispose()


def test_wrong_clients(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add = ("clients", "add", "lis", "--scope", "analyses:read")
    file = tmp_path / "file"
    for content in (b"", b"no", b"[]", b'{"keys": []}', b"[" * 100_000, b"\xff\xfe", b" " * 600_000):
        file.write_bytes(content)
        assert "key" in said(capsys, *add, "--jwks", str(file), status=1)
        assert "certificate" in said(capsys, *add, "--certificate", str(file), status=1)
    for option in ("--jwks", "--certificate"):
        sentence = said(capsys, *add, option, str(tmp_path / "none"), status=1)
        assert "none cannot be read" in sentence
        assert str(tmp_path) not in sentence
    assert "https://" in said(capsys, *add, "--jwks-url", "http://keys.example.org", status=1)
    assert json.loads(said(capsys, "clients", "list", "--json")) == {"items": []}
