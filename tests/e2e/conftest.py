"""One state folder, and with it one embedded Triton, for all end-to-end tests of a run."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.inference import TritonEngine
from gateway.operations.settings import Settings

PATHSERVE = Path(sys.prefix) / "bin" / "pathserve"


@dataclass(frozen=True)
class Cli:
    """The `pathserve` command on a state of its own."""

    state: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __call__(
        self, *arguments: object, timeout_s: float = 240, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PATHSERVE, *map(str, arguments)],
            env={**os.environ, "PATHSERVE_STATE": str(self.state), **self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """The command, with the embedded Triton kept running by this process so that calls are quick."""
    state = tmp_path_factory.mktemp("state")
    ready, over = threading.Event(), threading.Event()
    problems: list[BaseException] = []

    async def hold() -> None:
        async with TritonEngine.open(Settings(state=state), ("tissue_classification",)):
            ready.set()
            await asyncio.to_thread(over.wait)

    def run() -> None:
        try:
            asyncio.run(hold())
        except BaseException as error:
            problems.append(error)
        finally:
            ready.set()

    holder = threading.Thread(target=run)
    holder.start()
    try:
        ready.wait(120)
        assert not problems, problems
        yield Cli(state)
    finally:
        over.set()
        holder.join(60)
