"""Inference on Triton: the model repository as the contract, one engine seam, the embedded server."""

from gateway.inference.contract import Contract, TensorSpec
from gateway.inference.engine import TritonEngine
from gateway.inference.probe import Probe, probe
from gateway.inference.repository import Golden, ModelRepository
from gateway.inference.served import ModelStatus

__all__ = ["Contract", "Golden", "ModelRepository", "ModelStatus", "Probe", "TensorSpec", "TritonEngine", "probe"]
