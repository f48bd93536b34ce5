"""What this server can do now: its models, the protocols with their models' cards, its workers and queues.

Read from heartbeats and files by names alone: what reads the model repository brings numpy and gRPC, which the process
that answers requests does without.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gateway.analyses.ledger import Ledger
from gateway.analyses.ledger.living import Readiness
from gateway.analyses.ledger.workers import WorkerStatus
from gateway.analyses.protocols import PROTOCOLS, Protocol
from gateway.operations import codec
from gateway.operations.settings import Settings

if TYPE_CHECKING:
    from gateway.domain.delivery import Channel, DeliveryState

_LARGEST_CARD_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class ModelState:
    """One version of a model as a worker knows it; `reason` says why it is not ready.

    `state`: serving (new analyses use it), pending (it is being loaded), refused (it should serve and may not),
    draining (analyses that began before use it), standby (it can be promoted), retired. `folder` is its name in Triton.
    """

    name: str
    version: str | None
    ready: bool
    reason: str | None
    state: str
    folder: str
    target: str | None
    precision: str | None


@dataclass(frozen=True, slots=True)
class ProtocolCards:
    """A protocol, and the whole `card.json` of each of its models, in the version that serves; None where it lacks."""

    protocol: Protocol
    cards: Mapping[str, Mapping[str, Any] | None]


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """How the server is: since when it runs, whether an order would be worked on, its living workers, its analyses by
    state, the oldest unfinished ones, its deliveries.

    `oldest_s`: age of the oldest unfinished analysis in seconds, by priority. `deliveries`: how many, by channel and
    state. `dead_letters` wait for a person: deliveries that were given up, and analyses that kill their worker.
    """

    now: datetime
    started: datetime
    readiness: Readiness
    workers: tuple[WorkerStatus, ...]
    analyses: Mapping[str, int]
    oldest_s: Mapping[str, float]
    deliveries: "Mapping[tuple[Channel, DeliveryState], int]"
    dead_letters: int


class Catalogue:
    """Reads the ledger's heartbeats and choices, and the model repository's cards."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._started = datetime.now(UTC)

    def models(self, workers: Sequence[WorkerStatus]) -> tuple[ModelState, ...]:
        """Every version that the workers know, as the one says that has most of them ready. Raises StateError."""
        told = max(
            (worker.models for worker in workers if worker.models),
            key=lambda models: sum(bool(each.get("ready")) for each in models),
            default=None,
        )
        if told is None:
            return self._not_loaded()
        return tuple(codec.load(ModelState, each) for each in told)

    def protocols(self) -> tuple[ProtocolCards, ...]:
        """Raises StateError."""
        folders = {each.name: each.folder for each in self._not_loaded()}
        return tuple(
            ProtocolCards(each, {model: self._card(folders.get(model, model)) for model in each.all_models})
            for each in PROTOCOLS.values()
        )

    def status(self, workers: tuple[WorkerStatus, ...], readiness: Readiness) -> ServerStatus:
        """Raises StateError."""
        found = self._ledger.statistics()
        deliveries = self._ledger.outbox.statistics()
        dead = sum(number for (_, state), number in deliveries.items() if state.value == "dead")
        return ServerStatus(
            now=datetime.now(UTC),
            started=self._started,
            readiness=readiness,
            workers=workers,
            analyses=found.by_state,
            oldest_s=found.oldest_s,
            deliveries=deliveries,
            dead_letters=dead + len(self._ledger.outbox.killers()),
        )

    def _not_loaded(self) -> tuple[ModelState, ...]:
        """What is known without a worker: the models of the repository, and the versions that were chosen."""
        names = {path.parent.name.partition("-")[0] for path in self._settings.model_repository.glob("*/card.json")}
        choices = self._ledger.choices.read()
        versions = {name: choices.current(name) for name in sorted(names) if re.fullmatch(r"[A-Za-z0-9_]+", name)}
        return tuple(
            ModelState(
                name=name,
                version=version,
                ready=False,
                reason="No worker has loaded this model yet.",
                state="pending",
                folder=name if version in (None, "1") else f"{name}-v{version}",
                target=None,
                precision=None,
            )
            for name, version in versions.items()
        )

    def _card(self, folder: str) -> Mapping[str, Any] | None:
        path = self._settings.model_repository / folder / "card.json"
        with suppress(OSError, ValueError, RecursionError):
            if path.stat().st_size <= _LARGEST_CARD_BYTES:
                document = json.loads(path.read_bytes())
                return document if isinstance(document, dict) else None
        return None
