"""Where the embedded Triton is installed, and whether it can run here.

The carrier of the binaries is the `nvidia-pytriton` wheel in a virtual environment of its own (numpy 1): its stub loads
a shared libpython of that environment's version, and hands over wrong pixels with numpy 2.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.operations.errors import InferenceUnavailable

SUPPORTED_PYTHON = ((3, 11), (3, 12))
REMEDY = "Run `make setup` with Python 3.11 or 3.12, or set PATHSERVE_TRITON_URL to a Triton server of your own."

_SYSTEM_LIBRARIES = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
)

_LOOK = """
import importlib.metadata, json, sys, sysconfig
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
print(json.dumps({
    "python": list(sys.version_info[:2]), "site": sysconfig.get_path("platlib"),
    "libraries": [sysconfig.get_config_var("LIBDIR"), sys.base_prefix + "/lib"],
    "numpy": version("numpy"), "onnxruntime": version("onnxruntime"), "openvino": version("openvino"),
}))
"""


@dataclass(frozen=True, slots=True)
class Installation:
    """Where the pieces of the embedded Triton lie. `python` is the version as X.Y, `site` the site-packages folder.

    `openvino` says whether models of that backend can be served: without it the others still are.
    """

    venv: Path
    site: Path
    python: str
    libpython: Path
    openvino: bool

    @property
    def triton(self) -> Path:
        return self.site / "pytriton" / "tritonserver"

    @property
    def server(self) -> Path:
        return self.triton / "bin" / "tritonserver"

    @property
    def stub(self) -> Path:
        return self.triton / "python_backend_stubs" / self.python / "triton_python_backend_stub"

    def environment(self, libpython_folder: Path) -> dict[str, str]:
        """A fresh environment for server and stubs: PATH decides which numpy and which onnxruntime the models get."""
        keep = ("HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
        kept = {name: os.environ[name] for name in keep if name in os.environ}
        system_path = os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin")
        return kept | {
            "PATH": f"{self.venv / 'bin'}:{system_path}",
            "LD_LIBRARY_PATH": f"{libpython_folder}:{self.site / 'nvidia_pytriton.libs'}",
        }


def look(python: Path) -> dict[str, Any]:
    """What an interpreter says of itself. Raises InferenceUnavailable where it does not run."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    try:
        answer = subprocess.run(
            [str(python), "-c", _LOOK], capture_output=True, text=True, timeout=60, check=True, env=environment
        )
    except (OSError, subprocess.SubprocessError):
        raise InferenceUnavailable(f"The environment of the embedded Triton is missing or broken. {REMEDY}") from None
    result: dict[str, Any] = json.loads(answer.stdout)
    return result


def find_libpython(facts: Mapping[str, Any]) -> Path:
    """The shared libpython that fits an interpreter. Raises InferenceUnavailable with the version or package to get."""
    major, minor = facts["python"]
    if (major, minor) not in SUPPORTED_PYTHON:
        raise InferenceUnavailable(f"The embedded Triton does not run with Python {major}.{minor}. {REMEDY}")
    name = f"libpython{major}.{minor}.so.1.0"
    for folder in (*facts["libraries"], *_SYSTEM_LIBRARIES):
        if folder and (found := Path(folder) / name).is_file():
            return found
    raise InferenceUnavailable(
        f"The embedded Triton needs the shared library {name} (Debian and Ubuntu: package libpython{major}.{minor}; "
        f"pyenv: build Python with --enable-shared). {REMEDY}"
    )


def find_installation(venv: Path) -> Installation:
    """The embedded Triton of a virtual environment, checked but for running it. Raises InferenceUnavailable."""
    facts = look(venv / "bin" / "python")
    libpython = find_libpython(facts)
    numpy = facts["numpy"]
    if numpy is None or not numpy.startswith("1."):
        found = f"numpy {numpy}" if numpy else "no numpy"
        raise InferenceUnavailable(
            f"The embedded Triton needs numpy 1 in its own environment and found {found}: with numpy 2 it would answer "
            f"with wrong values. {REMEDY}"
        )
    if facts["onnxruntime"] is None:
        raise InferenceUnavailable(f"onnxruntime is missing beside the embedded Triton. {REMEDY}")
    installation = Installation(
        venv=venv,
        site=Path(facts["site"]),
        python=".".join(map(str, facts["python"])),
        libpython=libpython,
        openvino=facts["openvino"] is not None,
    )
    if not (installation.server.is_file() and installation.stub.is_file()):
        raise InferenceUnavailable(f"The Triton server binary is not installed. {REMEDY}")
    return installation


def check_stub(stub: Path, environment: Mapping[str, str]) -> None:
    """Run the stub without arguments: exit status 1 is sound, anything else would hang the load of every model.

    Raises InferenceUnavailable.
    """
    try:
        status = subprocess.run([str(stub)], env=dict(environment), capture_output=True, timeout=30).returncode
    except (OSError, subprocess.SubprocessError):
        status = -1
    if status != 1:
        raise InferenceUnavailable(
            f"Triton's Python stub does not start on this system (exit status {status}; it needs Linux with glibc 2.35 "
            f"or newer). {REMEDY}"
        )


def check(venv: Path) -> Installation:
    """Every check that can be made without a server. Raises InferenceUnavailable."""
    installation = find_installation(venv)
    with tempfile.TemporaryDirectory(prefix="pathserve-") as folder:
        library = Path(folder) / installation.libpython.name
        library.symlink_to(installation.libpython)
        check_stub(installation.stub, installation.environment(Path(folder)))
    return installation
