"""Which version of a model serves: a site's decisions, in the ledger (the model repository may be read-only).

Decisions are only ever added. A promotion is first a wish (`pending`): the worker loads that version, replays its
golden inputs, and settles the wish once: it serves from then on, or it was refused and the version before goes on.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from gateway.analyses.ledger.schema import MODEL_DECISIONS
from gateway.operations import audit
from gateway.operations.errors import Conflict

Transaction = Callable[[], AbstractContextManager[sa.Connection]]


WORKER = "worker"
"""Who notes what serves without anybody's decision."""


class Action(StrEnum):
    """What was decided. `initial` is the worker's own note of the version that served before anybody decided."""

    INITIAL = "initial"
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    RETIRE = "retire"


class Outcome(StrEnum):
    """What became of a decision."""

    PENDING = "pending"
    SERVING = "serving"
    REFUSED = "refused"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One decision about one version of a model. `number` counts from 1; `settled` is when its outcome was known."""

    number: int
    model: str
    version: str
    action: Action
    who: str
    time: datetime
    outcome: Outcome
    reason: str | None
    settled: datetime | None


@dataclass(frozen=True, slots=True)
class Choices:
    """All decisions, oldest first, and what they say now. Versions are the numbers of `gateway.inference.names`."""

    decisions: tuple[Decision, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """The models that anything was decided of, sorted."""
        return tuple(sorted({each.model for each in self.decisions}))

    def of(self, model: str) -> tuple[Decision, ...]:
        return tuple(each for each in self.decisions if each.model == model)

    def current(self, model: str) -> str | None:
        """The version that serves; None where nobody, not even a worker, has decided."""
        served = self._served(model)
        return served[-1] if served else None

    def pending(self, model: str) -> Decision | None:
        """The wish that no worker has settled yet."""
        return next((each for each in self.of(model) if each.outcome is Outcome.PENDING), None)

    def refused(self, model: str) -> Decision | None:
        """The latest decision, where that was a wish and the worker refused it."""
        last = self.of(model)[-1:]
        return last[0] if last and last[0].outcome is Outcome.REFUSED else None

    def before(self, model: str) -> str | None:
        """The version that a rollback returns to: the one that served before the current one and is not retired.

        Rolling back twice goes back twice, never forward again to what was just left.
        """
        earlier = [version for version in self._served(model)[:-1] if not self.retired(model, version)]
        return earlier[-1] if earlier else None

    def retired(self, model: str, version: str) -> bool:
        """Whether a version was retired and not promoted since."""
        last = [
            each.outcome
            for each in self.of(model)
            if each.version == version and each.outcome in (Outcome.RETIRED, Outcome.SERVING)
        ]
        return last[-1:] == [Outcome.RETIRED]

    def _served(self, model: str) -> list[str]:
        """The versions that served, the current one last; a rollback takes away what it left."""
        served: list[str] = []
        for each in self.of(model):
            if each.outcome is not Outcome.SERVING:
                continue
            if each.action is Action.ROLLBACK and each.version in served:
                while served[-1] != each.version:
                    served.pop()
            elif served[-1:] != [each.version]:
                served.append(each.version)
        return served


class ChoiceLog:
    """The table of decisions. Every method is one transaction of the ledger that it belongs to."""

    def __init__(self, read: Transaction, write: Transaction) -> None:
        self._read = read
        self._write = write

    def read(self) -> Choices:
        with self._read() as connection:
            return _choices(connection)

    def get(self, number: int) -> Decision:
        """One decision by its number, which exists."""
        with self._read() as connection:
            return _decision(
                connection.execute(sa.select(MODEL_DECISIONS).where(MODEL_DECISIONS.c.number == number)).one()
            )

    def wish(self, model: str, version: str, action: Action, who: str) -> Decision:
        """Write a promotion or rollback down, for the worker to settle; another wish for the model ends refused.

        The same wish again is the one that is there: two people who ask for it at once both get it.
        """
        with self._write() as connection:
            pending = _choices(connection).pending(model)
            if pending is not None and (pending.version, pending.action) == (version, action):
                return pending
            _settle(
                connection,
                (MODEL_DECISIONS.c.model == model,),
                Outcome.REFUSED,
                "Another version was chosen before a worker had loaded this one.",
            )
            return _add(connection, model, version, action, who, Outcome.PENDING)

    def settle(self, number: int, outcome: Outcome, reason: str | None = None) -> bool:
        """Settle a wish; False where another had settled it before."""
        with self._write() as connection:
            return _settle(connection, (MODEL_DECISIONS.c.number == number,), outcome, reason) == 1

    def note_initial(self, model: str, version: str, who: str) -> None:
        """Note the version that serves without anybody's decision, where none of the model has served before."""
        served = sa.select(MODEL_DECISIONS.c.number).where(
            MODEL_DECISIONS.c.model == model, MODEL_DECISIONS.c.outcome == Outcome.SERVING.value
        )
        with self._write() as connection:
            if connection.execute(served).first() is None:
                _add(connection, model, version, Action.INITIAL, who, Outcome.SERVING)

    def retire(self, model: str, version: str, who: str) -> Decision:
        """Take a version out of the choice. Raises Conflict where it serves, or is to serve."""
        with self._write() as connection:
            choices = _choices(connection)
            pending = choices.pending(model)
            if choices.current(model) == version or (pending is not None and pending.version == version):
                raise Conflict(
                    f"The version {version} of {model} serves, or was just promoted; promote another one before it is "
                    "retired."
                )
            return _add(connection, model, version, Action.RETIRE, who, Outcome.RETIRED)


def _choices(connection: sa.Connection) -> Choices:
    rows = connection.execute(sa.select(MODEL_DECISIONS).order_by(MODEL_DECISIONS.c.number))
    return Choices(tuple(map(_decision, rows)))


def _add(connection: sa.Connection, model: str, version: str, action: Action, who: str, outcome: Outcome) -> Decision:
    now = datetime.now(UTC)
    row = connection.execute(
        MODEL_DECISIONS.insert()
        .values(
            model=model,
            version=version,
            action=action.value,
            who=who,
            time=now,
            outcome=outcome.value,
            settled=None if outcome is Outcome.PENDING else now,
        )
        .returning(*MODEL_DECISIONS.c)
    ).one()
    decision = _decision(row)
    audit.append(connection, _record("model-decided", decision, "worker" if who == WORKER else f"device:{who}"))
    return decision


def _settle(
    connection: sa.Connection, which: Iterable[sa.ColumnElement[bool]], outcome: Outcome, reason: str | None
) -> int:
    """Guarded, so that a wish is settled once whoever races."""
    settled = connection.execute(
        MODEL_DECISIONS.update()
        .where(*which, MODEL_DECISIONS.c.outcome == Outcome.PENDING.value)
        .values(outcome=outcome.value, reason=reason, settled=datetime.now(UTC))
        .returning(*MODEL_DECISIONS.c)
    ).all()
    audit.append(connection, *(_record("model-settled", _decision(row), "worker") for row in settled))
    return len(settled)


def _record(subtype: str, decision: Decision, actor: str) -> audit.AuditEvent:
    refused = decision.outcome is Outcome.REFUSED
    return audit.AuditEvent(
        type=audit.EventType.APPLICATION_ACTIVITY,
        subtype=subtype,
        action=audit.Action.UPDATE,
        outcome=audit.Outcome.MINOR_FAILURE if refused else audit.Outcome.SUCCESS,
        actor=actor,
        entity_kind="model",
        entity=f"{decision.model} {decision.version}",
        detail={"decision": decision.number, "action": decision.action.value, "outcome": decision.outcome.value},
    )


def _decision(row: sa.Row[Any]) -> Decision:
    return Decision(
        number=row.number,
        model=row.model,
        version=row.version,
        action=Action(row.action),
        who=row.who,
        time=row.time,
        outcome=Outcome(row.outcome),
        reason=row.reason,
        settled=row.settled,
    )
