"""What engines are asked when they are compared (G3), and who reads labels from their answers.

An encoder gets tiles; a head the vectors of the fp32 encoder that it was trained on, of the same tiles; a bag these
vectors source by source; a decoder of masks the maps of its tiles and some of its prompts. A model whose inputs can be
counted gets all of them. One that takes something else, or where there are no data, gets its golden inputs.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import onnx as onnx_format

from exporters.card import OPERATING_POINT_BAND
from exporters.errors import ExportError
from exporters.gates import onnx_runtime
from exporters.kinds import kind_of
from exporters.shapes import golden, inputs_of
from exporters.targets import Engine
from exporters.tiles import LABELLED, TileSet, agreement_tiles
from gateway.domain.prompts import read_prompts, token_ids
from gateway.inference import ModelRepository
from gateway.operations.errors import PathserveError
from training.data.common import data_root
from training.errors import DataMissing
from training.graphs import Arrays, Dim, Graph

BAG_TILES = 256
PROMPTS_A_TILE = 2
_MASKED_TILES = 4
"""Tiles whose maps are held at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """One batch of rows: `images_BHWC` are kept only where `labels_B` are known (-1 = not)."""

    source: str
    labels_B: np.ndarray
    inputs: Arrays
    images_BHWC: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """An operating point with the band in which a tile may change sides."""

    name: str
    min_probability: float
    band: float


@dataclass(frozen=True, slots=True)
class Judge:
    """Who reads labels: `logits` makes them of an engine's answers. `datasets` are what it was trained on."""

    name: str
    points: tuple[Point, ...]
    classes: int
    datasets: frozenset[str]
    logits: Callable[[Arrays], np.ndarray]


def judges_of(graph: Graph, onnx: bytes, models: ModelRepository) -> tuple[Judge, ...]:
    """The model itself where it has logits; of an encoder, every head that was trained on its very weights.

    Raises ExportError where such a head cannot be used.
    """
    kind = kind_of(graph)
    if own := [spec.name for spec in graph.outputs if kind.slot(spec, graph).compared == "logits"]:
        return (_judge(graph.model, graph.card, lambda answers: answers[own[0]]),)
    if graph.kind != "encoder":
        return ()
    properties = {entry.key: entry.value for entry in onnx_format.load_from_string(onnx).metadata_props}
    judges = []
    for name, card in _cards(models):
        trained_on = card.get("encoder", {}).get("weights_sha256")
        if card["kind"] == "head" and card["target"] == "onnx" and trained_on == properties["pathserve.weights_sha256"]:
            head = onnx_runtime(_engine_of(models, name))
            judges.append(_judge(name, card, lambda answers, head=head: head(answers)["logits"]))
    return tuple(judges)


def tiles_for(graph: Graph) -> TileSet | None:
    """The agreement tiles; None where there are no data, or where the graph takes what no tile gives.

    Raises DataMissing where a file is not as MANIFEST.csv says.
    """
    names = {spec.name for spec in graph.inputs}
    bag = "features" in names and names <= {"features", "xy_um", "mask"}
    prompted = "prompts" in graph.card
    if names != {"image"} and not prompted and not (graph.needs and (bag or names == {"embedding"})):
        return None
    try:
        data_root()
    except DataMissing:
        return None
    tiles = agreement_tiles(graph.card["mpp"], graph.card["tile_px"])
    return tiles if len(tiles) else None


def questions_of(graph: Graph, models: ModelRepository, tiles: TileSet | None) -> Iterable[Question]:
    """The tiles as the graph's inputs; without tiles the inputs of golden.npz.

    Raises ExportError where the encoder is not in the repository, DataMissing where a file is not as MANIFEST.csv says.
    """
    if graph.every is not None:
        return (_unlabelled("every", graph, inputs) for inputs in graph.every())
    if tiles is None:
        return [_unlabelled("golden", graph, inputs_of(graph, golden(graph)))]
    names = {spec.name for spec in graph.inputs}
    if names == {"image"}:
        return _tiles(tiles, lambda inputs: inputs)
    if "prompts" in graph.card:
        return _prompted(graph, tiles, models)
    ((encoder, weights_sha256),) = graph.needs.items()
    vectors = _tiles(tiles, _reference(graph, encoder, weights_sha256, models))
    return _bags(graph, vectors) if "features" in names else vectors


def _unlabelled(source: str, graph: Graph, inputs: Arrays) -> Question:
    return Question(source, np.full(len(next(iter(inputs.values()))) if graph.batch else 1, -1), inputs)


def _tiles(tiles: TileSet, encoder: Engine) -> Iterator[Question]:
    for batch in tiles.batches():
        known = batch.images_BHWC if batch.source == LABELLED else None
        yield Question(batch.source, batch.labels_B, encoder({"image": batch.images_BHWC}), known)


def _bags(graph: Graph, vectors: Iterator[Question]) -> Iterator[Question]:
    """Bags of up to BAG_TILES of one source's vectors, laid out in rows of 16 tiles."""
    most = min([BAG_TILES, *(dim.max for spec in graph.inputs for dim in spec.dims if isinstance(dim, Dim))])
    side_um = graph.card["mpp"] * graph.card["tile_px"]
    for source, group in groupby(vectors, key=lambda question: question.source):
        vectors_ND = np.concatenate([question.inputs["embedding"] for question in group])
        for start in range(0, len(vectors_ND), most):
            features_ND = vectors_ND[start : start + most]
            place_N = np.arange(len(features_ND))
            inputs = {
                "features": features_ND[None],
                "xy_um": (np.stack([place_N % 16, place_N // 16], 1) * side_um).astype(np.float32)[None],
                "mask": np.ones((1, len(features_ND)), bool),
            }
            yield Question(source, np.array([-1]), {spec.name: inputs[spec.name] for spec in graph.inputs})


def _prompted(graph: Graph, tiles: TileSet, models: ModelRepository) -> Iterator[Question]:
    """The maps of the tiles by the fp32 image engine, each with the next few of the prompts of the graph's table."""
    image, text = (
        _reference(graph, graph.card[part]["model"], graph.card[part]["weights_sha256"], models)
        for part in ("image_encoder", "text_encoder")
    )
    ids_PL, mask_PL = token_ids([row.triple for row in read_prompts(graph.files["prompts.csv"].decode())])
    texts = text({"token_ids": ids_PL, "token_mask": mask_PL}) | {"text_mask": mask_PL}
    place = 0
    for batch in tiles.batches():
        for start in range(0, len(batch.images_BHWC), _MASKED_TILES):
            images = batch.images_BHWC[start : start + _MASKED_TILES]
            asked = (place + np.arange(len(images) * PROMPTS_A_TILE)) % len(ids_PL)
            place += asked.size
            inputs = image({"image": images})
            inputs |= {name: rows[asked.reshape(len(images), PROMPTS_A_TILE)] for name, rows in texts.items()}
            yield _unlabelled(batch.source, graph, {spec.name: inputs[spec.name] for spec in graph.inputs})


def _judge(name: str, card: Mapping[str, Any], logits: Callable[[Arrays], np.ndarray]) -> Judge:
    points = tuple(
        Point(point["name"], point["min_probability"], point.get("band", OPERATING_POINT_BAND))
        for point in card["operating_points"]
    )
    # A model without an operating point always answers: its labels are compared all the same.
    points = points or (Point("always", 0.0, OPERATING_POINT_BAND),)
    datasets = frozenset(entry["dataset"] for entry in card["data"])
    return Judge(name, points, len(card["labels"]), datasets, logits)


def _cards(models: ModelRepository) -> Iterator[tuple[str, dict[str, Any]]]:
    """Folders with their cards; one whose card cannot be read is of no model, and is passed over."""
    for name in models.folders:
        try:
            yield name, models.document(name)
        except PathserveError:
            continue


def _reference(graph: Graph, model: str, weights_sha256: str, models: ModelRepository) -> Engine:
    """The fp32 ONNX of a model that a graph takes the answers of. Raises ExportError."""
    for name, card in _cards(models):
        if (card["name"], card["target"], card["digests"]["weights_sha256"]) == (model, "onnx", weights_sha256):
            return onnx_runtime(_engine_of(models, name))
    raise ExportError(f"{graph.model} needs the fp32 {model} that it was trained on in the repository. Build it.")


def _engine_of(models: ModelRepository, name: str) -> bytes:
    """The ONNX file of a model of the repository, proven by its digest. Raises ExportError."""
    try:
        contract = models.check(name)
        return (models.path / name / models.served_version(name) / contract.artefact).read_bytes()
    except (PathserveError, OSError) as error:
        said = getattr(error, "detail", "its engine cannot be read.")
        raise ExportError(f"{name} is needed to compare engines, and cannot be used: {said}") from None
