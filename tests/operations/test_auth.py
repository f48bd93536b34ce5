"""The API key: made once, kept as a hash, compared whole."""

import stat
from pathlib import Path

import pytest
from pydantic import SecretStr

from gateway.operations.auth import ApiKey, load_api_key
from gateway.operations.auth.api_key import HASH_FILE
from gateway.operations.errors import StateError


def test_a_key_is_generated_once(tmp_path: Path) -> None:
    key, text = load_api_key(None, tmp_path / "state")
    assert text is not None
    assert key.admits(f"Bearer {text}".encode())
    kept = tmp_path / "state" / HASH_FILE
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert text not in kept.read_text()
    again, shown = load_api_key(None, tmp_path / "state")
    assert shown is None
    assert again.admits(f"Bearer {text}".encode())


def test_the_configured_key_wins_and_is_not_kept(tmp_path: Path) -> None:
    key, shown = load_api_key(SecretStr("configured"), tmp_path)
    assert shown is None
    assert key.admits(b"Bearer configured")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "header",
    [None, b"", b"Bearer", b"Bearer ", b"Bearer key ey", b"Bearer KEY", b"Basic key", b"key", b"Bearer\tkey", b"\xff"],
)
def test_what_is_not_the_key_is_refused(header: bytes | None) -> None:
    assert not ApiKey.of("key").admits(header)


def test_a_key_outside_ascii() -> None:
    assert ApiKey.of("schlüssel").admits("bearer schlüssel".encode())


@pytest.mark.parametrize("text", ["no hash", "", "abcd\n"])
def test_a_broken_hash_is_a_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / HASH_FILE).write_text(text)
    with pytest.raises(StateError, match=HASH_FILE):
        load_api_key(None, tmp_path)
