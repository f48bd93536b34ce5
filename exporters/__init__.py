"""From a run folder to a served model, through gates: `python -m exporters build RUN --target onnx --out DIR`."""
