"""Define the command `sightline`, the group of all commands."""

import logging
from typing import Any

import click
from rich.console import Console
from rich.logging import RichHandler

from flows.cli.interrupts import end_interrupted
from flows.tracking.file_modes import private_files
from flows.tracking.log_records import use_safe_records
from flows.tracking.signals import interruptible


class Sightline(click.Group):
    """List commands in sections, and report an error in one line.

    The line names the cause and the remedy; `--debug` shows the traceback.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._sections: dict[str, tuple[click.Command, ...]] = {}

    def add_section(self, title: str, *commands: click.Command) -> None:
        """Add commands under a title, in the order of the help."""
        self._sections[title] = commands
        for command in commands:
            self.add_command(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        widest = max(map(len, self.commands))
        for title, commands in self._sections.items():
            with formatter.section(title):
                formatter.write_dl(
                    [(str(one.name).ljust(widest), one.get_short_help_str()) for one in commands]
                )

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with private_files(), interruptible():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            end_interrupted(ctx.invoked_subcommand or "")
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if ctx.params["debug"]:
                raise
            from flows.tracking.errors import explain

            raise click.ClickException(explain(error)) from error


@click.group(cls=Sightline, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show tracebacks and Prefect's log.")
@click.version_option(package_name="sightline", message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context, debug: bool) -> None:
    """Find images with words, and words with images.

    Without any setting everything lives in .sightline in the current folder and needs no server. Settings
    are environment variables that start with SIGHTLINE_; flows/config/SETTINGS.md lists them.
    """
    ctx.obj = debug
    _log_to_stderr(debug)


def _log_to_stderr(debug: bool) -> None:
    """Log our own warnings, and those about spans; `--debug` logs everything."""
    use_safe_records()
    logging.captureWarnings(True)  # libraries write them to standard error, over a progress bar
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    if debug:
        logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
        return
    logging.basicConfig(handlers=[logging.NullHandler()])
    for package in ("flows", "embedding", "storage", "opentelemetry.exporter"):
        logging.getLogger(package).addHandler(handler)
