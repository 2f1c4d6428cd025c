"""What Prometheus scrapes: the last observation, and the searches of this process. It asks no store."""

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
from flows.service.observer import Catalogued, Indexed, Observation, Observer
from storage.consistency.differences import DAMAGE
from storage.postgres.run_totals import Totals
from storage.postgres.statistics import EvaluationFigure

ENDINGS = ("completed", "failed", "crashed")
RECALL = re.compile(r"recall@(\d+)")

Samples = Mapping[tuple[str, ...], float]
"""Values by the values of their labels."""


def metrics_route(observer: Observer) -> Route:
    """Return the route at which Prometheus finds what `observer` has seen."""
    registry = CollectorRegistry()
    registry.register(_Watched(observer))
    registry.register(observer.backend.search_times)
    ProcessCollector(registry=registry)

    def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})

    return Route("/metrics", metrics)


class _Watched(Collector):
    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def collect(self) -> Iterable[Metric]:
        schedules = self._observer.backend.settings.schedules
        return families(self._observer.seen, schedules, datetime.now(UTC))


def families(seen: Observation, schedules: Schedules, now: datetime) -> Iterator[Metric]:
    """Yield all metrics of an observation; of a store that was away, nothing but that."""
    yield gauge(
        "build_info", "The version of Sightline that answers.", {(version("sightline"),): 1}, "version"
    )
    yield gauge(
        "observation_age_seconds",
        "Seconds since the stores were looked at; all other figures are from then.",
        {(): (now - seen.at).total_seconds()},
    )
    yield gauge(
        "store_up",
        "Whether a store answered; 0 while it is away, when its other figures are missing.",
        {("postgres",): seen.catalogued is not None, ("qdrant",): seen.indexed is not None},
        "store",
    )
    yield gauge("disk_free_bytes", "Free space where the home folder is.", {(): seen.disk_free_bytes})
    yield gauge("disk_bytes", "Size of the disk that the home folder is on.", {(): seen.disk_bytes})
    yield gauge(
        "schedule_longest_pause_seconds",
        "Longest time between two scheduled runs of a flow; missing for flows without a schedule.",
        longest_pauses(schedules),
        "flow",
    )
    if seen.indexed is not None:
        yield from of_index(seen.indexed)
    if seen.catalogued is not None:
        yield from of_records(seen.catalogued, now)
        yield from of_runs(seen.catalogued, schedules)
        yield from of_ingests(seen.catalogued.totals)
        yield from of_quality(seen.catalogued)


def of_index(indexed: Indexed) -> Iterator[Metric]:
    """Yield what Qdrant says."""
    collection = indexed.collection
    if collection is None:
        return
    yield gauge("index_points", "Points in the collection that searches go to.", {(): indexed.points})
    yield gauge(
        "index_info",
        "The collection that searches go to, and the model that made it.",
        {(collection.model, collection.fingerprint, collection.name): 1},
        "model",
        "fingerprint",
        "collection",
    )


def of_records(catalogued: Catalogued, now: datetime) -> Iterator[Metric]:
    """Yield how many records there are, how fresh the index is, and what could not be taken in."""
    figures = catalogued.figures
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
        "For how long the record that has waited longest is not searchable as it is; 0 if none waits.",
        {(): figures.age_s(now)},
    )
    yield gauge(
        "newest_pending_age_seconds",
        "For how long the newest such record has waited; 0 if none waits.",
        {(): 0.0 if newest is None else max(0.0, (now - newest).total_seconds())},
    )
    yield gauge(
        "rejects_open",
        "Records that could not be taken in and still cannot, by reason; see `sightline rejects`.",
        {(one.reason, one.source): one.many for one in catalogued.rejects},
        "reason",
        "source",
    )


def of_runs(catalogued: Catalogued, schedules: Schedules) -> Iterator[Metric]:
    """Yield how the runs of each flow went."""
    totals = catalogued.totals
    flows = {*type(schedules).model_fields, *(one.flow for one in totals.outcomes)}
    ended: dict[tuple[str, ...], float] = {(flow, ending): 0 for flow in sorted(flows) for ending in ENDINGS}
    ended |= {(one.flow, one.outcome): one.many for one in totals.outcomes if one.outcome in ENDINGS}
    yield counter("runs", "Runs that ended, by flow and how.", ended, "flow", "outcome")
    yield gauge(
        "runs_running",
        "Runs that say they go on.",
        counted(flows, (run.flow for run in catalogued.running)),
        "flow",
    )
    yield gauge(
        "runs_failing",
        "Sources (or flows that have none) whose last run failed or crashed; see `sightline status`.",
        counted(flows, (run.flow for run in catalogued.failed)),
        "flow",
    )
    yield gauge(
        "run_last_success_timestamp_seconds",
        "When a run of the flow was completed last, in seconds since 1970.",
        {
            (one.flow,): one.last_ended.timestamp()
            for one in totals.outcomes
            if one.outcome == "completed" and one.last_ended is not None
        },
        "flow",
    )
    yield gauge(
        "run_last_duration_seconds",
        "How long the last run of the flow took that ended.",
        {(flow,): seconds for flow, seconds in totals.took_s.items()},
        "flow",
    )


def of_ingests(totals: Totals) -> Iterator[Metric]:
    """Yield what ingests did, and how fast they were."""
    ingest_totals = totals.ingest_totals
    yield counter(
        "ingest_records",
        "Records that ingests read, by what became of them; those of ingests that go on included.",
        {(result,): many for result, many in ingest_totals.results.items()},
        "result",
    )
    yield counter(
        "deleted_records", "Records that ingests and deletes have deleted.", {(): ingest_totals.deleted}
    )
    yield counter(
        "ingest_stage_seconds",
        "Seconds that ingests were at work, by stage; of decoding, added up over its processes.",
        {(stage,): seconds for stage, seconds in totals.stage_seconds.items()},
        "stage",
    )
    if totals.last_ingest is None:
        return
    speed = totals.last_ingest.counts["speed"]
    yield gauge(
        "last_ingest_records_per_second",
        "How fast the last ingest was that embedded something.",
        {(): speed["records_per_s"]},
    )
    yield gauge(
        "last_ingest_busy_ratio",
        "Share of that ingest's time that each stage was at work; the highest was the limit.",
        {(stage,): share for stage, share in speed["busy"].items()},
        "stage",
    )


def of_quality(catalogued: Catalogued) -> Iterator[Metric]:
    """Yield how good searches are, and whether the stores agree."""
    recalls = {
        (one.direction, found[1]): one
        for one in catalogued.evaluation
        if (found := RECALL.fullmatch(one.metric)) is not None
    }
    if recalls:
        yield from of_recall(recalls)
    comparison = catalogued.totals.comparison
    if comparison is not None:
        yield gauge(
            "reconcile_differences",
            "Differences between Postgres and Qdrant at the last comparison; `pending` is no damage.",
            {(kind,): comparison.differences.get(kind, 0) for kind in (*DAMAGE, "pending")},
            "kind",
        )
        yield gauge(
            "reconcile_last_timestamp_seconds",
            "When the stores were compared last, in seconds since 1970.",
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
        "When that evaluation was, in seconds since 1970.",
        {(): max(one.at for one in recalls.values()).timestamp()},
    )


def counted(flows: Iterable[str], met: Iterable[str]) -> dict[tuple[str, ...], float]:
    """Return how often each flow was met, those included that never were."""
    many: dict[tuple[str, ...], float] = {(flow,): 0 for flow in sorted(flows)}
    for flow in met:
        many[(flow,)] = many.get((flow,), 0) + 1
    return many


@cache
def longest_pauses(schedules: Schedules) -> dict[tuple[str, ...], float]:
    """Return for each flow that has a schedule the longest pause that this leaves, in seconds."""
    crons: dict[str, str | None] = schedules.model_dump()
    now = datetime.now(UTC)
    return {
        (flow,): longest_pause(cron, now).total_seconds() for flow, cron in crons.items() if cron is not None
    }


def gauge(name: str, help: str, samples: Samples, *labels: str) -> Metric:
    """Return a metric that may rise and fall."""
    metric = GaugeMetricFamily(f"sightline_{name}", help, labels=labels)
    for values, value in samples.items():
        metric.add_metric(values, value)
    return metric


def counter(name: str, help: str, samples: Samples, *labels: str) -> Metric:
    """Return a metric that only grows; its samples get the ending `_total`."""
    metric = CounterMetricFamily(f"sightline_{name}", help, labels=labels)
    for values, value in samples.items():
        metric.add_metric(values, value)
    return metric
