"""What is killed, and what starts again what nobody else would: gateway with two workers, Triton, PACS, database."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

import httpx
import psutil
import pydicom

from gateway.inference.embedded import read_record
from tests.delivery.receiver import SECRET, Receiver, running_receiver
from tests.support.gateway import KEY, PATHSERVE, eventually
from tests.support.http import NO_TLS
from tests.support.orthanc import Orthanc, free_port, running_orthanc
from tests.support.postgres import Postgres, running_postgres

WORKERS = 2
SETTINGS = {
    # What is dead for a while is waited for longer than by default: everything is killed again and again.
    "PATHSERVE_RETRY_ATTEMPTS": "30",
    "PATHSERVE_RETRY_DELAY_S": "0.5",
    "PATHSERVE_DELIVERY_ATTEMPTS": "100",
    "PATHSERVE_DELIVERY_DELAY_S": "0.5",
    "PATHSERVE_LOG_LEVEL": "INFO",
}
_STOP_S = 30.0


class Site:
    """A hospital's installation below `folder`. Everything in it can be killed at any moment."""

    def __init__(self, folder: Path, *, postgres: bool) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.log = folder / "gateway.log"
        self.port = free_port()
        self._with_postgres = postgres
        self._stack = ExitStack()
        self.process: subprocess.Popen[bytes] | None = None
        self.slides: set[str] = set()
        """SOP instance UIDs of the slides' own instances in the archive."""
        self.pacs: Orthanc
        self.receiver: Receiver
        self.database: Postgres | None = None
        self.database_url = f"sqlite:///{self.state / 'pathserve.db'}"
        self.engine_url = f"sqlite:///{self.state / 'dbos.db'}"

    def __enter__(self) -> Self:
        with self._stack:
            self.pacs = self._stack.enter_context(running_orthanc(self.folder / "pacs"))
            self.receiver = self._stack.enter_context(running_receiver())
            if self._with_postgres:
                self.database = self._stack.enter_context(running_postgres())
                self.database_url = self.engine_url = self.database.new_database()
            self._stack.callback(self._end)
            self.start()
            eventually(self._answers, f"the gateway answers; log: {self.log}", 120)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def upload(self, folder: Path) -> None:
        """Bring a slide into the archive."""
        self.pacs.upload(folder)
        for path in folder.glob("*.dcm"):
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPInstanceUID"])
            self.slides.add(str(header.SOPInstanceUID))

    def environment(self) -> dict[str, str]:
        environment = {
            **os.environ,
            **SETTINGS,
            "PATHSERVE_STATE": str(self.state),
            "PATHSERVE_ARCHIVE": self.pacs.address,
            "PATHSERVE_API_KEY": KEY,
            "PATHSERVE_METRICS_PORT": "0",
            "PATHSERVE_WEBHOOKS": f'["{self.receiver.url}"]',
            "PATHSERVE_WEBHOOK_SECRETS": f'["{SECRET}"]',
        }
        return environment | ({"PATHSERVE_DATABASE_URL": self.database_url} if self.database is not None else {})

    def start(self) -> None:
        """Start the gateway and its workers, without waiting for them."""
        command = [PATHSERVE, "serve", "--port", str(self.port), "--workers", str(WORKERS)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=self.environment(), stdout=log, stderr=log)

    def keep(self) -> None:
        """Start what has ended and has nobody else who would: the gateway itself (a site's init system does that)."""
        if self.process is not None and self.process.poll() is not None:
            time.sleep(1.0)
            self.start()

    def _answers(self) -> bool:
        self.keep()
        try:
            answer = httpx.get(f"{self.url}/livez", timeout=10, trust_env=False, verify=NO_TLS)
            return answer.status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> float:
        """SIGTERM to the gateway, once it answers; the seconds until it and everything of it has ended."""
        eventually(self._answers, f"the gateway answers; log: {self.log}", 120)
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(_STOP_S)
        while self.processes() and time.monotonic() < began + _STOP_S:
            time.sleep(0.1)
        return time.monotonic() - began

    def processes(self) -> list[psutil.Process]:
        """Every process that works on this state folder: gateway, workers, Triton, its stubs."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                ours = process.environ().get("PATHSERVE_STATE") == str(self.state)
                if ours or str(self.state) in " ".join(process.cmdline()):
                    found.append(process)
        record = read_record(self.state)
        if record is not None:
            with suppress(psutil.Error):
                triton = psutil.Process(record.pid)
                found += [triton, *triton.children(recursive=True)]
        return list({each.pid: each for each in found if each.pid != os.getpid()}.values())

    def workers(self) -> list[psutil.Process]:
        """The living workers, whoever started them."""
        return [each for each in self.processes() if "gateway.analyses.worker" in _command(each)]

    def _end(self) -> None:
        """Whatever happened: nothing of the site is left running."""
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()
        if self.process is not None:
            self.process.wait(10)

    # What is killed. Each returns whose process it was, or None where there is none to kill in this moment.

    def kill(self, target: str, rng: random.Random) -> int | None:
        """kill -9; the process id."""
        kills: dict[str, Callable[[random.Random], int | None]] = {
            "gateway": self._kill_gateway,
            "worker": self._kill_worker,
            "triton": self._kill_triton,
            "stub": self._kill_stub,
            "pacs": self._kill_pacs,
            "database": self._kill_database,
        }
        return kills[target](rng)

    def _kill_gateway(self, rng: random.Random) -> int | None:
        if self.process is None or self.process.poll() is not None:
            return None
        gateway, self.process = self.process, None  # whoever keeps the site up must not start another one meanwhile
        gateway.kill()
        gateway.wait()
        time.sleep(rng.uniform(0.0, 2.0))
        self.start()
        return gateway.pid

    def _kill_worker(self, rng: random.Random) -> int | None:
        return _killed(self.workers(), rng)

    def _kill_triton(self, rng: random.Random) -> int | None:
        return _killed([each for each in self.processes() if _name(each) == "tritonserver"], rng)

    def _kill_stub(self, rng: random.Random) -> int | None:
        return _killed([each for each in self.processes() if _name(each).startswith("triton_python")], rng)

    def _kill_pacs(self, rng: random.Random) -> int | None:
        process = self.pacs.process
        if process is None:
            return None
        process.kill()
        process.wait()
        time.sleep(rng.uniform(0.5, 4.0))
        self.pacs.start()
        return process.pid

    def _kill_database(self, rng: random.Random) -> int | None:
        if self.database is None or self.database.process is None:
            return None
        pid = self.database.process.pid
        self.database.kill()
        time.sleep(rng.uniform(0.0, 3.0))
        self.database.start()
        return pid


def _killed(processes: list[psutil.Process], rng: random.Random) -> int | None:
    processes.sort(key=lambda each: each.pid)
    while processes:
        chosen = processes.pop(rng.randrange(len(processes)))
        with suppress(psutil.Error):
            chosen.kill()
            return int(chosen.pid)
    return None


def _name(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return str(process.name())
    return ""


def _command(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""
