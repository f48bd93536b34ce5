"""A real nginx with TLS in front of a PACS, from the example configuration (deploy/nginx/nginx.conf)."""

import base64
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

import pytest

from tests.support.certificates import Authority
from tests.support.orthanc import Orthanc, free_port

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nginx" / "nginx.conf"
_START_S = 10.0


def find_nginx() -> str:
    """The nginx binary; skips the test where it is not installed."""
    binary = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if binary is None:
        pytest.skip("nginx is not installed (Debian: nginx)")
    return binary


@dataclass
class Nginx:
    """Where it listens: with client certificates, and with bearer tokens. Its certificate is for `localhost`."""

    folder: Path
    certificate_port: int = field(default_factory=free_port)
    token_port: int = field(default_factory=free_port)

    @property
    def certificate_address(self) -> str:
        return f"dicomweb://localhost:{self.certificate_port}/dicom-web"

    @property
    def token_address(self) -> str:
        return f"dicomweb://localhost:{self.token_port}/dicom-web"


@contextmanager
def running_nginx(folder: Path, authority: Authority, pacs: Orthanc, token_check: str) -> Iterator[Nginx]:
    """nginx before the PACS, with a certificate of the authority, which has to sign clients' certificates too."""
    nginx = Nginx(folder)
    server = authority.issue("server", folder, name="localhost")
    shutil.copy(authority.certificate, folder / "authority.pem")
    text = Template(CONFIGURATION.read_text()).safe_substitute(
        FOLDER=folder,
        CERTIFICATE_PORT=nginx.certificate_port,
        TOKEN_PORT=nginx.token_port,
        PACS=f"127.0.0.1:{pacs.port}",
        PACS_BASIC=base64.b64encode(f"{pacs.user}:{pacs.password}".encode()).decode(),
        TOKEN_CHECK=token_check,
    )
    assert server.key == folder / "server.key"
    (folder / "nginx.conf").write_text(text)
    with (folder / "start.log").open("wb") as log:
        process = subprocess.Popen([find_nginx(), "-p", folder, "-c", folder / "nginx.conf"], stdout=log, stderr=log)
    try:
        _await_port(nginx.token_port, process, folder)
        yield nginx
    finally:
        process.terminate()
        process.wait(10)


def _await_port(port: int, process: "subprocess.Popen[bytes]", folder: Path) -> None:
    until = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"nginx did not start:\n{(folder / 'start.log').read_text()}") from None
            time.sleep(0.02)
