"""What the Python-based backends share, seen from outside a real Triton: where it lies, and what a model may use."""

import contextlib
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest
import pytest_asyncio

from gateway.inference.client import CallFailed, Client, plain_input
from gateway.inference.embedded import EmbeddedServer, read_record
from gateway.operations.settings import Settings

from . import models

pytestmark = [pytest.mark.triton, pytest.mark.asyncio(loop_scope="module")]

LOAD_S = 60.0


class Served(NamedTuple):
    """A server, the folder of its models (empty at first) and its runtime directory."""

    client: Client
    repository: Path
    directory: Path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(installed: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    state, repository = tmp_path_factory.mktemp("state"), tmp_path_factory.mktemp("models")
    server = EmbeddedServer(Settings(state=state, model_repository=repository))
    try:
        async with Client(await server.ensure()) as client:
            yield Served(client, repository, Path(read_record(state).directory))
    finally:
        await server.stop()


def stub_threads(model: str) -> int:
    """The threads of the stubs that serve a model."""
    found = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name().startswith("triton_python") and any(f"/{model}/" in word for word in process.cmdline()):
                found += process.num_threads()
    return found


async def test_all_threads_of_a_model_together_are_no_more_than_the_cores(served: Served) -> None:
    for name, count, threads in (("threads_one", 1, 1), ("threads_all", 1, 1000), ("threads_both", 2, 1000)):
        config = models.write_encoder(served.repository, name, count=count) / "config.pbtxt"
        parameter = f'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{threads}" }} }}\n'
        config.write_text(config.read_text() + parameter)
        await served.client.load(name, LOAD_S)
    cores = len(os.sched_getaffinity(0))
    one, greedy, shared = (stub_threads(name) for name in ("threads_one", "threads_all", "threads_both"))
    assert one > 0
    assert greedy == one + cores - 1
    assert shared == 2 * (one + max(1, cores // 2) - 1)


async def test_a_backend_is_reached_through_a_link_and_finds_what_it_shares(served: Served) -> None:
    models.write_encoder(served.repository, "found")
    await served.client.load("found", LOAD_S)
    images = models.tiles(2)
    answer = await served.client.infer("found", [plain_input("image", "UINT8", images)], ["embedding"], LOAD_S)
    assert np.array_equal(answer["embedding"], models.direct(served.repository / "found", images))
    backends = Settings().triton_backends
    linked = {path.name: path.resolve() for path in (served.directory / "backends").iterdir() if path.is_symlink()}
    assert linked["onnxruntime"] == backends / "onnxruntime"
    # What is shared is no backend.
    assert (backends / "common").is_dir()
    assert "common" not in linked


async def test_a_model_without_its_file_says_which(served: Served) -> None:
    folder = models.write_encoder(served.repository, "without")
    (folder / "1" / "model.onnx").unlink()
    with pytest.raises(CallFailed, match=re.escape("model.onnx is not in the version's folder")):
        await served.client.load("without", LOAD_S)
