"""The state folder is made for its owner only; a place that cannot be one is a clear error."""

import stat
from pathlib import Path

import pytest

from gateway.operations.errors import StateError
from gateway.operations.settings import Settings
from gateway.operations.state import prepare_state


def test_the_default_archive_lies_in_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PATHSERVE_ARCHIVE", raising=False)
    settings = Settings(state=tmp_path / "a" / "state")
    for _ in range(2):
        prepare_state(settings)
    assert settings.archive_address == f"folder:{settings.state / 'archive'}"
    assert (settings.state / "archive").is_dir()
    assert stat.S_IMODE(settings.state.stat().st_mode) == 0o700


def test_another_archive_is_not_made(tmp_path: Path) -> None:
    prepare_state(Settings(state=tmp_path / "state", archive=f"folder:{tmp_path / 'other'}"))
    assert list((tmp_path / "state").iterdir()) == []
    assert not (tmp_path / "other").exists()


def test_a_file_is_no_state_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="PATHSERVE_STATE"):
        prepare_state(Settings(state=tmp_path / "file"))
