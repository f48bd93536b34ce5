"""A real Orthanc with DICOMweb, from the demo's own configuration (deploy/orthanc/orthanc.json)."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pydicom
import pytest

from gateway.archive import open_archive
from tests.support.http import NO_TLS
from tests.support.processes import end

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "orthanc" / "orthanc.json"
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
_START_S = 20.0


def find_orthanc() -> str:
    """The Orthanc binary; skips the test where it or its DICOMweb plugin is not installed."""
    binary = shutil.which("Orthanc", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if binary is None or not PLUGIN.exists():
        pytest.skip("Orthanc and its DICOMweb plugin are not installed (Debian: orthanc orthanc-dicomweb)")
    return binary


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Orthanc:
    """One Orthanc, its storage below `folder`. It can be stopped and started again on the same port and storage."""

    folder: Path
    port: int = field(default_factory=free_port)
    user: str = "pacs"
    password: str = "p@ss:wo/rd"
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def address(self) -> str:
        """The archive address, with credentials."""
        return f"dicomweb://{self.user}:{quote(self.password, safe='')}@127.0.0.1:{self.port}/dicom-web"

    @property
    def log(self) -> Path:
        return self.folder / "orthanc.log"

    def start(self) -> None:
        """Start and wait until it answers."""
        storage = self.folder / "storage"
        storage.mkdir(parents=True, exist_ok=True)
        environment = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "PACS_STORAGE": str(storage),
            "PACS_HTTP_PORT": str(self.port),
            "PACS_USER": self.user,
            "PACS_PASSWORD": self.password,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [find_orthanc(), str(CONFIGURATION)], env=environment, cwd=self.folder, stdout=log, stderr=log
            )
        until = time.monotonic() + _START_S
        while True:
            try:
                self.get("/system")
                return
            except httpx.TransportError:
                if self.process.poll() is not None or time.monotonic() > until:
                    self.stop()
                    raise AssertionError(f"Orthanc did not start:\n{self.log.read_text()[-2000:]}") from None
                time.sleep(0.1)

    def stop(self) -> None:
        """Stop and wait for its end: a second one on the same storage before that would find it locked."""
        if self.process is not None:
            end(self.process)
            self.process = None

    def get(self, path: str) -> Any:
        """The JSON answer of Orthanc's own REST API."""
        return self._request("GET", path).json()

    def upload(self, folder: Path) -> int:
        """Store all DICOM files of a folder by Orthanc's own API; returns how many."""
        files = sorted(folder.glob("*.dcm"))
        for file in files:
            self._request("POST", "/instances", file.read_bytes())
        return len(files)

    def replace(self, folder: Path) -> None:
        """Store the files of a folder in place of what is there under their UIDs, as a PACS does that corrects them."""
        for file in sorted(folder.glob("*.dcm")):
            self.delete(str(pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID))
        self.upload(folder)

    def instances(self, modality: str | None = None) -> list[str]:
        """The SOP instance UIDs of what is stored, of one modality or of all."""
        query = {"Level": "Instance", "Expand": True, "Query": {"Modality": modality} if modality else {}}
        found = self._request("POST", "/tools/find", json=query).json()
        return sorted(entry["MainDicomTags"]["SOPInstanceUID"] for entry in found)

    def file(self, sop: str) -> bytes:
        """One stored instance as it was stored, by Orthanc's own API."""
        return self._request("GET", f"{self._path(sop)}/file").content

    def delete(self, sop: str) -> None:
        """Remove one stored instance."""
        self._request("DELETE", self._path(sop))

    def _path(self, sop: str) -> str:
        found = self._request("POST", "/tools/lookup", sop.encode()).json()
        [path] = [entry["Path"] for entry in found if entry["Type"] == "Instance"]
        return str(path)

    def _request(self, method: str, path: str, content: bytes | None = None, json: Any = None) -> httpx.Response:
        response = httpx.request(
            method,
            f"http://127.0.0.1:{self.port}{path}",
            content=content,
            json=json,
            auth=(self.user, self.password),
            headers={"Accept-Encoding": "identity"},
            timeout=60,
            trust_env=False,
            verify=NO_TLS,
        )
        response.raise_for_status()
        return response


@contextmanager
def running_orthanc(folder: Path) -> Iterator[Orthanc]:
    """An empty, running Orthanc with its storage and log below `folder`; stopped at the end."""
    orthanc = Orthanc(folder)
    orthanc.start()
    try:
        yield orthanc
    finally:
        orthanc.stop()


def given_back_by_pacs(paths: Sequence[Path], folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Store DICOM files in an Orthanc of its own below `folder`, then each with what the PACS gives back of it."""
    with running_orthanc(folder) as orthanc:
        open_archive(orthanc.address).store(paths)
        for path in paths:
            yield path, orthanc.file(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)
