"""How the archive is accessed: from settings, and as `pathserve doctor` tells it."""

from pathlib import Path

import pytest

from gateway.analyses.doctor import doctor
from gateway.archive import Access, open_archive
from gateway.archive.access import OAuthClient
from gateway.operations import settings as settings_module
from gateway.operations.errors import InvalidSetting
from gateway.operations.settings import Settings
from tests.support.certificates import Authority
from tests.support.rogue_pacs import RoguePacs, dicom_json, running

OAUTH = {
    "PATHSERVE_ARCHIVE_OAUTH_URL": "https://tokens.example/token",
    "PATHSERVE_ARCHIVE_OAUTH_CLIENT_ID": "pathserve",
    "PATHSERVE_ARCHIVE_OAUTH_CLIENT_SECRET": "hidden-word",
}


def access(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Access:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Access.from_settings(Settings())


def test_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert access(monkeypatch) == Access()
    assert not Access().needs_tls
    assert Access().describe("dicomweb://pacs.example/rs") == "no credentials"


def test_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = access(monkeypatch, PATHSERVE_ARCHIVE_TOKEN="hidden-word")
    assert mine.token == "hidden-word"
    assert "hidden-word" not in repr(mine)
    assert mine.describe("dicomweb://pacs.example/rs") == "a bearer token"


def test_an_oauth_client(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = access(monkeypatch, **OAUTH, PATHSERVE_ARCHIVE_OAUTH_SCOPE="a b")
    assert mine.oauth == OAuthClient("https://tokens.example/token", "pathserve", "hidden-word", "a b")
    assert "hidden-word" not in repr(mine)
    assert mine.describe("dicomweb://pacs.example/rs") == "OAuth 2.0 client credentials"


def test_certificates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = access(
        monkeypatch,
        PATHSERVE_ARCHIVE_CERTIFICATE=str(tmp_path / "client.pem"),
        PATHSERVE_ARCHIVE_KEY=str(tmp_path / "client.key"),
    )
    assert mine.needs_tls
    assert mine.describe("dicomweb://a:b@pacs.example/rs") == "a user name and password and a client certificate"
    assert mine.describe("dicomweb://pacs.example/rs") == "a client certificate"


@pytest.mark.parametrize(
    "environment",
    [
        {"PATHSERVE_ARCHIVE_TOKEN": "hidden-word", **OAUTH},
        {"PATHSERVE_ARCHIVE_TOKEN": "hidden word"},
        {"PATHSERVE_ARCHIVE_TOKEN": "hidden-wörd"},
        {name: value for name, value in OAUTH.items() if not name.endswith("URL")},
        {name: value for name, value in OAUTH.items() if not name.endswith("SECRET")},
        {"PATHSERVE_ARCHIVE_OAUTH_SCOPE": "a"},
        OAUTH | {"PATHSERVE_ARCHIVE_OAUTH_URL": "http://tokens.example/token"},
        OAUTH | {"PATHSERVE_ARCHIVE_OAUTH_URL": "http://127.0.0.1.example/token"},
        OAUTH | {"PATHSERVE_ARCHIVE_OAUTH_URL": "ftp://tokens.example/token"},
        OAUTH | {"PATHSERVE_ARCHIVE_OAUTH_URL": "https://me:hidden-word@tokens.example/token"},
        OAUTH | {"PATHSERVE_ARCHIVE_OAUTH_URL": "https://[::1/token"},
        OAUTH | {"PATHSERVE_ARCHIVE_OAUTH_URL": "tokens"},
        {"PATHSERVE_ARCHIVE_KEY": "/somewhere/client.key"},
    ],
)
def test_settings_that_do_not_fit(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    with pytest.raises(InvalidSetting, match="PATHSERVE_ARCHIVE_") as caught:
        access(monkeypatch, **environment)
    assert "hidden" not in caught.value.detail


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080/token", "http://localhost/token", "http://[::1]:1/token"])
def test_a_token_server_on_loopback_needs_no_tls(url: str) -> None:
    OAuthClient(url, "pathserve", "secret")


def test_a_user_and_a_token() -> None:
    with pytest.raises(InvalidSetting, match="take the user out"):
        open_archive("dicomweb://me:word@pacs.example/rs", Access(token="hidden-word"))


def test_the_bearer_token_goes_out_as_it_is() -> None:
    with running(RoguePacs(list_series=dicom_json())) as pacs:
        open_archive(f"dicomweb://127.0.0.1:{pacs.port}/rs", Access(token="hidden-word")).probe()
    [(_, _, headers)] = pacs.requests
    assert headers["Authorization"] == "Bearer hidden-word"


@pytest.mark.parametrize(("days", "status", "says"), [(40, "ok", "valid until"), (3, "FAIL", "have it renewed")])
def test_the_doctor(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    days: int,
    status: str,
    says: str,
) -> None:
    client = Authority(tmp_path).issue("client", tmp_path, name="pathserve", days=days)
    monkeypatch.setenv("PATHSERVE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PATHSERVE_MODEL_REPOSITORY", str(tmp_path))  # there is enough to look at without models
    monkeypatch.setenv("PATHSERVE_ARCHIVE_CERTIFICATE", str(client.certificate))
    monkeypatch.setenv("PATHSERVE_ARCHIVE_KEY", str(client.key))
    monkeypatch.setenv("PATHSERVE_ARCHIVE_TOKEN", "hidden-word")
    monkeypatch.setattr("gateway.analyses.doctor.load_settings", settings_module.Settings)
    doctor()
    out = capsys.readouterr().out
    [line] = [line for line in out.splitlines() if "certificate" in line]
    assert line.startswith(status)
    assert says in line
    assert "hidden-word" not in out
