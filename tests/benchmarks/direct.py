"""The floor of the engines' rows: a served graph in ONNX Runtime, called directly."""

from pathlib import Path

import onnxruntime


def session(file: Path) -> onnxruntime.InferenceSession:
    """As one instance of a served model runs it: one thread, no spinning."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(file, options)
