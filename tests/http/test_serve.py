"""`serve` as real processes: a supervised worker, kill -9 of either, SIGTERM, the generated key, metrics."""

import contextlib
import json
import os
import socket
import stat
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.http import standin_serve
from tests.http.serving import CHECKOUT, KEY, Server, until
from tests.support.forked import Forked


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers on one state folder, and leaves no process behind."""
    servers: list[Server] = []

    def start(**more: Any) -> Server:
        servers.append(Server(tmp_path / "state", **more))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


def slow(batches: int) -> dict[str, str]:
    return {"STANDIN_OPTIONS": json.dumps({"batches": str(batches), "batch_s": "0.02"})}


def test_an_order_is_worked_on_and_everything_ends_at_sigterm(started: Callable[..., Server]) -> None:
    server = started()
    analysis_id = server.order()
    stream = server.request("GET", f"/v1/analyses/{analysis_id}/events").text
    assert '"state": "completed"' in stream
    assert server.request("GET", f"/v1/analyses/{analysis_id}/report").json()["analysis_id"] == analysis_id
    until(server.ready)

    families = {family.name: family for family in text_string_to_metric_families(httpx.get(server.metrics_url).text)}
    counted = {sample.labels["step"]: sample.value for sample in families["step_attempts"].samples}
    assert counted.items() >= {"fetch": 1.0, "infer": 1.0, "report": 1.0}.items()
    depth = {sample.labels["state"]: sample.value for sample in families["queue_depth"].samples}
    assert depth["completed"] == 1.0
    assert {"case_age_seconds", "case_turnaround_seconds", "http_request_duration_seconds"} <= families.keys()
    assert httpx.get(server.metrics_url.removesuffix("metrics") + "other").status_code == 404

    for content in (b"[" * 10_000_000, (b"[" * 100_000 for _ in range(100))):
        answer = server.request("POST", "/v1/analyses", content=content, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["reason"]) == (413, "body-too-large")

    worker = server.worker()
    assert server.terminate() < 15.0
    assert not worker.is_running()
    for path in server.state.rglob("*"):
        assert stat.S_ISREG(path.lstat().st_mode) or stat.S_ISDIR(path.lstat().st_mode), path
    logs = server.stderr.read_text() + "".join(path.read_text() for path in (server.state / "logs").iterdir())
    assert analysis_id in logs
    assert "PID-SECRET" not in logs
    assert KEY not in logs


def test_a_killed_worker_is_started_again_and_goes_on(started: Callable[..., Server]) -> None:
    server = started(**slow(150))
    analysis_id = server.order()
    until(lambda: "batch 10" in server.calls(analysis_id) and server.ready())
    killed = server.worker()
    killed.kill()
    until(lambda: not server.ready(), 8.0)  # not when its last heartbeat is old
    until(lambda: server.state_of(analysis_id) == "completed")
    assert server.worker().pid != killed.pid
    counts = Counter(server.calls(analysis_id))
    assert (counts["fetch"], counts["infer"], counts["deliver"]) == (1, 2, 1)
    assert sum(counts[f"batch {number}"] for number in range(150)) <= 151


def test_a_killed_server_takes_its_worker_along_and_the_next_one_goes_on(started: Callable[..., Server]) -> None:
    server = started(**slow(150))
    analysis_id = server.order()
    until(lambda: "batch 10" in server.calls(analysis_id))
    worker = server.worker()
    server.process.kill()
    server.process.wait()
    # At once, while the old worker may still hold the lock.
    following = started(**slow(150))
    assert following.state_of(analysis_id) == "running"
    worker.wait(15)
    until(lambda: following.state_of(analysis_id) == "completed")
    counts = Counter(following.calls(analysis_id))
    assert (counts["fetch"], counts["deliver"]) == (1, 1)
    assert sum(counts[f"batch {number}"] for number in range(150)) <= 151


def test_sigterm_with_work_and_an_open_stream_ends_in_time(started: Callable[..., Server]) -> None:
    # A PACS that never answers: the region is in flight for ever.
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        archive = f"dicomweb://127.0.0.1:{deaf.getsockname()[1]}/"
        server = started(PATHSERVE_ARCHIVE=archive, **slow(10_000))
        analysis_id = server.order()
        until(lambda: "batch 3" in server.calls(analysis_id))
        seen: list[str] = []
        refused: list[int] = []

        def segment() -> None:
            region = {"x_um": 0, "y_um": 0, "width_um": 50, "height_um": 50}
            ask = {"study": "1.2.4", "series": "1.2.5", "region": region, "prompts": ["glands"]}
            headers = {"Authorization": f"Bearer {KEY}"}
            answer = httpx.post(f"{server.url}/v1/segment", json=ask, headers=headers, timeout=120, trust_env=False)
            refused.append(answer.status_code)

        def follow() -> None:
            with contextlib.suppress(httpx.HTTPError):
                seen.append(server.request("GET", f"/v1/analyses/{analysis_id}/events").text)

        follower = threading.Thread(target=follow)
        asker = threading.Thread(target=segment)
        follower.start()
        asker.start()
        deaf.settimeout(90)
        with deaf.accept()[0]:
            children = psutil.Process(server.process.pid).children()
            assert len(children) == 2
            assert server.terminate() < 15.0
            assert not any(child.is_running() for child in children)
        follower.join(30)
        asker.join(30)
        assert refused == [503]
    assert seen
    assert "running" in seen[0]
    without = started(workers=0)
    assert without.state_of(analysis_id) == "running"
    assert not without.ready()


def test_a_signal_during_the_start_counts(tmp_path: Path) -> None:
    code = (
        "import os, signal, gateway.http.serve as module\n"
        "real = module.Ledger.open\n"
        "def slow(*arguments):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return real(*arguments)\n"
        "module.Ledger.open = slow\n"
        "raise SystemExit(module.serve('127.0.0.1', 0, 0))\n"
    )
    environment = os.environ | {"PATHSERVE_STATE": str(tmp_path / "state"), "PATHSERVE_METRICS_PORT": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=CHECKOUT, capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr


def test_a_key_is_made_once_and_kept_as_a_hash(started: Callable[..., Server]) -> None:
    server = started(workers=0, key=None)
    assert server.key is not None
    assert len(server.key) >= 32
    assert server.request("GET", "/v1/analyses").status_code == 200
    kept = server.state / "api-key.sha256"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert server.key not in kept.read_text()
    assert server.terminate() < 15.0
    again = started(workers=0, key=None)
    assert "API key" not in again.stderr.read_text()
    again.key = server.key
    assert again.request("GET", "/v1/analyses").status_code == 200


def test_answers_on_a_kept_connection_do_not_wait_for_acknowledgements(started: Callable[..., Server]) -> None:
    server = started(workers=0)
    times_s = []
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        for _ in range(60):
            began = time.monotonic()
            client.get("/livez")
            times_s.append(time.monotonic() - began)
    # The kernel acknowledges at once on a new connection, so the first answers say nothing.
    assert statistics.median(times_s[30:]) < 0.03


def test_taken_ports(started: Callable[..., Server], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        server = started(workers=0, PATHSERVE_METRICS_PORT=port)
        assert server.request("GET", "/v1/analyses").status_code == 200
        assert "metrics port is taken" in server.stderr.read_text()
        refused = Forked(
            standin_serve.main,
            [port, "0"],
            environment=os.environ | {"PATHSERVE_STATE": str(tmp_path / "other")},
            folder=tmp_path,
            out=tmp_path / "out",
            error=tmp_path / "error",
        )
        assert refused.wait(30) == 1
        said = (tmp_path / "error").read_text()
        assert "cannot be used" in said
        assert "Traceback" not in said
    # No key was made that nobody has seen.
    assert not (tmp_path / "other" / "api-key.sha256").exists()
