"""Faster engines of the tile encoder on processors: how fast, and what G3 says of each.

    .venv-training/bin/python -m tests.benchmarks.cpu_engines --out docs/results/cpu-engines.json

builds every candidate of `CANDIDATES`, holds it to G3 on a seeded sample of the agreement tiles (the three precisions
that `--target cpu` builds, and whatever passes the sample, on all of them), and times it in rounds with the fp32 ONNX
in ONNX Runtime. With the JSON it writes the page of the same name; a run that was cut off is gone on with. `--bench`
prints the rows of `make bench` instead.
"""

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from onnx import load_from_string, numpy_helper
from scipy.stats import binomtest

from exporters.agreement import g3_agreement
from exporters.errors import GateFailed
from exporters.gates import onnx_runtime
from exporters.openvino_target import CALIBRATION_SEED, CALIBRATION_TILES, fused, open_engine, quantise
from exporters.targets import Engine
from exporters.tiles import TileSet, agreement_tiles
from training.errors import DataMissing
from training.files import json_bytes, sha256_bytes, write_atomic
from training.graphs import Arrays, Graph, declare
from training.runs import RELEASED, open_run

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = ROOT / "model_repository"
MODEL = "tile_encoder"
BATCH, CALLERS, ROUNDS = 32, 2, 5
SAMPLE_TILES, SAMPLE_SEED = 600, 2026
GOAL = 2.5
LAYERS = ("Convolution", "GroupConvolution", "Add", "Clamp")
"""What carries a precision of its own in the graph: convolutions, and what is fused into them."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """`make` writes the engine into a folder and gives (file, precision hint). `precision` says which target builds it;
    None = an experiment."""

    name: str
    make: Callable[[Graph, bytes, Path], tuple[Path, str]]
    precision: str | None = None


def plain(hint: str) -> Callable[[Graph, bytes, Path], tuple[Path, str]]:
    def make(graph: Graph, onnx: bytes, work: Path) -> tuple[Path, str]:
        (work / "model.onnx").write_bytes(onnx)
        return work / "model.onnx", hint

    return make


def static_int8(hint: str, **options: Any) -> Callable[[Graph, bytes, Path], tuple[Path, str]]:
    def make(graph: Graph, onnx: bytes, work: Path) -> tuple[Path, str]:
        files, _ = quantise(onnx, graph, work, **_resolved(options, onnx))
        assert (work / "model.xml").read_bytes() == files["model.xml"]
        return work / "model.xml", hint

    return make


def _resolved(options: dict[str, Any], onnx: bytes) -> dict[str, Any]:
    """Options that name NNCF's own classes by words, so that NNCF is imported where it is used only."""
    import nncf

    resolved = dict(options)
    if "preset" in options:
        resolved["preset"] = getattr(nncf.QuantizationPreset, options["preset"])
    if "keep" in options:
        layers = [node for node in fused(onnx).get_ordered_ops() if node.get_type_name() in LAYERS[:2]]
        names = [layer.get_friendly_name() for place, layer in enumerate(layers) if resolved["keep"](place)]
        del resolved["keep"]
        resolved["ignored_scope"] = nncf.IgnoredScope(names=names)
    return resolved


def part_bf16(wanted: Callable[[int, str], bool]) -> Callable[[Graph, bytes, Path], tuple[Path, str]]:
    """bf16 in the layers (number of the convolution, its type) that are wanted, f32 in all others."""

    def make(graph: Graph, onnx: bytes, work: Path) -> tuple[Path, str]:
        # The marks are lost where norms are fused afterwards.
        openvino.save_model(fused(onnx), work / "model.xml", compress_to_fp16=False)
        tree, place, kind = ET.parse(work / "model.xml"), -1, ""
        for layer in tree.getroot().find("layers"):
            if layer.get("type") in LAYERS[:2]:
                place, kind = place + 1, layer.get("type")
            if layer.get("type") in LAYERS and not (place >= 0 and wanted(place, kind)):
                marks = layer.find("rt_info")
                if marks is None:
                    marks = ET.Element("rt_info")
                    layer.insert(0 if layer.find("data") is None else 1, marks)
                ET.SubElement(marks, "attribute", {"name": "precise", "version": "0"})
        tree.write(work / "model.xml")
        return work / "model.xml", "bf16"

    return make


def wrong_mean(graph: Graph, onnx: bytes, work: Path) -> tuple[Path, str]:
    """A negative control: the mean that is taken from the pixels is ten levels off."""
    model = load_from_string(onnx)
    (mean,) = (
        attribute.t
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.name == "value" and np.array_equal(numpy_helper.to_array(attribute.t), np.float32(127))
    )
    mean.CopyFrom(numpy_helper.from_array(np.float32(117), mean.name))
    (work / "model.onnx").write_bytes(model.SerializeToString())
    return work / "model.onnx", "f32"


LAST = 48
"""Convolutions are numbered from 0, the stem; 1 and 2 are the first block, every other block has three."""


def block_of(place: int) -> int:
    return 0 if place == 0 else 1 if place < 3 else place // 3 + 1


CANDIDATES = (
    Candidate("OpenVINO fp32", plain("f32"), "fp32"),
    Candidate("OpenVINO bf16", plain("bf16"), "bf16"),
    Candidate("static INT8", static_int8("f32"), "int8"),
    Candidate("static INT8, other layers bf16", static_int8("bf16")),
    Candidate("static INT8, accurate bias correction", static_int8("f32", fast_bias_correction=False)),
    Candidate("static INT8, asymmetric activations", static_int8("f32", preset="MIXED")),
    Candidate("static INT8, depth-wise layers f32", static_int8("f32", keep=lambda p: p % 3 == 1)),
    Candidate("static INT8 but for stem, five blocks and last", static_int8("f32", keep=lambda p: p < 15 or p == LAST)),
    Candidate("static INT8 in the last convolution", static_int8("f32", keep=lambda place: place != LAST)),
    Candidate("bf16, depth-wise layers f32", part_bf16(lambda place, kind: kind == "Convolution")),
    Candidate("bf16 in the last ten blocks", part_bf16(lambda place, kind: block_of(place) > 6)),
    Candidate("bf16 in blocks 11, 15 and the last convolution", part_bf16(lambda p, k: block_of(p) in (11, 15, 17))),
    Candidate("control: OpenVINO fp32, the pixels' mean ten levels off", wrong_mean),
)


@dataclass(frozen=True, slots=True)
class Speed:
    """Images a second of CALLERS callers with one thread each, and a CPU second; ratios to the reference are medians
    of rounds that take turns, so that drift of a shared machine cancels."""

    images_per_s: float
    images_per_cpu_s: float
    reference_images_per_s: float
    ratio: float
    cpu_ratio: float


def speed(candidate: Engine, reference: Engine, images_NHWC: np.ndarray, rounds: int = ROUNDS) -> Speed:
    """Both engines on the same batches of BATCH, in turns."""
    batches = [{"image": images_NHWC[k : k + BATCH]} for k in range(0, len(images_NHWC) - BATCH + 1, BATCH)]
    found, due = [], []
    with ThreadPoolExecutor(CALLERS) as callers:

        def timed(engine: Engine) -> tuple[float, float]:
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            list(callers.map(engine, batches))
            wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
            return len(batches) * BATCH / wall_s, len(batches) * BATCH / cpu_s

        for _ in range(rounds + 1):  # the first round warms both
            due.append(timed(reference))
            found.append(timed(candidate))
    found, due = found[1:], due[1:]
    return Speed(
        *(statistics.median(column) for column in zip(*found, strict=True)),
        statistics.median(wall for wall, _ in due),
        *(
            statistics.median(mine[place] / theirs[place] for mine, theirs in zip(found, due, strict=True))
            for place in (0, 1)
        ),
    )


class Remembered:
    """The reference, asked once a batch: every candidate is compared with the same answers."""

    def __init__(self, onnx: bytes) -> None:
        self._engine, self._answers = onnx_runtime(onnx), dict[bytes, Arrays]()

    def __call__(self, inputs: Arrays) -> Arrays:
        key = hashlib.sha256(inputs["image"]).digest()
        if key not in self._answers:
            self._answers[key] = self._engine(inputs)
        return self._answers[key]


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """What all candidates are made of and compared with; `timing_NHWC` are tiles to time them on."""

    graph: Graph
    onnx: bytes
    every: TileSet
    reference: Remembered
    timing_NHWC: np.ndarray

    @property
    def sample(self) -> TileSet:
        return self.every.sample(SAMPLE_TILES, SAMPLE_SEED)


def open_case(timed: int) -> Case:
    """The released encoder and the public data, with so many tiles to time on. Raises DataMissing."""
    graph = declare(open_run(RELEASED / MODEL))
    onnx = (REPOSITORY / MODEL / "1" / "model.onnx").read_bytes()
    every = agreement_tiles(graph.card["mpp"], graph.card["tile_px"])
    timing = np.concatenate([batch.images_BHWC for batch in every.sample(timed, SAMPLE_SEED).batches()])
    return Case(graph, onnx, every, Remembered(onnx), timing)


def verdict(case: Case, engine: Engine, tiles: TileSet) -> tuple[bool, str, dict[str, Any]]:
    """(passed, what failed, figures) of G3."""
    try:
        return True, "", g3_agreement(case.graph, case.onnx, engine, REPOSITORY, tiles, case.reference)
    except GateFailed as error:
        return False, error.detail.removeprefix("G3: "), error.figures


def measure(candidate: Candidate, case: Case) -> dict[str, Any]:
    """One row of the JSON."""
    with tempfile.TemporaryDirectory(prefix="cpu-engine-") as folder:
        file, hint = candidate.make(case.graph, case.onnx, Path(folder))
        engine = open_engine(file, hint, CALLERS)
        timed = speed(engine, onnx_runtime(case.onnx), case.timing_NHWC)
        built = candidate.precision is not None
        passed, failure, figures = verdict(case, engine, case.every if built else case.sample)
        if passed and not built:
            passed, failure, figures = verdict(case, engine, case.every)
    head = figures["labels"]["tissue_head"]
    return {
        "name": candidate.name,
        "model": MODEL,
        "target": "cpu",
        "precision": candidate.precision,
        "hint": hint,
        "passed": passed,
        "failed_because": failure,
        "tiles": figures["tiles"],
        "images_per_cpu_s": round(timed.images_per_cpu_s, 1),
        "over_onnxruntime_fp32": round(timed.cpu_ratio, 2),
        "over_onnxruntime_fp32_wall": round(timed.ratio, 2),
        "min_cosine": figures["outputs"]["embedding"]["min_cosine"],
        **{key: value for key, value in head["points"]["answer"].items() if key != "tiles"},
        "by_source": head["by_source"],
        "labelled": head.get("labelled"),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.cpu_engines")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "cpu-engines.json")
    parser.add_argument("--bench", action="store_true", help="print the rows of make bench as JSON, and write nothing")
    chosen = parser.parse_args(arguments)
    if chosen.bench:
        try:
            rows = bench(open_case(8 * BATCH))
        except DataMissing:
            rows = []
        print(json.dumps(rows))
        return 0
    case = open_case(CALLERS * BATCH)
    rows = measured(chosen.out, case)
    for candidate in CANDIDATES[len(rows) :]:
        row = measure(candidate, case)
        print(row["name"], row["over_onnxruntime_fp32"], row["failed_because"] or "passed", file=sys.stderr, flush=True)
        rows.append(row)
        document = described(case, rows)
        write_atomic(chosen.out, json_bytes(document))
        write_atomic(chosen.out.with_suffix(".md"), page(document).encode())
    return 0


def measured(out: Path, case: Case) -> list[dict[str, Any]]:
    """The rows of a run of the same engines, tiles and tools that was cut off; none where there is no such run."""
    if not out.is_file():
        return []
    document = json.loads(out.read_bytes())
    rows = document.pop("engines")
    due = [candidate.name for candidate in CANDIDATES]
    same = document == {key: value for key, value in described(case, []).items() if key != "engines"}
    return rows if same and [row["name"] for row in rows] == due[: len(rows)] and len(rows) < len(due) else []


def described(case: Case, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The JSON: what was measured with what on what."""
    return {
        "schema": "pathserve-cpu-engines-1",
        "command": "python -m tests.benchmarks.cpu_engines --out docs/results/cpu-engines.json",
        "machine": processor(),
        "model": MODEL,
        "reference": "fp32 ONNX in ONNX Runtime, one thread a request",
        "reference_sha256": sha256_bytes(case.onnx),
        "batch": BATCH,
        "callers": CALLERS,
        "tiles": len(case.every),
        "tiles_sha256": case.every.digest,
        "sample": {"tiles": SAMPLE_TILES, "seed": SAMPLE_SEED},
        "calibration": {"tiles": CALIBRATION_TILES, "seed": CALIBRATION_SEED},
        "tools": {name: metadata.version(name) for name in ("onnxruntime", "openvino", "nncf")},
        "engines": rows,
    }


def bench(case: Case) -> list[dict[str, Any]]:
    """INT8 and bf16 over ONNX Runtime fp32, with what G3 says of each on the seeded sample.

    The goal is speed with a green gate, so it stands beside the fastest engine that the gate passes, too.
    """
    rows = []
    green: list[dict[str, Any]] = []
    by_precision = {candidate.precision: candidate for candidate in CANDIDATES}
    for precision, title, goal in (
        ("int8", "INT8 (static)", GOAL),
        ("bf16", "bf16", None),
        ("fp32", "OpenVINO fp32", None),
    ):
        with tempfile.TemporaryDirectory(prefix="cpu-engine-") as folder:
            file, hint = by_precision[precision].make(case.graph, case.onnx, Path(folder))
            engine = open_engine(file, hint, CALLERS)
            timed = speed(engine, onnx_runtime(case.onnx), case.timing_NHWC)
            passed, _, figures = verdict(case, engine, case.sample)
        found = figures["labels"]["tissue_head"]["points"]["answer"]
        said = f"gate {'green' if passed else 'RED'} on {figures['tiles']} tiles: {found['flip_share']:.2%} label flips"
        rows.append(
            {
                "name": f"{title} over ONNX Runtime fp32, tile encoder ({said})",
                "value": timed.images_per_s,
                "unit": "images/s",
                "floor": f"ONNX Runtime fp32: {timed.reference_images_per_s:.0f}",
                "ratio": timed.ratio,
                "goal": goal,
            }
        )
        green += rows[-1:] if passed else []
    if green:
        best = max(green, key=lambda row: row["ratio"])
        rows.append(best | {"name": "fastest engine that the gate passes, over ONNX Runtime fp32", "goal": GOAL})
    return rows


def page(document: dict[str, Any]) -> str:
    """docs/results/cpu-engines.md."""
    faster = [row for row in document["engines"] if row["over_onnxruntime_fp32"] > 1]
    best = max((row for row in faster if row["passed"]), key=lambda row: row["over_onnxruntime_fp32"], default=None)
    found = (
        f"The fastest that the gate passes is “{best['name']}”: {best['over_onnxruntime_fp32']:.2f} times the speed of "
        "ONNX Runtime in fp32."
        if best
        else f"**None of the {len(faster)} faster engines passes the gate.** None is built into the model repository; "
        "the fp32 ONNX in ONNX Runtime stays the engine that is served."
    )
    return _PAGE.format(
        found=found,
        rows="\n".join(_row(row) for row in document["engines"]),
        **{key: document[key] for key in ("command", "machine", "batch", "callers", "tiles")},
        digest=document["tiles_sha256"][:12],
        engine=document["reference_sha256"][:12],
        sample=document["sample"]["tiles"],
        one=1 / document["sample"]["tiles"],
        seed=document["sample"]["seed"],
        calibrating=document["calibration"]["tiles"],
        calibration_seed=document["calibration"]["seed"],
        tools=", ".join(f"{name} {version}" for name, version in document["tools"].items()),
    )


_PAGE = """\
# Faster engines on processors

    {command}

(in `.venv-training`) made this page. {machine}; {tools}. The tile encoder `{engine}` of
`training/recipes/tissue-encoder-small.toml`, judged through the head of `training/recipes/tissue-head-small.toml`.

- *speed*: images a CPU second over fp32 in ONNX Runtime; batch {batch}, {callers} callers, one thread each, the
  median of rounds that take turns.
- *G3* on {tiles:,} tiles (`{digest}`), or on {sample} of them (seed {seed}) where a candidate is an experiment and is
  refused there already: one flip is {one:.2%} of those. INT8 was calibrated on {calibrating} other tiles (seed
  {calibration_seed}).
- *change*: of balanced accuracy on the labelled tiles, he_crc9; the head was fitted on them, so only the change says
  something.
- Intervals are 95 %: Wilson's for label flips, resampled groups of near-duplicates for the change.

| engine | speed | G3 | tiles | label flips | of them answered | crossings outside | worst cosine | change |
|---|---|---|---|---|---|---|---|---|
{rows}

The gate passes at most 0.1 % label flips, no flip where both engines answer, no crossing of the operating point outside
its band, and a worst cosine of 0.9995.

{found}
"""


def _row(row: dict[str, Any]) -> str:
    flips = binomtest(row["flips"], row["tiles"]).proportion_ci(method="wilson")
    change = row["labelled"] and row["labelled"]["balanced accuracy"]["change"]
    cells = (
        row["name"],
        f"{row['over_onnxruntime_fp32']:.2f} ×",
        "passed" if row["passed"] else "**refused**",
        f"{row['tiles']:,}",
        f"{row['flips']} ({row['flip_share']:.2%} [{flips.low:.2%}, {flips.high:.2%}])",
        str(row["answered_flips"]),
        str(row["crossings_outside"]),
        f"{row['min_cosine']:.5f}",
        f"{change['value']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]" if change else "–",
    )
    return f"| {' | '.join(cells)} |"


def processor() -> str:
    """The processor's model and the cores that this process may use."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return f"{line.split(':', 1)[1].strip()}, {len(os.sched_getaffinity(0))} cores"
    return f"unknown processor, {len(os.sched_getaffinity(0))} cores"


if __name__ == "__main__":
    sys.exit(main())
