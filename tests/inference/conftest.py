"""A repository of tiny models, and real embedded Tritons on it."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from gateway.inference import TritonEngine
from gateway.inference.client import Client, plain_input
from gateway.inference.embedded import EmbeddedServer, Record, read_record
from gateway.inference.installation import check
from gateway.operations.errors import InferenceUnavailable
from gateway.operations.settings import Settings
from tests.support.triton import end_triton

from . import models


@pytest.fixture(scope="session")
def installed() -> None:
    try:
        check(Settings().triton_venv)
    except InferenceUnavailable as error:
        pytest.skip(f"the embedded Triton is not installed: {error.detail}")


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """encoder, twin (two instances), slow, picky, head, and the ensemble `both`; in a path with a blank."""
    folder = tmp_path_factory.mktemp("model repository")
    models.write_encoder(folder, "encoder", golden=True)
    models.write_encoder(folder, "twin", count=2, golden=True)
    models.write_slow(folder, "slow")
    models.write_picky(folder, "picky")
    models.write_head(folder, "head")
    models.write_ensemble(folder, "both", "encoder", "head")
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(
    installed: None, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[TritonEngine]:
    """One server for the tests of a module."""
    settings = Settings(state=tmp_path_factory.mktemp("state"), model_repository=repository)
    async with TritonEngine.open(settings, ["encoder", "twin", "slow", "picky", "both"]) as opened:
        yield opened


class Holder:
    """Another process that holds an engine open; it answers one JSON line for each command."""

    def __init__(self, state: Path, repository: Path, *names: str) -> None:
        self.state = state
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("holder.py"), state, repository, *names],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait(self, timeout_s: float = 60.0) -> dict:
        """Its next line."""
        ready, _, _ = select.select([self.process.stdout], [], [], timeout_s)
        assert ready, "the other process does not answer"
        return json.loads(self.process.stdout.readline())

    def ask(self, command: str) -> dict:
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.wait()

    def record(self) -> Record:
        record = read_record(self.state)
        assert record is not None
        return record

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """A clean end; kills what does not end."""
        self.process.stdin.close()
        try:
            self.process.wait(20)
        finally:
            self.kill()
            self.process.stdout.close()


@pytest.fixture
def hold(installed: None, repository: Path) -> Iterator[Callable[..., Holder]]:
    """Start holders; what they leave is ended after the test."""
    holders: list[Holder] = []

    def start(state: Path, *names: str) -> Holder:
        holders.append(Holder(state, repository, *(names or ("encoder",))))
        return holders[-1]

    yield start
    for holder in holders:
        holder.close()
    for state in {holder.state for holder in holders}:
        end_triton(state)  # a killed owner leaves its server to the next one


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Wait until a condition holds."""

    def wait(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "it does not come true"
            time.sleep(0.05)

    return wait


@asynccontextmanager
async def empty_triton(settings: Settings) -> AsyncIterator[Client]:
    """A server of its own without any model, and a connection to it: nothing of the gateway's checks is between."""
    server = EmbeddedServer(settings)
    try:
        async with Client(await server.ensure()) as client:
            yield client
    finally:
        await server.stop()


async def embeddings(client: Client, model: str, images: np.ndarray) -> np.ndarray:
    """The answer of a model that is loaded, asked without shared memory."""
    answer = await client.infer(model, [plain_input("image", "UINT8", images)], ["embedding"], 60.0)
    return answer["embedding"]


def servers_of(record: Record) -> list[int]:
    """Process ids that carry a server's unique prefix on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if record.shm_prefix in line:
                found.append(int(entry.name))
    return found
