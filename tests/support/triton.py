"""The embedded Triton held by the test process, so that it outlives what a test kills."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tritonclient.grpc

from gateway.inference import TritonEngine
from gateway.inference.embedded import read_record
from gateway.inference.runtime import KEY_HEADER
from gateway.operations.settings import Settings


@contextmanager
def held_triton(settings: Settings) -> Iterator[None]:
    """The embedded Triton of a state folder, owned by this process; others on this state folder are its guests."""
    ready, over = threading.Event(), threading.Event()
    problems: list[BaseException] = []

    async def hold() -> None:
        async with TritonEngine.open(settings, ("tissue_classification",)):
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
        yield
    finally:
        over.set()
        holder.join(60)


def rows_computed(state: Path, model: str) -> int:
    """How many batch rows the embedded Triton of a state folder has put through a model since it was started."""
    with _asked(state) as (client, headers):
        answer = client.get_inference_statistics(model, headers=headers)
    return int(answer.model_stats[0].inference_count)


def loaded(state: Path) -> set[str]:
    """The folders that the embedded Triton of a state folder has loaded, by its own word."""
    with _asked(state) as (client, headers):
        index = client.get_model_repository_index(headers=headers)
    return {model.name for model in index.models if model.state == "READY"}


@contextmanager
def _asked(state: Path) -> Iterator[tuple[tritonclient.grpc.InferenceServerClient, dict[str, str]]]:
    record = read_record(state)
    assert record is not None
    with tritonclient.grpc.InferenceServerClient(record.endpoint.url) as client:
        yield client, {KEY_HEADER: record.key}
