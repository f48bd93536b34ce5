"""The doctor: one line a finding, and an exit status that says whether all is well."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.analyses import doctor as analyses_doctor
from gateway.operations.doctor import Finding, examine
from gateway.operations.errors import ArchiveUnavailable
from gateway.operations.settings import Settings
from tests.support.bags import add_slide_head
from tests.support.models import without_slide_heads


def well() -> Iterator[Finding]:
    yield "one", True, "fine"
    yield "two", True, "fine too"


def unreachable() -> Iterator[Finding]:
    yield "seen", True, "before the error"
    raise ArchiveUnavailable("the archive does not answer; check that it runs")


def broken() -> Iterator[Finding]:
    raise KeyError("secret")


def test_all_well() -> None:
    out = io.StringIO()
    assert examine({"probe": well}, out) == 0
    assert out.getvalue() == "ok   one: fine\nok   two: fine too\n"


def test_one_failure_fails_and_the_others_are_still_told() -> None:
    out = io.StringIO()
    assert examine({"archive": unreachable, "broken": broken, "last": well}, out) == 1
    lines = out.getvalue().splitlines()
    assert lines[0] == "FAIL archive: the archive does not answer; check that it runs"
    assert lines[1].startswith("FAIL broken: the probe itself failed (KeyError)")
    assert "secret" not in out.getvalue()
    assert lines[2:] == ["ok   one: fine", "ok   two: fine too"]


def test_what_the_real_doctor_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Settings(
        state=tmp_path / "state", archive=f"folder:{tmp_path / 'none'}", model_repository=tmp_path / "no-models"
    )
    monkeypatch.setattr(analyses_doctor, "load_settings", lambda: found)
    assert analyses_doctor.doctor() == 1
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("ok   ", "FAIL ")) for line in lines)
    assert "ok   state: writable" in lines
    assert "ok   database: the ledger opens" in lines
    assert any(line.startswith("FAIL models") for line in lines)


def test_a_protocol_whose_models_do_not_belong_together_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = without_slide_heads(Settings().model_repository, tmp_path / "models")
    found = Settings(state=tmp_path / "state", model_repository=repository)
    monkeypatch.setattr(analyses_doctor, "load_settings", lambda: found)

    def said() -> str:
        analyses_doctor.doctor()
        lines = capsys.readouterr().out.splitlines()
        [line] = [line for line in lines if "protocol slide-classification" in line]
        return line

    assert said().startswith("ok   protocol slide-classification: not available: There is no model slide_abmil")
    add_slide_head(repository)
    assert said() == "ok   protocol slide-classification: served by tile_encoder, slide_abmil"
    add_slide_head(repository, encoder={"model": "tile_encoder", "weights_sha256": "9" * 64})
    assert said().startswith(
        "FAIL protocol slide-classification: The model slide_abmil version 1 was trained on another"
    )
