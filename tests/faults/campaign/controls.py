"""Controls: evidence that was tampered with on purpose has to be found faulty, or the campaign proves nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tests.faults.campaign.evidence import Evidence, Row
from tests.faults.campaign.judge import faults
from tests.faults.campaign.lis import Order


@dataclass(frozen=True)
class Control:
    """What was done to the evidence, and whether the judge noticed."""

    name: str
    noticed: bool


def controls(evidence: Evidence, orders: Sequence[Order], ids: Mapping[str, str]) -> list[Control]:
    """Every tampering, judged beside the true evidence."""
    before = set(faults(evidence, orders, ids))
    found = []
    for name, tamper in _TAMPERINGS.items():
        after = set(faults(tamper(evidence), orders, ids))
        found.append(Control(name, bool(after - before)))
    return found


def _without_an_analysis(evidence: Evidence) -> Evidence:
    return replace(evidence, analyses=evidence.analyses[1:])


def _with_a_second_end(evidence: Evidence) -> Evidence:
    end = next(each for each in evidence.events if each["kind"] == "state" and each["data"]["state"] == "completed")
    return replace(evidence, events=(*evidence.events, {**end, "seq": 10_000}))


def _with_a_step_done_twice(evidence: Evidence) -> Evidence:
    done = next(each for each in evidence.events if each["data"].get("status") == "finished")
    return replace(evidence, events=(*evidence.events, {**done, "seq": 10_000}))


def _with_an_object_stored_twice(evidence: Evidence) -> Evidence:
    study, sops = next((study, sops) for study, sops in evidence.stored.items() if sops)
    return replace(evidence, stored={**evidence.stored, study: (*sops, sops[0])})


def _without_an_object(evidence: Evidence) -> Evidence:
    study, sops = next((study, sops) for study, sops in evidence.stored.items() if sops)
    return replace(evidence, stored={**evidence.stored, study: sops[1:]})


def _with_a_held_turn(evidence: Evidence) -> Evidence:
    return replace(evidence, analyses=_first(evidence.analyses, worker="host-1-dead"))


def _with_a_waiting_delivery(evidence: Evidence) -> Evidence:
    return replace(evidence, deliveries=_first(evidence.deliveries, state="pending"))


def _without_a_webhook(evidence: Evidence) -> Evidence:
    return replace(evidence, taken=dict(list(evidence.taken.items())[1:]))


def _first(rows: tuple[Row, ...], **changed: object) -> tuple[Row, ...]:
    return ({**rows[0], **changed}, *rows[1:])


_TAMPERINGS: dict[str, Callable[[Evidence], Evidence]] = {
    "an accepted order is lost": _without_an_analysis,
    "an analysis ends twice": _with_a_second_end,
    "a step is done twice": _with_a_step_done_twice,
    "an object is in the archive twice": _with_an_object_stored_twice,
    "an object is missing in the archive": _without_an_object,
    "a dead worker holds a turn": _with_a_held_turn,
    "a delivery waits for ever": _with_a_waiting_delivery,
    "a webhook is lost": _without_a_webhook,
    "a workflow is open": lambda evidence: replace(evidence, workflows_open=("control.1.infer PENDING",)),
    "a process is left": lambda evidence: replace(evidence, processes=("of the control",)),
    "a half-written file is left": lambda evidence: replace(evidence, parts=("control.part",)),
    "a lock is held": lambda evidence: replace(evidence, locked=("control.lock",)),
    "the audit trail is broken": lambda evidence: replace(evidence, audit="record 7 was changed by the control"),
}
