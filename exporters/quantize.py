"""An fp32 ONNX graph to one with symmetric Q/DQ pairs around its products, int8 or fp8 (E4M3): TensorRT reads its
8-bit precisions from such pairs. Static: every scale is a constant of the graph, so that no answer depends on the
other images of a batch.

ONNX Runtime's static quantiser calibrates (largest magnitude) and places the pairs: weights per output channel,
activations per tensor, biases and everything between products fp32. Its own fp8 calibration fits a standard deviation
and clips what lies far from it, which this field's networks do not bear (worst cosine 0.74 on the tile encoder); so fp8
takes the same largest magnitudes as int8.
"""

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from ml_dtypes import finfo, float8_e4m3fn
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from exporters.errors import ExportError, first_line
from exporters.lower import finish, prepare
from gateway.operations.errors import PathserveError
from training.graphs import Arrays

OPSET = 20
_PRODUCTS = ["Conv", "ConvTranspose", "Gemm", "MatMul"]
_FEW = 16
"""Channels; 8-bit tensor cores multiply 16 or 32 at a time."""
_INT8_MOST = 127
_FP8_MOST = float(finfo(float8_e4m3fn).max)


class _Batches(CalibrationDataReader):
    def __init__(self, batches: Iterator[Arrays]) -> None:
        self._batches = batches

    def get_next(self) -> Arrays | None:
        return next(self._batches, None)


def quantize(engine: bytes, precision: str, batches: Iterator[Arrays]) -> bytes:
    """The graph in `precision` ("int8" or "fp8"), calibrated on batches of its inputs. Raises ExportError."""
    options = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "AddQDQPairToWeight": True,
        "QuantizeBias": False,
        "DedicatedQDQPair": True,
        "OpTypesToExcludeOutputQuantization": _PRODUCTS,
    }
    model = prepare(engine, OPSET)
    thin = _thin_convolutions(model.graph)
    plain = finish(model, precision)
    # The quantiser advises on the root logger to run its own preparation first; prepare() has done it.
    before = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(prefix="pathserve-quantise-") as folder:
            source, result = Path(folder) / "plain.onnx", Path(folder) / "quantised.onnx"
            source.write_bytes(plain)
            quantize_static(
                source,
                result,
                _Batches(batches),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=_PRODUCTS,
                nodes_to_exclude=thin,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options=options,
            )
            model = onnx.load(result)
    except PathserveError:
        raise
    except Exception as error:  # the quantiser and its runtime raise a dozen classes without a common base
        raise ExportError(f"The graph cannot be quantised ({first_line(error)}).") from None
    finally:
        logging.root.setLevel(before)
    if not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise ExportError(f"The graph has no product that can be quantised to {precision}. Build fp32 or fp16.")
    if precision == "fp8":
        _to_fp8(model.graph)
    model.producer_name, model.producer_version = "pathserve", ""
    return finish(model, precision)


def _thin_convolutions(graph: onnx.GraphProto) -> list[str]:
    """Names of convolutions that join or make few channels: the first ones, and depthwise ones. They wait for memory,
    so they gain nothing by 8 bits, and they lose most."""
    channels = {weight.name: min(weight.dims[:2]) for weight in graph.initializer if len(weight.dims) > 2}
    return [node.name for node in graph.node if channels.get(node.input[1] if node.input[1:] else "", 17) <= _FEW]


def _to_fp8(graph: onnx.GraphProto) -> None:
    """Int8 pairs become fp8 pairs over the same range: scales by the greatest values of both types, zero points fp8."""
    weights = {weight.name: weight for weight in graph.initializer}
    done = set()
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale, zero = node.input[1:3]
        if scale not in done:
            done.add(scale)
            array = numpy_helper.to_array(weights[scale]) * np.float32(_INT8_MOST / _FP8_MOST)
            weights[scale].CopyFrom(numpy_helper.from_array(array, scale))
        if zero not in done:
            done.add(zero)
            zeros = np.zeros_like(numpy_helper.to_array(weights[zero]), dtype=float8_e4m3fn)
            weights[zero].CopyFrom(numpy_helper.from_array(zeros, zero))
