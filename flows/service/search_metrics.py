"""Measure search durations as a Prometheus histogram."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import product
from time import perf_counter
from typing import get_args

from prometheus_client import Counter, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from embedding.images.decode import BadImage
from flows.search.query import BadText, Find, NoSuchRecord, QueryKind

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)
LABELS = ("query", "find")


class SearchTimes(Collector):
    """Collect the durations and failures of all searches of a process."""

    def __init__(self) -> None:
        self._seconds = Histogram(
            "sightline_search_duration_seconds",
            "Seconds that searches took here, the model included, by kind of query and of result.",
            LABELS,
            buckets=BUCKETS_S,
            registry=None,
        )
        self._failures = Counter(
            "sightline_search_failures",
            "Searches that ended in an error, other than an invalid query.",
            LABELS,
            registry=None,
        )
        for labels in product(get_args(QueryKind), get_args(Find)):  # from 0 on: `rate` misses a first 1
            self._seconds.labels(*labels)
            self._failures.labels(*labels)

    @contextmanager
    def of(self, kind: str, find: str) -> Iterator[None]:
        """Time the search in this context."""
        started = perf_counter()
        try:
            yield
        except (BadImage, BadText, NoSuchRecord):
            raise
        except Exception:
            self._failures.labels(kind, find).inc()
            raise
        self._seconds.labels(kind, find).observe(perf_counter() - started)

    def collect(self) -> Iterable[Metric]:
        """Return both metrics, without their creation times."""
        for metric in (*self._seconds.collect(), *self._failures.collect()):
            metric.samples = [one for one in metric.samples if not one.name.endswith("_created")]
            yield metric
