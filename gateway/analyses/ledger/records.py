"""An analysis as its row in the ledger tells it."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gateway.domain.analysis import Analysis, Failure, Progress, State, Step
from gateway.domain.identity import Difference
from gateway.domain.order import Order, Priority
from gateway.operations import codec

RANK = {Priority.STAT: 0, Priority.URGENT: 1, Priority.ROUTINE: 2}
"""0 is served first."""


@dataclass(frozen=True, slots=True)
class Record:
    """An analysis with what only the ledger knows of it. `number` orders by acceptance.

    `models`: name and version of each that it is pinned to, an ensemble's steps too; empty before it starts. `run`
    counts the retries by a person, from 1; `stage` is the one that is next or at work. `held`: why it is held.
    `version` is opaque and changes whenever anything shown of it changes.
    """

    analysis: Analysis
    number: int
    tenant: str
    caller: str
    cancel_requested: bool
    delivering: bool
    attempts: int
    run: int
    stage: str
    progress: Progress | None
    models: tuple[tuple[str, str], ...]
    held: tuple[Difference, ...]
    deadline: datetime | None
    version: str


def record_of(row: Any, order: Order | None = None) -> Record:
    """The record of a row of `analyses` (whatever has its columns); `order` where it is at hand already."""
    return Record(
        analysis=Analysis(
            id=row.id,
            order=codec.loads(Order, row.order_json) if order is None else order,
            state=State(row.state),
            created=row.created,
            updated=row.updated,
            failure=Failure(row.failure_reason, row.failure_detail) if row.failure_reason else None,
        ),
        number=row.number,
        tenant=row.tenant,
        caller=row.caller,
        cancel_requested=bool(row.cancel_requested),
        delivering=bool(row.delivering),
        attempts=row.attempts,
        run=row.run,
        stage=row.stage,
        progress=Progress(Step(row.step), row.done, row.total, row.unit) if row.step else None,
        models=tuple((pin["model"], pin["version"]) for pin in row.models["pins"]) if row.models else (),
        held=tuple(codec.load(Difference, each) for each in row.held or ()),
        deadline=row.deadline,
        version=version_of(row),
    )


def version_of(row: Any) -> str:
    """A digest of all that may change of a row. `updated` alone would not do: clocks are set back."""
    shown = (
        row.updated,
        row.state,
        row.priority,
        row.run,
        row.stage,
        row.attempts,
        row.cancel_requested,
        row.delivering,
        row.failure_reason,
        row.failure_detail,
        row.step,
        row.done,
        row.total,
        row.models,
        row.held,
        row.released,
        row.deadline,
    )
    return hashlib.sha256(f"{row.id} {shown}".encode()).hexdigest()[:32]
