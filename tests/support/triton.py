"""The embedded Triton held by the test process, so that it outlives what a test kills."""

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import tritonclient.grpc

from gateway.inference import TritonEngine, runtime
from gateway.inference.embedded import kill_orphans, read_record
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
            record = read_record(settings.state)
            with suppress(ProcessLookupError):
                if record is not None:  # its good end takes seconds
                    os.killpg(record.pid, signal.SIGKILL)

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


def is_held(state: Path) -> bool:
    """Whether this process owns the embedded Triton of a state folder."""
    record = read_record(state)
    return record is not None and record.pid in [child.pid for child in psutil.Process().children()]


def end_triton(state: Path) -> None:
    """End the embedded Triton whose owner was killed, if there is one, and clear what it leaves."""
    record = read_record(state)
    if record is not None:
        kill_orphans(record)
        runtime.remove_shared_memory(record.shm_prefix)
        runtime.remove(Path(record.directory))


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
