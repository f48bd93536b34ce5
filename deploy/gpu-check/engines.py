"""The ways in which torch runs a network on a GPU: eager, CUDA graph, torch.compile, AOTInductor package."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import median_ms
from record import Rows
from torch import Tensor, nn

Engine = Callable[[Tensor], Tensor]
"""image (B,H,W,3) uint8 on the device to a float32 tensor (B,D)."""


def compile_blocks(model: nn.Module, mode: str = "default") -> Engine:
    """torch.compile of the repeated block alone: it is compiled once for each batch size, whatever the depth.

    The mode `max-autotune-no-cudagraphs` tries other kernels for its matrix products, with their epilogues fused.
    """
    torch._dynamo.config.recompile_limit = 64
    for block in model.blocks:
        block.compile(mode=mode, dynamic=False)
    return model


def compile_whole(model: nn.Module) -> Engine:
    """torch.compile of the whole network for exact batch sizes."""
    return torch.compile(model, dynamic=False)


def graph(engine: Engine, example_BHWC: Tensor) -> Engine:
    """A CUDA graph of one batch size: one launch in place of hundreds. Its output is overwritten by the next call."""
    held_BHWC = example_BHWC.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            engine(held_BHWC)
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        answer_BD = engine(held_BHWC)

    def run(image_BHWC: Tensor) -> Tensor:
        held_BHWC.copy_(image_BHWC)
        captured.replay()
        return answer_BD

    return run


def package(model: nn.Module, example_BHWC: Tensor, most: int, path: Path) -> Engine:
    """An AOTInductor package at `path` for every batch from 1 to `most`, loaded again from its file.

    The file is bound to the device type and the torch version that made it.
    """
    batch = torch.export.Dim("batch", min=1, max=most)
    with torch.no_grad():
        program = torch.export.export(model, (example_BHWC,), dynamic_shapes=({0: batch},))
    torch._inductor.aoti_compile_and_package(program, package_path=os.fspath(path))
    return torch._inductor.aoti_load_package(os.fspath(path))


def speed(
    rows: Rows,
    section: str,
    engine: Engine,
    images_NHWC: Tensor,
    batch: int,
    /,
    *,
    flops: int | None = None,
    seconds: float = 0.7,
    **labels: Any,
) -> float:
    """Images per second at one batch size as a row; 0 where the GPU's memory did not hold it (recorded)."""
    image_BHWC = repeat_to(images_NHWC, batch)
    try:
        timing = median_ms(lambda: engine(image_BHWC), image_BHWC.device, seconds)
    except torch.OutOfMemoryError:
        rows.skip(f"{labels} batch {batch}", "the GPU's memory does not hold it")
        return 0.0
    rate = batch / timing["ms"] * 1e3
    work = {} if flops is None else {"tflops": round(rate * flops / 1e12, 4)}
    rows.add(section, **labels, batch=batch, images_per_s=round(rate, 1), **work, **timing)
    return rate


def repeat_to(images_NHWC: Tensor, batch: int) -> Tensor:
    """Exactly `batch` images, the given ones over and over."""
    index = torch.arange(batch, device=images_NHWC.device) % len(images_NHWC)
    return images_NHWC[index].contiguous()


def run_all(engine: Engine, images_NHWC: Tensor, batch: int, device: torch.device) -> Tensor:
    """(N,D) float32 on the CPU for any number of images, always in full batches of one size (the last one padded)."""
    answers = []
    for start in range(0, len(images_NHWC), batch):
        part = images_NHWC[start : start + batch].to(device)
        answers.append(engine(repeat_to(part, batch))[: len(part)].float().cpu())
    return torch.cat(answers)
