"""A delivery: one thing on its way out of the house, to the archive or to a webhook's target."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any


class Channel(StrEnum):
    """How it leaves: a report's objects to the archive, or a signed note that something has happened."""

    STOW = "stow"
    WEBHOOK = "webhook"


class DeliveryState(StrEnum):
    """`held` waits for a person to release its analysis; `dead` for somebody to replay it."""

    PENDING = "pending"
    DELIVERED = "delivered"
    HELD = "held"
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One delivery as the outbox knows it. Times are UTC.

    `number` orders them by age. `target` is the name of the target, never its address. `event` is what a webhook tells,
    `body` how (no patient data); both say little of a STOW, whose objects lie in the folder of its revision. `tries`
    count since it was written, or last replayed; `done` the objects that are stored already.
    """

    number: int
    id: str
    tenant: str
    analysis: str
    revision: int | None
    channel: Channel
    target: str
    event: str
    body: Mapping[str, Any] | None
    state: DeliveryState
    tries: int
    replays: int
    done: int
    next: datetime
    worker: str | None
    reason: str | None
    detail: str | None
    created: datetime
    settled: datetime | None


def target_name(address: str) -> str:
    """The name of a webhook's target in rows and lists: its address may hold a secret, a digest of it does not."""
    return f"webhook-{hashlib.sha256(address.encode()).hexdigest()[:8]}"
