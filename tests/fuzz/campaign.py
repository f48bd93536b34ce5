"""The campaign: hundreds of cases, resumable, and the page that says what came of them."""

import hashlib
import json
import os
import platform
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from tests.fuzz.cases import MUTATORS, SEEDS_A_CAMPAIGN
from tests.fuzz.judge import MEMORY_BYTES, WALL_S, Verdict, judged
from tests.fuzz.planted import PLANTED, planted
from tests.fuzz.runner import ROOT, Judged, run

RESULTS = ROOT / "docs" / "results" / "fuzz.json"
PAGE = ROOT / "docs" / "fuzz.md"
_PROGRESS = ROOT / "build" / "fuzz" / "judged.jsonl"


def seeds_of(cases: int, seed: int) -> range:
    """The seeds of a campaign: consecutive, so that they go round all mutators."""
    return range(seed * SEEDS_A_CAMPAIGN, seed * SEEDS_A_CAMPAIGN + cases)


def run_campaign(corpus: Path, cases: int, seed: int, minutes: float) -> int:
    """Judge what is not judged yet, then write results and page. The exit status: 1 where a case failed, 2 where time
    ran out (call it again to go on)."""
    began = time.monotonic()
    control = control_row()
    code = _code_version()
    done = _judged_before(code)
    todo = [number for number in seeds_of(cases, seed) if number not in done]
    print(f"{cases} cases of seed {seed}, {len(todo)} to do")
    _PROGRESS.parent.mkdir(parents=True, exist_ok=True)
    with _PROGRESS.open("a") as progress:

        def each(case: Judged) -> None:
            progress.write(json.dumps({"code": code, **asdict(case)}) + "\n")
            progress.flush()
            done[case.seed] = case
            if case.verdict.failed:
                print(f"{case.seed} {case.subject}/{case.mutator} of {case.source}: {case.verdict.outcome}", flush=True)

        run(todo, corpus, until=began + 60 * minutes, each=each)
    found = [done[number] for number in seeds_of(cases, seed) if number in done]
    document = _document(found, control, cases, seed, time.monotonic() - began)
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    PAGE.write_text(page(document))
    failed = [case for case in found if case.verdict.failed]
    print(f"{len(found)} judged, {len(failed)} failed, control {'held' if document['control_held'] else 'BROKEN'}")
    if len(found) < cases:
        print("time ran out: call the same command again to go on")
        return 2
    return 1 if failed or not document["control_held"] else 0


def control_row() -> dict[str, dict[str, str]]:
    """Each planted bug with the verdict that it must get and the one that it got. Call it from a single thread."""
    rows = {}
    with tempfile.TemporaryDirectory(prefix="pathserve-fuzz-") as top:
        for number, (name, (expected, _)) in enumerate(PLANTED.items()):
            case = Path(top) / f"planted-{number}"
            (case / "in").mkdir(parents=True)
            (case / "store").mkdir()
            (case / "in" / "level-0.dcm").write_bytes(b"x")
            verdict = judged(planted(name), case, wall_s=1.0, memory_bytes=MEMORY_BYTES // 2)
            rows[name] = {"expected": expected, "verdict": verdict.outcome}
    return rows


def _judged_before(code: str) -> dict[int, Judged]:
    """What this code has judged already; a changed product or harness begins anew."""
    found: dict[int, Judged] = {}
    if _PROGRESS.exists():
        for line in _PROGRESS.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the last line of a campaign that was killed
            if entry.pop("code") == code:
                found[entry["seed"]] = Judged(**{**entry, "verdict": Verdict(**entry["verdict"])})
    return found


def _code_version() -> str:
    """The digest of the product's and the harness's sources as they lie in the tree."""
    listed = subprocess.run(
        ["git", "ls-files", "-s", "gateway", "tests/fuzz"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    changed = subprocess.run(
        ["git", "diff", "HEAD", "--", "gateway", "tests/fuzz"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    return hashlib.sha256(listed.encode() + changed).hexdigest()


def _document(
    found: Iterable[Judged], control: dict[str, dict[str, str]], cases: int, seed: int, seconds: float
) -> dict[str, object]:
    found = list(found)
    rows = []
    for subject, mutator in MUTATORS:
        of_this = [case.verdict for case in found if (case.subject, case.mutator) == (subject, mutator)]
        if of_this:
            rows.append(
                {
                    "subject": subject,
                    "mutator": mutator,
                    "cases": len(of_this),
                    "outcomes": dict(sorted(Counter(verdict.outcome for verdict in of_this).items())),
                    "errors": dict(sorted(Counter(verdict.error for verdict in of_this if verdict.error).items())),
                    "slowest_s": round(max(verdict.seconds for verdict in of_this), 2),
                    "peak_mb": max(verdict.peak_mb for verdict in of_this),
                }
            )
    return {
        "command": f"python -m tests.fuzz campaign --cases {cases} --seed {seed}",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "limits": {"seconds": WALL_S, "resident_bytes": MEMORY_BYTES},
        "seconds": round(seconds),
        "cases": len(found),
        "outcomes": dict(sorted(Counter(case.verdict.outcome for case in found).items())),
        "failed": [asdict(case) for case in found if case.verdict.failed],
        "control": control,
        "control_held": all(row["expected"] == row["verdict"] for row in control.values()),
        "mutators": rows,
    }


def page(document: dict[str, object]) -> str:
    """docs/fuzz.md from the results; a pure function, so that a test can hold the page to them."""
    rows: list[dict[str, object]] = document["mutators"]  # type: ignore[assignment]
    failed: list[dict[str, object]] = document["failed"]  # type: ignore[assignment]
    control: dict[str, dict[str, str]] = document["control"]  # type: ignore[assignment]
    outcomes: dict[str, int] = document["outcomes"]  # type: ignore[assignment]
    lines = [
        "# Bad input",
        "",
        "Damaged slides, results, partly fetched instances and archives, each read by the product in a process of its",
        "own. A case passes where it gives a result, or one typed error of the right family whose sentence names no",
        f"path; in at most {WALL_S:.0f} s (a misbehaving PACS: its timeouts, and {WALL_S:.0f} s more), under",
        f"{MEMORY_BYTES >> 20} MB of resident memory, and with no file created, changed or removed outside the store.",
        "A case is its seed: `python -m tests.fuzz replay SEED` shows it again. Seconds are the clock's, with whatever",
        "else the machine had to do; a limit counts without the time for which a case stood in line for a core.",
        "",
        "Given are: a *slide* in a folder, found, opened and read; a slide about which a *report* and all its objects",
        "are written; an *object* of ours, stored in a folder; one *returned* by an archive, compared with what was",
        "sent; a *partial* instance; the frame *cache*; and a *pacs* that misbehaves at one kind of request.",
        "",
        f"`{document['command']}` on {document['machine']}: {document['cases']} cases, "
        + ", ".join(f"{count} {name}" for name, count in outcomes.items())
        + f"; {len(failed)} failed.",
        "",
        "| given | damage | cases | a result | a typed error | failed | slowest, s | peak, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        of_row: dict[str, int] = row["outcomes"]  # type: ignore[assignment]
        result, refused = of_row.get("result", 0), of_row.get("refused", 0)
        bad = sum(of_row.values()) - result - refused
        lines.append(
            f"| {row['subject']} | {row['mutator']} | {row['cases']} | {result} | {refused} | {bad} | "
            f"{row['slowest_s']} | {row['peak_mb']} |"
        )
    lines += ["", "## Failed cases", ""]
    lines += [f"- {case['seed']}: {case['subject']}, {case['mutator']} of {case['source']}" for case in failed] or [
        "None."
    ]
    lines += [
        "",
        "## Control",
        "",
        "A harness that catches nothing passes everything: bugs are planted in a target, and each must get its due.",
        "",
        "| the target | verdict due | verdict given |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {row['expected']} | {row['verdict']} |" for name, row in control.items()]
    return "\n".join(lines) + "\n"
