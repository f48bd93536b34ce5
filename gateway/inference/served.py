"""One version of a model as one engine knows it."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from gateway.domain.model import ModelCard, Precision, Target
from gateway.inference.contract import Contract
from gateway.inference.names import split_folder
from gateway.inference.repository import Golden
from gateway.operations.errors import InferenceUnavailable, PathserveError

# A model that dies more often than this is broken: it stays failed until the window has passed.
RELOADS, RELOAD_WINDOW_S = 10, 600.0


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One version of a model; `folder` is Triton's name of it. `reason` says why it is not ready: for operators.

    `target` and `precision` are its card's, and None where that cannot be read.
    """

    folder: str
    model: str
    version: str
    ready: bool
    reason: str | None
    target: Target | None = None
    precision: Precision | None = None
    pending: bool = False
    """Not ready, and nothing is wrong either: it is being loaded or healed."""


@dataclass(slots=True)
class Served:
    """A folder's state in one engine: what was proven of it, on which server, and what is wrong with it.

    `generation` counts reloads: a call that failed before the latest one needs none of its own. `epoch` is that of the
    connection on which the folder was proven last, `stuck_epoch` of one whose server will never have loaded it;
    `restarted`: a server was restarted for it although it had never been sound.
    """

    folder: str
    contract: Contract | None = None
    card: ModelCard | None = None
    golden: Golden | None = None
    engine_sha256: str | None = None
    problem: PathserveError | None = None
    epoch: int = -1
    stuck_epoch: int = -1
    restarted: bool = False
    generation: int = 0
    permits: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    reloads: deque[float] = field(default_factory=deque)

    @property
    def labels(self) -> tuple[str, str]:
        """Model and version, as the metrics name them."""
        return split_folder(self.folder) or (self.folder, "1")

    def status(self, problem: PathserveError | None, *, proven: bool) -> ModelStatus:
        """`problem`: its own, or that of a step. `proven`: it and its steps, on the server that runs now."""
        ready = problem is None and proven
        reason = None if ready else problem.detail if problem else "It is being loaded."
        model, version = self.labels
        card = self.card.version if self.card else None
        return ModelStatus(
            folder=self.folder,
            model=model,
            version=version,
            ready=ready,
            reason=reason,
            target=card.target if card else None,
            precision=card.precision if card else None,
            pending=not ready and problem is None,
        )

    def admit_reload(self) -> None:
        """Raises InferenceUnavailable where the model was loaded anew too often of late: it may come back later."""
        now = time.monotonic()
        while self.reloads and now - self.reloads[0] > RELOAD_WINDOW_S:
            self.reloads.popleft()
        if len(self.reloads) >= RELOADS:
            raise InferenceUnavailable(
                f"The model {self.folder} failed {RELOADS + 1} times within {RELOAD_WINDOW_S / 60:.0f} minutes and is "
                "not loaded again until that time has passed. See logs/triton.log in the state folder."
            )

    def count_reload(self) -> None:
        self.reloads.append(time.monotonic())
