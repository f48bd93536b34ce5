"""A real PostgreSQL (Debian's) on loopback, that tests can stop, kill and start again."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.orthanc import free_port
from tests.support.processes import end

_BINARIES = Path("/usr/lib/postgresql/15/bin")
_USER = "pathserve"
_START_S = 30.0


def find_postgres() -> Path:
    """The folder of PostgreSQL's programs; skips the test where Debian's package is not installed."""
    if not (_BINARIES / "postgres").exists():
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    return _BINARIES


@dataclass
class Postgres:
    """One cluster below `folder`, with its own port; its files are as safe as shipped (fsync on).

    It runs as `postgres` where the tests run as root, which PostgreSQL refuses to be.
    """

    folder: Path
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def log(self) -> Path:
        return self.folder / "postgres.log"

    def url(self, database: str) -> str:
        return f"postgresql://{_USER}@127.0.0.1:{self.port}/{database}"

    def initialise(self) -> None:
        self._run("initdb", "-D", "data", "-U", _USER, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N")

    def start(self) -> None:
        """Start, and wait until it answers."""
        command = [find_postgres() / "postgres", "-D", self.folder / "data", "-p", str(self.port)]
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.folder),
            "max_connections": "200",
        }
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, **_as_postgres())
        until = time.monotonic() + _START_S
        while True:
            try:
                self.execute("SELECT 1")
                return
            except psycopg.OperationalError:
                if self.process.poll() is not None or time.monotonic() > until:
                    self.stop()
                    raise AssertionError(f"PostgreSQL did not start:\n{self.log.read_text()[-2000:]}") from None
                time.sleep(0.05)

    def stop(self) -> None:
        """End every connection and stop (fast shutdown)."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """kill -9 of the server; its backends end with it, and it recovers from its log at the next start."""
        self._end(signal.SIGKILL)
        # The backends notice the end of their parent at once, yet they hold the shared memory until they are gone.
        time.sleep(0.2)

    def _end(self, number: signal.Signals) -> None:
        if self.process is not None:
            end(self.process, number)
            self.process = None

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """The rows of one statement, in a connection and transaction of its own."""
        with psycopg.connect(self.url(database), autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def new_database(self, template: str | None = None) -> str:
        """The URL of a new database: empty, or a copy of the one at `template`, to which nobody is connected."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        of = f" TEMPLATE {template.rsplit('/', 1)[1]}" if template else ""
        self.execute(f"CREATE DATABASE {name}{of}")
        return self.url(name)

    def drop(self, url: str) -> None:
        self.execute(f"DROP DATABASE IF EXISTS {url.rsplit('/', 1)[1]} WITH (FORCE)")

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [find_postgres() / program, *arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **_as_postgres(),
        )
        assert done.returncode == 0, done.stdout


def _as_postgres() -> dict[str, Any]:
    return {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A running, empty cluster in a folder of its own directly below the system's temporary folder, where its user can
    reach it without a parent's mode being changed; stopped and removed at the end."""
    find_postgres()
    folder = Path(tempfile.mkdtemp(prefix="pathserve-postgres-"))
    postgres = Postgres(folder)
    try:
        if os.getuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        postgres.initialise()
        postgres.start()
        yield postgres
    finally:
        postgres.stop()
        shutil.rmtree(folder, ignore_errors=True)
