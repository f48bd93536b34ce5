"""What the doctor says of inference."""

import shutil
from pathlib import Path

from gateway.inference import probe
from gateway.operations.settings import Settings
from tests.support.models import add_version


def test_installed_not_running_and_each_model(installed: None, repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    shutil.copytree(repository, folder)
    (folder / "head" / "1" / "model.onnx").write_bytes(b"")
    add_version(folder, "encoder", "2", state="BUILT", reduced=True)
    add_version(folder, "encoder", "3")
    (folder / "encoder-v3" / "gate.json").unlink()
    lines = {line.name: line for line in probe(Settings(state=tmp_path / "state", model_repository=folder))}
    assert lines["triton"].ok
    assert lines["triton-server"].ok
    assert "not running" in lines["triton-server"].sentence
    assert lines["model encoder"].ok
    assert "encoder version 1, onnx fp32, APPROVED" in lines["model encoder"].sentence
    # Whole, and not to serve: no fault.
    assert lines["model encoder-v2"].ok
    assert "encoder version 2, onnx fp32, BUILT, not approved" in lines["model encoder-v2"].sentence
    assert not lines["model encoder-v3"].ok
    assert "gate.json is missing" in lines["model encoder-v3"].sentence
    assert not lines["model head"].ok
    assert "digest" in lines["model head"].sentence
    assert not lines["model both"].ok
    assert not (tmp_path / "state").exists()


def test_nothing_installed_and_no_models(tmp_path: Path) -> None:
    settings = Settings(state=tmp_path, model_repository=tmp_path, triton_venv=tmp_path)
    lines = {line.name: line for line in probe(settings)}
    assert not lines["triton"].ok
    assert "make setup" in lines["triton"].sentence
    assert not lines["models"].ok
