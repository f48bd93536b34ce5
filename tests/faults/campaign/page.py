"""The campaign as a table in docs/results/faults.md; the numbers of each database's last campaign lie beside it."""

import json
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from tests.faults.campaign.run import Result

PAGE = Path(__file__).parents[3] / "docs" / "results" / "faults.md"
NUMBERS = PAGE.with_suffix(".json")

_HEAD = """# Kills: what was killed, and what came of it

`kill -9` at random moments of everything that takes part, while a LIS goes on ordering: the gateway, a worker, Triton,
a model's process in it (stub), the PACS (Orthanc) and the database. Gateway, PACS and database are started again by the
harness, as an init system does; the rest is the gateway's own business. Each analysis has a patient, an accession, a
container and a slide of its own (a phantom of at most 16 tiles). Two workers share one embedded Triton.

    make campaign    # or: python -m tests.faults.campaign --kills 50 --analyses 200 --database postgresql --write

Which process is killed, and after how many ended analyses, follows from the seed. At the end, when the gateway has
ended by SIGTERM, all evidence is judged: every order accepted once and completed once, every step finished once, every
object in the archive exactly once (SOP instance UIDs of the files against the archive's list), every delivery
delivered, every webhook arrived with a right signature, the audit trail whole, no open workflow, held turn, process,
lock or half-written file left behind. The controls tamper with that very evidence, one thing at a time, and the judge
has to notice.

"""


def lines(result: Result) -> list[str]:
    """The table of one campaign, as Markdown."""
    numbers = numbers_of(result)
    return [f"| {name} | {value} |" for name, value in (("", result.database), ("---", "---"), *numbers.items())]


def numbers_of(result: Result) -> dict[str, Any]:
    """The rows of a campaign's table."""
    kills = Counter(each.kill.target for each in result.kills)
    takeovers = result.takeovers
    taken = f"{median(takeovers):.0f} / {max(takeovers):.0f} s ({len(takeovers)})" if takeovers else "none was needed"
    missed = [each.name for each in result.controls if not each.noticed]
    repeated = f" ({result.repeated_webhooks} sent again under the same id)"
    return {
        "seed": result.seed,
        "machine": result.machine,
        "duration": f"{result.seconds / 60:.1f} min",
        "analyses": ", ".join(f"{count} {state}" for state, count in sorted(result.states.items())),
        "kills": ", ".join(f"{target} {count}" for target, count in sorted(kills.items())),
        "orders sent again with their key": result.resent,
        "begun and tried again": ", ".join(f"{name} {count}" for name, count in sorted(result.tries.items())),
        "takeover from a killed worker, median / longest": taken,
        "webhooks taken": f"{result.webhooks}{repeated if result.repeated_webhooks else ''}",
        "SIGTERM to the end": f"{result.stop_s:.1f} s",
        "faults": len(result.faults) or "none",
        "control": f"{len(result.controls) - len(missed)} of {len(result.controls)} tamperings noticed"
        + (f"; not: {', '.join(missed)}" if missed else ""),
    }


def write_page(result: Result) -> None:
    """Put the campaign into the page, in place of the last one on the same database."""
    known = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {}
    known[result.database] = numbers_of(result)
    NUMBERS.write_text(json.dumps(known, indent=1) + "\n")
    databases = sorted(known)
    rows = [f"| | {' | '.join(databases)} |", "|---" * (len(databases) + 1) + "|"]
    rows += [
        f"| {name} | {' | '.join(str(known[database].get(name, '')) for database in databases)} |"
        for name in numbers_of(result)
    ]
    tampered = "\n".join(f"- {each.name}" for each in result.controls)
    PAGE.write_text(f"{_HEAD}{chr(10).join(rows)}\n\nThe tamperings of the control:\n\n{tampered}\n")
