"""Programs that pip has not: without one, a test that needs it is skipped, or fails where told to."""

import os
import shutil

import pytest

ALL = "SIGHTLINE_TEST_ALL_TOOLS"
MUST = bool(os.environ.get(ALL))


def tool(name: str) -> str:
    """Return where a program is.

    Without it the test is skipped; where the environment says that all tools must be there, it fails.
    """
    found = shutil.which(name)
    if found is None:
        why = f"{name} is not installed; see infra/test-packages.txt"
        pytest.fail(f"{why}, and {ALL} is set") if MUST else pytest.skip(why)
    return found
