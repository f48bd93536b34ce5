"""Settings: from the environment or pathserve.toml, checked by name; and the page that documents them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.operations.errors import InvalidSetting
from gateway.operations.settings import Settings, settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"PATHSERVE_{name.upper()}", raising=False)
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pathserve.toml").write_text(f'state = "{tmp_path}/from-file"\ninfer_limit = 3\n')
    assert Settings().state == tmp_path / "from-file"
    monkeypatch.setenv("PATHSERVE_STATE", str(tmp_path / "from-environment"))
    monkeypatch.setenv("PATHSERVE_ARCHIVE", "")
    found = Settings()
    assert (found.state, found.infer_limit) == (tmp_path / "from-environment", 3)
    assert found.archive_address == f"folder:{tmp_path}/from-environment/archive"
    assert found.ledger_url == f"sqlite:///{tmp_path}/from-environment/pathserve.db"


def test_an_empty_value_counts_as_unset_in_the_file_too(tmp_path: Path) -> None:
    (tmp_path / "pathserve.toml").write_text('api_key = ""\narchive = ""\ntriton_url = ""\n')
    found = Settings()
    assert (found.api_key, found.archive, found.triton_url) == (None, None, None)


@pytest.mark.parametrize("content", [b"state = [", b"\xff\xfe"])
def test_a_file_that_is_no_toml_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pathserve.toml").write_bytes(content)
    with pytest.raises(InvalidSetting, match=r"pathserve\.toml"):
        settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("METRICS_PORT", "70000"),
        ("METRICS_PORT", "x"),
        ("INFER_LIMIT", "0"),
        ("LOG_LEVEL", "LOUD"),
        ("API_KEY", "two words"),
        ("API_KEY", " "),
        ("ARCHIVE", "orthanc:8042"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"PATHSERVE_{name}", value)
    with pytest.raises(InvalidSetting, match=f"PATHSERVE_{name}"):
        settings()


def test_the_key_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATHSERVE_API_KEY", "top-secret")
    assert "top-secret" not in repr(Settings())


def test_every_setting_is_documented_and_nothing_else() -> None:
    documented = set(re.findall(r"^\| `PATHSERVE_([A-Z_]+)` ", PAGE.read_text(), re.MULTILINE))
    assert documented == {name.upper() for name in Settings.model_fields}


def test_a_command_says_a_wrong_setting_in_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gateway.analyses.worker", "0", "0"],
        env={"PATHSERVE_INFER_LIMIT": "many", "PATHSERVE_STATE": str(tmp_path)},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "PATHSERVE_INFER_LIMIT" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_user_without_a_home_folder_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATHSERVE_STATE", "~no-such-user-here/state")
    with pytest.raises(InvalidSetting, match="PATHSERVE_STATE"):
        settings()
