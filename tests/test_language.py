"""First lines of docstrings are short and plain; `python tests/test_language.py PATHS` lists the others."""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = [ROOT / "flows", ROOT / "storage", ROOT / "embedding"]
MIGRATIONS = ROOT / "storage/postgres/migrations/versions"
MOST_WORDS = 12
RIDDLES = re.compile(
    r"\b(what|whatever|who|whoever|whose|somebody|nobody|everybody|told|pictures?|mend|mends|mended)\b", re.I
)

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def test_the_first_line_of_each_docstring_is_short_and_plain() -> None:
    found = listing(PACKAGES)

    assert not found, f"\n{found}"


def test_each_fault_of_a_first_line_is_found() -> None:
    assert list(faults("Return the SHA-256 of `picture`, or None.")) == []
    assert list(faults("Return the SHA-256 of an image\nand its URI.")) == ["goes on in the next line"]
    assert list(faults("Return its URI.\n\nThe rest may say what it likes.")) == []
    assert list(faults(" ".join(["word"] * 13) + ".")) == ["13 words"]
    assert list(faults("Store Pictures for whoever mends them.")) == ["Pictures", "whoever", "mends"]


def listing(paths: Iterable[Path]) -> str:
    """Each file with a fault, and under it a line for each docstring: `line name: faults: first line`."""
    files = sorted(file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path]))
    blocks = []
    for file in files:
        if file.resolve().is_relative_to(MIGRATIONS):
            continue
        lines = [
            f"  {getattr(node, 'lineno', 1)} {getattr(node, 'name', 'module')}: {', '.join(found)}: {first}"
            for node, docstring in docstrings(file)
            for first in docstring.splitlines()[:1]
            if (found := list(faults(docstring)))
        ]
        blocks += ["\n".join([str(file), *lines])] if lines else []
    return "\n".join(blocks)


def docstrings(path: Path) -> Iterator[tuple[Documented, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Documented) and (docstring := ast.get_docstring(node)):
            yield node, docstring


def faults(docstring: str) -> Iterator[str]:
    first, *more = docstring.splitlines()
    words = [word for word in first.split() if re.search(r"\w", word)]
    if len(words) > MOST_WORDS:
        yield f"{len(words)} words"
    if more and more[0].strip():
        yield "goes on in the next line"
    yield from RIDDLES.findall(re.sub(r"`[^`]*`", "", first))


if __name__ == "__main__":
    sys.exit(listing(map(Path, sys.argv[1:] or PACKAGES)) or 0)
