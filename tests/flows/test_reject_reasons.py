"""Each reason that a record can be rejected for has its meaning, and no meaning is of a reason long gone."""

import ast
from collections.abc import Iterator
from pathlib import Path

from flows.ingestion.reject_reasons import REASONS

ROOT = Path(__file__).parents[2]
MAKERS = {"BadRow": 0, "BadImage": 0, "FetchError": 0, "rejected": 1, "as_reject": 1}
"""What makes a reject, and which of its arguments is the reason."""


def strings(node: ast.AST) -> set[str]:
    return {
        one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)
    }


def reasons_in(code: ast.Module) -> Iterator[str]:
    """The literal reasons of what makes rejects; one in a variable is what that is set to nearby."""
    for function in (node for node in ast.walk(code) if isinstance(node, ast.FunctionDef)):
        set_to: dict[str, set[str]] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                set_to.setdefault(node.targets[0].id, set()).update(branches(node.value))
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            place = MAKERS.get(getattr(call.func, "id", ""))
            if place is not None and len(call.args) > place:
                argument = call.args[place]
                yield from (
                    set_to.get(argument.id, ()) if isinstance(argument, ast.Name) else branches(argument)
                )


def branches(value: ast.expr) -> set[str]:
    """The strings that an expression can be, without those that decide which."""
    if isinstance(value, ast.IfExp):
        return branches(value.body) | branches(value.orelse)
    return strings(value) if isinstance(value, ast.Constant) else set()


def test_every_reason_that_the_code_can_give_has_its_meaning():
    files = [path for name in ("flows", "embedding", "storage") for path in (ROOT / name).rglob("*.py")]

    produced = {reason for path in files for reason in reasons_in(ast.parse(path.read_text("utf-8")))}

    assert len(produced) > 20
    assert set(REASONS) == produced


def test_what_they_say_are_sentences():
    for reason in REASONS.values():
        assert reason.meaning.endswith(".")
        assert reason.remedy.endswith(".")
