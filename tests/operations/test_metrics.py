"""The metrics listener, and the figures that worker processes leave behind."""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter

from gateway.operations.metrics import MetricsListener, WorkerMetrics


def test_all_registries_are_served_and_nothing_else() -> None:
    registries = [CollectorRegistry(), CollectorRegistry()]
    Counter("first", "help", registry=registries[0]).inc()
    Counter("second", "help", registry=registries[1]).inc(2)
    listener = MetricsListener(0, *registries)
    try:
        url = f"http://127.0.0.1:{listener.port}"
        text = httpx.get(f"{url}/metrics", trust_env=False).text
        assert "first_total 1.0" in text
        assert "second_total 2.0" in text
        assert httpx.get(url, trust_env=False).status_code == 404
    finally:
        listener.close()


def test_a_taken_port_is_no_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listener = MetricsListener(taken.getsockname()[1], CollectorRegistry())
        assert listener.port is None
        listener.close()


def test_the_figures_of_ended_workers_add_up() -> None:
    workers = WorkerMetrics()
    code = "from gateway.analyses.metrics import STEP_ATTEMPTS; STEP_ATTEMPTS.labels('infer', 'ok').inc()"
    try:
        for _ in range(2):
            subprocess.run([sys.executable, "-c", code], env=workers.environment(), check=True)
        found = workers.registry.get_sample_value("step_attempts_total", {"step": "infer", "outcome": "ok"})
        assert found == 2.0
    finally:
        workers.close()
    assert not workers.folder.exists()


def test_folders_of_killed_servers_are_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended = subprocess.Popen(["true"])
    ended.wait()
    killed, alive = tmp_path / f"pathserve-metrics-{ended.pid}-x", tmp_path / f"pathserve-metrics-{os.getppid()}-x"
    for folder in (killed, alive):
        folder.mkdir()
    workers = WorkerMetrics()
    try:
        assert (killed.exists(), alive.exists()) == (False, True)
    finally:
        workers.close()
    assert not workers.folder.exists()
