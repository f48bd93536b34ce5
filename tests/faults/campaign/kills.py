"""The kills: which, and when. All of it follows from the seed, which is printed."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.faults.campaign.site import Site

TARGETS = ("gateway", "worker", "triton", "stub", "pacs", "database")


@dataclass(frozen=True)
class Kill:
    """One kill: when `after` analyses have ended and `delay_s` more seconds are over. So they fall into the work, on
    machines of any speed, and often enough into the recovery from another one."""

    number: int
    target: str
    after: int
    delay_s: float


@dataclass(frozen=True)
class Done:
    """A kill that was carried out at `second` of the campaign, of this process."""

    kill: Kill
    second: float
    pid: int


def draw(rng: random.Random, kills: int, analyses: int, targets: tuple[str, ...]) -> list[Kill]:
    """Every target in turn, in an order by chance, at moments by chance."""
    chosen = [targets[number % len(targets)] for number in range(kills)]
    rng.shuffle(chosen)
    moments = sorted((rng.uniform(0, 0.9 * analyses), rng.uniform(0, 5)) for _ in range(kills))
    return [
        Kill(number, target, int(after), delay_s)
        for number, (target, (after, delay_s)) in enumerate(zip(chosen, moments, strict=True), 1)
    ]


@dataclass
class Killer:
    """Carries the kills out, one after the other, from a thread of its own."""

    site: Site
    kills: list[Kill]
    rng: random.Random
    ended: Callable[[], int]
    tell: Callable[[str], None]
    done: list[Done] = field(default_factory=list)
    error: BaseException | None = None
    _began: float = field(default_factory=time.monotonic)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="killer", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(60)

    @property
    def over(self) -> bool:
        return len(self.done) == len(self.kills) or self.error is not None

    def by_target(self) -> Counter[str]:
        return Counter(each.kill.target for each in self.done)

    def _run(self) -> None:
        try:
            for kill in self.kills:
                while self.ended() < kill.after:
                    if self._stop.wait(0.1):
                        return
                if self._stop.wait(kill.delay_s):
                    return
                self._carry_out(kill)
        except BaseException as error:
            self.error = error

    def _carry_out(self, kill: Kill) -> None:
        """Kill as soon as there is something to kill: what was killed just before may not be there again yet."""
        while (pid := self.site.kill(kill.target, self.rng)) is None:
            if self._stop.wait(0.5):
                return
        second = time.monotonic() - self._began
        self.done.append(Done(kill, second, pid))
        self.tell(f"{second:6.1f} s  kill {kill.number:2d}: {kill.target} ({pid}), {self.ended()} ended")
