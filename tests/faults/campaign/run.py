"""One campaign: orders, kills, the end of everything, the judgement."""

import os
import platform
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil
import sqlalchemy as sa

from gateway.analyses.ledger.schema import ANALYSES, WORKERS
from tests.faults.campaign.controls import Control, controls
from tests.faults.campaign.evidence import Evidence, gather, open_engine
from tests.faults.campaign.judge import faults
from tests.faults.campaign.kills import TARGETS, Done, Killer, draw
from tests.faults.campaign.lis import Lis, make_orders
from tests.faults.campaign.site import Site
from tests.support.gateway import PATHSERVE

_FINAL = ("completed", "failed", "cancelled")
_LOOK_S = 0.5


@dataclass(frozen=True)
class Result:
    """What a campaign came to. `faults` is empty where all is well; `takeovers` are seconds from the kill of a worker
    to the moment in which none of its analyses was in its hands any more."""

    seed: int
    database: str
    analyses: int
    seconds: float
    stop_s: float
    kills: tuple[Done, ...]
    takeovers: tuple[float, ...]
    resent: int
    tries: dict[str, int]
    states: dict[str, int]
    webhooks: int
    repeated_webhooks: int
    faults: tuple[str, ...]
    controls: tuple[Control, ...]
    machine: str


def run(
    folder: Path,
    *,
    seed: int,
    kills: int,
    analyses: int,
    database: str,
    most_s: float,
    tell: Callable[[str], None] = lambda text: print(text, flush=True),
) -> Result:
    """Run a campaign below `folder`; everything that follows from chance follows from the seed."""
    rng = random.Random(seed)
    orders = make_orders(folder / "slides", analyses, rng)
    targets = tuple(target for target in TARGETS if target != "database" or database == "postgresql")
    drawn = draw(rng, kills, analyses, targets)
    with ExitStack() as stack:
        site = stack.enter_context(Site(folder, postgres=database == "postgresql"))
        for each in sorted((folder / "slides").iterdir()):
            site.upload(each)
        tell(f"seed {seed}: {analyses} analyses, {kills} kills, {database}")
        watch = stack.enter_context(_Watch(site))
        lis = Lis(site.url, orders)
        killer = Killer(site, drawn, rng, lambda: watch.ended, tell)
        began = time.monotonic()
        lis.start()
        killer.start()
        try:
            while time.monotonic() < began + most_s and not (killer.over and watch.all_is_done(analyses)):
                site.keep()
                watch.look({each.pid: each.second for each in killer.done if each.kill.target == "worker"}, began)
                lis.ended(watch.ended)
                time.sleep(_LOOK_S)
        finally:
            lis.stop()
            killer.stop()
        if killer.error is not None:
            raise killer.error
        seconds = time.monotonic() - began
        tell(f"{seconds:6.1f} s  {watch.ended} of {analyses} have ended")
        site.keep()
        stop_s = site.stop()
        evidence = gather(site, _audit(site))
        found = faults(evidence, orders, lis.ids)
        if not killer.over:
            found.append(f"{len(drawn) - len(killer.done)} kills were not carried out in {most_s:.0f} s")
        return Result(
            seed=seed,
            database=database,
            analyses=analyses,
            seconds=seconds,
            stop_s=stop_s,
            kills=tuple(killer.done),
            takeovers=tuple(watch.takeovers.values()),
            resent=lis.resent,
            tries=_tries(evidence),
            states=dict(Counter(row["state"] for row in evidence.analyses)),
            webhooks=len(evidence.taken),
            repeated_webhooks=sum(evidence.taken.values()) - len(evidence.taken),
            faults=tuple(found),
            controls=tuple(controls(evidence, orders, lis.ids)),
            machine=f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.system()}",
        )


class _Watch:
    """Looks at the database now and then: how many have ended, and when a dead worker's analyses were taken over."""

    def __init__(self, site: Site) -> None:
        self._engine = open_engine(site.database_url)
        self.ended = 0
        self.takeovers: dict[int, float] = {}
        self._held: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.dispose()

    def look(self, killed: dict[int, float], began: float) -> None:
        """`killed`: process ids of killed workers, and the second of each kill."""
        try:
            with self._engine.connect() as connection:
                rows = connection.execute(sa.select(ANALYSES.c.id, ANALYSES.c.state, ANALYSES.c.worker)).all()
                pids = {row.id: row.pid for row in connection.execute(sa.select(WORKERS.c.id, WORKERS.c.pid))}
        except sa.exc.DBAPIError:
            return  # it was killed just now
        self.ended = sum(row.state in _FINAL for row in rows)
        now = time.monotonic() - began
        for pid, second in killed.items():
            in_hand = any(row.worker is not None and pids.get(row.worker) == pid for row in rows)
            if in_hand:
                self._held.add(pid)
            elif pid in self._held and pid not in self.takeovers:
                self.takeovers[pid] = now - second

    def all_is_done(self, analyses: int) -> bool:
        """Whether all have ended, and their deliveries too; a webhook that tells the last end is the last of all."""
        if self.ended < analyses:
            return False
        try:
            with self._engine.connect() as connection:
                waiting = sa.text("SELECT count(*) FROM deliveries WHERE state IN ('pending', 'held')")
                return connection.execute(waiting).scalar() == 0
        except sa.exc.DBAPIError:
            return False


def _audit(site: Site) -> str:
    done = subprocess.run(
        [PATHSERVE, "audit", "verify"], env=site.environment(), capture_output=True, text=True, timeout=120
    )
    return "" if done.returncode == 0 else (done.stdout + done.stderr).strip()[-300:]


def _tries(evidence: Evidence) -> dict[str, int]:
    """How often each step was begun, and tried again."""
    counts: Counter[str] = Counter()
    for event in evidence.events:
        if event["kind"] == "step" and event["data"]["status"] in ("started", "retry"):
            counts[f"{event['data']['step']} {event['data']['status']}"] += 1
    return dict(counts)
