"""Share options, value types, job runs and output between the commands."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.config.prefect_env import prepare_prefect, wait_shortly_for_prefect
from flows.config.settings import Settings, load_settings
from flows.tracking.text import UNSEEN
from storage.errors import NotFound, SightlineError
from storage.records import Where, parse_conditions

if TYPE_CHECKING:
    from rich.console import RenderableType

EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
as_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")


UNREACHED = "Failed to reach API at "


class Percent(click.ParamType[float]):
    """Parse a share such as `5%`; the sign may be left out."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            share = float(str(value).removesuffix("%")) / 100
        except ValueError:
            self.fail(f"{value!r} is no percentage; write one such as 5%", param, ctx)
        if not 0 <= share <= 1:
            self.fail(f"{value!r} is not between 0% and 100%", param, ctx)
        return share


class NoDataDirectory(NotFound):
    """Report a data directory that does not exist."""


def existing_settings(*, index: bool = True) -> Settings:
    """Read the settings of a data directory that exists.

    A command that only reads or changes stored data would make an empty one at a mistyped path.

    Args:
        index: whether the command uses Qdrant as well.

    Raises:
        NoDataDirectory: an embedded store is to be used, and there is none.
    """
    from storage.embedded.postgres.server import has_postgres

    settings = load_settings()
    has_rows = settings.database_url is not None or has_postgres(settings.home)
    has_index = not index or settings.qdrant.url is not None or settings.home.is_dir()
    if not (has_rows and has_index):
        raise NoDataDirectory(
            f"there is no data directory at {settings.home.absolute()}; set SIGHTLINE_HOME to the path of "
            "yours, or make one here with: sightline ingest SOURCE"
        )
    return settings


class PrefectUnavailable(SightlineError):
    """Report that Prefect's server does not answer, or stopped answering."""

    retryable = True
    http_status = 503


def run_job(settings: Settings, job: Callable[..., Any], *, debug: bool, **parameters: Any) -> Any:
    """Run a job and say where its run is on record.

    It is the flow of the same name where a Prefect server is configured or serves the data directory, and
    runs in this process otherwise.

    Raises:
        PrefectUnavailable: the server has stopped answering; the job itself goes on to its end.
    """
    prepare_prefect(settings.home, log_level="INFO" if debug else "CRITICAL")
    wait_shortly_for_prefect()
    from flows.orchestration.server_access import join_server
    from flows.tracking.progress import stage_bars
    from flows.tracking.signals import raising_on_sigterm

    if join_server(settings.home):
        from flows.orchestration import flows

        logging.raiseExceptions = debug  # Prefect would print over the progress bar that no log can be sent
        with run_under_prefect():
            result = getattr(flows, job.__name__)(**parameters)
    else:
        with raising_on_sigterm(), stage_bars(job.__name__) as progress:
            result = job(settings, progress=progress, **parameters)
    click.echo("The run is on record: see the page Runs of `sightline console`.", err=True)
    return result


@contextmanager
def run_under_prefect() -> Iterator[None]:
    """Name a Prefect server that does not answer, or stops answering.

    Raises:
        PrefectUnavailable: it does not.
    """
    import httpx

    try:
        yield
    except RuntimeError as error:  # Prefect has no class for a run that it could not begin
        if not str(error).startswith(UNREACHED):
            raise
        url = str(error).removeprefix(UNREACHED).rstrip("/")
        raise PrefectUnavailable(
            f"Prefect's server at {url} does not answer; start it, or unset PREFECT_API_URL to run without it"
        ) from error
    except httpx.TransportError as error:
        raise PrefectUnavailable(
            "Prefect's server does not answer any more; its run is on record: run `sightline status`"
        ) from error


def pairs(where: tuple[str, ...]) -> Where:
    """Parse the values of `--where`.

    Raises:
        UsageError: one is not K=V.
    """
    try:
        return parse_conditions(where)
    except ValueError as error:
        problem = f"--where takes K=V, not {error.args[0]!r}; for example --where category=fruit"
        raise click.UsageError(problem) from None


def as_json_text(document: dict[str, Any]) -> str:
    """Return a document as JSON, safe for a terminal."""
    written = json.dumps(document, ensure_ascii=False, indent=2, default=str)
    return UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", written)


def print_out(document: dict[str, Any], as_json: bool, table: "Callable[[], RenderableType]") -> None:
    """Print a result as one JSON document or as a table."""
    if as_json:
        click.echo(as_json_text(document))
        return
    from flows.cli.tables.format import show

    show(table())
