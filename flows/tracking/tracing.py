"""Spans of runs, of their stages and of searches, sent by OpenTelemetry where the environment says where to.

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
Note = Callable[[Mapping[str, Any]], None]
"""Puts attributes on a span; what is nested gets names with dots, and what is None or a list is left out."""


@dataclass(slots=True)
class _Run:
    """The span of a run that goes on, and that of the stage which it is in."""

    span: "Span"
    stage: "Span | None" = None

    def end_stage(self) -> None:
        if self.stage is not None:
            self.stage.end()
            self.stage = None


_runs: dict[UUID, _Run] = {}


@cache
def provider() -> "TracerProvider | None":
    """Return what sends spans until this process ends, and what is left then; None where nobody wants any."""
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
    """Return what makes spans, or None where nobody wants any."""
    own = provider()
    return None if own is None else own.get_tracer(NAME)


@contextmanager
def span(name: str, attributes: Mapping[str, Any] | None = None) -> Iterator[Note]:
    """Make what happens in here a span, below the one that this thread is in; an error marks it as failed."""
    own = tracer()
    if own is None:
        yield _note_nothing
        return
    with own.start_as_current_span(name, attributes=flat(attributes or {})) as current:
        yield lambda more: current.set_attributes(flat(more))


@contextmanager
def run_span(flow: str, run_id: UUID, attributes: Mapping[str, Any]) -> "Iterator[RunNote]":
    """Make a run a span; `begin_stage` opens others below it."""
    own = tracer()
    if own is None:
        yield _note_no_run
        return
    from opentelemetry.trace import StatusCode

    with own.start_as_current_span(flow, attributes=flat({"run": str(run_id), **attributes})) as current:
        run = _runs[run_id] = _Run(current)

        def note(more: Mapping[str, Any], problem: str | None) -> None:
            current.set_attributes(flat(more))
            if problem is not None:
                current.set_status(StatusCode.ERROR, problem)

        try:
            yield note
        finally:
            del _runs[run_id]
            run.end_stage()


RunNote = Callable[[Mapping[str, Any], str | None], None]
"""Puts attributes on the span of a run, and why it counts as failed."""


def begin_stage(run_id: UUID, stage: str) -> None:
    """End the span of the stage that a run was in, and begin that of the next."""
    run = _runs.get(run_id)
    own = tracer() if run is not None else None
    if run is None or own is None:
        return
    from opentelemetry.trace import set_span_in_context

    run.end_stage()
    run.stage = own.start_span(stage, context=set_span_in_context(run.span))


def stepping(name: str, step: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Return `step` so that each call, in whatever thread, is a span below the one that is current now."""
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
    """Return attributes as OpenTelemetry takes them.

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


def _note_nothing(_: Mapping[str, Any]) -> None:
    """Nobody wants to know."""


def _note_no_run(_: Mapping[str, Any], __: str | None) -> None:
    """Nobody wants to know."""
