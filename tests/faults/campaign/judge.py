"""The judgement: whether each order ended exactly once, and nothing is left behind. A pure function of the evidence."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from tests.faults.campaign.evidence import Evidence, Row
from tests.faults.campaign.lis import Order

STEPS = ("fetch", "infer", "report", "deliver")
_FINAL = ("completed", "failed", "cancelled")


def faults(evidence: Evidence, orders: Sequence[Order], ids: Mapping[str, str]) -> list[str]:
    """A sentence for everything that is not as it should be. `ids`: what the LIS was answered, by idempotency key."""
    return [
        *_lost_or_doubled(evidence, orders, ids),
        *_ends(evidence),
        *_steps(evidence),
        *_archive(evidence, orders),
        *_deliveries(evidence),
        *_left_behind(evidence),
    ]


def _lost_or_doubled(evidence: Evidence, orders: Sequence[Order], ids: Mapping[str, str]) -> Iterator[str]:
    known = {row["id"]: row for row in evidence.analyses}
    for order in orders:
        analysis = ids.get(order.key)
        if analysis is None:
            yield f"the order {order.key} was never accepted"
        elif analysis not in known:
            yield f"the order {order.key} was accepted as {analysis} and is lost"
    studies = Counter(json.loads(row["order_json"])["specimens"][0]["slides"][0]["study"] for row in evidence.analyses)
    for study, count in studies.items():
        if count > 1:
            yield f"the order of the study {study} was accepted {count} times"
    for analysis in set(known) - set(ids.values()):
        yield f"the analysis {analysis} was answered to nobody"


def _ends(evidence: Evidence) -> Iterator[str]:
    ends: defaultdict[str, list[str]] = defaultdict(list)
    for event in evidence.events:
        if event["kind"] == "state" and event["data"]["state"] in _FINAL:
            ends[event["analysis_id"]].append(event["data"]["state"])
    for row in evidence.analyses:
        if row["state"] != "completed":
            yield f"{row['id']} is {row['state']} ({row['failure_reason']}) in the stage {row['stage']}"
        if ends[row["id"]] != ["completed"]:
            yield f"{row['id']} was told to have ended {ends[row['id']]}"
        if row["worker"] is not None:
            yield f"{row['id']} is still in the hands of {row['worker']}"
    first = Counter(row["analysis_id"] for row in evidence.revisions)
    for row in evidence.analyses:
        if first[row["id"]] != 1:
            yield f"{row['id']} has {first[row['id']]} reports"


def _steps(evidence: Evidence) -> Iterator[str]:
    finished: Counter[tuple[str, str]] = Counter()
    numbers: defaultdict[str, list[int]] = defaultdict(list)
    for event in evidence.events:
        numbers[event["analysis_id"]].append(event["seq"])
        if event["kind"] == "step" and event["data"]["status"] == "finished":
            finished[event["analysis_id"], event["data"]["step"]] += 1
    for row in evidence.analyses:
        for step in STEPS:
            if finished[row["id"], step] != 1:
                yield f"{row['id']} finished its step {step} {finished[row['id'], step]} times"
        if len(set(numbers[row["id"]])) != len(numbers[row["id"]]):
            yield f"{row['id']} has two events of the same number"


def _archive(evidence: Evidence, orders: Sequence[Order]) -> Iterator[str]:
    of_study = {
        json.loads(row["order_json"])["specimens"][0]["slides"][0]["study"]: row["id"] for row in evidence.analyses
    }
    for order in orders:
        stored = Counter(evidence.stored.get(order.study, ()))
        made = Counter(evidence.made.get(of_study.get(order.study, ""), ()))
        for sop in stored - made:
            yield f"the archive holds {sop} of {order.key} too often, or nobody made it"
        for sop in made - stored:
            yield f"the archive lacks {sop} of {order.key}"
        if not made:
            yield f"the order {order.key} has no report on disk"
    for study in set(evidence.stored) - {order.study for order in orders}:
        yield f"the archive holds a study {study} that nobody ordered"


def _deliveries(evidence: Evidence) -> Iterator[str]:
    told: defaultdict[str, list[Row]] = defaultdict(list)
    for row in evidence.deliveries:
        if row["state"] != "delivered" or row["worker"] is not None:
            yield f"the delivery {row['id']} ({row['channel']}) is {row['state']}: {row['reason']}"
        told[row["analysis_id"]].append(row)
    for analysis in evidence.analyses:
        kinds = Counter((row["channel"], row["event"]) for row in told[analysis["id"]])
        if kinds != {("stow", "report"): 1, ("webhook", "analysis.completed"): 1}:
            yield f"{analysis['id']} has these deliveries: {dict(kinds)}"
    rows = {row["id"] for row in evidence.deliveries if row["channel"] == "webhook"}
    for identifier in rows - set(evidence.taken):
        yield f"the webhook {identifier} never arrived"
    for identifier in set(evidence.taken) - rows:
        yield f"the webhook {identifier} arrived and nobody had written it"
    if evidence.refused:
        yield f"{evidence.refused} webhooks had no right signature"


def _left_behind(evidence: Evidence) -> Iterator[str]:
    if evidence.audit:
        yield f"the audit trail does not verify: {evidence.audit}"
    for what, found in (
        ("workflow is open", evidence.workflows_open),
        ("process is left", evidence.processes),
        ("half-written file is left", evidence.parts),
        ("lock is held", evidence.locked),
    ):
        for each in found:
            yield f"a {what}: {each}"
