"""Read lines of bounded length from a file of any size."""

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

MAX_LINE_BYTES = 16 * 1024 * 1024
TOO_LONG = f"longer than {MAX_LINE_BYTES:,} bytes; is a newline missing?"
HEAD_BYTES = 8_192
BOM = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """Store one physical line, without its newline."""

    number: int
    """From 1."""

    content: bytes
    whole: bool
    """False for a line that is too long: only its beginning is kept."""


def numbered_lines(file: BinaryIO, max_bytes: int = MAX_LINE_BYTES) -> Iterator[Line]:
    r"""Yield the lines of `file`, without a UTF-8 byte order mark.

    >>> from io import BytesIO
    >>> [tuple(line) for line in numbered_lines(BytesIO(b"ab\nabcdef\ncde"), max_bytes=3)]
    [(1, b'ab', True), (2, b'abcd', False), (3, b'cde', True)]
    """
    number = 0
    while content := file.readline(max_bytes + 1):
        number += 1
        ended = content.endswith(b"\n")
        whole = ended or len(content) <= max_bytes
        if not whole:
            content = content[:HEAD_BYTES]
            _skip_line(file)
        content = content[:-1] if ended else content
        yield Line(number, content.removeprefix(BOM) if number == 1 else content, whole)


def _skip_line(file: BinaryIO) -> None:
    while (rest := file.readline(HEAD_BYTES)) and not rest.endswith(b"\n"):
        pass
