"""The released runs and the committed repository, and copies of them that a test may harm."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

from exporters import build
from exporters.onnx_graph import OPSET
from training.graphs import Graph, declare
from training.runs import Run, open_run

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "model_repository"
RELEASED = ROOT / "training" / "released"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def exported_once() -> Iterator[None]:
    """The same network and provenance give the same bytes (`test_onnx_graph` holds it), so each is exported once."""
    known: dict[tuple[object, ...], bytes] = {}
    real = build.export

    def export(graph: Graph, provenance: Mapping[str, str], opset: int = OPSET) -> bytes:
        key = (opset, *sorted(provenance.items()))
        if key not in known:
            known[key] = real(graph, provenance, opset)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "export", export)
        yield


@pytest.fixture(scope="session")
def encoder_run() -> Run:
    return open_run(RELEASED / "tile_encoder")


@pytest.fixture(scope="session")
def head_run() -> Run:
    return open_run(RELEASED / "tissue_head")


@pytest.fixture(scope="session")
def encoder_graph(encoder_run: Run) -> Graph:
    return declare(encoder_run)


@pytest.fixture(scope="session")
def head_graph(head_run: Run) -> Graph:
    return declare(head_run)


@pytest.fixture(scope="session")
def encoder_engine() -> bytes:
    return (REPOSITORY / "tile_encoder" / "1" / "model.onnx").read_bytes()


@pytest.fixture(scope="session")
def head_engine() -> bytes:
    return (REPOSITORY / "tissue_head" / "1" / "model.onnx").read_bytes()


@pytest.fixture
def head_folder(tmp_path: Path) -> Path:
    """A copy of the head's run."""
    return shutil.copytree(RELEASED / "tissue_head", tmp_path / "run")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository that holds the committed encoder only."""
    shutil.copytree(REPOSITORY / "tile_encoder", tmp_path / "repository" / "tile_encoder")
    return tmp_path / "repository"
