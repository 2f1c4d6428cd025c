"""Run the schedules, the console and the servers, and stop servers."""

import json
import logging
import sys
from functools import partial

import click

from flows.cli.options import existing_settings
from flows.config.prefect_env import prepare_prefect
from flows.config.settings import load_settings

PORT = click.IntRange(1, 65535)
prefect_port_option = partial(
    click.option,
    type=PORT,
    default=4200,
    show_default=True,
    help="Port of the embedded Prefect server, on loopback only.",
)
console_host_option = click.option(
    "--host", help="Address of the console.  [default: SIGHTLINE_CONSOLE__HOST, 127.0.0.1]"
)
console_port_option = click.option(
    "--port", type=PORT, help="Port of the console.  [default: SIGHTLINE_CONSOLE__PORT, 8080]"
)


@click.command(short_help="Run the flows on their schedules.")
@prefect_port_option("--port")
@click.option("--json", "as_json", is_flag=True, help="Print the schedules as one line of JSON.")
@click.pass_obj
def serve(debug: bool, port: int, as_json: bool) -> None:
    """Run all scheduled flows until a signal.

    The schedules are settings, SIGHTLINE_SCHEDULES__INGEST and so on: crons in UTC, or off. None overlaps
    with itself; all can be paused and started by hand in Prefect's UI, and a paused flow stays paused.
    With PREFECT_API_URL set that server is used; otherwise one is started here, and ends with this command.
    The password of its pages is in the data directory, in the file prefect/auth.
    """
    settings = load_settings()
    prepare_prefect(settings.home, log_level="DEBUG" if debug else "INFO")
    from flows.cli.tables.format import show
    from flows.cli.tables.servers import of_served
    from flows.orchestration.schedule import ServedFlows
    from flows.orchestration.server import serve as run_schedules

    def report(served: ServedFlows) -> None:
        if as_json:
            click.echo(json.dumps(served.as_json(), default=str))
        else:
            show(of_served(served))

    run_schedules(settings, port, report)


@click.command(short_help="Run everything: the stores, the schedules, the console.")
@console_host_option
@console_port_option
@prefect_port_option("--prefect-port")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Format of the log on standard error.",
)
def up(host: str | None, port: int | None, prefect_port: int, log_format: str) -> None:
    """Run the embedded stores, the schedules and the console until Ctrl-C.

    Prints their addresses, and on a terminal a link that signs in to the console. When one of them ends by
    itself all end, with code 1, so that a service manager restarts them. Servers whose URLs are set are used
    instead.
    """
    settings = load_settings().listening_at(host, port)
    from flows.cli.supervisor import Line, Running
    from flows.cli.supervisor import up as run_everything
    from flows.cli.tables.format import show
    from flows.cli.tables.servers import of_running
    from flows.console.auth import sign_in_hint

    def log_line(line: Line) -> None:
        click.echo(line.as_json() if log_format == "json" else line.as_text(), err=True)

    def report(running: Running) -> None:
        show(of_running(running))
        if hint := sign_in_hint(settings, on_terminal=sys.stdout.isatty()):
            click.echo(hint)

    run_everything(settings, prefect_port, log_line, report)


@click.command(short_help="Serve the console, the API and the metrics.")
@console_host_option
@console_port_option
@click.pass_obj
def console(debug: bool, host: str | None, port: int | None) -> None:
    """Serve the pages of the console until a signal.

    It listens on loopback, unless SIGHTLINE_CONSOLE__PASSWORD is set, or SIGHTLINE_CONSOLE__USER_HEADER for a
    proxy that signs users in. Where neither is set, it generates a password in the file console.password of
    the data directory; on a terminal this command prints a link that signs in with it. Starting flows needs
    `sightline serve`; `sightline up` runs both.
    """
    settings = load_settings().listening_at(host, port)
    prepare_prefect(settings.home, log_level="INFO" if debug else "CRITICAL")
    from flows.console.auth import sign_in_hint
    from flows.console.server import serve as serve_console

    def report() -> None:
        click.echo(f"The console is at {settings.console.url}", err=True)
        if hint := sign_in_hint(settings, on_terminal=sys.stderr.isatty()):
            click.echo(hint, err=True)

    serve_console(settings, report)


@click.command(short_help="Serve an assistant over MCP.")
def mcp() -> None:
    """Serve search, get and status over MCP on standard input and output.

    It needs no key, as it runs as the user that started it. Over HTTP, `sightline console` has the same at
    /mcp.
    """
    settings = existing_settings()
    from flows.api.mcp import serve_on_stdio
    from flows.service.pool import Backend

    backend = Backend(settings)
    try:
        serve_on_stdio(backend)
    finally:
        backend.close()


@click.command(short_help="Run the embedded servers in the foreground.")
def start() -> None:
    """Run the embedded Postgres and Qdrant in the foreground until a signal.

    For a service manager: commands start both by themselves. A server that has a URL set is not started.
    Ends with code 1 if Postgres ends by itself.
    """
    settings = load_settings()
    from flows.cli.foreground import serve

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, force=True)
    serve(settings)


@click.command(short_help="Stop the embedded servers.")
def stop() -> None:
    """Stop the embedded Postgres and Qdrant; the next command starts them again.

    While `sightline up` runs, it stops nothing, and names the process to end instead.
    """
    settings = load_settings()
    from flows.cli.up_lock import require_not_up
    from storage.embedded.postgres.server import stop_postgres
    from storage.embedded.qdrant.process.client import stop as stop_index

    require_not_up(settings.home)
    # the index first: in the foreground, its end is Postgres' too
    for name, was_running in (
        ("Qdrant", stop_index(settings.home)),
        ("Postgres", stop_postgres(settings.home)),
    ):
        click.echo(f"{name} has stopped." if was_running else f"{name} was not running.")
