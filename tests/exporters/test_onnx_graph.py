"""The exported file: the same bytes every time, half-size weights, provenance, and nothing of the machine."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from exporters.build import network_artefact
from tests.exporters.conftest import ROOT
from training.graphs import Graph
from training.runs import Run

pytestmark = pytest.mark.training


def test_rebuilding_the_encoder_gives_the_committed_bytes(
    encoder_run: Run, encoder_graph: Graph, encoder_engine: bytes
) -> None:
    assert network_artefact(encoder_run, encoder_graph).engine == encoder_engine


def test_rebuilding_the_head_gives_the_same_files(head_run: Run, head_graph: Graph, head_engine: bytes) -> None:
    first, second = network_artefact(head_run, head_graph), network_artefact(head_run, head_graph)
    assert first.files == second.files
    assert first.engine == head_engine


def test_weights_are_stored_as_fp16_without_loss(encoder_graph: Graph, encoder_engine: bytes) -> None:
    model = onnx.load_from_string(encoder_engine)
    stored = {weight.name: weight for weight in model.graph.initializer}
    state = encoder_graph.network.state_dict()
    large = {key: value for key, value in state.items() if value.ndim == 4 and value.numel() >= 1024}
    assert len(large) > 40
    for key, value in large.items():
        half = stored[f"network.{key}.fp16"]
        assert half.data_type == onnx.TensorProto.FLOAT16
        assert np.array_equal(onnx.numpy_helper.to_array(half).astype(np.float32), value.numpy())
    assert len(encoder_engine) < 7_200_000


def test_provenance_is_stamped(encoder_run: Run, encoder_engine: bytes) -> None:
    session = onnxruntime.InferenceSession(encoder_engine, providers=["CPUExecutionProvider"])
    stamp = session.get_modelmeta().custom_metadata_map
    assert stamp["pathserve.weights_sha256"] == encoder_run.weights_sha256
    assert stamp["pathserve.git_commit"] == encoder_run.manifest["git_commit"]
    assert stamp["pathserve.recipe_sha256"] == encoder_run.manifest["recipe_sha256"]


def test_nothing_of_the_machine_is_in_the_file(encoder_engine: bytes) -> None:
    for trace in (str(ROOT).encode(), b"/home/", b"/usr/", b"site-packages", b".py", b"stack_trace"):
        assert trace not in encoder_engine


def test_normalisation_is_in_the_graph(encoder_engine: bytes, encoder_graph: Graph) -> None:
    tile = np.full((1, 224, 224, 3), 127, np.uint8)
    session = onnxruntime.InferenceSession(encoder_engine, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": tile})
    with torch.inference_mode():
        due = encoder_graph.network.network(torch.zeros(1, 3, 224, 224))[0].mean((2, 3))
    np.testing.assert_allclose(found[:, :1280], due.numpy(), atol=1e-4)
