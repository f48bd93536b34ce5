"""Metrics that are read from the ledger at each scrape: how many analyses and deliveries wait, and for how long."""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway.analyses.ledger import Ledger
from gateway.domain.analysis import State
from gateway.domain.order import Priority
from gateway.operations.errors import PathserveError


class LedgerCollector(Collector):
    """`case_age_seconds` (oldest unfinished by priority), `queue_depth` (by state), `deliveries` (channel, state)."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def describe(self) -> Iterator[GaugeMetricFamily]:
        return iter(self._families())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        ages, depths, deliveries = self._families()
        try:
            found = self._ledger.statistics()
            outbox = self._ledger.outbox.statistics()
        except PathserveError:
            # No samples are better than false ones: an alert on absence sees it.
            return
        for priority in Priority:
            ages.add_metric([priority.value], found.oldest_s.get(priority.value, 0.0))
        for state in State:
            depths.add_metric(["analyses", state.value], found.by_state.get(state.value, 0))
        for (channel, delivery_state), count in outbox.items():
            deliveries.add_metric([channel.value, delivery_state.value], count)
        yield ages
        yield depths
        yield deliveries

    @staticmethod
    def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
        return (
            GaugeMetricFamily("case_age_seconds", "Age of the oldest unfinished analysis", labels=["priority"]),
            GaugeMetricFamily("queue_depth", "Analyses by state", labels=["queue", "state"]),
            GaugeMetricFamily("deliveries", "Deliveries in the outbox", labels=["channel", "state"]),
        )
