"""Expose the latest observation and the searches of this process to Prometheus."""

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flows.config.cron import longest_pause
from flows.config.settings import Schedules
from flows.service.observer import CatalogStatus, IndexStatus, Observation, Observer
from storage.consistency.differences import DAMAGE
from storage.postgres.run_totals import Totals
from storage.postgres.statistics import EvaluationFigure

ENDINGS = ("completed", "failed", "crashed", "cancelled", "refused")
RECALL = re.compile(r"recall@(\d+)")

Samples = Mapping[tuple[str, ...], float]
"""Values by label values."""


def metrics_route(observer: Observer) -> Route:
    """Return the route of the metrics; a scrape queries no store."""
    registry = CollectorRegistry()
    registry.register(_ObservedStores(observer))
    registry.register(observer.backend.search_times)
    ProcessCollector(registry=registry)

    def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})

    return Route("/metrics", metrics)


class _ObservedStores(Collector):
    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def collect(self) -> Iterable[Metric]:
        schedules = self._observer.backend.settings.schedules
        return families(self._observer.latest, schedules, datetime.now(UTC))


def families(seen: Observation, schedules: Schedules, now: datetime) -> Iterator[Metric]:
    """Yield all metrics of an observation, without those of unavailable stores."""
    yield gauge(
        "build_info", "The version of Sightline that answers.", {(version("sightline"),): 1}, "version"
    )
    yield gauge(
        "observation_age_seconds",
        "Seconds since the stores were observed; all other values are from then.",
        {(): (now - seen.at).total_seconds()},
    )
    yield gauge(
        "store_up",
        "Whether a store answered; if 0, its other metrics are missing.",
        {("postgres",): seen.catalog is not None, ("qdrant",): seen.index is not None},
        "store",
    )
    yield gauge(
        "disk_free_bytes", "Free space of the disk of the data directory.", {(): seen.disk_free_bytes}
    )
    yield gauge("disk_bytes", "Size of the disk of the data directory.", {(): seen.disk_bytes})
    yield gauge(
        "schedule_longest_pause_seconds",
        "Longest time between two scheduled runs of a flow; missing for flows without a schedule.",
        longest_pauses(schedules),
        "flow",
    )
    if seen.index is not None:
        yield from of_index(seen.index)
    if seen.catalog is not None:
        yield from of_records(seen.catalog, now)
        yield from of_runs(seen.catalog, schedules)
        yield from of_ingests(seen.catalog.totals)
        yield from of_quality(seen.catalog)


def of_index(index: IndexStatus) -> Iterator[Metric]:
    """Yield the metrics of the active collection."""
    collection = index.collection
    if collection is None:
        return
    yield gauge("index_points", "Points in the active collection.", {(): index.points})
    yield gauge(
        "index_info",
        "The active collection, and the model that made it.",
        {(collection.model, collection.fingerprint, collection.name): 1},
        "model",
        "fingerprint",
        "collection",
    )


def of_records(catalog: CatalogStatus, now: datetime) -> Iterator[Metric]:
    """Yield the numbers of records and rejects, and the index freshness."""
    figures = catalog.figures
    newest = figures.newest_waiting
    states = {"searchable": figures.searchable, "pending": figures.pending, "deleted": figures.deleted}
    yield gauge(
        "records",
        "Records: searchable as they are, pending (not in the index yet, or changed since), or deleted.",
        {(state,): many for state, many in states.items()},
        "state",
    )
    yield gauge(
        "oldest_pending_age_seconds",
        "Waiting time of the oldest record that is not searchable as it is; 0 if none waits.",
        {(): figures.age_s(now)},
    )
    yield gauge(
        "newest_pending_age_seconds",
        "Waiting time of the newest such record; 0 if none waits.",
        {(): 0.0 if newest is None else max(0.0, (now - newest).total_seconds())},
    )
    yield gauge(
        "rejects_open",
        "Rejected records that are still open, by reason; see `sightline rejects`.",
        {(one.reason, one.source): one.many for one in catalog.rejects},
        "reason",
        "source",
    )


def of_runs(catalog: CatalogStatus, schedules: Schedules) -> Iterator[Metric]:
    """Yield the outcomes and durations of the runs of each flow."""
    totals = catalog.totals
    flows = {*type(schedules).model_fields, *(one.flow for one in totals.outcomes)}
    ended: dict[tuple[str, ...], float] = {(flow, ending): 0 for flow in sorted(flows) for ending in ENDINGS}
    ended |= {(one.flow, one.outcome): one.many for one in totals.outcomes if one.outcome in ENDINGS}
    yield counter("runs", "Runs that ended, by flow and outcome.", ended, "flow", "outcome")
    yield gauge(
        "runs_running",
        "Runs that are recorded as running.",
        counted(flows, (run.flow for run in catalog.running)),
        "flow",
    )
    yield gauge(
        "runs_failing",
        "Sources (or flows that have none) whose last run failed or crashed; see `sightline status`.",
        counted(flows, (run.flow for run in catalog.failed)),
        "flow",
    )
    yield gauge(
        "run_last_success_timestamp_seconds",
        "Time at which a run of the flow completed last, in seconds since 1970.",
        {
            (one.flow,): one.last_ended.timestamp()
            for one in totals.outcomes
            if one.outcome == "completed" and one.last_ended is not None
        },
        "flow",
    )
    yield gauge(
        "run_last_duration_seconds",
        "Duration of the last ended run of the flow.",
        {(flow,): seconds for flow, seconds in totals.took_s.items()},
        "flow",
    )


def of_ingests(totals: Totals) -> Iterator[Metric]:
    """Yield the results and the throughput of ingests."""
    ingest_totals = totals.ingest_totals
    yield counter(
        "ingest_records",
        "Records that ingests read, by result; running ingests included.",
        {(result,): many for result, many in ingest_totals.results.items()},
        "result",
    )
    yield counter(
        "deleted_records", "Records that ingests and deletes have deleted.", {(): ingest_totals.deleted}
    )
    yield counter(
        "ingest_stage_seconds",
        "Seconds of work of ingests, by stage; for decoding, the sum over its processes.",
        {(stage,): seconds for stage, seconds in totals.stage_seconds.items()},
        "stage",
    )
    if totals.last_ingest is None:
        return
    speed = totals.last_ingest.counts["speed"]
    yield gauge(
        "last_ingest_records_per_second",
        "Throughput of the last ingest that embedded anything.",
        {(): speed["records_per_s"]},
    )
    yield gauge(
        "last_ingest_busy_ratio",
        "Busy share of each stage in that ingest; the highest was the bottleneck.",
        {(stage,): share for stage, share in speed["busy"].items()},
        "stage",
    )


def of_quality(catalog: CatalogStatus) -> Iterator[Metric]:
    """Yield the recall of searches, and the differences between the stores."""
    recalls = {
        (one.direction, found[1]): one
        for one in catalog.evaluation
        if (found := RECALL.fullmatch(one.metric)) is not None
    }
    if recalls:
        yield from of_recall(recalls)
    comparison = catalog.totals.comparison
    if comparison is not None:
        yield gauge(
            "reconcile_differences",
            "Differences between Postgres and Qdrant at the last comparison; `pending` is no damage.",
            {(kind,): comparison.differences.get(kind, 0) for kind in (*DAMAGE, "pending")},
            "kind",
        )
        yield gauge(
            "reconcile_last_timestamp_seconds",
            "Time of the last comparison, in seconds since 1970.",
            {(): comparison.at.timestamp()},
        )


def of_recall(recalls: Mapping[tuple[str, str], EvaluationFigure]) -> Iterator[Metric]:
    """Yield the recall of the last evaluation, with its interval.

    Args:
        recalls: by direction and k.
    """
    yield gauge(
        "recall",
        "Share of queries whose right answer was among the first k, at the last evaluation.",
        {labels: one.value for labels, one in recalls.items()},
        "direction",
        "k",
    )
    bounds = {(*labels, "low"): one.low for labels, one in recalls.items()}
    bounds |= {(*labels, "high"): one.high for labels, one in recalls.items()}
    yield gauge(
        "recall_bound",
        "Ends of the 95% interval of that recall.",
        {labels: value for labels, value in bounds.items() if value is not None},
        "direction",
        "k",
        "bound",
    )
    yield gauge(
        "evaluation_last_timestamp_seconds",
        "Time of that evaluation, in seconds since 1970.",
        {(): max(one.at for one in recalls.values()).timestamp()},
    )


def counted(flows: Iterable[str], met: Iterable[str]) -> dict[tuple[str, ...], float]:
    """Count the occurrences of each flow, zeros included."""
    many: dict[tuple[str, ...], float] = {(flow,): 0 for flow in sorted(flows)}
    for flow in met:
        many[(flow,)] = many.get((flow,), 0) + 1
    return many


@cache
def longest_pauses(schedules: Schedules) -> dict[tuple[str, ...], float]:
    """Return the longest pause of each scheduled flow, in seconds."""
    crons: dict[str, str | None] = schedules.model_dump()
    now = datetime.now(UTC)
    return {
        (flow,): longest_pause(cron, now).total_seconds() for flow, cron in crons.items() if cron is not None
    }


def gauge(name: str, help: str, samples: Samples, *labels: str) -> Metric:
    """Return a gauge metric."""
    metric = GaugeMetricFamily(f"sightline_{name}", help, labels=labels)
    for values, value in samples.items():
        metric.add_metric(values, value)
    return metric


def counter(name: str, help: str, samples: Samples, *labels: str) -> Metric:
    """Return a counter metric; its samples get the suffix `_total`."""
    metric = CounterMetricFamily(f"sightline_{name}", help, labels=labels)
    for values, value in samples.items():
        metric.add_metric(values, value)
    return metric
