"""The shape of the repository: its top level, the size of what is committed, and what must never stand in it."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP_LEVEL = {
    "model_repository", "gateway", "exporters", "training", "deploy", "tests", "docs",
    "pyproject.toml", "README.md", "LICENSE", "Makefile", ".ci", ".gitignore",
    "constraints.txt", "constraints-triton.txt", "constraints-training.txt", "constraints-tensorrt.txt",
    "constraints-import.txt",
}  # fmt: skip
LIMIT_BYTES = 32 * 2**20
FORBIDDEN = re.compile(
    "|".join((r"py" r"pi\.org", r"files\.python" r"hosted", r"registry\.np" r"mjs", r"deb\.deb" r"ian\.org"))
)


def tracked() -> list[Path]:
    out = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    return [ROOT / name for name in out.decode().split("\0") if name]


def test_top_level_is_as_designed() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in tracked()} == TOP_LEVEL


@pytest.mark.parametrize("folder", ["model_repository", "training/released"])
def test_weights_stay_small(folder: str) -> None:
    sizes = [path.stat().st_size for path in tracked() if path.is_relative_to(ROOT / folder) and path.exists()]
    assert 0 < sum(sizes) < LIMIT_BYTES


def test_starter_model_is_at_most_8_mb() -> None:
    """What `make demo` runs: the ensemble's two networks."""
    files = [ROOT / "model_repository" / step / "1" / "model.onnx" for step in ("tile_encoder", "tissue_head")]
    assert set(files) <= set(tracked())
    assert sum(path.stat().st_size for path in files) <= 8_000_000


def test_no_data_but_the_one_slide() -> None:
    dicom = [path for path in tracked() if path.suffix == ".dcm"]
    assert {path.parent.relative_to(ROOT) for path in dicom} == {Path("tests/data/cmu_small_he")}


def test_no_registry_hosts() -> None:
    for path in tracked():
        if path.suffix in {".py", ".md", ".toml", ".txt", ".sh", ".yaml", ".yml", ".json", ""} and path.is_file():
            assert not FORBIDDEN.search(path.read_text(encoding="utf-8", errors="ignore")), path


def test_modules_have_one_subject() -> None:
    """No module of ours passes 600 lines (DESIGN.md, Style); tests and generated code excepted."""
    for path in tracked():
        generated = path.name.endswith(("_pb2.py", "_pb2_grpc.py"))
        ours = path.relative_to(ROOT).parts[0] in {"gateway", "training", "exporters", "deploy"}
        if path.suffix == ".py" and ours and not generated:
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 600, path
