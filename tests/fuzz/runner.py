"""Cases side by side: each worker is a process of one thread that forks a child for every case."""

import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.fuzz.cases import case_of
from tests.fuzz.judge import Task, Verdict, fresh, judged

ROOT = Path(__file__).parents[2]
WORKERS = 4
"""More than the cores of a small machine: a pull from a bad PACS mostly waits."""
_DAMAGE = {"wall_s": 120.0, "memory_bytes": 4 << 30}


@dataclass(frozen=True, slots=True)
class Judged:
    """A case and how it ended."""

    seed: int
    subject: str
    mutator: str
    source: str
    verdict: Verdict


def judge(seed: int, corpus: Path, folder: Path, *, keep: bool = False) -> Judged:
    """Damage and read one case below `folder`; the folder is removed again unless it is to be kept."""
    case = case_of(seed, corpus)
    place = fresh(folder / f"case-{seed}")
    try:
        harmed = judged(Task(case.damage, (), ("in", "outside", "returned")), place, **_DAMAGE)
        if harmed.outcome != "result":
            verdict = Verdict("no-case", harmed.outcome, harmed.detail)
        else:
            for name in case.task.may_write:
                if "." not in name:
                    (place / name).mkdir()
            verdict = judged(case.task, place, wall_s=case.wall_s)
    finally:
        if not keep:
            shutil.rmtree(place, ignore_errors=True)
    return Judged(seed, case.subject, case.mutator, case.source, verdict)


def work(corpus: Path, folder: Path) -> None:
    """Judge the seeds that come line by line, answer line by line: the main loop of a worker."""
    for line in sys.stdin:
        print(json.dumps(asdict(judge(int(line), corpus, folder))), flush=True)


def run(
    seeds: Iterable[int],
    corpus: Path,
    *,
    workers: int = WORKERS,
    until: float | None = None,
    each: Callable[[Judged], None] = lambda judged: None,
) -> list[Judged]:
    """Judge all seeds, or those that there is time for until the monotonic time `until`; in their order."""
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    for seed in seeds:
        todo.put(seed)
    found: list[Judged] = []
    lock = threading.Lock()

    def feed(folder: Path) -> None:
        command = [sys.executable, "-m", "tests.fuzz", "work", str(corpus), str(folder)]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(folder)}
        with subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        ) as worker:
            assert worker.stdin is not None
            assert worker.stdout is not None
            while until is None or time.monotonic() < until:
                try:
                    seed = todo.get_nowait()
                except queue.Empty:
                    break
                print(seed, file=worker.stdin, flush=True)
                answer = json.loads(worker.stdout.readline())
                judged_case = Judged(**{**answer, "verdict": Verdict(**answer["verdict"])})
                with lock:
                    found.append(judged_case)
                    each(judged_case)
            worker.stdin.close()

    with tempfile.TemporaryDirectory(prefix="pathserve-fuzz-") as top:
        folders = [Path(top) / f"worker-{number}" for number in range(workers)]
        for folder in folders:
            folder.mkdir()
        threads = [threading.Thread(target=feed, args=(folder,)) for folder in folders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return sorted(found, key=lambda judged: judged.seed)
