"""What is counted, and the page that shows it to Prometheus.

Whoever does a thing counts it, once: the service what becomes of calls, the pool what becomes of models, the store its
statements; transports count nothing. What somebody keeps anyway is read when the page is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import CollectorRegistry

from modelops.metrics.families import FAMILIES, Family

#: What families that are read have now: for each, a value for each combination of its labels.
Readings = dict[Family, dict[tuple[str, ...], float]]

# A second series for each counter and histogram, which says when it was made: nobody asks, and it doubles the page.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The counters of one coordinator. Where it is not `enabled` nothing is counted, and the page is empty.

    May be used from any thread.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self._registry = CollectorRegistry()
        self._counters: dict[Family, prometheus_client.Counter] = {}
        self._histograms: dict[Family, prometheus_client.Histogram] = {}
        if not enabled:
            return
        for family in FAMILIES:
            if family.kind == "counter" and not family.read:
                self._counters[family] = prometheus_client.Counter(
                    family.name, family.help, family.labels, registry=self._registry
                )
            elif family.kind == "histogram":
                self._histograms[family] = prometheus_client.Histogram(
                    family.name, family.help, family.labels, buckets=family.buckets, registry=self._registry
                )
        prometheus_client.ProcessCollector(registry=self._registry)
        prometheus_client.GCCollector(registry=self._registry)

    def count(self, family: Family, *labels: str, by: float = 1) -> None:
        """One more, or `by` more; `labels` in the family's order."""
        if self.enabled:
            counter = self._counters[family]
            (counter.labels(*labels) if labels else counter).inc(by)

    def observe(self, family: Family, seconds: float, *labels: str) -> None:
        """Something took so long."""
        if self.enabled:
            histogram = self._histograms[family]
            (histogram.labels(*labels) if labels else histogram).observe(seconds)

    def forget(self, model: str) -> None:
        """The model is no more: nor are its series."""
        for family, instrument in (*self._counters.items(), *self._histograms.items()):
            if "model" in family.labels:
                instrument.remove_by_labels({"model": model})

    def page(self, readings: Readings) -> bytes:
        """Every family, with what it has; one that has nothing is announced all the same."""
        if not self.enabled:
            return b""
        return prometheus_client.generate_latest(_Page(self._registry, readings))


class _Page:
    """What was counted and what was read, as a registry that is collected once."""

    def __init__(self, registry: CollectorRegistry, readings: Readings) -> None:
        self._registry = registry
        self._readings = readings

    def collect(self) -> Iterator[Metric]:
        yield from _read(self._readings)
        yield from self._registry.collect()


def _read(readings: Readings) -> Iterable[Metric]:
    for family in FAMILIES:
        if family.read:
            kind = GaugeMetricFamily if family.kind == "gauge" else CounterMetricFamily
            metric = kind(family.name, family.help, labels=family.labels)
            for labels, value in readings.get(family, {}).items():
                metric.add_metric(labels, value)
            yield metric
