"""Send spans of runs, stages and searches by OpenTelemetry, where configured.

Without that nothing of OpenTelemetry is imported, and a span costs a microsecond.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from uuid import UUID

from flows.config.settings import wants_traces

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

NAME = "sightline"
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
SetAttributes = Callable[[Mapping[str, Any]], None]
"""Sets attributes of a span; nested names get dots, and values that are None or a list are left out."""


@dataclass(slots=True)
class _RunSpans:
    """Hold the spans of an active run and its current stage."""

    span: "Span"
    stage: "Span | None" = None

    def end_stage(self) -> None:
        if self.stage is not None:
            self.stage.end()
            self.stage = None


_runs: dict[UUID, _RunSpans] = {}


@cache
def provider() -> "TracerProvider | None":
    """Return the span provider of this process, or None without a collector."""
    if not wants_traces():
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    ours = Resource.create({"service.name": NAME, "service.version": version(NAME)})
    made = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()))
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return made


def tracer() -> "Tracer | None":
    """Return the tracer, or None without a collector."""
    own = provider()
    return None if own is None else own.get_tracer(NAME)


@contextmanager
def span(name: str, attributes: Mapping[str, Any] | None = None) -> Iterator[SetAttributes]:
    """Open a span below this thread's current one."""
    own = tracer()
    if own is None:
        yield _discard
        return
    with own.start_as_current_span(name, attributes=flat(attributes or {})) as current:
        yield lambda more: current.set_attributes(flat(more))


@contextmanager
def run_span(flow: str, run_id: UUID, attributes: Mapping[str, Any]) -> "Iterator[SetRunAttributes]":
    """Open the span of a run; `begin_stage` opens others below it."""
    own = tracer()
    if own is None:
        yield _discard_run
        return
    from opentelemetry.trace import StatusCode

    with own.start_as_current_span(flow, attributes=flat({"run": str(run_id), **attributes})) as current:
        run = _runs[run_id] = _RunSpans(current)

        def note(more: Mapping[str, Any], problem: str | None) -> None:
            current.set_attributes(flat(more))
            if problem is not None:
                current.set_status(StatusCode.ERROR, problem)

        try:
            yield note
        finally:
            del _runs[run_id]
            run.end_stage()


SetRunAttributes = Callable[[Mapping[str, Any], str | None], None]
"""Sets attributes of the span of a run, and the reason of a failure."""


def begin_stage(run_id: UUID, stage: str) -> None:
    """End the span of a run's stage, and begin the next one."""
    run = _runs.get(run_id)
    own = tracer() if run is not None else None
    if run is None or own is None:
        return
    from opentelemetry.trace import set_span_in_context

    run.end_stage()
    run.stage = own.start_span(stage, context=set_span_in_context(run.span))


def stepping(name: str, step: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Wrap a step; each call is a span below the current one."""
    own = tracer()
    if own is None:
        return step
    from opentelemetry.context import get_current

    above = get_current()

    def spanned(*args: Arguments.args, **named: Arguments.kwargs) -> Result:
        with own.start_as_current_span(name, context=above):
            return step(*args, **named)

    return spanned


def flat(attributes: Mapping[str, Any], prefix: str = f"{NAME}.") -> dict[str, str | int | float]:
    """Flatten attributes to the types of OpenTelemetry.

    >>> flat({"run": "4711", "counts": {"read": 3, "reasons": {"no_text": 1}}, "source": None})
    {'sightline.run': '4711', 'sightline.counts.read': 3, 'sightline.counts.reasons.no_text': 1}
    """
    found: dict[str, str | int | float] = {}
    for name, value in attributes.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, str | int | float):
            found[prefix + name] = value
    return found


def _discard(_: Mapping[str, Any]) -> None:
    """Discard the attributes."""


def _discard_run(_: Mapping[str, Any], __: str | None) -> None:
    """Discard the attributes."""
