"""A real `pathserve serve` with its worker, that tests can order from, kill and start again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import pydicom

from gateway.cli import main
from tests.support.forked import Forked
from tests.support.http import NO_TLS
from tests.support.orthanc import free_port

PATHSERVE = Path(sys.prefix) / "bin" / "pathserve"
KEY = "key-of-the-tests"
FINAL = {"completed", "failed", "cancelled"}
_READY_S = 120.0
_STOP_S = 20.0
_T = TypeVar("_T")


def eventually(look: Callable[[], _T], what: str, within_s: float = 60.0, every_s: float = 0.05) -> _T:
    """The first true answer of `look`; fails where there is none in time."""
    until = time.monotonic() + within_s
    while not (found := look()):
        assert time.monotonic() < until, f"not within {within_s:.0f} s: {what}"
        time.sleep(every_s)
    return found


Case = dict[str, Any]
"""What an order says beside its protocol: patient, accession, specimens."""


def case_of(*folders: Path, stain: str | None = "HE") -> Case:
    """What an order says of the slides in some folders, as their headers have it: patient, accession, specimens.

    A specimen for each container, with all of its series, in the order of the files' names.
    """
    tags = ["Modality", "StudyInstanceUID", "SeriesInstanceUID", "PatientID", "IssuerOfPatientID", "AccessionNumber",
            "ContainerIdentifier"]  # fmt: skip
    files = [path for folder in folders for path in sorted(folder.rglob("*.dcm"))]
    headers = [pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[*tags]) for path in files]
    containers: dict[str, dict[str, list[str]]] = {}
    for header in headers:
        if header.Modality == "SM":
            container = containers.setdefault(header.get("ContainerIdentifier", ""), {})
            series = container.setdefault(header.StudyInstanceUID, [])
            if header.SeriesInstanceUID not in series:
                series.append(header.SeriesInstanceUID)
    first = headers[0]
    specimens = [
        {
            "container": container,
            "stain": stain,
            "slides": [{"study": study, "series": series} for study, series in studies.items()],
        }
        for container, studies in containers.items()
    ]
    return {
        "patient": _given({"id": first.PatientID, "issuer": first.get("IssuerOfPatientID")}),
        **_given({"accession": first.AccessionNumber}),
        "specimens": [_given(specimen) for specimen in specimens],
    }


def _given(members: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in members.items() if value}


def case_without_slides(study: str, series: Sequence[str] = ()) -> Case:
    """What an order says of a slide that is not there."""
    return {
        "patient": {"id": "P-404"},
        "accession": "A-404",
        "specimens": [{"container": "C-404", "stain": "HE", "slides": [{"study": study, "series": list(series)}]}],
    }


def study_in(case: Case) -> str:
    """The study of a case's first slide."""
    return str(case["specimens"][0]["slides"][0]["study"])


@dataclass
class Gateway:
    """One gateway on one state folder. `settings` are its further environment variables."""

    state: Path
    archive: str
    settings: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: Forked | None = None

    @property
    def log(self) -> Path:
        return self.state.with_name(f"{self.state.name}.log")

    def start(self, *, ready: bool = True) -> None:
        """Start it and wait until it is ready, or (ready=False) until it answers."""
        environment = {
            **os.environ,
            "PATHSERVE_STATE": str(self.state),
            "PATHSERVE_ARCHIVE": self.archive,
            "PATHSERVE_API_KEY": KEY,
            "PATHSERVE_METRICS_PORT": "0",
            **self.settings,
        }
        command = ["serve", "--port", str(self.port)]
        self.process = Forked(main, command, environment=environment, folder=Path.cwd(), out=self.log, error=self.log)

        def answers() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                return self.request("GET", "/readyz" if ready else "/livez").status_code == 200
            except httpx.TransportError:
                return False

        eventually(answers, f"the gateway is ready; log: {self.log}", _READY_S)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def workers(self) -> list[psutil.Process]:
        """The worker processes of this gateway."""
        assert self.process is not None
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if "gateway.analyses.worker" in " ".join(child.cmdline())]

    def kill(self) -> None:
        """kill -9 of the gateway and of its worker, in this order, without a moment in between."""
        workers = self.workers()
        assert self.process is not None
        self.process.kill()
        for worker in workers:
            worker.kill()
        self.process.wait()
        psutil.wait_procs(workers, timeout=10)

    def stop(self) -> None:
        """SIGTERM and the end; kills what is left."""
        if self.process is None:
            return
        workers = self.workers() if self.process.poll() is None else []
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
        _, left = psutil.wait_procs(workers, timeout=5)
        for worker in left:
            worker.kill()
        self.process = None

    def end(self) -> None:
        """As `stop`, but where its worker owns a Triton, at once: the good end of one takes seconds."""
        # Not all that import this module wait for Triton's client.
        from tests.support.triton import end_triton, is_held

        if self.process is None or is_held(self.state):
            self.stop()
            return
        if self.process.poll() is None:
            self.kill()
        self.process = None
        end_triton(self.state)

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {KEY}", **more.pop("headers", {})}
        return httpx.request(
            method, self.url + path, headers=headers, timeout=30, trust_env=False, verify=NO_TLS, **more
        )

    def order(self, case: Case, **more: Any) -> str:
        """Order `tissue-classification` of a case (`case_of`); the analysis id. `more` changes members of the order."""
        body = {"protocol": "tissue-classification", **case, **more}
        answer = self.request("POST", "/v1/analyses", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def show(self, analysis: str) -> dict[str, Any]:
        answer = self.request("GET", f"/v1/analyses/{analysis}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def wait_for(self, analysis: str, state: str, within_s: float = 60.0) -> dict[str, Any]:
        """Wait until an analysis is in a state, and show it."""
        return eventually(
            lambda: shown if (shown := self.show(analysis))["state"] == state else None,
            f"{analysis} is {state}; log: {self.log}",
            within_s,
        )

    def finish(self, analysis: str, within_s: float = 240.0) -> dict[str, Any]:
        """Wait for the analysis's end and show it."""

        def ended() -> dict[str, Any] | None:
            shown = self.show(analysis)
            return shown if shown["state"] in FINAL else None

        return eventually(ended, f"{analysis} ends; log: {self.log}", within_s)

    def completed(self, analysis: str, within_s: float = 240.0) -> dict[str, Any]:
        """Wait for the analysis's end, which must be a good one, and show it."""
        shown = self.finish(analysis, within_s)
        assert shown["state"] == "completed", shown
        return shown

    def report(self, analysis: str) -> dict[str, Any]:
        """The report of an analysis that has ended well, as JSON."""
        answer = self.request("GET", f"/v1/analyses/{analysis}/report", headers={"Accept": "application/json"})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def completed_after_a_kill(self, analysis: str, rows: str, least_bytes: int) -> dict[str, Any]:
        """The report of an analysis in whose middle the gateway is killed and started again: once a file named `rows`
        of the models' answers has more than so many bytes."""
        stored = self.state / "analyses" / analysis / "tiles"
        eventually(lambda: any(path.stat().st_size > least_bytes for path in stored.rglob(rows)), f"{rows} on disk", 90)
        self.kill()
        self.start()
        self.completed(analysis)
        return self.report(analysis)

    def steps(self, analysis: str) -> list[tuple[str, str]]:
        """The step events (step, status) of an analysis that has ended."""
        return list(self._step_events(analysis))

    def wait_for_step(self, analysis: str, step: str, status: str) -> None:
        """Return in the moment of this step event; fails where the analysis ends without it."""
        assert (step, status) in self._step_events(analysis), self.show(analysis)

    def _step_events(self, analysis: str) -> Iterator[tuple[str, str]]:
        url = f"{self.url}/v1/analyses/{analysis}/events"
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.stream("GET", url, headers=headers, timeout=120, trust_env=False, verify=NO_TLS) as stream:
            kind = ""
            for line in stream.iter_lines():
                name, _, value = line.partition(": ")
                if name == "event":
                    kind = value
                elif name == "data" and kind == "step":
                    data = json.loads(value)
                    yield data["step"], data["status"]


@contextmanager
def running_gateway(state: Path, archive: str, *, ready: bool = True, **settings: str) -> Iterator[Gateway]:
    """A gateway, ready unless told otherwise, ended at the end, whatever was killed or started in between."""
    gateway = Gateway(state, archive, settings)
    try:
        gateway.start(ready=ready)
        yield gateway
    finally:
        gateway.end()
