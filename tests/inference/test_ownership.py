"""One embedded Triton per state folder, whoever starts first, whoever dies."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from gateway.inference import TritonEngine, embedded
from gateway.inference.embedded import EmbeddedServer, Record, kill_orphans, read_record, write_record
from gateway.inference.runtime import shared_memory_files
from gateway.inference.stubs import Stub, kill, living_stubs
from gateway.operations.errors import InferenceUnavailable
from gateway.operations.settings import Settings

from . import models
from .conftest import servers_of

pytestmark = pytest.mark.triton


def test_two_that_start_at_once_share_one_server_and_a_copied_state_has_its_own(
    hold, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    first, second = hold(tmp_path, "slow"), hold(tmp_path, "slow")
    owners = [first.wait()["owner"], second.wait()["owner"]]
    assert sorted(owners) == [False, True]
    assert [holder.ask("slow 1")["value"] for holder in (first, second)] == [1.0, 1.0]
    programs = [Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] for pid in servers_of(first.record())]
    assert sum(program.endswith(b"/tritonserver") for program in programs) == 1
    # A process that only uses the server waits for the one that owns it to heal a model.
    kill_stub(first.record(), "slow")
    guest = (first, second)[owners.index(False)]
    assert guest.ask("slow 3")["value"] == 3.0

    copy = tmp_path_factory.mktemp("copies") / "state"
    shutil.copytree(tmp_path, copy)
    assert (copy / "triton.json").exists()
    other = hold(copy, "slow")
    assert other.wait()["owner"]
    assert first.record().directory != other.record().directory
    assert [holder.ask("slow 2")["value"] for holder in (first, second, other)] == [2.0, 2.0, 2.0]


async def test_killed_owners_are_succeeded_and_their_orphans_cleared(
    hold, tmp_path: Path, repository: Path, eventually
) -> None:
    owner = hold(tmp_path, "slow")
    assert owner.wait()["owner"]
    guest = hold(tmp_path, "slow")
    assert not guest.wait()["owner"]
    # A guest takes over, its own request repeated; the stub was executing when its owner died.
    first = owner.record()
    owner.process.stdin.write("slow 255\n")
    owner.process.stdin.flush()
    await asyncio.sleep(0.5)
    owner.kill()
    assert guest.ask("slow 3")["value"] == 3.0
    eventually(lambda: guest.ask("slow 1")["owner"])
    second = guest.record()
    assert second.shm_prefix != first.shm_prefix
    assert not servers_of(first)
    assert not shared_memory_files(first.shm_prefix)
    # Whoever took over looks after the models too.
    kill_stub(second, "slow")
    assert guest.ask("slow 4")["value"] == 4.0
    # Nobody is there to take over, and the orphan obeys no SIGTERM: whoever comes next ends it.
    os.kill(second.pid, signal.SIGSTOP)
    guest.kill()
    assert second.pid in servers_of(second)
    async with TritonEngine.open(Settings(state=tmp_path, model_repository=repository), ["slow"]) as engine:
        assert engine.owner
        assert not servers_of(second)
        assert not shared_memory_files(second.shm_prefix)
        answer = await engine.infer("slow", {"image": models.slow_tiles(2, 1)})
        assert answer["embedding"].shape == (2, 3)


def test_a_clean_end_leaves_nothing_and_the_guest_goes_on(hold, tmp_path: Path, eventually) -> None:
    owner = hold(tmp_path, "slow")
    owner.wait()
    guest = hold(tmp_path, "slow")
    guest.wait()
    old = owner.record()
    owner.close()
    assert owner.process.returncode == 0
    assert guest.ask("slow 2")["value"] == 2.0
    assert not servers_of(old)
    assert not shared_memory_files(old.shm_prefix)
    last = guest.record()
    guest.close()
    assert guest.process.returncode == 0
    assert not servers_of(last)
    assert not shared_memory_files(last.shm_prefix)
    assert not Path(last.directory).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "triton.lock"]


async def test_a_guest_never_becomes_the_owner(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "GUEST_TIMEOUT_S", 0.3)
    guest = EmbeddedServer(Settings(state=tmp_path, model_repository=repository), guest=True)
    assert not guest.needs_attention()
    with pytest.raises(InferenceUnavailable, match="No worker"):
        await guest.ensure()
    assert not guest.owner
    assert list(tmp_path.iterdir()) == []


async def test_a_server_that_hangs_while_it_starts_is_replaced(
    installed: None, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "START_TRY_S", 1.0)
    server = EmbeddedServer(Settings(state=tmp_path, model_repository=repository))
    starting = asyncio.create_task(server.ensure())
    while (first := read_record(tmp_path)) is None or first.pid == 0:
        await asyncio.sleep(0.001)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        await starting
        second = read_record(tmp_path)
        assert second is not None
        assert second.pid != first.pid
        assert not servers_of(first)
    finally:
        await server.stop()


def test_a_server_without_an_owner_ends_by_itself(hold, tmp_path: Path, eventually) -> None:
    owner = hold(tmp_path, "slow")
    owner.wait()
    record = owner.record()
    assert servers_of(record)
    owner.kill()
    eventually(lambda: not servers_of(record))


def test_orphans_are_known_by_their_prefix_not_by_a_process_id(tmp_path: Path) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        record = Record(str(tmp_path), bystander.pid, str(tmp_path), "pathserve_000000000000_", "key")
        write_record(tmp_path, record)
        assert read_record(tmp_path) == record
        kill_orphans(record)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_process_that_was_given_a_stubs_id_is_not_killed_for_it() -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        started_s = psutil.Process(bystander.pid).create_time()
        stub = Stub(pid=bystander.pid, started_s=started_s - 1, folder="encoder", frozen=False, cpu_s=0.0)
        kill([stub])
        with pytest.raises(subprocess.TimeoutExpired):
            bystander.wait(0.5)
        kill([replace(stub, started_s=started_s)])
        assert bystander.wait(5) == -signal.SIGKILL
    finally:
        bystander.kill()
        bystander.wait()


def kill_stub(record: Record, folder: str) -> None:
    (stub,) = [stub for stub in living_stubs(record.pid, Path(record.directory)) if stub.folder == folder]
    os.kill(stub.pid, signal.SIGKILL)


def test_a_record_of_another_machine_is_no_record_here(tmp_path: Path) -> None:
    write_record(tmp_path, Record(str(tmp_path), 1, str(tmp_path), "pathserve_000000000000_", "key"))
    written = json.loads((tmp_path / "triton.json").read_text())
    (tmp_path / "triton.json").write_text(json.dumps(written | {"host": "another machine"}))
    assert read_record(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "null"])
def test_a_broken_record_is_no_record(tmp_path: Path, content: str) -> None:
    (tmp_path / "triton.json").write_text(content)
    assert read_record(tmp_path) is None


@pytest.mark.parametrize(
    ("missing", "words"), [("triton_venv", "make setup"), ("model_repository", "PATHSERVE_MODEL_REPOSITORY")]
)
async def test_a_server_that_cannot_start_gives_the_lock_back(
    tmp_path: Path, repository: Path, missing: str, words: str
) -> None:
    settings = Settings(**{"state": tmp_path, "model_repository": repository, missing: tmp_path / "nowhere"})
    failing = EmbeddedServer(settings)
    with pytest.raises(InferenceUnavailable, match=words):
        await failing.ensure()
    assert not failing.owner
    assert not (tmp_path / "triton.json").exists()
    other = EmbeddedServer(settings)
    assert other.needs_attention(), "the lock should be free"
    await other.stop()
