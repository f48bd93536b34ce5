"""A worker process that is real but for Triton: cases, ledger, archive and deliveries are its own, and the networks run
in onnxruntime. For tests of what `cervical-screening` does when its archive is lost between two models.

The detector's first answer waits until a file named GO lies in the state folder; each question leaves the model's name
as a line in ASKED.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt

from gateway.analyses import steps
from gateway.analyses.ledger import Ledger
from gateway.analyses.worker import parts
from gateway.analyses.worker.process import run_worker
from gateway.operations.errors import PathserveError
from gateway.operations.logging import configure_logging
from gateway.operations.settings import Settings, settings
from tests.support.bags import OnnxEngine

GO, ASKED = "go", "asked.log"


class Held(OnnxEngine):
    """The networks of a repository, once they may answer."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.model_repository)
        self._state = settings.state

    async def infer(
        self, model: str, batch: Mapping[str, npt.NDArray[Any]], *, deadline_s: float = 120.0
    ) -> dict[str, npt.NDArray[Any]]:
        while not (self._state / GO).exists():
            await asyncio.sleep(0.02)
        with (self._state / ASKED).open("a") as out:
            out.write(f"{model}\n")
        return await super().infer(model, batch, deadline_s=deadline_s)


class NoKeeper:
    """In the place of what keeps Triton warm: there is none."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def check(self) -> None: ...

    def models(self) -> Sequence[Mapping[str, Any]]:
        return ()


@asynccontextmanager
async def opened(settings: Settings, folders: tuple[str, ...]) -> AsyncIterator[Held]:
    yield Held(settings)


def asked(state: Path) -> list[str]:
    """The models that were asked, in order."""
    path = state / ASKED
    return path.read_text().splitlines() if path.exists() else []


def main(arguments: Sequence[str]) -> None:
    """The argument: parent pid (0 = none). All else comes from the environment."""
    steps.TritonEngine.open = opened  # type: ignore[method-assign, assignment]
    parts.EngineKeeper = NoKeeper  # type: ignore[misc, assignment]
    configure_logging("worker", folder=settings().state / "logs")
    try:
        run_worker(settings(), parts.open_parts, parent_pid=int(arguments[0]) or None)
    except PathserveError as error:
        sys.exit(error.detail)
