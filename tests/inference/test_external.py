"""An external Triton: asked, never managed."""

import asyncio
import os
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from gateway.inference import TritonEngine, probe, runtime
from gateway.inference import external as external_server
from gateway.inference.client import Client, Endpoint
from gateway.inference.installation import find_installation
from gateway.operations.errors import InferenceUnavailable, ModelNotLoaded
from gateway.operations.settings import Settings

from . import models

pytestmark = pytest.mark.triton


@pytest.fixture
def external(installed: None, repository: Path, tmp_path: Path):
    """A Triton on a loopback port that loads `encoder` by itself; yields host:port."""
    found = find_installation(Settings().triton_venv)
    directory = Path("/tmp") / f"pathserve-external-{os.getpid()}"
    environment = runtime.build(directory, found, Settings().triton_backends, repository)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [
        argument
        for argument in runtime.command(directory, found, shm_prefix="pathserve_external_test_", key="k")
        if "grpc" not in argument
    ]
    arguments += ["--grpc-address=127.0.0.1", f"--grpc-port={port}", "--load-model=encoder"]
    process = runtime.start(arguments, environment, directory, tmp_path / "triton.log")
    yield f"127.0.0.1:{port}"
    process.terminate()
    process.wait(20)
    shutil.rmtree(directory)


async def test_an_external_server_is_used_as_it_is(external: str, repository: Path, tmp_path: Path) -> None:
    settings = Settings(state=tmp_path / "state", model_repository=repository, triton_url=external)
    async with TritonEngine.open(settings, ["encoder", "head"]) as engine:
        images = models.tiles(64)
        answer = await engine.infer("encoder", {"image": images})
        assert np.array_equal(answer["embedding"], models.direct(repository / "encoder", images))
        assert [status.ready for status in engine.status()] == [True, False]
        with pytest.raises(ModelNotLoaded, match="head"):
            await engine.infer("head", {"embedding": np.zeros((1, models.WIDTH), np.float32)})
        assert not engine.owner
    assert not (tmp_path / "state" / "triton.json").exists()
    async with Client(Endpoint(external)) as client:
        assert await client.model_ready("encoder"), "we must not unload what is not ours"
    with_scheme = settings.model_copy(update={"triton_url": f"grpc://{external}"})
    lines = await asyncio.to_thread(probe, with_scheme)
    assert lines[0].name == "triton"
    assert lines[0].ok


async def test_a_server_that_is_down_is_unavailable(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_server, "WAIT_S", 1.0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        settings = Settings(
            state=tmp_path, model_repository=repository, triton_url=f"127.0.0.1:{taken.getsockname()[1]}"
        )
        start = time.monotonic()
        with pytest.raises(InferenceUnavailable, match="PATHSERVE_TRITON_URL"):
            async with TritonEngine.open(settings, ["encoder"]):
                pass
        assert time.monotonic() - start < 10
        lines = await asyncio.to_thread(probe, settings)
        assert not lines[0].ok
