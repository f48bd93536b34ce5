"""One state folder, and with it one embedded Triton, for all end-to-end tests of a run."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.operations.settings import Settings
from tests.support.forked import command
from tests.support.oidc_issuer import Issuer, running_issuer
from tests.support.orthanc import Orthanc, running_orthanc
from tests.support.triton import held_triton


@dataclass(frozen=True)
class Cli:
    """The `pathserve` command on a state of its own."""

    state: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __call__(
        self, *arguments: object, timeout_s: float = 240, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        whole = {**os.environ, "PATHSERVE_STATE": str(self.state), **self.environment, **environment}
        with tempfile.TemporaryDirectory() as printed:
            return command(list(map(str, arguments)), whole, Path(printed), timeout_s)


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    """An identity provider, whose tokens are a pathologist's."""
    with running_issuer(Issuer()) as issuer:
        yield issuer


@pytest.fixture(scope="module")
def pacs(cmu_slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """A PACS that holds the committed slide."""
    with running_orthanc(tmp_path_factory.mktemp("pacs")) as server:
        server.upload(cmu_slide)
        yield server


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """The command, with the embedded Triton kept running by this process so that calls are quick."""
    state = tmp_path_factory.mktemp("state")
    with held_triton(Settings(state=state)):
        yield Cli(state)
