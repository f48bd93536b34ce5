"""Inference on Triton."""
