"""The layout that the import contracts in pyproject.toml cannot state."""

from pathlib import Path

import flows


def test_no_module_stands_beside_the_packages_of_flows() -> None:
    [folder] = flows.__path__

    assert [path.name for path in sorted(Path(folder).glob("*.py"))] == ["__init__.py"]
