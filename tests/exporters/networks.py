"""Tiny networks with random weights, one or more of every kind of model, as later systems will declare them."""

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporters.onnx_graph import export
from exporters.targets import Engine
from training.graphs import Arrays, Dim, Graph, TensorSpec

WIDTH, HEADS, VOCABULARY, BOXES = 16, 2, 11, 12
BATCH = Dim("batch", 1, 4, 8)
TILES = Dim("tiles", 1, 64, 5000)
TOKENS = Dim("tokens", 2, 8, 16)
HEIGHT, SPAN = Dim("height", 64, 96, 128, 32), Dim("width", 64, 96, 160, 32)
FILL = -1e4
"""Under a mask: not -inf, which is NaN where everything is masked."""


def fp32(name: str, *dims: int | Dim) -> TensorSpec:
    return TensorSpec(name, "FP32", dims)


def int64(name: str, *dims: int | Dim) -> TensorSpec:
    return TensorSpec(name, "INT64", dims)


def image(*dims: int | Dim) -> TensorSpec:
    return TensorSpec("image", "UINT8", (*dims, 3))


def graph(kind: str, network: nn.Module, inputs: Any, outputs: Any, **more: Any) -> Graph:
    batch = more.get("batch", BATCH)

    def samples(sizes: Mapping[str, int]) -> Arrays:
        """By seed; row i of a batch is the same in every batch. Masks are all true."""
        arrays = {}
        for place, spec in enumerate(inputs):
            shape = tuple(sizes[dim.name] if isinstance(dim, Dim) else dim for dim in spec.dims)
            rows = [
                _values(spec, shape, np.random.default_rng((place, row)))
                for row in range(sizes["batch"] if batch else 1)
            ]
            arrays[spec.name] = np.stack(rows) if batch else rows[0]
        return arrays

    return Graph(
        model=f"tiny_{kind}",
        kind=kind,
        network=network.eval(),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        samples=samples,
        card={},
        **{"batch": BATCH} | more,
    )


def _values(spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if "mask" in spec.name and spec.datatype != "FP32":
        return np.ones(shape, np.bool_ if spec.datatype == "BOOL" else np.int64)
    match spec.datatype:
        case "UINT8":
            return rng.integers(0, 256, shape, dtype=np.uint8)
        case "INT64":
            return rng.integers(0, VOCABULARY, shape, dtype=np.int64)
    return rng.normal(0, 1, shape).astype(np.float32)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def pixels(image_BHWC: Tensor, mean: float = 127.5) -> Tensor:
    return (image_BHWC.float() - mean).permute(0, 3, 1, 2) / 64


class ViT(nn.Module):
    """Patches, a class token, one block with attention; of any image of whole patches."""

    def __init__(self, mean: float = 127.5) -> None:
        super().__init__()
        self.mean = mean
        self.patch = nn.Conv2d(3, WIDTH, 8, 8)
        self.cls = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))

    def forward(self, image_BHWC: Tensor) -> Tensor:
        x_BNC = self.patch(pixels(image_BHWC, self.mean)).flatten(2).transpose(1, 2)
        x_BNC = torch.cat([self.cls.expand(x_BNC.shape[0], -1, -1), x_BNC], 1)
        q, k, v = self.qkv(self.norm(x_BNC)).unflatten(2, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        x_BNC = x_BNC + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return (x_BNC + self.mlp(x_BNC))[:, 0]


def encoder(mean: float = 127.5) -> Graph:
    return graph("encoder", seeded(lambda: ViT(mean)), [image(32, 32)], [fp32("embedding", WIDTH)])


def head(bias: float = 0.0) -> Graph:
    network = seeded(lambda: nn.Linear(WIDTH, 3))
    with torch.no_grad():
        network.bias += bias
    return graph("head", network, [fp32("embedding", WIDTH)], [fp32("logits", 3)])


class GatedAttention(nn.Module):
    """A bag's logits and its attention (1,N); places count only relative to the first tile's."""

    def __init__(self, ordered: bool = False) -> None:
        super().__init__()
        self.ordered = ordered
        self.feature = nn.Linear(WIDTH + 2, 32)
        self.gate, self.value, self.score = nn.Linear(32, 8), nn.Linear(32, 8), nn.Linear(8, 1)
        self.classify = nn.Linear(32, 3)

    def forward(self, features: Tensor, xy_um: Tensor) -> tuple[Tensor, Tensor]:
        place = xy_um - xy_um[:, :1] if self.ordered else xy_um
        h = self.feature(torch.cat([features, place], 2)).relu()
        attention = self.score(torch.tanh(self.value(h)) * torch.sigmoid(self.gate(h))).softmax(1)
        return self.classify((attention * h).sum(1)), attention[..., 0]


def bag(ordered: bool = False) -> Graph:
    """Exact N, no batch."""
    return graph(
        "bag",
        seeded(lambda: GatedAttention(ordered)),
        [fp32("features", 1, TILES, WIDTH), fp32("xy_um", 1, TILES, 2)],
        [fp32("logits", 1, 3), fp32("attention", 1, TILES)],
        batch=None,
        unordered=("tiles",),
    )


class SquareBag(nn.Module):
    """What TransMIL does with sizes: landmarks of a padded bag, and tiles on a square with the first ones repeated."""

    def __init__(self, landmarks: int = 8) -> None:
        super().__init__()
        self.landmarks = landmarks
        self.key, self.grid = nn.Linear(WIDTH, WIDTH), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.classify = nn.Linear(WIDTH, 3)

    def forward(self, features: Tensor) -> Tensor:
        count = features.shape[1]
        side = math.ceil(torch.sym_sqrt(count))
        h_1SC = torch.cat([features, features[:, : side * side - count]], 1).relu()
        each = (side * side + self.landmarks - 1) // self.landmarks
        padded = F.pad(h_1SC, (0, 0, each * self.landmarks - side * side, 0))
        landmarks_1MC = padded.unflatten(1, (self.landmarks, each)).mean(2)
        h_1SC = h_1SC + (self.key(h_1SC) @ landmarks_1MC.mT).softmax(-1) @ landmarks_1MC
        grid = h_1SC.transpose(1, 2).unflatten(2, (side, side))
        return self.classify((grid + self.grid(grid)).mean((2, 3)))


def square_bag() -> Graph:
    """Exact N, whose order counts."""
    return graph("bag", seeded(SquareBag), [fp32("features", 1, TILES, WIDTH)], [fp32("logits", 1, 3)], batch=None)


class MaskedAttention(nn.Module):
    """A padded bag; `leaks` forgets the mask in the mean, as a careless network does."""

    def __init__(self, leaks: bool = False) -> None:
        super().__init__()
        self.leaks = leaks
        self.score, self.classify = nn.Linear(WIDTH, 1), nn.Linear(2 * WIDTH, 3)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        kept = mask[..., None]
        attention = torch.where(kept, self.score(features), FILL).softmax(1)
        seen = torch.ones_like(features) if self.leaks else kept.float()
        mean = (features * seen).sum(1) / seen.sum(1)
        return self.classify(torch.cat([(attention * features * kept).sum(1), mean], 1)), attention[..., 0]


def padded_bag(leaks: bool = False) -> Graph:
    """Padded N, with a batch."""
    return graph(
        "bag",
        seeded(lambda: MaskedAttention(leaks)),
        [fp32("features", TILES, WIDTH), TensorSpec("mask", "BOOL", (TILES,))],
        [fp32("logits", 3), fp32("attention", TILES)],
        unordered=("tiles",),
    )


class Detector(nn.Module):
    """One box per cell of 8 pixels; the best BOXES of them, by score."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.SiLU(), nn.Conv2d(8, 8, 2, 2), nn.SiLU())
        self.scores, self.boxes = nn.Conv2d(8, 3, 1), nn.Conv2d(8, 4, 1)

    def forward(self, image_BHWC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.body(pixels(image_BHWC))
        scores = self.scores(x).flatten(2).transpose(1, 2).sigmoid()
        boxes = self.boxes(x).flatten(2).transpose(1, 2).sigmoid()
        best, labels = scores.max(2)
        top, places = best.topk(BOXES, 1)
        return boxes.gather(1, places[..., None].expand(-1, -1, 4)), top, labels.gather(1, places)


def detector() -> Graph:
    """Height and width in multiples of 32."""
    return graph(
        "detector",
        seeded(Detector),
        [image(HEIGHT, SPAN)],
        [fp32("boxes", BOXES, 4), fp32("scores", BOXES), int64("labels", BOXES)],
    )


class ImageEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, WIDTH, 8, 8), nn.Conv2d(WIDTH, WIDTH, 2, 2)

    def forward(self, image_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(pixels(image_BHWC)).relu()
        return self.coarse(fine), fine


def image_encoder() -> Graph:
    outputs = [fp32("features_16", WIDTH, 4, 4), fp32("mask_features", WIDTH, 8, 8)]
    return graph("image_encoder", seeded(ImageEncoder), [image(64, 64)], outputs)


class MaskDecoder(nn.Module):
    """One mask of the image's size, for a text; `shift` moves the grid of the up-sampling by that part of a cell."""

    def __init__(self, aligned: bool = False) -> None:
        super().__init__()
        self.aligned = aligned
        self.query, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, features_16: Tensor, mask_features: Tensor, text_tokens: Tensor, text_mask: Tensor) -> Any:
        coarse_BNC = features_16.flatten(2).transpose(1, 2)
        hidden = torch.where(text_mask[:, None, None] > 0, 0.0, FILL)
        text_B1LC = text_tokens[:, None]
        context_BNC = F.scaled_dot_product_attention(
            self.query(coarse_BNC)[:, None], text_B1LC, text_B1LC, attn_mask=hidden
        )[:, 0]
        prompt_BC = self.out(context_BNC).mean(1)
        mask = (prompt_BC[:, :, None, None] * mask_features).sum(1, keepdim=True)
        mask = F.interpolate(mask, scale_factor=4, mode="bilinear", align_corners=self.aligned)
        return mask, mask.amax((2, 3))


def mask_decoder(aligned: bool = False) -> Graph:
    return graph(
        "mask_decoder",
        seeded(lambda: MaskDecoder(aligned)),
        [
            fp32("features_16", WIDTH, 4, 4),
            fp32("mask_features", WIDTH, 8, 8),
            fp32("text_tokens", TOKENS, WIDTH),
            int64("text_mask", TOKENS),
        ],
        [fp32("mask_logits", 1, 32, 32), fp32("presence_logit", 1)],
    )


class TextEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, token_ids: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        x_BLC = self.embed(token_ids)
        hidden = torch.where(token_mask[:, None, None] > 0, 0.0, FILL)
        x_B1LC = x_BLC[:, None]
        x_BLC = x_BLC + F.scaled_dot_product_attention(self.mix(x_B1LC), x_B1LC, x_B1LC, attn_mask=hidden)[:, 0]
        kept = token_mask[..., None].float()
        return x_BLC, (x_BLC * kept).sum(1) / kept.sum(1)


def text_encoder() -> Graph:
    return graph(
        "text_encoder",
        seeded(TextEncoder),
        [int64("token_ids", TOKENS), int64("token_mask", TOKENS)],
        [fp32("text_tokens", TOKENS, WIDTH), fp32("text_global", WIDTH)],
    )


class LanguageModel(nn.Module):
    """One causal block over tokens; its cache is (B,heads,length,size of a head)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, VOCABULARY)

    def heads(self, x_BTC: Tensor) -> Tensor:
        return self.qkv(x_BTC).unflatten(2, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)

    def logits(self, x_BTC: Tensor, answer_BHTD: Tensor) -> Tensor:
        return self.out(x_BTC + answer_BHTD.transpose(1, 2).flatten(2))


class Prefill(LanguageModel):
    def forward(self, token_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_BTC = self.embed(token_ids)
        q, k, v = self.heads(x_BTC)
        place_T = torch.arange(token_ids.shape[1])
        seen = (place_T[None] <= place_T[:, None])[None, None] & (mask > 0)[:, None, None]
        answer = F.scaled_dot_product_attention(q, k, v, attn_mask=torch.where(seen, 0.0, FILL))
        last_BT = (place_T[None] == mask.sum(1, keepdim=True) - 1).float()
        return (self.logits(x_BTC, answer) * last_BT[..., None]).sum(1), k, v


class Step(LanguageModel):
    def forward(self, token_ids: Tensor, past_key: Tensor, past_value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_B1C = self.embed(token_ids)
        q, k, v = self.heads(x_B1C)
        keys, values = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
        return self.logits(x_B1C, F.scaled_dot_product_attention(q, keys, values))[:, 0], keys, values


PAST = Dim("past", 1, 16, 40)


def prefill() -> Graph:
    caches = [fp32(f"present_{name}", HEADS, TOKENS, WIDTH // HEADS) for name in ("key", "value")]
    return graph(
        "prefill",
        seeded(Prefill),
        [int64("token_ids", TOKENS), int64("mask", TOKENS)],
        [fp32("logits", VOCABULARY), *caches],
    )


def step() -> Graph:
    past = [fp32(f"past_{name}", HEADS, PAST, WIDTH // HEADS) for name in ("key", "value")]
    present = [fp32(f"present_{name}", HEADS, -1, WIDTH // HEADS) for name in ("key", "value")]
    return graph("step", seeded(Step), [int64("token_ids", 1), *past], [fp32("logits", VOCABULARY), *present])


EVERY = {
    "encoder": encoder,
    "head": head,
    "bag": bag,
    "square_bag": square_bag,
    "padded_bag": padded_bag,
    "detector": detector,
    "image_encoder": image_encoder,
    "mask_decoder": mask_decoder,
    "text_encoder": text_encoder,
    "prefill": prefill,
    "step": step,
}


@cache
def made(name: str) -> Graph:
    return EVERY[name]()


@cache
def exported(name: str) -> bytes:
    """The ONNX file of one of EVERY; exported once, as that takes seconds."""
    return export(made(name), {})


def torch_engine(graph: Graph) -> Engine:
    """The training network as an engine: no export is needed to see what a gate says of it."""

    def answer(inputs: Arrays) -> Arrays:
        with torch.inference_mode():
            answers = graph.network(*(torch.from_numpy(inputs[spec.name].copy()) for spec in graph.inputs))
        answers = answers if isinstance(answers, tuple) else (answers,)
        return {spec.name: tensor.numpy() for spec, tensor in zip(graph.outputs, answers, strict=True)}

    return answer
