"""What dies, freezes or hangs is noticed without a request, healed, and costs no answer."""

import asyncio
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import pytest_asyncio
from prometheus_client import REGISTRY

from gateway.inference import TritonEngine, embedded, link, supervision
from gateway.inference.embedded import read_record
from gateway.inference.stubs import Stub, living_stubs, wanted_s
from gateway.operations.settings import Settings
from tests.support.models import seal

from . import models

pytestmark = [pytest.mark.triton, pytest.mark.asyncio(loop_scope="module")]

# Answers like the encoder; its next request after the file `hang` appears never ends, and uses no CPU.
STICKY = """
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.folder = Path(args["model_repository"])
        self.session = onnxruntime.InferenceSession(str(self.folder / args["model_version"] / "model.onnx"))

    def execute(self, requests):
        try:
            (self.folder / "hang").unlink()
        except FileNotFoundError:
            pass
        else:
            threading.Event().wait()
        answers = []
        for request in requests:
            image = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()
            (embedding,) = self.session.run(None, {"image": image})
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("embedding", np.ascontiguousarray(embedding))]))
        return answers
"""


# Is loaded once there is no file `hold` any more.
LATE = """
import time
from pathlib import Path


class TritonPythonModel:
    def initialize(self, args):
        while (Path(args["model_repository"]) / "hold").exists():
            time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """encoder, twin (two instances), head, the ensemble `both`, slow, heavy (two instances), sticky, which can be made
    to hang; late and pair (two instances), whose loads can be held up, and which answer nothing."""
    folder = tmp_path_factory.mktemp("fragile")
    for name, count in (("encoder", 1), ("twin", 2), ("sticky", 1)):
        models.write_encoder(folder, name, count=count, golden=True)
    models.write_head(folder, "head")
    models.write_ensemble(folder, "both", "encoder", "head")
    for name, count, turns in (("slow", 1, 0), ("heavy", 2, 20)):
        slow = models.write_slow(folder, name, count=count)
        tiles = models.slow_tiles(1, turns)
        np.savez(slow / "golden.npz", image=tiles, **{"expected.embedding": models.direct(slow, tiles)})
        seal(slow)
    models.write_encoder(folder, "late")
    models.write_encoder(folder, "pair", count=2)
    for name, backend in (("sticky", "sticky"), ("late", "late"), ("pair", "late")):
        config = folder / name / "config.pbtxt"
        config.write_text(config.read_text().replace('"onnxruntime"', f'"{backend}"'))
        seal(config.parent)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def owner(
    installed: None, fragile: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[TritonEngine]:
    backends = tmp_path_factory.mktemp("backends")
    for backend in Settings().triton_backends.iterdir():
        shutil.copytree(backend, backends / backend.name)
    for name, code in (("sticky", STICKY), ("late", LATE)):
        (backends / name).mkdir()
        (backends / name / "model.py").write_text(code)
    settings = Settings(state=tmp_path_factory.mktemp("state"), model_repository=fragile, triton_backends=backends)
    async with TritonEngine.open(settings, []) as opened:
        await opened.serve(["encoder", "twin", "both", "slow", "sticky"])
        assert [status.reason for status in opened.status()] == [None] * 5
        yield opened


async def test_each_killed_stub_is_replaced_in_time_without_any_request(owner: TritonEngine, fragile: Path) -> None:
    images = models.tiles(2)
    for folder, place, instances in (("encoder", 0, 1), ("twin", 0, 2), ("twin", 1, 2), ("head", 0, 1)):
        # What was unloaded for another's sake takes a moment to leave.
        await _until(lambda f=folder, i=instances: len(_stubs(owner, f)) == i, 30)
        deaths, heals = _deaths(folder, "dead"), _healed(folder)
        os.kill(_stubs(owner, folder)[place].pid, signal.SIGKILL)
        await _until(lambda f=folder, d=deaths: _deaths(f, "dead") == d + 1, 30)
        await _until(lambda f=folder, h=heals: _healed(f) == h + 1, 30)
        await _until(lambda: all(status.ready for status in owner.status()), 30)
    for name in ("encoder", "twin"):
        answer = await owner.infer(name, {"image": images})
        assert np.array_equal(answer["embedding"], models.direct(fragile / name, images))
    embedding = models.direct(fragile / "encoder", images)
    answer = await owner.infer("both", {"image": images})
    assert np.array_equal(answer["logits"], models.direct(fragile / "head", embedding))


async def test_a_look_that_fails_unexpectedly_is_not_the_last_one(
    owner: TritonEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[int] = []

    def without_descriptors(server_pid: int, directory: Path) -> tuple[Stub, ...]:
        failed.append(server_pid)
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(embedded, "living_stubs", without_descriptors)
        await _until(lambda: len(failed) > 1)
    deaths = _deaths("encoder", "dead")
    os.kill(_stubs(owner, "encoder")[0].pid, signal.SIGKILL)
    await _until(lambda: _deaths("encoder", "dead") == deaths + 1)
    await _until(lambda: all(status.ready for status in owner.status()))


async def test_a_frozen_stub_is_replaced_and_the_server_lives(owner: TritonEngine) -> None:
    server = _server(owner)
    (victim, _) = _stubs(owner, "twin")
    deaths = _deaths("twin", "dead")
    os.kill(victim.pid, signal.SIGSTOP)
    await _until(lambda: _deaths("twin", "dead") == deaths + 1)
    await _until(lambda: len(_stubs(owner, "twin")) == 2)
    assert (await owner.infer("twin", {"image": models.tiles(1)}))["embedding"].any()
    assert _server(owner) == server


@pytest.mark.parametrize("asked", ["by the owner", "by a guest"])
async def test_a_stub_that_ends_in_the_middle_of_a_request_costs_no_answer(owner: TritonEngine, asked: str) -> None:
    async with TritonEngine.open(owner.settings, ["slow"]) as guest:
        engine = owner if asked == "by the owner" else guest
        asking = asyncio.create_task(engine.infer("slow", {"image": models.slow_tiles(2, 60)}))
        await asyncio.sleep(0.3)
        (victim,) = _stubs(owner, "slow")
        os.kill(victim.pid, signal.SIGKILL)
        assert (await asking)["embedding"][0, 0] == 60.0


@pytest.mark.parametrize("asked", [False, True], ids=["unasked", "asked"])
async def test_a_stub_that_lives_and_hangs_is_replaced(
    owner: TritonEngine, fragile: Path, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert supervision.QUIET_S + supervision.CANARY_DEADLINE_S + 2 * supervision.LOOK_PERIOD_S < 10
    monkeypatch.setattr(supervision, "QUIET_S", 1.0)
    deaths = _deaths("sticky", "hung")
    (fragile / "sticky" / "hang").touch()
    images = models.tiles(3)
    if asked:
        answer = await asyncio.wait_for(owner.infer("sticky", {"image": images}), 100)
        assert np.array_equal(answer["embedding"], models.direct(fragile / "sticky", images))
    else:
        await _until(lambda: _deaths("sticky", "hung") == deaths + 1)
        await _until(lambda: owner.status()[-1].ready)
    assert _deaths("sticky", "hung") == deaths + 1
    assert (await owner.infer("sticky", {"image": images}))["embedding"].any()


async def test_a_busy_model_is_not_taken_for_one_that_hangs(
    owner: TritonEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "QUIET_S", 0.5)
    monkeypatch.setattr(supervision, "CANARY_DEADLINE_S", 0.5)
    (before,) = _stubs(owner, "slow")
    assert (await owner.infer("slow", {"image": models.slow_tiles(1, 150)}))["embedding"][0, 0] == 150.0
    (after,) = _stubs(owner, "slow")
    assert before.pid == after.pid


async def test_a_model_that_needs_longer_than_the_canary_has_is_not_taken_for_one_that_hangs(
    owner: TritonEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two processes one computes both canaries, as one batch, and the other has nothing to do."""
    served = [status.folder for status in owner.status()]
    await owner.serve([*served, "heavy"])
    before = _stubs(owner, "heavy")
    monkeypatch.setattr(supervision, "QUIET_S", 0.3)
    monkeypatch.setattr(supervision, "CANARY_DEADLINE_S", 0.1)
    client = owner._link.client
    answered = (await client.answered())["heavy"]
    for _ in range(100):
        await asyncio.sleep(0.2)
        if (await client.answered())["heavy"] >= answered + 4:
            break
    assert (await client.answered())["heavy"] >= answered + 4, "it was not asked"
    assert [stub.pid for stub in _stubs(owner, "heavy")] == [stub.pid for stub in before]
    assert _deaths("heavy", "hung") == 0
    await owner.serve(served)


async def test_what_stands_in_line_for_a_core_wants_to_compute() -> None:
    """Beside a process of more weight on the same core it gets a seventieth of it."""
    core = min(os.sched_getaffinity(0))
    endless = f"import os; print(flush=True); os.sched_setaffinity(0, [{core}]); os.nice({{}})\nwhile True: pass"
    commands = [endless.format(19), endless.format(0), "import time; print(flush=True); time.sleep(60)"]
    started = [psutil.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE) for command in commands]
    try:
        for process in started:
            await asyncio.to_thread(process.stdout.readline)
        await asyncio.sleep(0.5)
        starved, _, sleeper = started
        before, slept = wanted_s(starved.pid), wanted_s(sleeper.pid)
        # The kernel counts its time in line when that is over, which takes the longer the more stand there.
        await _until(lambda: wanted_s(starved.pid) > before + 0.5)
        asleep = wanted_s(sleeper.pid) - slept
    finally:
        for process in started:
            process.kill()
            process.wait()
            process.stdout.close()
    assert asleep < 0.05


async def test_a_server_that_hangs_is_restarted_and_no_request_fails(
    owner: TritonEngine, fragile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "SERVER_DEADLINE_S", 1.5)
    images = models.tiles(40)
    async with TritonEngine.open(owner.settings, ["encoder"]) as guest:
        server = _server(owner)
        os.kill(server, signal.SIGSTOP)
        start = time.monotonic()
        answers = await asyncio.gather(
            guest.infer("encoder", {"image": images}), owner.infer("twin", {"image": images})
        )
        assert time.monotonic() - start < 100  # before any request's own deadline
        for answer, name in zip(answers, ("encoder", "twin"), strict=True):
            assert np.array_equal(answer["embedding"], models.direct(fragile / name, images))
    assert owner.owner
    assert _server(owner) != server
    assert not psutil.pid_exists(server)
    await _until(lambda: all(status.ready for status in owner.status()))


async def test_a_stub_killed_while_it_is_loaded_costs_no_answer(owner: TritonEngine, fragile: Path) -> None:
    """Triton waits for it for ever: only another server can load the model."""
    server = _server(owner)
    images = models.tiles(4)
    due = models.direct(fragile / "encoder", images)
    # Whether it is killed before it has reported is a matter of milliseconds.
    for _ in range(5):
        await _until(lambda: len(_stubs(owner, "encoder")) == 1)
        (first,) = _stubs(owner, "encoder")
        os.kill(first.pid, signal.SIGKILL)
        following: list[Stub] = []

        def follows(old: int = first.pid, found: list[Stub] = following) -> bool:
            found[:] = [stub for stub in _stubs(owner, "encoder") if stub.pid != old]
            return bool(found)

        await _until(follows, period_s=0.002)
        os.kill(following[0].pid, signal.SIGKILL)
        assert np.array_equal((await owner.infer("encoder", {"image": images}))["embedding"], due)
        if _server(owner) != server:
            break
    assert _server(owner) != server
    await _until(lambda: all(status.ready for status in owner.status()))


async def test_a_stub_killed_while_it_is_loaded_for_the_first_time_is_an_accident_too(
    owner: TritonEngine, fragile: Path
) -> None:
    """As in a worker that has just taken a server over: it knows nothing of the model yet. Triton says so, or hangs."""
    served = [status.folder for status in owner.status()]
    with _held(fragile / "late"):
        serving = asyncio.create_task(owner.serve([*served, "late"]))
        await _until(lambda: len(_stubs(owner, "late")) == 1)
        (stub,) = _stubs(owner, "late")
        os.kill(stub.pid, signal.SIGKILL)
    await serving
    await _until(lambda: all(status.ready for status in owner.status()))
    await owner.serve(served)


async def test_a_load_that_another_began_and_that_lost_a_process_is_stuck_too(
    owner: TritonEngine, fragile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after the death of a guest worker that had asked for it: Triton waits, and every later load with it."""
    monkeypatch.setattr(link, "_UNBORN_S", 5.0)
    server = _server(owner)
    served = [status.folder for status in owner.status()]
    # Whether it is killed before it has reported is a matter of milliseconds: Triton says so of one that has.
    for _ in range(5):
        with _held(fragile / "pair"):
            others = asyncio.create_task(owner._link.client.load("pair", 60))
            await _until(lambda: len(_stubs(owner, "pair")) == 2, period_s=0.002)
            os.kill(_stubs(owner, "pair")[-1].pid, signal.SIGKILL)
            await _until(lambda: len(_stubs(owner, "pair")) == 1)
        await asyncio.wait_for(owner.serve([*served, "pair"]), link.LOAD_TIMEOUT_S)
        await _until(lambda: all(status.ready for status in owner.status()))
        others.cancel()
        await asyncio.gather(others, return_exceptions=True)
        await owner.serve(served)
        if _server(owner) != server:
            break
    assert _server(owner) != server


async def test_what_dies_beside_a_load_says_nothing_of_what_is_loaded(owner: TritonEngine, fragile: Path) -> None:
    server = _server(owner)
    served = [status.folder for status in owner.status()]
    with _held(fragile / "late"):
        serving = asyncio.create_task(owner.serve([*served, "late"]))
        await _until(lambda: len(_stubs(owner, "late")) == 1)
        for _ in range(2):
            await _until(lambda: len(_stubs(owner, "encoder")) == 1)
            healed = _healed("encoder")
            (victim,) = _stubs(owner, "encoder")
            os.kill(victim.pid, signal.SIGKILL)
            # Not as soon as it is there: one that is killed as it is loaded is another matter.
            await _until(lambda h=healed: _healed("encoder") == h + 1)
        assert not serving.done()
    await serving
    (status,) = [status for status in owner.status() if status.folder == "late"]
    assert (status.ready, status.reason) == (True, None)
    assert _server(owner) == server
    await owner.serve(served)
    await _until(lambda: all(status.ready for status in owner.status()))


async def test_stubs_killed_at_random_cost_no_answer(owner: TritonEngine, fragile: Path) -> None:
    seed = 5
    images = models.tiles(24, seed=seed)
    embedding = models.direct(fragile / "encoder", images)
    due = {
        "twin": ("embedding", models.direct(fragile / "twin", images)),
        "both": ("logits", models.direct(fragile / "head", embedding)),
    }
    enough = asyncio.Event()
    counts = dict.fromkeys(due, 0)

    async def keep_asking(engine: TritonEngine, model: str) -> None:
        output, answer = due[model]
        while not enough.is_set():
            assert np.array_equal((await engine.infer(model, {"image": images}))[output], answer)
            counts[model] += 1

    kills = 0
    dice = random.Random(seed)
    async with TritonEngine.open(owner.settings, ["twin", "both"]) as guest:
        asking = [asyncio.create_task(keep_asking(guest, "twin")), asyncio.create_task(keep_asking(guest, "both"))]
        while (kills < 6 or min(counts.values()) <= 10) and not any(task.done() for task in asking):
            await asyncio.sleep(dice.uniform(1.0, 2.0))
            victims = _stubs(owner, "encoder", "twin", "head")
            if victims:
                os.kill(dice.choice(victims).pid, signal.SIGKILL)
                kills += 1
        enough.set()
        await asyncio.gather(*asking)


@contextmanager
def _held(model: Path) -> Iterator[None]:
    """Loads of late or pair do not end before this does."""
    (model / "hold").touch()
    try:
        yield
    finally:
        (model / "hold").unlink()


async def _until(condition: Callable[[], bool], timeout_s: float = 60.0, period_s: float = 0.05) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < timeout_s, "it does not come true"
        await asyncio.sleep(period_s)


def _server(engine: TritonEngine) -> int:
    record = read_record(engine.settings.state)
    assert record is not None
    return record.pid


def _stubs(engine: TritonEngine, *folders: str) -> list[Stub]:
    record = read_record(engine.settings.state)
    assert record is not None
    found = living_stubs(record.pid, Path(record.directory))
    return sorted((stub for stub in found if stub.folder in folders), key=lambda stub: stub.pid)


def _deaths(model: str, cause: str) -> float:
    labels = {"model": model, "version": "1", "cause": cause}
    return REGISTRY.get_sample_value("pathserve_model_stub_deaths_total", labels) or 0


def _healed(model: str) -> float:
    labels = {"model": model, "version": "1"}
    return REGISTRY.get_sample_value("pathserve_model_heal_duration_seconds_count", labels) or 0
