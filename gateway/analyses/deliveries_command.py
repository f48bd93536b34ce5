"""`pathserve deliveries …`: what left, what waits, what is dead; and replaying it."""

import json
from collections.abc import Sequence
from typing import Any

from gateway.analyses.command_ledger import command_ledger
from gateway.domain.delivery import Delivery, DeliveryState
from gateway.operations.columns import print_columns
from gateway.operations.operator import operator


def list_deliveries(*, dead: bool, analysis: str | None, as_json: bool) -> int:
    """Print deliveries, oldest first; `dead`: dead letters only. Analyses that are dead letters follow."""
    with command_ledger("deliveries") as (_, ledger):
        state = DeliveryState.DEAD if dead else None
        found = ledger.outbox.listing(analysis_id=analysis, state=state)
        killers = ledger.outbox.killers() if analysis is None else ()
    if as_json:
        document = {"items": [shown(each) for each in found], "kills_worker": list(killers)}
        print(json.dumps(document, indent=2))
        return 0
    columns = ("id", "analysis", "revision", "channel", "target", "event", "state", "tries", "next", "reason")
    print_columns(
        [tuple(map(str.upper, columns)), *([str(shown(each)[key] or "-") for key in columns] for each in found)]
    )
    for killer in killers:
        print(f"The analysis {killer} is a dead letter: it killed its worker again and again. Retry it by the API.")
    return 0


def replay(ids: Sequence[str], *, all_dead: bool) -> int:
    """Let deliveries be tried again, at once. Raises NotFound, Conflict, StateError."""
    with command_ledger("deliveries") as (_, ledger):
        chosen = [each.id for each in ledger.outbox.dead_letters()] if all_dead else ids
        for delivery_id in chosen:
            ledger.outbox.replay(delivery_id, operator())
            print(f"{delivery_id} is tried again.")
    if not chosen:
        print("No delivery is dead.")
    return 0


def shown(delivery: Delivery) -> dict[str, Any]:
    """A delivery as it is printed as JSON. Times are ISO 8601 in UTC; `next` is None where no try is due."""
    return {
        "id": delivery.id,
        "analysis": delivery.analysis,
        "revision": delivery.revision,
        "channel": delivery.channel.value,
        "target": delivery.target,
        "event": delivery.event,
        "state": delivery.state.value,
        "tries": delivery.tries,
        "replays": delivery.replays,
        "done": delivery.done,
        "next": delivery.next.isoformat(timespec="seconds") if delivery.state is DeliveryState.PENDING else None,
        "reason": delivery.reason,
        "detail": delivery.detail,
        "created": delivery.created.isoformat(timespec="seconds"),
        "settled": None if delivery.settled is None else delivery.settled.isoformat(timespec="seconds"),
    }
