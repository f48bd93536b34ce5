"""The engine on a real Triton: right answers, typed errors, no request left behind."""

import asyncio
import os
import signal
import stat
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc.aio as triton

from gateway.inference import TritonEngine, served
from gateway.inference.client import Client
from gateway.inference.embedded import read_record
from gateway.inference.runtime import KEY_HEADER
from gateway.operations.errors import InferenceError, InferenceTimeout, InferenceUnavailable, ModelNotLoaded

from . import models

pytestmark = [pytest.mark.triton, pytest.mark.asyncio(loop_scope="module")]


@pytest.mark.parametrize("batch", [1, 3, 31, 64])
async def test_answers_equal_direct_onnxruntime_bit_for_bit(engine: TritonEngine, repository: Path, batch: int) -> None:
    # 1 and 3 tiles travel in the message, 31 and 64 through shared memory.
    images = models.tiles(batch, seed=batch)
    answer = await engine.infer("encoder", {"image": images})
    assert np.array_equal(answer["embedding"], models.direct(repository / "encoder", images))


async def test_an_ensemble_answers_like_its_steps(engine: TritonEngine, repository: Path) -> None:
    images = models.tiles(32)
    answer = await engine.infer("both", {"image": images})
    embedding = models.direct(repository / "encoder", images)
    assert np.array_equal(answer["logits"], models.direct(repository / "head", embedding))


async def test_many_callers_each_get_their_own_rows(engine: TritonEngine, repository: Path) -> None:
    batches = [models.tiles(1 + index % 40, seed=index) for index in range(40)]
    answers = await asyncio.gather(*(engine.infer("twin", {"image": images}) for images in batches))
    for images, answer in zip(batches, answers, strict=True):
        assert np.array_equal(answer["embedding"], models.direct(repository / "twin", images))


async def test_a_request_that_fails_spoils_no_other_of_its_batch(engine: TritonEngine) -> None:
    good, bad = (models.slow_tiles(3, red) for red in (7, 200))
    before = await _executions(engine, "picky")
    answer, failure = await asyncio.gather(
        engine.infer("picky", {"image": good}), engine.infer("picky", {"image": bad}), return_exceptions=True
    )
    assert answer["embedding"].tolist() == [[7.0]] * 3
    assert isinstance(failure, InferenceError)
    assert "onnxruntime" in failure.detail
    assert await _executions(engine, "picky") == before + 1, "the two should have been one batch"


async def test_arrays_that_are_not_contiguous_are_sent_right(engine: TritonEngine, repository: Path) -> None:
    images = models.tiles(32)[:, ::-1, :, ::-1]
    answer = await engine.infer("encoder", {"image": images})
    assert np.array_equal(answer["embedding"], models.direct(repository / "encoder", np.ascontiguousarray(images)))


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"image": models.tiles(1)[:, :32]}, "64, 64, 3"),
        ({"image": models.tiles(1).astype(np.float32)}, "UINT8"),
        ({"picture": models.tiles(1)}, "inputs"),
        ({"image": models.tiles(65)}, "1 to 64"),
        ({"image": models.tiles(0)}, "1 to 64"),
    ],
)
async def test_a_batch_that_does_not_fit_is_refused(
    engine: TritonEngine, batch: dict[str, np.ndarray], words: str
) -> None:
    with pytest.raises(InferenceError, match=words):
        await engine.infer("encoder", batch)


async def test_an_unknown_model_is_not_loaded(engine: TritonEngine) -> None:
    with pytest.raises(ModelNotLoaded, match="absent"):
        await engine.infer("absent", {"image": models.tiles(1)})


async def test_every_model_is_ready(engine: TritonEngine) -> None:
    assert engine.owner
    assert [(status.folder, status.version, status.ready) for status in engine.status()] == [
        (name, "1", True) for name in ("encoder", "twin", "slow", "picky", "both")
    ]


@pytest.mark.parametrize("batch", [1, 64], ids=["message", "shared memory"])
async def test_a_deadline_is_a_typed_error_and_the_next_request_is_right(engine: TritonEngine, batch: int) -> None:
    with pytest.raises(InferenceTimeout, match="slow"):
        await engine.infer("slow", {"image": models.slow_tiles(batch, 60)}, deadline_s=0.2)
    answer = await engine.infer("slow", {"image": models.slow_tiles(64, 1)})
    assert answer["embedding"][:, 0].tolist() == [1.0] * 64


async def test_a_cancelled_request_keeps_its_region_until_the_server_is_done_with_it(engine: TritonEngine) -> None:
    running = []
    for red in (90, 3):
        running.append(asyncio.create_task(engine.infer("slow", {"image": models.slow_tiles(64, red)})))
        await asyncio.sleep(0.2)
    for task in running:
        task.cancel()
    ends = await asyncio.gather(*running, return_exceptions=True)
    assert [type(end) for end in ends] == [asyncio.CancelledError] * 2
    # Other regions serve meanwhile: the answers are those of their own pixels.
    answers = await asyncio.gather(*(engine.infer("slow", {"image": models.slow_tiles(64, red)}) for red in (2, 5)))
    assert [answer["embedding"][0, 0] for answer in answers] == [2.0, 5.0]


async def test_cancelling_reaches_triton(engine: TritonEngine) -> None:
    # One instance: were the second request not dropped from its queue, the third would wait for it as long as for one.
    loop = asyncio.get_running_loop()
    start = loop.time()
    running = []
    for _ in range(2):
        running.append(asyncio.create_task(engine.infer("slow", {"image": models.slow_tiles(64, 100)})))
        await asyncio.sleep(0.2)
    running[1].cancel()
    await asyncio.gather(running[1], return_exceptions=True)
    first = await running[0]
    assert first["embedding"][0, 0] == 100.0
    one_s, start = loop.time() - start, loop.time()
    await engine.infer("slow", {"image": models.slow_tiles(1, 0)})
    assert loop.time() - start < 0.6 * one_s


async def test_the_state_holds_regular_files_only_and_the_key_is_private(engine: TritonEngine) -> None:
    state = engine.settings.state
    for path in state.rglob("*"):
        assert stat.S_ISREG(path.lstat().st_mode) or path.is_dir()
    assert stat.S_IMODE((state / "triton.json").stat().st_mode) == 0o600
    record = read_record(state)
    assert record is not None
    assert stat.S_IMODE(Path(record.directory).stat().st_mode) == 0o700
    assert state not in Path(record.directory).parents


async def test_shared_memory_files_have_no_names_left(engine: TritonEngine) -> None:
    await engine.infer("encoder", {"image": models.tiles(64)})
    record = read_record(engine.settings.state)
    assert record is not None
    # Of this server only: others of this machine have theirs, named for the moment between making and mapping them.
    assert not list(Path("/dev/shm").glob(f"{record.shm_prefix}*client*"))


async def test_two_engines_of_one_process_share_the_server_and_both_share_memory(
    engine: TritonEngine, repository: Path
) -> None:
    images = models.tiles(64)
    await engine.infer("encoder", {"image": images})
    async with TritonEngine.open(engine.settings, ["encoder", "slow"]) as guest:
        assert not guest.owner
        for asked in (engine, guest):
            answer = await asked.infer("encoder", {"image": images})
            assert np.array_equal(answer["embedding"], models.direct(repository / "encoder", images))
        both = await _regions(engine)
        assert len({name.split("_")[4] for name in both}) == 2
        # It ends with a request in flight, whose region must outlive it in the server.
        task = asyncio.create_task(guest.infer("slow", {"image": models.slow_tiles(64, 40)}))
        await asyncio.sleep(0.2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    left = await _regions(engine)
    await engine.infer("slow", {"image": models.slow_tiles(1, 0)})
    async with TritonEngine.open(engine.settings, ["encoder"]):
        swept = await _regions(engine)
    assert len(left) == len(swept) + 1
    assert len({name.split("_")[4] for name in swept}) == 1


async def test_a_killed_stub_is_noticed_on_use_and_replaced(engine: TritonEngine, repository: Path) -> None:
    images = models.tiles(4)
    for model, key in (("encoder", "embedding"), ("both", "logits")):
        before = await engine.infer(model, {"image": images})
        for pid in _stubs(engine, "encoder"):
            os.kill(pid, signal.SIGKILL)
        after = await engine.infer(model, {"image": images})
        assert np.array_equal(before[key], after[key])


async def test_a_stub_killed_between_two_engines_is_replaced_at_the_second_ones_start(engine: TritonEngine) -> None:
    for pid in _stubs(engine, "encoder"):
        os.kill(pid, signal.SIGKILL)
    async with TritonEngine.open(engine.settings, ["encoder"]) as second:
        assert [status.reason for status in second.status()] == [None]
        await second.infer("encoder", {"image": models.tiles(1)})


async def test_one_of_two_stubs_killed_fails_no_request(engine: TritonEngine, repository: Path) -> None:
    images = models.tiles(4)
    os.kill(_stubs(engine, "twin")[0], signal.SIGKILL)
    answers = await asyncio.gather(*(engine.infer("twin", {"image": images}) for _ in range(8)))
    for answer in answers:
        assert np.array_equal(answer["embedding"], models.direct(repository / "twin", images))


async def test_a_killed_server_is_restarted_under_the_requests(engine: TritonEngine, repository: Path) -> None:
    record = read_record(engine.settings.state)
    assert record is not None
    images = models.tiles(32)
    running = [asyncio.create_task(engine.infer("slow", {"image": models.slow_tiles(64, 20)})) for _ in range(2)]
    await asyncio.sleep(0.1)
    os.kill(record.pid, signal.SIGKILL)
    answers = await asyncio.gather(engine.infer("encoder", {"image": images}), *running)
    assert np.array_equal(answers[0]["embedding"], models.direct(repository / "encoder", images))
    assert [answer["embedding"][0, 0] for answer in answers[1:]] == [20.0, 20.0]
    assert not list(Path("/dev/shm").glob(f"{record.shm_prefix}*"))


async def test_a_frozen_stub_that_takes_the_server_down_is_survived(engine: TritonEngine) -> None:
    """A stub stopped for over a second and resumed aborts the whole of Triton 2.51."""
    (stub,) = _stubs(engine, "slow")
    os.kill(stub, signal.SIGSTOP)
    asked = asyncio.create_task(engine.infer("slow", {"image": models.slow_tiles(4, 2)}))
    await asyncio.sleep(1.5)
    os.kill(stub, signal.SIGCONT)
    (first,) = await asyncio.gather(asked, return_exceptions=True)
    assert isinstance(first, InferenceError) or first["embedding"][0, 0] == 2.0
    answer = await engine.infer("slow", {"image": models.slow_tiles(4, 3)})
    assert answer["embedding"][0, 0] == 3.0


async def test_a_model_that_keeps_dying_is_given_up(engine: TritonEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Last in this module: the model stays failed."""
    monkeypatch.setattr(served, "RELOADS", 3)
    reasons = []
    for _ in range(6):
        for pid in _stubs(engine, "twin"):
            os.kill(pid, signal.SIGKILL)
        try:
            await engine.infer("twin", {"image": models.tiles(1)})
        except InferenceUnavailable as error:
            reasons.append((error.detail, error.retryable))
    # It may come back: an analysis tries again.
    assert "times within 10 minutes" in reasons[-1][0]
    assert reasons[-1][1]
    assert {status.folder: status.ready for status in engine.status()}["twin"] is False
    assert (await engine.infer("encoder", {"image": models.tiles(1)}))["embedding"].shape == (1, models.WIDTH)


async def _executions(engine: TritonEngine, model: str) -> int:
    record = read_record(engine.settings.state)
    assert record is not None
    async with triton.InferenceServerClient(record.endpoint.url) as client:
        statistics = await client.get_inference_statistics(model, headers={KEY_HEADER: record.key})
    return int(statistics.model_stats[0].execution_count)


async def _regions(engine: TritonEngine) -> list[str]:
    record = read_record(engine.settings.state)
    assert record is not None
    async with Client(record.endpoint) as client:
        return await client.regions()


def _stubs(engine: TritonEngine, model: str) -> list[int]:
    record = read_record(engine.settings.state)
    assert record is not None
    return [
        process.pid
        for process in psutil.Process(record.pid).children(recursive=True)
        if process.status() != psutil.STATUS_ZOMBIE and any(f"/{model}/1/" in text for text in process.cmdline())
    ]
