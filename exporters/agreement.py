"""G3: does an engine say what the fp32 ONNX says, on tiles that it will be served?

The reference is the fp32 ONNX in ONNX Runtime, one thread a request and two requests at a time; the candidate is the
engine as it will serve. Worst tile, never the mean. An encoder is judged by its vectors, and by the labels that every
head of the repository gives that was trained on the same weights; a model with logits by its own labels. Thresholds
and figures are those of deploy/gpu-check/compare.py, which judges the same on a machine with a GPU.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from exporters.card import OPERATING_POINT_BAND
from exporters.errors import GateFailed
from exporters.gates import onnx_runtime
from exporters.kinds import kind_of
from exporters.questions import Judge, Question, judges_of, questions_of, tiles_for
from exporters.targets import Engine
from exporters.tiles import LABELLED, TileSet
from gateway.inference import ModelRepository
from training.data import crc9
from training.data.hashes import near_duplicate_groups
from training.graphs import Arrays, Graph
from training.statistics import balanced_accuracy, difference, figure, resamples

CALLERS = 2


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Fewer than `tiles` real tiles make a comparison reduced, which approves nothing; `band` is a probability.

    `max_abs_relative` is over the reference's largest magnitude: a cosine does not see a wrong scale.
    """

    min_cosine: float = 0.9995
    max_abs_relative: float = 0.2
    max_flip_share: float = 1e-3
    max_answered_flips: int = 0
    max_crossings_outside: int = 0
    tiles: int = 5000
    band: float = OPERATING_POINT_BAND


THRESHOLDS = Thresholds()


@dataclass(slots=True, eq=False)
class _Record:
    """What is kept of the batches: per row its source, label and likeness; per judge both engines' logits.

    A row's likeness is its cosine; of an output of `integers`, the share that is equal.
    """

    integers: frozenset[str]
    sources: list[str] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)
    likeness: dict[str, list[np.ndarray]] = field(default_factory=dict)
    gaps: dict[str, float] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)
    finite: bool = True
    logits: dict[str, list[tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)


def g3_agreement(
    graph: Graph,
    onnx: bytes,
    engine: Engine,
    repository: Path,
    tiles: TileSet | None = None,
    reference: Engine | None = None,
) -> dict[str, Any]:
    """The figures of an engine that agrees; `reduced` says whether there were too few tiles, or no head, to approve it.

    `tiles` are the agreement tiles unless others are given; without data, the graph's own golden inputs. `reference` is
    an engine of `onnx` that the caller holds already. Engines are called from two threads at once. Raises GateFailed
    with all figures, ExportError where a head that should judge cannot be used.
    """
    models = ModelRepository(repository)
    judges = judges_of(graph, onnx, models)
    tiles = tiles_for(graph) if tiles is None else tiles
    kind = kind_of(graph)
    integers = frozenset(spec.name for spec in graph.outputs if kind.slot(spec, graph).compared == "labels")
    questions = questions_of(graph, models, tiles)
    record = _compare(reference or onnx_runtime(onnx), engine, questions, judges, _Record(integers))
    if not record.sources:
        raise GateFailed("G3: there is no tile to compare the engines on.")
    real = 0 if tiles is None else len(tiles)
    figures: dict[str, Any] = {
        "reduced": (graph.every is None and real < THRESHOLDS.tiles) or (graph.kind == "encoder" and not judges),
        "tiles": real,
        "tiles_sha256": None if tiles is None else tiles.digest,
        "thresholds": asdict(THRESHOLDS),
        **_vectors(record),
    }
    failures = _vector_failures(figures)
    for judge in judges if record.finite else ():
        found, reference = (np.concatenate(part) for part in zip(*record.logits[judge.name], strict=True))
        if not (np.isfinite(found).all() and np.isfinite(reference).all()):
            failures.append(f"{judge.name}: NaN or infinite logits")
            continue
        judged = _labels(judge, found, reference, record)
        figures.setdefault("labels", {})[judge.name] = judged
        failures += [
            f"{judge.name}: {failure}" for point in judged["points"].values() for failure in label_failures(point)
        ]
    if failures:
        raise GateFailed(f"G3: {'; '.join(failures)}.", figures=figures)
    return figures


def softmax(logits_NC: np.ndarray) -> np.ndarray:
    """Probabilities (N,C) in double precision."""
    powers = np.exp(logits_NC.astype(np.float64) - logits_NC.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def cosines(found_NX: np.ndarray, reference_NX: np.ndarray) -> np.ndarray:
    """(N,) cosine of each pair of rows; rows of higher rank are flattened."""
    found, reference = (rows.reshape(len(rows), -1).astype(np.float64) for rows in (found_NX, reference_NX))
    with np.errstate(invalid="ignore"):
        lengths = np.maximum(np.linalg.norm(found, axis=1), 1e-8) * np.maximum(np.linalg.norm(reference, axis=1), 1e-8)
        return (found * reference).sum(1) / lengths


def equal_shares(found_NX: np.ndarray, reference_NX: np.ndarray) -> np.ndarray:
    """(N,) share of each row's integers that are the same."""
    return (found_NX == reference_NX).reshape(len(found_NX), -1).mean(1)


def label_agreement(found_NC: np.ndarray, reference_NC: np.ndarray, point: float, band: float) -> dict[str, Any]:
    """Do two sets of logits say the same of every tile?

    A tile is answered where its top probability is at least `point`. `flips` are other top classes; `crossings` are
    tiles that are answered by one engine only; those whose reference probability lies further from the point than
    `band` are `crossings_outside`; `answered_flips` are other classes where both answer.
    """
    found, reference = softmax(found_NC), softmax(reference_NC)
    flipped, crossed, outside = _changes(found, reference, point, band)
    both = (found.max(1) >= point) & (reference.max(1) >= point)
    return {
        "tiles": len(reference),
        "flips": int(flipped.sum()),
        "flip_share": float(flipped.mean()),
        "answered_flips": int((flipped & both).sum()),
        "crossings": int(crossed.sum()),
        "crossings_outside": int((crossed & outside).sum()),
        "max_probability_difference": float(np.abs(found - reference).max()),
        "operating_point": point,
        "band": band,
    }


def label_failures(figures: Mapping[str, Any]) -> list[str]:
    """What of an agreement is outside the thresholds; empty where it passes."""
    failures = []
    if not figures["flip_share"] <= THRESHOLDS.max_flip_share:
        failures.append(f"label flips {figures['flip_share']:.2%} > {THRESHOLDS.max_flip_share:.1%}")
    if not figures["answered_flips"] <= THRESHOLDS.max_answered_flips:
        failures.append(f"{figures['answered_flips']} answered tiles change their class")
    if not figures["crossings_outside"] <= THRESHOLDS.max_crossings_outside:
        failures.append(f"{figures['crossings_outside']} tiles cross the operating point outside its band")
    return failures


def _changes(
    found_NC: np.ndarray, reference_NC: np.ndarray, point: float, band: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N,) each: another class; answered by one only; reference further than the band from the point."""
    top = reference_NC.max(1)
    flipped = found_NC.argmax(1) != reference_NC.argmax(1)
    return flipped, (found_NC.max(1) >= point) != (top >= point), np.abs(top - point) > band


def _compare(
    reference: Engine, engine: Engine, asked: Iterable[Question], judges: tuple[Judge, ...], record: _Record
) -> _Record:
    """Both engines' answers to every question, two at a time; never more than a few batches are held."""
    waiting: deque[tuple[Question, Future[tuple[Arrays, Arrays]]]] = deque()

    def both(inputs: Arrays) -> tuple[Arrays, Arrays]:
        return engine(inputs), reference(inputs)

    def keep() -> None:
        question, future = waiting.popleft()
        _keep(record, question, *future.result(), judges)

    with ThreadPoolExecutor(CALLERS) as callers:
        for question in asked:
            waiting.append((question, callers.submit(both, question.inputs)))
            if len(waiting) > CALLERS:
                keep()
        while waiting:
            keep()
    return record


def _keep(record: _Record, question: Question, found: Arrays, reference: Arrays, judges: tuple[Judge, ...]) -> None:
    record.sources += [question.source] * len(question.labels_B)
    record.labels.append(question.labels_B)
    if question.images_BHWC is not None:
        record.images += list(question.images_BHWC)
    for name, expected in reference.items():
        if name not in found:
            raise GateFailed(f"G3: the engine gives no {name}.")
        if found[name].shape != expected.shape:
            raise GateFailed(f"G3: {name} has the shape {list(found[name].shape)}, not {list(expected.shape)}.")
        record.finite &= bool(np.isfinite(found[name]).all() and np.isfinite(expected).all())
        like = equal_shares if name in record.integers else cosines
        record.likeness.setdefault(name, []).append(like(found[name], expected))
        with np.errstate(invalid="ignore"):
            gap = float(np.abs(found[name].astype(np.float64) - expected).max())
        record.gaps[name] = max(record.gaps.get(name, 0.0), gap)
        record.largest[name] = max(record.largest.get(name, 0.0), float(np.abs(expected.astype(np.float64)).max()))
    for judge in judges:
        record.logits.setdefault(judge.name, []).append((judge.logits(found), judge.logits(reference)))


def _vectors(record: _Record) -> dict[str, Any]:
    """Figures of the outputs themselves, in all and by source."""
    sources = np.array(record.sources)
    counts = {source: int((sources == source).sum()) for source in dict.fromkeys(record.sources)}
    outputs: dict[str, Any] = {}
    for name, parts in record.likeness.items():
        if not record.finite:
            continue
        like_N, word = np.concatenate(parts), "equal_share" if name in record.integers else "min_cosine"
        summary = np.mean if name in record.integers else np.min
        outputs[name] = {
            word: float(summary(like_N)),
            "max_abs_difference": record.gaps[name],
            "largest": record.largest[name],
            f"{word}_by_source": {source: float(summary(like_N[sources == source])) for source in counts},
        }
    return {"rows": len(sources), "sources": counts, "finite": record.finite, "outputs": outputs}


def _vector_failures(figures: Mapping[str, Any]) -> list[str]:
    if not figures["finite"]:
        return ["NaN or infinite values"]
    failures = []
    for name, output in figures["outputs"].items():
        if "equal_share" in output:
            if not 1 - output["equal_share"] <= THRESHOLDS.max_flip_share:
                failures.append(f"{1 - output['equal_share']:.2%} of {name} differ > {THRESHOLDS.max_flip_share:.1%}")
            continue
        if not output["min_cosine"] >= THRESHOLDS.min_cosine:
            failures.append(f"worst cosine of {name} {output['min_cosine']:.6f} < {THRESHOLDS.min_cosine}")
        if not output["max_abs_difference"] <= THRESHOLDS.max_abs_relative * output["largest"]:
            failures.append(
                f"{name} differs by {output['max_abs_difference']:.2e}, more than {THRESHOLDS.max_abs_relative} of its "
                f"largest value ({output['largest']:.2e})"
            )
    return failures


def _labels(judge: Judge, found_NC: np.ndarray, reference_NC: np.ndarray, record: _Record) -> dict[str, Any]:
    """A judge's figures: at each operating point in all, by source, and on tiles whose class is known."""
    sources = np.array(record.sources)
    found, reference = softmax(found_NC), softmax(reference_NC)
    points = {
        point.name: label_agreement(found_NC, reference_NC, point.min_probability, point.band) for point in judge.points
    }
    first = judge.points[0]
    flipped, crossed, outside = _changes(found, reference, first.min_probability, first.band)
    by_source = {
        source: {
            "tiles": int(rows.sum()),
            "flips": int((flipped & rows).sum()),
            "crossings_outside": int((crossed & outside & rows).sum()),
        }
        for source in dict.fromkeys(record.sources)
        for rows in (sources == source,)
    }
    figures: dict[str, Any] = {"points": points, "by_source": by_source}
    labels_N = np.concatenate(record.labels)
    known = labels_N >= 0
    if crc9.DATASET in judge.datasets and judge.classes == len(crc9.CLASSES):
        counts = np.bincount(labels_N[known], minlength=judge.classes)
        if counts.min() >= 5:
            images = np.stack(record.images)
            figures["labelled"] = _labelled(found[known], reference[known], labels_N[known], images)
    return figures


def _labelled(
    found_NC: np.ndarray, reference_NC: np.ndarray, labels_N: np.ndarray, images_NHWC: np.ndarray
) -> dict[str, Any]:
    """Balanced accuracy of both engines and its change, with intervals on the same resamples."""
    draws = resamples(labels_N, near_duplicate_groups(images_NHWC), 1000, seed=0)
    runs = {"engine": found_NC[None], "reference": reference_NC[None]}
    rows = {name: asdict(figure(balanced_accuracy, run_NC, labels_N, draws)) for name, run_NC in runs.items()}
    rows["change"] = asdict(difference(balanced_accuracy, runs["engine"], runs["reference"], labels_N, draws))
    return {
        "set": LABELLED,
        "tiles": len(labels_N),
        "note": "The head was fitted on these tiles: only the change between the engines says something here.",
        "balanced accuracy": rows,
    }
