"""What a run of PathSegmentor serves: text, image and prompt engine, and the ensemble of the latter two.

Text is encoded once for all images, an image once for all its prompts (arXiv 2506.20988 has one network for both).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gateway.domain.prompts import PromptRow, all_triples, code_of, read_prompts, token_ids, words
from training.errors import RecipeInvalid, RunInvalid
from training.files import sha256_bytes
from training.graphs import Arrays, Dim, Ensemble, Graph, TensorSpec
from training.pathsegmentor.model import PathSegmentor, load
from training.pathsegmentor.recipe import SegmentorRecipe
from training.pathsegmentor.text import MAX_TOKENS, WordsTower
from training.publish import card_texts, synthetic_tiles
from training.runs import Run, parse_recipe

TILES, PROMPTS = Dim("batch", 1, 4, 16), Dim("prompts", 1, 4, 32)
TEXTS, TOKENS = Dim("batch", 1, 8, 32), Dim("tokens", 2, 5, MAX_TOKENS)
PROMPTS_FILE = "prompts.csv"


class TextEngine(nn.Module):
    """token_ids, token_mask (P,L) to text_tokens (P,L,D), text_global (P,D)."""

    def __init__(self, network: PathSegmentor) -> None:
        super().__init__()
        self.network = network

    def forward(self, token_ids: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.text_encoder(token_ids, token_mask)


class ImageEngine(nn.Module):
    """image (B,S,S,3) RGB uint8 to three maps, fine to coarse, and the mask features."""

    def __init__(self, network: PathSegmentor) -> None:
        super().__init__()
        self.network = network

    def forward(self, image_BHWC: Tensor) -> tuple[Tensor, ...]:
        # Over channels that lie last, torch's group norm takes variances from sums of squares, and loses digits.
        image_B3HW = image_BHWC.float().permute(0, 3, 1, 2).contiguous()
        scales, mask_features = self.network.image_encoder(image_B3HW)
        return (*reversed(scales), mask_features)


class PromptEngine(nn.Module):
    """An image's maps and its prompts' texts to mask_logits (B,P,S,S), presence_logit and match_similarity (B,P).

    And query_index (B,P): which query speaks. An engine of another precision must choose the same one.
    """

    def __init__(self, network: PathSegmentor) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        fine: Tensor,
        middle: Tensor,
        coarse: Tensor,
        mask_features: Tensor,
        text_tokens: Tensor,
        text_global: Tensor,
        text_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        found = self.network.decode((coarse, middle, fine), mask_features, text_tokens, text_global, text_mask)
        query_BP = found.layers[-1].cosine_NQ.argmax(-1).reshape(text_global.shape[:2])
        return found.mask_logits_BPSS, found.presence_logit_BP, found.match_similarity_BP, query_BP


def declare(run: Run) -> tuple[Graph, Graph, Graph]:
    """Text, image and prompt engine of a finished run. Raises RecipeInvalid, RunInvalid, WeightsInvalid."""
    recipe = parse_recipe(SegmentorRecipe, run.recipe)
    publish = recipe.publish
    if publish is None:
        raise RecipeInvalid(f"The recipe of the run {run.path.name} has no section publish, so it serves nothing.")
    network = load(run)
    texts = card_texts(publish, run.manifest["data"], run.manifest["pretraining"]) | {"metrics": _metrics(run)}
    names = {part: f"{publish.model}_{part}" for part in ("text", "image", "prompt")}
    words_known = _tokens(run, network)
    scales = texts | {"mpp_by_level": dict(recipe.mpp_by_level)}
    table, rows = _prompts(run)
    masks = {
        "prompts": {"table_sha256": sha256_bytes(table), "entries": [_entry(row) for row in rows]},
        "image_encoder": {"model": names["image"], "weights_sha256": run.weights_sha256},
        "text_encoder": {"model": names["text"], "weights_sha256": run.weights_sha256},
    }
    return (
        _text_graph(names["text"], network, recipe.seed, texts | words_known),
        _image_graph(names["image"], network, publish.tile_px, recipe.seed, scales),
        _prompt_graph(
            names["prompt"],
            network,
            publish.tile_px,
            recipe.seed,
            scales | words_known | _presence(run) | masks,
            files={PROMPTS_FILE: table},
            ensemble=Ensemble(publish.model, publish.title, (names["image"], names["prompt"])),
        ),
    )


def _text_graph(model: str, network: PathSegmentor, seed: int, card: Mapping[str, Any]) -> Graph:
    vocabulary, width = network.text.words.num_embeddings, network.width
    return Graph(
        model=model,
        kind="text_encoder",
        network=TextEngine(network).eval(),
        inputs=(TensorSpec("token_ids", "INT64", (TOKENS,)), TensorSpec("token_mask", "INT64", (TOKENS,))),
        outputs=(TensorSpec("text_tokens", "FP32", (TOKENS, width)), TensorSpec("text_global", "FP32", (width,))),
        samples=lambda sizes: _sentences(sizes["batch"], sizes["tokens"], vocabulary, seed),
        card={**card, "text_pool": network.text_pool},
        every=lambda: _every_sentence(vocabulary),
        batch=TEXTS,
    )


def _image_graph(model: str, network: PathSegmentor, side_px: int, seed: int, card: Mapping[str, Any]) -> Graph:
    return Graph(
        model=model,
        kind="image_encoder",
        network=ImageEngine(network).eval(),
        inputs=(TensorSpec("image", "UINT8", (side_px, side_px, 3)),),
        outputs=_maps(network, side_px),
        samples=lambda sizes: {"image": synthetic_tiles(sizes["batch"], side_px, seed)},
        card={
            **card,
            "stride_px": network.encoder.strides[0],
            "normalisation": {"mean": list(network.mean), "std": list(network.std)},
        },
        batch=TILES,
    )


def _prompt_graph(
    model: str, network: PathSegmentor, side_px: int, seed: int, card: Mapping[str, Any], **more: Any
) -> Graph:
    width, mask_px = network.width, side_px
    if not network.config.full_resolution:
        mask_px //= network.encoder.strides[0]
    return Graph(
        model=model,
        kind="mask_decoder",
        network=PromptEngine(network).eval(),
        inputs=(
            *_maps(network, side_px),
            TensorSpec("text_tokens", "FP32", (PROMPTS, TOKENS, width)),
            TensorSpec("text_global", "FP32", (PROMPTS, width)),
            TensorSpec("text_mask", "INT64", (PROMPTS, TOKENS)),
        ),
        outputs=(
            TensorSpec("mask_logits", "FP32", (PROMPTS, mask_px, mask_px)),
            TensorSpec("presence_logit", "FP32", (PROMPTS,)),
            TensorSpec("match_similarity", "FP32", (PROMPTS,)),
            TensorSpec("query_index", "INT64", (PROMPTS,)),
        ),
        samples=lambda sizes: _asked(network, sizes, side_px, seed),
        card=card,
        batch=TILES,
        apart=(PROMPTS.name,),
        **more,
    )


def _maps(network: PathSegmentor, side_px: int) -> tuple[TensorSpec, ...]:
    """The three maps that the decoder attends to, fine to coarse, and the mask features; each square."""
    finest, *strides = network.encoder.strides
    named = [*((f"features_{stride}", stride) for stride in strides), ("mask_features", finest)]
    return tuple(
        TensorSpec(name, "FP32", (network.width, side_px // stride, side_px // stride)) for name, stride in named
    )


def _tokens(run: Run, network: PathSegmentor) -> dict[str, Any]:
    """What the card says of tokens. Raises RecipeInvalid where the text tower does not read the grammar's words."""
    if not isinstance(network.text, WordsTower):
        raise RecipeInvalid(f"The text of the run {run.path.name} is not in the grammar's words, so it is not served.")
    size = network.text.words.num_embeddings
    return {
        "tokenizer_sha256": sha256_bytes("\n".join(words()[:size]).encode()),
        "max_tokens": MAX_TOKENS,
        "vocabulary_size": size,
    }


def _prompts(run: Run) -> tuple[bytes, tuple[PromptRow, ...]]:
    """prompts.csv and its rows. Raises RunInvalid."""
    try:
        table = (run.path / PROMPTS_FILE).read_bytes()
        rows = read_prompts(table.decode())
    except OSError:
        raise RunInvalid(f"The run {run.path.name} has no {PROMPTS_FILE}: it was not evaluated.") from None
    except ValueError as error:
        raise RunInvalid(f"{PROMPTS_FILE} of the run {run.path.name} is not one: {error}") from None
    if not rows:
        raise RunInvalid(f"{PROMPTS_FILE} of the run {run.path.name} has no row: it was trained on nothing.")
    return table, rows


def _entry(row: PromptRow) -> dict[str, Any]:
    category, code = code_of(row.triple)
    return {
        "text": row.triple.text,
        "category": asdict(category),
        "code": asdict(code),
        "supported": row.supported,
        "dice": row.val_dice,
        "train_images": row.train_images,
    }


def _presence(run: Run) -> dict[str, Any]:
    rules = {
        level: {key: rule[key] for key in ("threshold", "temperature")}
        for level, rule in run.metrics["presence"].items()
    }
    return {"presence_by_level": rules}


def _metrics(run: Run) -> list[dict[str, Any]]:
    """The run's figures that have intervals."""
    return [
        {
            "classifier": "masks",
            "name": figure["name"],
            "value": figure["value"],
            "interval": [figure["low"], figure["high"]],
            "tiles": figure["images"],
            "label": figure["label"],
        }
        for figure in run.metrics["card"]
    ]


def _sentences(prompts: int, tokens: int, vocabulary: int, seed: int) -> Arrays:
    """Words drawn by seed; a sentence is the same in every batch."""
    rows = [np.random.default_rng((seed, row)).integers(1, vocabulary, tokens) for row in range(prompts)]
    ids_PL = np.stack(rows).astype(np.int64)
    return {"token_ids": ids_PL, "token_mask": np.ones_like(ids_PL)}


def _every_sentence(vocabulary: int) -> Iterator[Arrays]:
    """The grammar's sentences of words that the network knows."""
    ids_PL, mask_PL = token_ids(list(all_triples()))
    known = (ids_PL < vocabulary).all(1)
    ids_PL, mask_PL = ids_PL[known], mask_PL[known]
    for start in range(0, len(ids_PL), TEXTS.max):
        rows = slice(start, start + TEXTS.max)
        yield {"token_ids": ids_PL[rows], "token_mask": mask_PL[rows]}


def _asked(network: PathSegmentor, sizes: Mapping[str, int], side_px: int, seed: int) -> Arrays:
    """Maps and texts drawn by seed, other ones for each tile and prompt, as large as the network's own are.

    They are not the network's answers, whose last bits are the machine's: golden inputs are the same everywhere. A
    channel's mean varies more than its places do, so that the masks of some queries are empty, and of some full. Mask
    features differ in sixteen squares only: each place where a query's mask is cut is one more that another machine's
    last bits may decide otherwise.
    """
    batch, prompts, tokens = sizes["batch"], sizes["prompts"], sizes["tokens"]
    said = _sentences(1, TOKENS.min, network.text.words.num_embeddings, seed)
    with torch.inference_mode():
        maps = ImageEngine(network)(torch.from_numpy(synthetic_tiles(1, side_px, seed)))
        unit = _unit(network.text_encoder(*map(torch.from_numpy, said.values()))[1])
    *_, last = names = [spec.name for spec in _maps(network, side_px)]
    found: dict[str, list[np.ndarray]] = {}
    for tile in range(batch):
        rng = np.random.default_rng((seed, tile))
        for name, own in zip(names, maps, strict=True):
            width, side = own.shape[1:3]
            square, count = (side // 4, 4) if name == last else (1, side)
            places = rng.integers(-1, 2, (width, count, count)).repeat(square, 1).repeat(square, 2)
            found.setdefault(name, []).append((rng.integers(-3, 4, (width, 1, 1)) + places) * _unit(own))
        for prompt in range(prompts):
            rng = np.random.default_rng((seed, tile, 1 + prompt))
            for name, shape in (("text_global", (network.width,)), ("text_tokens", (tokens, network.width))):
                found.setdefault(name, []).append(rng.integers(-3, 4, shape) * unit)
    arrays = {name: np.stack(parts).astype(np.float32) for name, parts in found.items()}
    for name in ("text_global", "text_tokens"):
        arrays[name] = arrays[name].reshape(batch, prompts, *arrays[name].shape[1:])
    return arrays | {"text_mask": np.ones((batch, prompts, tokens), np.int64)}


def _unit(own: Tensor) -> float:
    """The power of two nearest to half of what numbers of the network measure (root mean square)."""
    return 2.0 ** round(math.log2(float(own.square().mean().sqrt()) / 2))
