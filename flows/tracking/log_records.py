"""Log untrusted text without secrets and control characters."""

import logging
from numbers import Number
from typing import Any

from flows.tracking.text import visible
from storage.redaction import redacted


class SafeRecord(logging.LogRecord):
    """Hold a record without URL secrets, control characters or injected lines."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        if self.exc_info:
            self.exc_text = safe(logging.Formatter().formatException(self.exc_info))

    def getMessage(self) -> str:
        if isinstance(self.args, tuple):
            self.args = tuple(map(_on_one_line, self.args))
        return safe(super().getMessage())


def safe(text: str) -> str:
    """Return a text that is safe for a terminal and a log."""
    return visible(redacted(text))


def use_safe_records() -> None:
    """Make all log records of this process safe, those of libraries too."""
    logging.setLogRecordFactory(SafeRecord)


def _on_one_line(argument: object) -> object:
    if argument is None or isinstance(argument, Number):
        return argument
    return str(argument).replace("\n", "\\n")
