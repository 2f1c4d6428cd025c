"""Programs that tests need and pip does not install."""

import os
import shutil

import pytest

ALL_TOOLS = "SIGHTLINE_TEST_ALL_TOOLS" in os.environ
"""Whether a missing one is an error, as it is in the gate; elsewhere its tests are skipped."""


def tool(name: str) -> str:
    """Return the path of a program of Debian's packages."""
    path = shutil.which(name)
    if path is None:
        (pytest.fail if ALL_TOOLS else pytest.skip)(f"{name} is not installed; see infra/test-packages.txt")
    return path
