"""The pages of settings and commands say what the code says."""

from flows.cli import reference
from flows.config.settings import Settings


def test_the_page_of_settings_is_current_and_explains_each():
    page = reference.settings_page()

    assert reference.SETTINGS.read_text() == page, "run: python -m flows.cli.reference"
    assert page.count("| `SIGHTLINE_") > len(Settings.model_fields)
    assert "|  |" not in page


def test_the_page_of_commands_is_current():
    page = reference.commands_page()

    assert reference.COMMANDS.read_text() == page, "run: python -m flows.cli.reference"
    assert "## sightline rejects retry" in page
