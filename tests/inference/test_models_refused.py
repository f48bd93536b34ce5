"""A model that is wrong is refused by name, and the others serve."""

import dataclasses
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from gateway.inference import TritonEngine, embedded
from gateway.inference.installation import find_installation
from gateway.operations.errors import ModelNotLoaded, ModelRefused
from gateway.operations.settings import Settings
from tests.support.models import add_version, change_engine, seal, shifted

from . import models

pytestmark = pytest.mark.triton


async def test_wrong_models_are_refused_and_the_others_serve(installed: None, repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    shutil.copytree(repository, folder)
    # Not an ONNX file at all, but with the right digest.
    corrupt = models.write_encoder(folder, "corrupt")
    (corrupt / "1" / "model.onnx").write_bytes(b"no model")
    seal(corrupt)
    # Its config.pbtxt promises other tensors than the model has.
    for name, old, new in (
        ("narrow", "dims: [ 8 ]", "dims: [ 9 ]"),
        ("typed", "TYPE_UINT8", "TYPE_FP32"),
        ("renamed", '"embedding"', '"features"'),
    ):
        config = models.write_encoder(folder, name) / "config.pbtxt"
        config.write_text(config.read_text().replace(old, new))
        seal(config.parent)
    models.write_golden(models.write_encoder(folder, "drifted"), error=1e-2)
    models.write_golden(models.write_encoder(folder, "close"), error=3e-5)
    # A flipped byte.
    flipped = models.write_encoder(folder, "flipped") / "1" / "model.onnx"
    flipped.write_bytes(flipped.read_bytes().replace(b"embedding", b"embeddinf", 1))
    # Versions of a model are models of their own: one is refused, another serves.
    add_version(folder, "encoder", "2")
    add_version(folder, "encoder", "3", state="BUILT", reduced=True)
    change_engine(add_version(folder, "encoder", "4", change=lambda model: None), shifted)
    seal(folder / "encoder-v4")
    names = ["corrupt", "narrow", "typed", "renamed", "drifted", "flipped", "absent", "m$(touch X)", "close", "encoder"]
    names += ["encoder-v2", "encoder-v3", "encoder-v4"]
    async with TritonEngine.open(Settings(state=tmp_path / "state", model_repository=folder), names) as engine:
        reasons = {status.folder: status.reason for status in engine.status()}
        ready = [status.folder for status in engine.status() if status.ready]
        assert ready == ["close", "encoder", "encoder-v2"]
        assert "model.onnx failed:Protobuf parsing failed" in reasons["corrupt"]
        assert not any(re.search(r"(?<![\w.])/\w", reason) for reason in reasons.values() if reason), (
            "paths are for logs"
        )
        assert "has the dims [9] in config.pbtxt and [8] in the model" in reasons["narrow"]
        assert "TYPE_FP32 in config.pbtxt and tensor(uint8) in the model" in reasons["typed"]
        assert "outputs ['features'], which the model does not have" in reasons["renamed"]
        assert "golden.npz are not the exporter's" in reasons["drifted"]
        assert "digest" in reasons["flipped"]
        assert "built but compared on too few tiles" in reasons["encoder-v3"]
        assert "golden.npz are not the exporter's" in reasons["encoder-v4"]
        assert "There is no model absent" in reasons["absent"]
        assert "letters, digits" in reasons["m$(touch X)"]
        for name, error in (("corrupt", ModelNotLoaded), ("drifted", ModelRefused), ("absent", ModelNotLoaded)):
            with pytest.raises(error, match=name):
                await engine.infer(name, {"image": models.tiles(1)})
        images = models.tiles(32)
        answer = await engine.infer("encoder", {"image": images})
        first = models.direct(folder / "encoder", images)
        assert np.array_equal(answer["embedding"], first)
        second = (await engine.infer("encoder-v2", {"image": images}))["embedding"]
        assert np.allclose(second - first, [0.25, *[0] * (models.WIDTH - 1)], atol=1e-4)


async def test_the_backend_refuses_numpy_2(
    installed: None, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The gateway's own environment has numpy 2 and onnxruntime: the stub finds them where PATH says so.
    def careless(venv: Path) -> object:
        return dataclasses.replace(find_installation(venv), venv=Path(sys.prefix))

    monkeypatch.setattr(embedded, "find_installation", careless)
    async with TritonEngine.open(Settings(state=tmp_path, model_repository=repository), ["encoder"]) as engine:
        (status,) = engine.status()
        assert "needs numpy 1 beside Triton's stub, found numpy 2" in (status.reason or "")
