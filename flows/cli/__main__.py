"""What `python -m flows.cli` runs."""

from flows.cli import main

main(prog_name="sightline")
