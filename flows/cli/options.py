"""What several commands share: options, kinds of values, and how a result is printed."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.config.settings import Settings, prepare_prefect
from flows.tracking.text import UNSEEN
from storage.errors import SightlineError

if TYPE_CHECKING:
    from rich.console import RenderableType

EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
as_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")


class Percent(click.ParamType[float]):
    """A share such as `5%`; the sign may be left out."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            share = float(str(value).removesuffix("%")) / 100
        except ValueError:
            self.fail(f"{value!r} is no percentage; write one such as 5%", param, ctx)
        if not 0 <= share <= 1:
            self.fail(f"{value!r} is not between 0% and 100%", param, ctx)
        return share


def joins_prefect(settings: Settings, debug: bool) -> bool:
    """Tell whether a job runs under Prefect: where a server is configured or runs the home's schedules."""
    prepare_prefect(settings.home, log_level="INFO" if debug else "CRITICAL")
    from flows.orchestration.server_access import join_server

    return join_server(settings.home)


class PrefectUnavailable(SightlineError):
    """Prefect's server stopped answering while a job ran under it."""

    retryable = True
    http_status = 503


@contextmanager
def run_under_prefect() -> Iterator[None]:
    """Run a flow.

    Raises:
        PrefectUnavailable: the server has stopped answering; the job itself goes on to its end.
    """
    import httpx

    try:
        yield
    except httpx.TransportError as error:
        raise PrefectUnavailable(
            "Prefect's server does not answer any more; what became of the run is on record: "
            "run `sightline status`"
        ) from error


@contextmanager
def run_directly() -> Iterator[None]:
    """Run a job in this process: SIGTERM ends it with its run on record, and a line says where that is."""
    from flows.tracking.signals import raising_on_sigterm

    with raising_on_sigterm():
        yield
    click.echo("The run is on record: see the page Runs of `sightline console`.", err=True)


def pairs(where: tuple[str, ...]) -> dict[str, str]:
    """Return what `--where` names, by field.

    Raises:
        UsageError: one is not K=V.
    """
    pairs = {}
    for entry in where:
        field, equals, value = entry.partition("=")
        if not equals or not field:
            raise click.UsageError(f"--where takes K=V, not {entry!r}; for example --where category=fruit")
        pairs[field] = value
    return pairs


def as_json_text(document: dict[str, Any]) -> str:
    """Write a document as JSON that a terminal shows and does not obey."""
    written = json.dumps(document, ensure_ascii=False, indent=2, default=str)
    return UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", written)


def print_out(document: dict[str, Any], as_json: bool, table: "Callable[[], RenderableType]") -> None:
    """Print a result: as one JSON document, or as the table that `table` makes."""
    if as_json:
        click.echo(as_json_text(document))
        return
    from flows.cli.tables.format import show

    show(table())
