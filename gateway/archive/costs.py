"""What pulling costs at one archive, learned from every pull, and the way that is fastest by it.

A request for frames takes `fixed + parse x bytes of the instance` seconds until the first one comes (a PACS without an
index of frames reads the whole instance each time), and `send x bytes sent` from then on; a whole instance takes
`fixed + stream x bytes`. The coefficients are fitted to
the latest samples, none below zero, so that an archive that improves or slows down is known again after a few pulls.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import combinations
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from gateway.operations.disk import locked_folder, written_whole

_VERSION = 1
_KEPT, _ALIKE = 3, 4.0
"""Samples of one kind that are remembered for instances that are alike: within a factor of four in size."""
_FORGET = 0.5
"""A sample's weight against that of the next one that is alike."""
_STALE_S = 30 * 24 * 3600.0
_COMPARABLE = 8.0
"""A sample speaks for instances of up to so many times its instance's size."""
_WORTH_LEARNING_S, _WORTH_LEARNING = 0.25, 0.7
"""What a whole instance takes, and the share of its bytes that is needed, for which a trial may pay."""
_PRIOR_WEIGHT = 0.01
_LEAST_S = 1e-4
_PRIOR_WAIT, _PRIOR_SEND, _PRIOR_WHOLE = np.array([0.01, 4e-9]), np.array([1e-8]), np.array([0.01, 8e-9])
"""Seconds, seconds per byte: of a PACS that reads the whole instance for every request, in the next room."""


_Row = tuple[Sequence[float], float]
"""The sizes of a request (K,), and the seconds that it took."""


class Way(StrEnum):
    """How the frames of an instance are pulled."""

    WHOLE = "whole"
    BATCHED = "batched"
    SINGLE = "single"


@dataclass(frozen=True, slots=True)
class Sample:
    """One request, measured: the bytes of the instance, those of the frames sent, and when it was (Unix time).

    `frames` is False for a whole instance, all of which is sent. `wait_s` are the seconds until the first frame came.
    """

    frames: bool
    instance_bytes: float
    sent_bytes: float
    wait_s: float
    seconds: float
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What is to be pulled of one instance: bytes of the instance and of the needed frames (estimates where not known),
    requests for frames that it takes, and how many of the instance's bytes there is room for."""

    instance_bytes: float
    frame_bytes: float
    requests: int
    room_bytes: float


@dataclass(frozen=True, slots=True)
class Costs:
    """The samples of one archive, oldest first."""

    samples: tuple[Sample, ...] = ()

    @classmethod
    def read(cls, file: Path) -> Self:
        """What was learned earlier; nothing where the file is not there, damaged, or of another version."""
        try:
            kept = json.loads(file.read_bytes())
            samples = [_sample(entry) for entry in kept["samples"]] if kept["version"] == _VERSION else []
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return cls()
        now = time.time()
        return cls(tuple(sample for sample in samples if now - _STALE_S < sample.at <= now))

    def write(self, file: Path) -> None:
        """Keep what was learned; of several pulls that end at once, what one of them learned. Raises OSError."""
        with locked_folder(file.parent), written_whole(file) as out:
            out.write(
                json.dumps({"version": _VERSION, "samples": [asdict(sample) for sample in self.samples]}).encode()
            )

    def with_sample(self, sample: Sample) -> "Costs":
        """The costs with one more measured request; the oldest that is alike goes where there are too many."""
        alike = [old for old in self.samples if _class(old) == _class(sample)]
        gone = alike[: len(alike) + 1 - _KEPT] if len(alike) >= _KEPT else []
        return Costs((*(old for old in self.samples if old not in gone), sample))

    def seconds_whole(self, instance_bytes: float) -> float:
        """What a whole instance will take."""
        return float(_fit(*self._whole(), _PRIOR_WHOLE) @ [1.0, instance_bytes])

    def seconds_frames(self, need: Need) -> float:
        """What the needed frames will take; at an archive that was never asked for any, as slow as it is otherwise."""
        samples, weights = self._of_kind(frames=True)
        waits = [((1.0, sample.instance_bytes), sample.wait_s) for sample in samples]
        sends = [((sample.sent_bytes,), sample.seconds - sample.wait_s) for sample in samples]
        pace = _pace(*self._whole(), _PRIOR_WHOLE)
        wait_s = float(_fit(waits, weights, _PRIOR_WAIT * pace) @ [1.0, need.instance_bytes])
        return need.requests * wait_s + float(_fit(sends, weights, _PRIOR_SEND * pace) @ [need.frame_bytes])

    def _whole(self) -> tuple[list[_Row], list[float]]:
        samples, weights = self._of_kind(frames=False)
        return [((1.0, sample.instance_bytes), sample.seconds) for sample in samples], weights

    def _of_kind(self, *, frames: bool) -> tuple[list[Sample], list[float]]:
        """The samples of one kind, and how much each weighs."""
        samples = [sample for sample in self.samples if sample.frames == frames]
        newer = [sum(_class(later) == _class(sample) for later in samples[n + 1 :]) for n, sample in enumerate(samples)]
        return samples, [_FORGET**count for count in newer]

    def knows_frames(self, instance_bytes: float) -> bool:
        """Whether frames of an instance of comparable size were asked for already."""
        return any(sample.frames and sample.instance_bytes * _COMPARABLE >= instance_bytes for sample in self.samples)


def choose(costs: Costs, need: Need) -> Way:
    """WHOLE or BATCHED, whichever is faster by what is known, and fits.

    Before it is known what frames of so large an instance cost at this archive, a batch is tried: it is needed anyway,
    and the next choice, for the rest, knows.
    """
    if need.instance_bytes > need.room_bytes:
        return Way.BATCHED
    whole_s = costs.seconds_whole(need.instance_bytes)
    could_save = whole_s >= _WORTH_LEARNING_S and need.frame_bytes <= _WORTH_LEARNING * need.instance_bytes
    if could_save and not costs.knows_frames(need.instance_bytes):
        return Way.BATCHED
    return Way.WHOLE if whole_s <= costs.seconds_frames(need) else Way.BATCHED


def _sample(entry: dict[str, Any]) -> Sample:
    """Raises KeyError, TypeError, ValueError."""
    figures = [float(entry[key]) for key in ("instance_bytes", "sent_bytes", "wait_s", "seconds", "at")]
    sample = Sample(bool(entry["frames"]), *figures)
    if not all(0 <= figure < 1e15 for figure in asdict(sample).values()):
        raise ValueError("not a measured request")
    return sample


def _class(sample: Sample) -> tuple[bool, int]:
    """Samples of one class are alike."""
    return sample.frames, int(math.log(sample.instance_bytes + 1.0, _ALIKE))


def _pace(rows: Sequence[_Row], weights: Sequence[float], prior_K: npt.NDArray[np.float64]) -> float:
    """How many times as long as the prior says the requests took, in geometric mean."""
    if not rows:
        return 1.0
    ratios = [math.log(max(seconds, _LEAST_S) / max(float(prior_K @ row), 1e-12)) for row, seconds in rows]
    return math.exp(float(np.average(ratios, weights=weights)))


def _fit(rows: Sequence[_Row], weights: Sequence[float], prior_K: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The coefficients (K,) >= 0 that meet the measured seconds best, by relative error.

    The prior, at the pace of the measured requests, weighs little: it decides only what they leave open.
    """
    prior_K = prior_K * _pace(rows, weights, prior_K)
    sizes = np.array([[1.0, 1e6], [1.0, 1e8]] if len(prior_K) > 1 else [[1e6]])
    features = [*sizes, *(np.array(row) for row, _ in rows)]
    seconds = [*(sizes @ prior_K), *(max(seconds, _LEAST_S) for _, seconds in rows)]
    scale_N = np.sqrt([*[_PRIOR_WEIGHT] * len(sizes), *weights]) / seconds
    a_NK, b_N = np.array(features) * scale_N[:, None], np.array(seconds) * scale_N
    a_NK *= (unit_K := prior_K)  # so that all coefficients are of the order of one
    best_K, least = np.ones(len(prior_K)), np.inf
    # So few coefficients: the best solution with none below zero is the best of those over every subset of them.
    for size in range(1, len(prior_K) + 1):
        for subset in combinations(range(len(prior_K)), size):
            part, *_ = np.linalg.lstsq(a_NK[:, subset], b_N, rcond=None)
            misfit = float(np.sum((a_NK[:, subset] @ part - b_N) ** 2))
            if (part >= 0).all() and misfit < least:
                best_K, least = np.zeros(len(prior_K)), misfit
                best_K[list(subset)] = part
    return best_K * unit_K
