"""An external Triton: it loads for us what it lets us load, and is neither started nor ended by us."""

import asyncio
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def running(repository: Path, folder: Path, *options: str) -> Iterator[str]:
    """A Triton of somebody else's on a loopback port; yields host:port."""
    found = find_installation(Settings().triton_venv)
    directory = Path("/tmp") / f"pathserve-external-{os.getpid()}"
    environment = runtime.build(directory, found, Settings().triton_backends, repository)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [
        argument
        for argument in runtime.command(directory, found, shm_prefix="pathserve_external_test_", key="k")
        if "grpc" not in argument and "model-control-mode" not in argument
    ]
    arguments += ["--grpc-address=127.0.0.1", f"--grpc-port={port}", *options]
    process = runtime.start(arguments, environment, directory, folder / "triton.log")
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(directory)


async def test_a_server_that_lets_us_load_is_brought_to_what_is_wanted(
    installed: None, repository: Path, tmp_path: Path
) -> None:
    with running(repository, tmp_path, "--model-control-mode=explicit", "--load-model=encoder") as url:
        settings = Settings(state=tmp_path / "state", model_repository=repository, triton_url=url)
        async with TritonEngine.open(settings, ["encoder", "both"]) as engine:
            images = models.tiles(64)
            answer = await engine.infer("both", {"image": images})
            embedding = models.direct(repository / "encoder", images)
            assert np.array_equal(answer["logits"], models.direct(repository / "head", embedding))
            assert [status.ready for status in engine.status()] == [True, True]
            assert not engine.owner
            await engine.serve(["encoder", "twin"])
            async with Client(Endpoint(url)) as client:
                assert await client.ready_models() == {"encoder", "twin"}
        assert not (tmp_path / "state" / "triton.json").exists()
        async with Client(Endpoint(url)) as client:
            assert await client.ready_models() == {"encoder", "twin"}, "an engine that ends takes nothing away"
        with_scheme = settings.model_copy(update={"triton_url": f"grpc://{url}"})
        lines = await asyncio.to_thread(probe, with_scheme)
        assert lines[0].name == "triton"
        assert lines[0].ok


@pytest.mark.parametrize(
    "options",
    [
        ["--model-control-mode=none"],
        [
            "--model-control-mode=explicit",
            "--load-model=encoder",
            "--grpc-restricted-protocol=model-repository:someone=else",
        ],
    ],
    ids=["loads by itself", "keeps the key"],
)
async def test_a_server_that_refuses_to_load_serves_what_it_has(
    installed: None, repository: Path, tmp_path: Path, options: list[str]
) -> None:
    theirs = tmp_path / "theirs"
    models.write_encoder(theirs, "encoder", golden=True)
    with running(theirs, tmp_path, *options) as url:
        settings = Settings(state=tmp_path / "state", model_repository=repository, triton_url=url)
        async with TritonEngine.open(settings, ["encoder"]) as engine:
            for _ in range(2):
                await engine.serve(["encoder", "head"])
                assert [status.ready for status in engine.status()] == [True, False]
                assert "loads its models by itself" in (engine.status()[1].reason or "")
                assert (await engine.infer("encoder", {"image": models.tiles(1)}))["embedding"].any()
            with pytest.raises(ModelNotLoaded, match="head"):
                await engine.infer("head", {"embedding": np.zeros((1, models.WIDTH), np.float32)})
            await engine.serve(["head"])
        async with Client(Endpoint(url)) as client:
            assert await client.model_ready("encoder"), "what is not ours is not unloaded"


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
        assert time.monotonic() - start < 30
        lines = await asyncio.to_thread(probe, settings)
        assert not lines[0].ok
