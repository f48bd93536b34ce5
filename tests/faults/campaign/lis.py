"""A laboratory information system: it places orders while everything is being killed, and does as a LIS does.

Each order has an idempotency key of its own. What is not answered 202 is sent again, with the same key, until it is.
"""

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from gateway.slides.phantom import write_phantom
from gateway.slides.phantom_dicom import Identity
from tests.support.gateway import KEY, Case, case_of, study_in
from tests.support.http import NO_TLS

SIDE_PX = 896
"""Of a slide: four tiles each way at most."""
BACKLOG = 40
"""Orders that are placed before the first of them has ended; afterwards one for each that ends."""


@dataclass(frozen=True)
class Order:
    """One order of the campaign; `key` is its Idempotency-Key."""

    key: str
    case: Case
    priority: str

    @property
    def study(self) -> str:
        return study_in(self.case)


def make_orders(folder: Path, count: int, rng: random.Random) -> list[Order]:
    """So many patients, each with an accession, a container and a slide of its own, as files below `folder`."""
    orders = []
    for number in range(count):
        identity = Identity(
            patient_id=f"CAMPAIGN-{number}",
            patient_name=f"CAMPAIGN^{number}",
            accession=f"CAMPAIGN-ACC-{number}",
            container=f"CAMPAIGN-{number}-A-1",
        )
        slide = folder / f"{number:04d}"
        write_phantom(slide, kind="he", width_px=SIDE_PX, height_px=SIDE_PX, seed=number, identity=identity)
        priority = rng.choices(("STAT", "URGENT", "ROUTINE"), (1, 2, 7))[0]
        orders.append(Order(f"campaign-{number}", case_of(slide), priority))
    return orders


@dataclass
class Lis:
    """Places the orders from a thread of its own. `ids`: what was answered, by idempotency key."""

    url: str
    orders: Sequence[Order]
    ids: dict[str, str] = field(default_factory=dict)
    resent: int = 0
    placed_after_loss: int = 0
    _ended: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._place, name="lis", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(30)

    def ended(self, count: int) -> None:
        """So many analyses have ended: the next orders may be placed."""
        self._ended = count

    def _place(self) -> None:
        for number, order in enumerate(self.orders):
            while number >= BACKLOG + self._ended:
                if self._stop.wait(0.1):
                    return
            tries = 0
            while (analysis := self._posted(order)) is None:
                tries += 1
                if self._stop.wait(0.5):
                    return
            self.resent += tries
            self.placed_after_loss += tries > 0
            self.ids[order.key] = analysis

    def _posted(self, order: Order) -> str | None:
        body = {"protocol": "tissue-classification", "priority": order.priority, **order.case}
        headers = {"Authorization": f"Bearer {KEY}", "Idempotency-Key": order.key}
        try:
            answer = httpx.post(
                f"{self.url}/v1/analyses", json=body, headers=headers, timeout=15, trust_env=False, verify=NO_TLS
            )
        except httpx.TransportError:
            return None
        if answer.status_code == 202:
            return str(answer.json()["id"])
        # What is down for a moment says 503 or 507; anything else is a fault that no LIS could mend.
        assert answer.status_code in (500, 502, 503, 504, 507), answer.text
        return None
