"""The tile encoder and tissue head that the repository serves: their weights, their reference, and the judgement of an
engine that would replace them."""

import copy
import hashlib
import itertools
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import compare
import numpy as np
import torch
from engines import Engine, run_all
from record import Rows
from tileset import TileSet
from torch import Tensor, nn

ENCODER, HEAD = "tile_encoder", "tissue_head"
BATCH = 64
"""Batch size of every judged engine: the served maximum."""
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}


class Unusable(Exception):
    """The served model cannot be read here; the message says why."""


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file: a header length (8 bytes), a JSON header, and the values end to end."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    values = bytearray(data[8 + length :])
    tensors = {}
    for key, entry in header.items():
        if key != "__metadata__":
            first, last = entry["data_offsets"]
            flat = torch.frombuffer(values, dtype=torch.uint8)[first:last].clone().view(_DTYPES[entry["dtype"]])
            tensors[key] = flat.reshape(entry["shape"])
    return tensors


@dataclass(frozen=True)
class Served:
    """The two networks in fp32 on the device, with what the repository says of them."""

    encoder: nn.Module
    head: nn.Module
    operating_point: float
    root: Path
    digests: dict[str, str]

    def onnx(self, model: str) -> Path:
        return self.root / "model_repository" / model / "1" / "model.onnx"


def open_served(root: Path, device: torch.device) -> Served:
    """Raises Unusable where definition, weights or card are missing or do not fit."""
    sys.path.insert(0, str(root))
    try:
        from training.nn.tile_encoder import TileEncoder
        from training.tissue.model import TissueHead
    except ImportError as error:
        raise Unusable(f"the torch definition cannot be imported: {error}") from None
    paths = {name: root / "training" / "released" / name / "weights.safetensors" for name in (ENCODER, HEAD)}
    try:
        weights = {name: read_safetensors(path) for name, path in paths.items()}
        card = json.loads((root / "model_repository" / HEAD / "card.json").read_bytes())
        encoder, head = TileEncoder(), TissueHead(len(weights[HEAD]["linear.bias"]))
    except (OSError, ValueError, KeyError) as error:
        raise Unusable(f"the released run or its card cannot be read: {type(error).__name__}") from None
    for name, network in ((ENCODER, encoder), (HEAD, head)):
        try:
            found = network.load_state_dict({key: value.float() for key, value in weights[name].items()}, strict=False)
        except RuntimeError as error:
            raise Unusable(f"the weights of {name} do not fit: {str(error).splitlines()[-1].strip()}") from None
        lacking = [key for key in found.missing_keys if not key.endswith("num_batches_tracked")]
        if lacking or found.unexpected_keys:
            raise Unusable(f"the weights of {name} do not fit at {(lacking + found.unexpected_keys)[0]}")
        network.eval().requires_grad_(False).to(device)
    digests = {f"{name}_weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}
    point = card["operating_points"][0]["min_probability"] if card["operating_points"] else 0.0
    return Served(encoder, head, float(point), root, digests)


def fold_norms(network: nn.Module) -> None:
    """Move every batch norm into the convolution defined right before it, in place and in fp32.

    In fp16 and bf16 this is worth more than speed: a norm that subtracts a mean much larger than its deviation would
    enlarge the rounding of the convolution's output; folded, the subtraction happens in the fp32 accumulator.
    """
    for parent in list(network.modules()):
        for (_, conv), (name, norm) in itertools.pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                scale_O = norm.weight * (norm.running_var + norm.eps).rsqrt()
                bias_O = 0.0 if conv.bias is None else conv.bias
                conv.bias = nn.Parameter((bias_O - norm.running_mean) * scale_O + norm.bias, requires_grad=False)
                conv.weight = nn.Parameter(conv.weight * scale_O[:, None, None, None], requires_grad=False)
                setattr(parent, name, nn.Identity())


def lower(encoder: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy that runs in `dtype`, channels last, batch norms folded; pixel scaling and pooling stay fp32."""
    lowered = copy.deepcopy(encoder)
    fold_norms(lowered)
    convolutions = [module for module in lowered.modules() if isinstance(module, nn.Conv2d)]
    for convolution in convolutions:
        convolution.to(dtype=dtype, memory_format=torch.channels_last)
    convolutions[0].register_forward_pre_hook(
        lambda module, inputs: (inputs[0].to(dtype=dtype, memory_format=torch.channels_last),)
    )
    lowered.network.register_forward_hook(lambda module, inputs, maps: tuple(map(Tensor.float, maps)))
    return lowered


@dataclass(frozen=True)
class Reference:
    """What the fp32 engine (torch on this device, TF32 off) says of every tile.

    `doubts` are failures of this reference itself against the served ONNX files: they hold back every approval.
    """

    tiles: TileSet
    images_NHWC: Tensor
    embedding_ND: Tensor
    logits_NC: Tensor
    doubts: tuple[str, ...] = ()

    @classmethod
    def compute(cls, served: Served, found: TileSet, device: torch.device) -> "Reference":
        images = torch.from_numpy(found.images_NHWC)
        embedding = run_all(served.encoder, images, min(BATCH, len(images)), device)
        return cls(found, images, embedding, head_logits(served, embedding))


def head_logits(served: Served, embedding_ND: Tensor) -> Tensor:
    """The head in fp32: it is one small matrix and never worth less precision."""
    return served.head(embedding_ND.to(next(served.head.parameters()).device)).float().cpu()


def judge(
    rows: Rows,
    served: Served,
    reference: Reference,
    engine: Engine,
    name: str,
    dtype: str,
    device: torch.device,
    *,
    batch: int = BATCH,
    fixed_batch: bool = False,
) -> None:
    """G3 and G4 of one encoder engine, its parity with golden.npz, and the state that they earn, as rows.

    `fixed_batch`: the engine takes one batch size only; a single image is then padded with copies of itself.
    """
    call = (lambda image: engine(_padded(image, batch))[: len(image)]) if fixed_batch else engine
    embedding = run_all(call, reference.images_NHWC, batch, device)
    parity = compare.parity(embedding, reference.embedding_ND)
    same = compare.agreement(head_logits(served, embedding), reference.logits_NC, served.operating_point)
    steady = compare.invariance(call, reference.images_NHWC[:batch].to(device))
    golden = golden_parity(served, call, device)
    failures = [f"reference: {text}" for text in reference.doubts]
    failures += [f"G3: {text}" for text in compare.parity_failures(parity, dtype)]
    failures += [f"G3: {text}" for text in compare.agreement_failures(same, dtype)]
    failures += [f"G4: {text}" for text in compare.invariance_failures(steady, dtype)]
    if golden is not None:
        failures += [f"golden: {text}" for text in compare.parity_failures(golden, dtype)]
    state, reason = earned(failures, same["tiles"], reference.tiles.real, golden is not None, device)
    rows.add(
        "artefacts",
        artefact=name,
        model=ENCODER,
        precision=dtype,
        state=state,
        reason=reason,
        gates={"G3": parity | same, "G4": steady, "golden": golden},
        labelled=labelled(served, embedding, reference),
        **served.digests,
    )


def _padded(image_BHWC: Tensor, batch: int) -> Tensor:
    if len(image_BHWC) == batch:
        return image_BHWC
    return image_BHWC[:1].expand(batch, -1, -1, -1).contiguous()


def earned(failures: list[str], count: int, real: bool, golden: bool, device: torch.device) -> tuple[str, str]:
    """The state of an engine that was built and run, and why it is not a higher one."""
    if device.type != "cuda":
        return "not run", "no GPU: these figures come from a CPU and approve nothing"
    if failures:
        return "BUILT", "; ".join(failures)
    if not real or count < compare.THRESHOLDS["tiles"]:
        return (
            "BUILT",
            f"reduced: {count} {'tiles' if real else 'tiles of noise'}, {compare.THRESHOLDS['tiles']} wanted",
        )
    if not golden:
        return "BUILT", "reduced: the repository holds no golden.npz of the encoder"
    return "APPROVED", ""


def golden_parity(served: Served, engine: Engine, device: torch.device) -> dict[str, Any] | None:
    """The engine against the golden inputs and outputs beside the served model; None where there are none."""
    path = served.root / "model_repository" / ENCODER / "golden.npz"
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as file:
        image, expected = torch.from_numpy(file["image"]), torch.from_numpy(file["expected.embedding"])
    answers = torch.cat([engine(image[k : k + 1].to(device)).float().cpu() for k in range(len(image))])
    return compare.parity(answers, expected) | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def labelled(served: Served, embedding_ND: Tensor, reference: Reference) -> dict[str, Any] | None:
    """Accuracy on the labelled tiles beside the reference's. The head was fitted on them: the difference counts."""
    known = torch.from_numpy(np.flatnonzero(reference.tiles.labels_N >= 0))
    if not len(known):
        return None
    truth = torch.from_numpy(reference.tiles.labels_N)[known]
    found = head_logits(served, embedding_ND[known]).argmax(1)
    return {
        "tiles": len(known),
        "accuracy": float((found == truth).double().mean()),
        "accuracy_fp32": float((reference.logits_NC[known].argmax(1) == truth).double().mean()),
    }


def onnx_parity(served: Served, reference: Reference, seconds: float) -> dict[str, Any] | None:
    """The fp32 reference against the served ONNX files in ONNX Runtime on the CPU, on as many tiles as `seconds` allow.

    None where ONNX Runtime or the files are missing.
    """
    try:
        import onnxruntime
    except ImportError:
        return None
    if not (served.onnx(ENCODER).is_file() and served.onnx(HEAD).is_file()):
        return None
    encoder, head = (
        onnxruntime.InferenceSession(str(served.onnx(model)), providers=["CPUExecutionProvider"])
        for model in (ENCODER, HEAD)
    )
    started, embeddings, logits, done = time.monotonic(), [], [], 0
    while done < len(reference.images_NHWC) and (not done or time.monotonic() - started < seconds):
        image = reference.images_NHWC[done : done + BATCH].numpy()
        embeddings.append(encoder.run(["embedding"], {"image": image})[0])
        logits.append(head.run(["logits"], {"embedding": embeddings[-1]})[0])
        done += len(image)
    found = torch.from_numpy(np.concatenate(embeddings))
    answers = torch.from_numpy(np.concatenate(logits))
    return {
        "onnx_sha256": hashlib.sha256(served.onnx(ENCODER).read_bytes()).hexdigest(),
        "onnxruntime": onnxruntime.__version__,
        **compare.parity(found, reference.embedding_ND[:done]),
        **compare.agreement(answers, reference.logits_NC[:done], served.operating_point),
    }


def wrong_normalisation(engine: Engine) -> Engine:
    """A negative control: the same engine on pixels of two thirds of the contrast, 40 levels up. G3 must refuse it."""
    return lambda image: engine((image.to(torch.int16) * 2 // 3 + 40).clamp(0, 255).to(torch.uint8))
