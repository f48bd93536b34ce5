"""A process of its own that holds an engine open: `holder.py STATE REPOSITORY MODEL…`, commands on stdin."""

import asyncio
import json
import sys
from pathlib import Path

import numpy as np

from gateway.inference import TritonEngine
from gateway.operations.errors import PathserveError
from gateway.operations.settings import Settings


async def main(state: Path, repository: Path, names: list[str]) -> None:
    settings = Settings(state=state, model_repository=repository)
    async with TritonEngine.open(settings, names) as engine:
        _say(owner=engine.owner, models={status.folder: status.reason for status in engine.status()})
        while command := (await asyncio.to_thread(sys.stdin.readline)).split():
            try:
                images = np.full((16, 64, 64, 3), int(command[1]) if len(command) > 1 else 100, np.uint8)
                answer = await engine.infer(command[0], {"image": images})
                _say(owner=engine.owner, value=float(answer["embedding"][-1, 0]))
            except PathserveError as error:
                _say(owner=engine.owner, error=error.reason, detail=error.detail)


def _say(**answer: object) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    import structlog

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
