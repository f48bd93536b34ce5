"""Prometheus metrics of the workflow, kept by the worker (gateway.operations.metrics gathers them)."""

from collections.abc import Iterable

from prometheus_client import Counter, Histogram

from gateway.domain.screened import ScreeningResult

STEP_SECONDS = Histogram(
    "step_duration_seconds",
    "Time of one try of a durable step",
    ["step"],
    buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000),
)
STEP_ATTEMPTS = Counter("step_attempts_total", "Tries of the durable steps", ["step", "outcome"])
TURNAROUND_SECONDS = Histogram(
    "case_turnaround_seconds",
    "Time from acceptance to the end of an analysis",
    ["pipeline", "priority", "state"],
    buckets=(1, 3, 10, 30, 60, 120, 300, 600, 1800, 3600, 14400),
)
BAG_SECONDS = Histogram(
    "bag_duration_seconds",
    "Time of a slide's model for one bag, with what its evidence takes",
    ["model", "evidence"],
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
)
SCREENING_SECONDS = Histogram(
    "screening_duration_seconds",
    "Time of one slide in a stage of cervical screening: windows (detector), merge (of the cells that several windows "
    "saw), cells (encoder), slide (its model)",
    ["stage"],
    buckets=(0.01, 0.1, 1, 3, 10, 30, 100, 300, 1000, 3000),
)
CELLS_FOUND = Histogram(
    "screening_cells", "Cells of abnormal classes found on one slide", buckets=(0, 1, 3, 10, 30, 100, 300, 1000, 10000)
)
SCREENINGS = Counter(
    "screenings_total",
    "Cervical slides in reports that were built, by what became of them (ScreeningResult.outcome) and the verdict on "
    "their site",
    ["outcome", "site_verdict"],
)
SCREENINGS_TURNED = Counter(
    "screenings_turned_total",
    "Cervical slides that the adaptation to their site would have turned normal: the call without it stood",
)
DEAD_LETTERS = Counter("dead_letter_total", "Analyses ended because they killed the worker again and again")
TURNS = Counter("turns_total", "Turns that workers began at a stage of an analysis", ["stage"])
TURNS_LOST = Counter("turns_lost_total", "Turns that another worker had taken over, or whose analysis had ended")
WORKERS_DIED = Counter("workers_died_total", "Workers that were found dead")
TAKEN_OVER = Counter("analyses_taken_over_total", "Analyses that were in hand at a death of their worker")
DEATHS_COUNTED = Counter("deaths_counted_total", "Deaths of workers that counted against an analysis")
MODEL_DECISIONS = Counter(
    "model_decisions_total", "Wishes for a model's version that the worker settled", ["model", "action", "outcome"]
)


def count_screenings(results: Iterable[ScreeningResult]) -> None:
    """Count the slides of one report, once: where it was built, not where it is signed."""
    for result in results:
        SCREENINGS.labels(result.outcome, result.adaptation.verdict).inc()
        if result.turned:
            SCREENINGS_TURNED.inc()
