"""`python -m exporters.tensorrt_outlook RUN --repository DIR --out FILE`: what each TensorRT precision can hope for.

For each precision: whether TensorRT parses and builds the graph (G2), and what G3 would say of it if the engine
computed exactly as the graph is written (exporters/imitate.py). No GPU is asked, so nothing here approves an engine;
but a precision that fails here is not worth one.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from exporters import shapes
from exporters.agreement import g3_agreement
from exporters.errors import GateFailed
from exporters.imitate import imitated
from exporters.questions import tiles_for
from exporters.tensorrt import TARGET, in_precision
from exporters.tensorrt_gate import g2_tensorrt
from gateway.inference import ModelRepository
from gateway.operations.errors import PathserveError
from training.files import json_bytes, sha256_bytes, write_atomic
from training.graphs import Graph, declare
from training.runs import open_run


def outlook(
    graph: Graph, onnx: bytes, repository: Path, precisions: Sequence[str], most: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Per precision G2's and G3's figures; G3 on `most` tiles, drawn by `seed`, or on all. Raises PathserveError."""
    every = tiles_for(graph)
    tiles = every.sample(most, seed) if every is not None and most is not None else every
    rows: dict[str, Any] = {}
    for precision in precisions:
        typed, calibration = in_precision(graph, onnx, precision)
        with tempfile.TemporaryDirectory(prefix="pathserve-outlook-") as work:
            try:
                built = g2_tensorrt(typed, shapes.profile(graph), Path(work)).figures
            except GateFailed as failure:
                built = failure.figures
        try:
            verdict = {"passed": True, "figures": g3_agreement(graph, onnx, imitated(typed), repository, tiles)}
        except GateFailed as failure:
            verdict = {"passed": False, "reason": failure.detail, "figures": failure.figures}
        rows[precision] = {
            "graph_sha256": sha256_bytes(typed),
            "graph_bytes": len(typed),
            "calibration": calibration,
            "G2": built,
            "G3 imitated on a CPU": verdict,
        }
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m exporters.tensorrt_outlook")
    parser.add_argument("run", type=Path)
    parser.add_argument("--repository", type=Path, required=True, help="holds the run's fp32 model, and its heads")
    parser.add_argument("--precision", nargs="+", choices=TARGET.precisions, default=TARGET.precisions)
    parser.add_argument("--tiles", type=int, help="a sample of so many, in place of all")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    try:
        graph = declare(open_run(chosen.run))
        models = ModelRepository(chosen.repository)
        models.verify(graph.model)
        onnx = (chosen.repository / graph.model / "1" / "model.onnx").read_bytes()
        rows = outlook(graph, onnx, chosen.repository, chosen.precision, chosen.tiles)
    except PathserveError as error:
        print(error.detail, file=sys.stderr)
        return 1
    document = {"model": graph.model, "onnx_sha256": sha256_bytes(onnx), "precisions": rows}
    write_atomic(chosen.out, json_bytes(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
