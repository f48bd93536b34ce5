"""`make bench`: every row in one run, a table on stdout and build/bench.json. Exit 0 when all were measured."""

import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from gateway.operations.settings import Settings
from gateway.slides.phantom import write_phantom
from tests.benchmarks import (
    bench_analyze,
    bench_annotations,
    bench_engines,
    bench_features,
    bench_frames,
    bench_memory,
    bench_objects,
    bench_orders,
    bench_pull,
    bench_screening,
    bench_segment,
    bench_training,
    bench_triton,
)
from tests.benchmarks.rows import Row, publish

BUILD = Path(__file__).parents[2] / "build"


def main() -> int:
    rows: list[Row] = []
    failed = False
    with tempfile.TemporaryDirectory(prefix="pathserve-bench-") as folder:
        work = Path(folder)
        for name, measure in _benchmarks(work):
            print(f"measuring {name} …", file=sys.stderr, flush=True)
            try:
                rows += measure()
            except Exception:
                traceback.print_exc()
                failed = True
    publish(rows, BUILD / "bench.json")
    return 1 if failed else 0


def _benchmarks(work: Path) -> list[tuple[str, Callable[[], list[Row]]]]:
    def phantom(side_px: int, **options: float) -> Path:
        out = work / f"phantom-{side_px}"
        if not out.exists():
            write_phantom(out, kind="he", width_px=side_px, height_px=side_px, seed=1, **options)
        return out

    words = (Settings().model_repository / "pathseg").is_dir()
    if not words:
        print("segmentation by words is not measured: the model repository holds no pathseg", file=sys.stderr)
    smears = bench_screening.are_served()
    if not smears:
        print("cervical screening is not measured: the model repository does not hold its models", file=sys.stderr)
    return [
        ("the frame pipeline", lambda: [Row(**row) for row in bench_frames.measure()]),
        ("accepting orders", lambda: bench_orders.measure(work / "orders")),
        ("a whole analysis", lambda: bench_analyze.measure(work / "analyze", phantom(28_000))),
        ("pulling from Orthanc", lambda: bench_pull.measure(work / "pull", _slides(phantom(28_000)))),
        ("segmentations of a whole slide", lambda: bench_objects.measure(phantom(28_000))),
        *(
            [("segmentation by words", lambda: bench_segment.measure(work / "segment", phantom(10_000)))]
            if words
            else []
        ),
        *([("cervical screening", lambda: bench_screening.measure(work / "screening"))] if smears else []),
        ("Triton's transport", lambda: bench_triton.measure(work / "triton")),
        ("engines of lower precision", bench_engines.measure),
        ("a step of self-distillation", bench_training.measure),
        ("feature extraction", lambda: bench_features.measure(work / "features", phantom(28_000))),
        ("annotations and the PDF", bench_annotations.measure),
        ("memory", lambda: bench_memory.measure(work / "memory", phantom(20_000), phantom(80_000))),
    ]


def _slides(phantom: Path) -> dict[str, Path]:
    """A scanned slide, where the data are there, and a larger phantom."""
    data = Path(os.environ.get("PATHSERVE_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data")
    scanned = data / "slides" / "metaplasia_he"
    return ({"metaplasia H&E": scanned} if scanned.exists() else {}) | {"phantom 28,000²": phantom}


if __name__ == "__main__":
    sys.exit(main())
