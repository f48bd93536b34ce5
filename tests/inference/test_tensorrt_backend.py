"""The backend `tensorrt` in a real Triton: what it lacks it says, and no process dies of it.

No plan can run without a GPU. What is above the driver and TensorRT themselves runs over stand-ins for the two
(tensorrt_stand_in.py); the GPU itself is deploy/gpu-check's.
"""

import asyncio
import ctypes.util
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from gateway.inference import TritonEngine
from gateway.inference.client import CallFailed, Client
from gateway.operations.errors import ModelNotLoaded
from gateway.operations.settings import Settings
from tests.conftest import ROOT

from . import models
from .conftest import embeddings, empty_triton

pytestmark = pytest.mark.triton

LOAD_S = 60.0
MADE_FOR = {"tensorrt_version": "11.4.0.106", "compute_capability": "9.0"}
STAND_IN = ROOT / "tests" / "inference" / "tensorrt_stand_in.py"
_ASK = """
import sys, types
sys.modules["triton_python_backend_utils"] = types.ModuleType("pb_utils")
sys.path.insert(0, sys.argv[1])
import model
model.PROBE = sys.argv[2]
try:
    print(model.probe(0))
except ValueError as error:
    print(error)
"""


def write_plan(
    repository: Path, name: str, *, kind: str = "KIND_AUTO", plan: bytes | None = None, **facts: str
) -> Path:
    """A model folder of platform tensorrt_plan; KIND_AUTO lets it be loaded where there is no GPU."""
    folder = models.write_encoder(repository, name)
    weights = np.random.default_rng(0).normal(size=(3, models.WIDTH)).astype(np.float32)
    (folder / "1" / "model.plan").write_bytes(weights.tobytes() if plan is None else plan)
    config = (folder / "config.pbtxt").read_text()
    config = config.replace('backend: "onnxruntime"', 'platform: "tensorrt_plan"').replace("KIND_CPU", kind)
    made_for = MADE_FOR | facts
    lines = [f'parameters {{ key: "{key}" value {{ string_value: "{made_for[key]}" }} }}\n' for key in made_for]
    (folder / "config.pbtxt").write_text(config + "".join(line for line in lines if '""' not in line))
    return folder


@pytest.fixture(scope="module")
def folder(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("models")
    write_plan(repository, "plan")
    models.write_encoder(repository, "encoder")
    return repository


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    """A server whose backend `tensorrt` runs over the stand-ins."""
    backends = tmp_path_factory.mktemp("backends")
    for name in ("common", "onnxruntime"):
        (backends / name).symlink_to(ROOT / "deploy" / "triton" / "backends" / name)
    (backends / "tensorrt").mkdir()
    (backends / "tensorrt" / "model.py").symlink_to(STAND_IN)
    settings = Settings(state=tmp_path_factory.mktemp("state"), model_repository=folder, triton_backends=backends)
    async with empty_triton(settings) as connected:
        for model in ("plan", "encoder"):
            await connected.load(model, LOAD_S)
        yield connected


@pytest.mark.asyncio(loop_scope="module")
async def test_buffers_shapes_and_batches_are_right(client: Client, folder: Path) -> None:
    batches = [models.tiles(size, seed=size) for size in (1, 7, 16, 2, 3)]
    answers = await asyncio.gather(*(embeddings(client, "plan", images) for images in batches))
    for images, answer in zip(batches, answers, strict=True):
        due = models.direct(folder / "plan", images)
        assert answer.dtype == np.float32
        np.testing.assert_allclose(answer, due, rtol=1e-5, atol=1e-5 * np.abs(due).max())


@pytest.mark.asyncio(loop_scope="module")
async def test_a_batch_outside_the_profile_says_so_and_spoils_no_other(client: Client) -> None:
    good, bad = await asyncio.gather(
        embeddings(client, "plan", models.tiles(2)),
        embeddings(client, "plan", models.tiles(17)),
        return_exceptions=True,
    )
    assert isinstance(good, np.ndarray)
    assert good.shape == (2, models.WIDTH)
    assert isinstance(bad, CallFailed)
    assert "tensorrt: input 'image' of the shape [17, 64, 64, 3] is outside the plan's profile" in bad.text


@pytest.mark.asyncio(loop_scope="module")
async def test_a_plan_for_another_server_is_refused_and_the_others_serve(client: Client, folder: Path) -> None:
    write_plan(folder, "newer", tensorrt_version="11.5.0.1")
    write_plan(folder, "other_gpu", compute_capability="8.0")
    write_plan(folder, "unsaid", tensorrt_version="")
    write_plan(folder, "corrupt", plan=b"no plan")
    (write_plan(folder, "absent") / "1" / "model.plan").unlink()
    config = write_plan(folder, "narrow") / "config.pbtxt"
    config.write_text(config.read_text().replace("dims: [ 8 ]", "dims: [ 9 ]"))
    for name, words in {
        "newer": "model.plan was built by TensorRT 11.5.0.1, and this server has 11.4.0.106: build it again",
        "other_gpu": "for GPUs of compute capability 8.0, and this one (Stand-in GPU) has 9.0: build it again",
        "unsaid": "config.pbtxt does not say the tensorrt_version of model.plan: export it again",
        "corrupt": "TensorRT 11.4.0.106 cannot load model.plan: Serialization assertion stdVersionRead",
        "absent": "model.plan is not in the version's folder",
        "narrow": "output 'embedding' has the dims [9] in config.pbtxt and [8] in the model",
    }.items():
        with pytest.raises(CallFailed) as failure:
            await client.load(name, LOAD_S)
        assert words in failure.value.text
    assert (await embeddings(client, "plan", models.tiles(1))).shape == (1, models.WIDTH)
    assert (await embeddings(client, "encoder", models.tiles(1))).shape == (1, models.WIDTH)


@pytest.mark.asyncio(loop_scope="module")
async def test_without_a_gpu_the_reason_reaches_the_status_and_the_others_serve(folder: Path, tmp_path: Path) -> None:
    # No stand-in: the real backend asks the real driver in a process of its own.
    missing = "there is no NVIDIA driver"
    if ctypes.util.find_library("cuda"):
        missing = "the package tensorrt cannot be imported beside Triton"
    repository = tmp_path / "models"
    models.write_encoder(repository, "encoder")
    for name, kind in (("asked", "KIND_AUTO"), ("pinned", "KIND_GPU")):
        models.seal(write_plan(repository, name, kind=kind, plan=b"no plan"))
    names = ["asked", "pinned", "encoder"]
    async with TritonEngine.open(Settings(state=tmp_path / "state", model_repository=repository), names) as engine:
        reasons = {status.model: status.reason for status in engine.status()}
        assert f"a TensorRT plan cannot run here: {missing}" in reasons["asked"]
        if "driver" in missing:
            # Triton itself refuses an instance that asks for a GPU, before any backend is started.
            assert "has kind KIND_GPU but no GPUs are available" in reasons["pinned"]
        assert reasons["encoder"] is None
        with pytest.raises(ModelNotLoaded):
            await engine.infer("asked", {"image": models.tiles(1)})
        assert (await engine.infer("encoder", {"image": models.tiles(4)}))["embedding"].shape == (4, models.WIDTH)


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        ("import os; os.kill(os.getpid(), 11)", "TensorRT's runtime crashes on this machine (SIGSEGV)"),
        ("print('banner')", "the search for a GPU did not end well (no answer)"),
        ('print(\'{"refused": "no reason"}\')', "a TensorRT plan cannot run here: no reason"),
    ],
)
def test_a_runtime_that_crashes_ends_no_process_of_tritons(installed: None, probe: str, words: str) -> None:
    python = Settings().triton_venv / "bin" / "python"
    backend = ROOT / "deploy" / "triton" / "backends" / "tensorrt"
    answer = subprocess.run([python, "-c", _ASK, backend, probe], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == words
