"""What keeps the embedded Triton from running is said before it is started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.inference import installation, runtime
from gateway.operations.errors import InferenceUnavailable, StateError
from gateway.operations.settings import Settings


def test_the_installed_environment_is_sound(installed: None) -> None:
    found = installation.check(Settings().triton_venv)
    assert found.server.is_file()
    assert found.libpython.name == f"libpython{found.python}.so.1.0"


def test_an_environment_with_numpy_2_is_refused() -> None:
    # The gateway's own environment has numpy 2.
    with pytest.raises(InferenceUnavailable, match=r"numpy 1 .* found numpy 2"):
        installation.find_installation(Path(sys.prefix))


def test_a_missing_environment_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InferenceUnavailable, match=r"make setup.*PATHSERVE_TRITON_URL"):
        installation.check(tmp_path)


def test_python_3_13_is_refused() -> None:
    facts = {"python": [3, 13], "libraries": []}
    with pytest.raises(InferenceUnavailable, match=r"Python 3\.13.*PATHSERVE_TRITON_URL"):
        installation.find_libpython(facts)


def test_a_missing_shared_libpython_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "_SYSTEM_LIBRARIES", (str(tmp_path),))
    with pytest.raises(InferenceUnavailable, match=r"package libpython3\.12.*PATHSERVE_TRITON_URL"):
        installation.find_libpython({"python": [3, 12], "libraries": [None, str(tmp_path)]})
    library = tmp_path / "libpython3.12.so.1.0"
    library.touch()
    assert installation.find_libpython({"python": [3, 12], "libraries": [None]}) == library


def test_a_stub_without_its_libraries_is_refused(installed: None) -> None:
    found = installation.find_installation(Settings().triton_venv)
    with pytest.raises(InferenceUnavailable, match="does not start"):
        installation.check_stub(Path("/bin/true"), {})
    environment = found.environment(Path("/nowhere"))
    assert environment["LD_LIBRARY_PATH"].startswith("/nowhere:")


def test_the_command_line_answers_in_one_line(installed: None) -> None:
    for arguments, python in (
        ([], "Python 3."),
        (["--interpreter", str(Settings().triton_venv / "bin/python")], "carry"),
    ):
        result = subprocess.run(
            [sys.executable, "-m", "gateway.inference.preflight", *arguments], capture_output=True, text=True
        )
        assert (result.returncode, result.stdout.count("\n"), result.stderr) == (0, 1, "")
        assert python in result.stdout
    environment = os.environ | {"PATHSERVE_TRITON_VENV": "/nowhere"}
    result = subprocess.run(
        [sys.executable, "-m", "gateway.inference.preflight"], capture_output=True, text=True, env=environment
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert "make setup" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_runtime_directory_is_short_private_and_outside_the_state(tmp_path: Path) -> None:
    state = tmp_path / ("long" * 40) / "a b"
    directory = runtime.runtime_directory(state)
    assert state not in directory.parents
    assert len(runtime.socket_url(directory)) < 107
    assert " " not in str(directory)
    assert directory == runtime.runtime_directory(state)
    assert directory != runtime.runtime_directory(tmp_path)


def test_a_temporary_folder_with_blanks_or_too_long_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("with blank", "x" * 90):
        (tmp_path / name).mkdir()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / name))
        assert tmp_path not in runtime.runtime_directory(tmp_path).parents


def test_a_foreign_runtime_directory_is_refused_not_followed(installed: None, tmp_path: Path) -> None:
    found = installation.find_installation(Settings().triton_venv)
    target = tmp_path / "elsewhere"
    target.mkdir()
    (target / "kept").touch()
    link, open_to_all = tmp_path / "link", tmp_path / "open"
    link.symlink_to(target)
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    for directory in (link, open_to_all):
        with pytest.raises(StateError, match="runtime folder"):
            runtime.build(directory, found, Settings().triton_backends, tmp_path)
    assert (target / "kept").exists()


def test_only_runtime_directories_are_removed(tmp_path: Path) -> None:
    # The name of the folder comes from a file in the state: it must not be able to name any folder.
    precious = tmp_path / "precious"
    precious.mkdir(mode=0o700)
    runtime.remove(precious)
    assert precious.is_dir()


def test_the_servers_environment_is_made_afresh(installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PATHSERVE_API_KEY", "PYTHONHOME", "PYTHONPATH", "LD_PRELOAD"):
        monkeypatch.setenv(name, "/nowhere")
    environment = installation.find_installation(Settings().triton_venv).environment(Path("/lib"))
    assert not {"PATHSERVE_API_KEY", "PYTHONHOME", "PYTHONPATH", "LD_PRELOAD"} & environment.keys()


def test_the_log_is_rotated_at_start(installed: None, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "triton.log"
    log.parent.mkdir()
    with log.open("wb") as file:
        file.truncate(9 << 20)
    runtime.start(["/bin/true"], {}, tmp_path, log).wait()
    assert log.stat().st_size == 0
    assert log.with_suffix(".log.1").stat().st_size == 9 << 20
