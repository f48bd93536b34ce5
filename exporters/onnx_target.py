"""The target `onnx`: the fp32 ONNX itself, served by ONNX Runtime. It is the reference of every other target."""

from importlib import metadata
from pathlib import Path

from exporters.config import OnnxRuntimeConfig, check_config
from exporters.gates import onnx_runtime
from exporters.targets import Engine, Target, TargetArtefact
from exporters.versions import name_and_number
from training.graphs import Graph
from training.runs import Run


def config_of(graph: Graph, folder: str) -> OnnxRuntimeConfig:
    return OnnxRuntimeConfig(name=folder, inputs=graph.inputs, outputs=graph.outputs, batch=graph.batch)


def _build(run: Run, graph: Graph, onnx: bytes, folder: str, precision: str, work: Path) -> TargetArtefact:
    config = config_of(graph, folder)
    check_config(config)
    engine = f"{name_and_number(folder)[1]}/model.onnx"
    return TargetArtefact(
        files={engine: onnx},
        engine=(engine,),
        config=config.text(),
        state="BUILT",
        tools={"onnxruntime": metadata.version("onnxruntime")},
    )


def _open(folder: Path) -> Engine:
    return onnx_runtime((folder / name_and_number(folder.name)[1] / "model.onnx").read_bytes())


TARGET = Target("onnx", ("fp32",), _build, _open)
