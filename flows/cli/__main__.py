"""Run the command line by `python -m flows.cli`."""

from flows.cli import main

main(prog_name="sightline")
