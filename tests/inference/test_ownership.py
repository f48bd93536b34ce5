"""One embedded Triton per state folder, whoever starts first, whoever dies."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.inference import TritonEngine
from gateway.inference.embedded import EmbeddedServer, Record, kill_orphans, read_record, write_record
from gateway.inference.runtime import shared_memory_files
from gateway.operations.settings import Settings

from . import models
from .conftest import servers_of

pytestmark = pytest.mark.triton


def test_two_that_start_at_once_share_one_server(hold, tmp_path: Path) -> None:
    first, second = hold(tmp_path, "slow"), hold(tmp_path, "slow")
    owners = [first.wait()["owner"], second.wait()["owner"]]
    assert sorted(owners) == [False, True]
    assert [holder.ask("slow 1")["value"] for holder in (first, second)] == [1.0, 1.0]
    programs = [Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] for pid in servers_of(first.record())]
    assert sum(program.endswith(b"/tritonserver") for program in programs) == 1


def test_a_guest_takes_over_from_a_killed_owner_under_its_request(hold, tmp_path: Path, eventually) -> None:
    owner = hold(tmp_path, "slow")
    assert owner.wait()["owner"]
    guest = hold(tmp_path, "slow")
    assert not guest.wait()["owner"]
    old = owner.record()
    # The stub is executing when its owner dies, and is killed in the middle of it by the takeover.
    owner.process.stdin.write("slow 255\n")
    owner.process.stdin.flush()
    time.sleep(0.5)
    owner.kill()
    answer = guest.ask("slow 3")
    assert answer["value"] == 3.0
    eventually(lambda: guest.ask("slow 1")["owner"])
    new = guest.record()
    assert new.shm_prefix != old.shm_prefix
    assert not servers_of(old)
    assert not shared_memory_files(old.shm_prefix)


async def test_whoever_comes_next_clears_a_killed_owners_orphans(hold, tmp_path: Path, repository: Path) -> None:
    owner = hold(tmp_path, "slow")
    owner.wait()
    old = owner.record()
    owner.kill()
    assert servers_of(old), "the orphan should still run: nobody took over yet"
    async with TritonEngine.open(Settings(state=tmp_path, model_repository=repository), ["slow"]) as engine:
        assert engine.owner
        assert not servers_of(old)
        assert not shared_memory_files(old.shm_prefix)
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


def test_a_copied_state_starts_its_own_server_and_leaves_the_original_alone(
    hold, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    original = hold(tmp_path, "slow")
    original.wait()
    copy = tmp_path_factory.mktemp("copies") / "state"
    shutil.copytree(tmp_path, copy)
    assert (copy / "triton.json").exists()
    other = hold(copy, "slow")
    assert other.wait()["owner"]
    assert original.record().directory != other.record().directory
    assert [holder.ask("slow 1")["value"] for holder in (original, other)] == [1.0, 1.0]


async def test_the_state_holds_regular_files_only_and_the_key_is_private(
    installed: None, tmp_path: Path, repository: Path
) -> None:
    state = tmp_path / "state"
    async with TritonEngine.open(Settings(state=state, model_repository=repository), ["slow"]) as engine:
        await engine.infer("slow", {"image": models.slow_tiles(64, 0)})
        for path in state.rglob("*"):
            assert stat.S_ISREG(path.lstat().st_mode) or path.is_dir()
        assert stat.S_IMODE((state / "triton.json").stat().st_mode) == 0o600
        directory = Path(json.loads((state / "triton.json").read_text())["directory"])
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert state not in directory.parents


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


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "null"])
def test_a_broken_record_is_no_record(tmp_path: Path, content: str) -> None:
    (tmp_path / "triton.json").write_text(content)
    assert read_record(tmp_path) is None


async def test_a_server_that_cannot_start_gives_the_lock_back(tmp_path: Path, repository: Path) -> None:
    settings = Settings(state=tmp_path, model_repository=repository, triton_venv=tmp_path / "nowhere")
    failing = EmbeddedServer(settings)
    with pytest.raises(Exception, match="make setup"):
        await failing.ensure()
    assert not failing.owner
    assert not (tmp_path / "triton.json").exists()
    other = EmbeddedServer(settings)
    assert other.needs_attention(), "the lock should be free"
    await other.stop()


def test_a_frozen_server_is_survived(hold, tmp_path: Path, eventually: Callable[..., None]) -> None:
    """A stub stopped for over a second and resumed takes the whole of Triton 2.51 down; the next answer is right."""
    owner = hold(tmp_path, "slow")
    owner.wait()
    stubs = [pid for pid in servers_of(owner.record()) if b"backend_stub" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(stubs[0], signal.SIGSTOP)
    owner.process.stdin.write("slow 2\n")
    owner.process.stdin.flush()
    time.sleep(2.0)
    os.kill(stubs[0], signal.SIGCONT)
    first = owner.wait()
    assert first.get("value") == 2.0 or first["error"] in ("inference", "inference-unavailable")
    assert owner.ask("slow 3")["value"] == 3.0
