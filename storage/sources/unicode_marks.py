"""Limit combining marks, and normalize untrusted text in linear time."""

from unicodedata import combining, normalize

from storage.errors import InvalidInput

MAX_MARKS = 32
"""In a row; Unicode's stream-safe format (UAX #15) allows 30, and no language needs as many."""

MARKS_IN_ONE = "\N{TIBETAN VOWEL SIGN II}\N{TIBETAN VOWEL SIGN UU}\N{TIBETAN VOWEL SIGN REVERSED II}"
"""Characters that are no marks by their class, and consist of two."""

REMEDY = f"more than {MAX_MARKS} combining marks in a row; remove them at the source"


class TooManyMarks(InvalidInput):
    """Signal a text with more stacked marks than any language has."""

    def __init__(self) -> None:
        super().__init__(REMEDY)


def has_many_marks(text: str) -> bool:
    """Return whether over `MAX_MARKS` combining marks follow each other.

    >>> has_many_marks("a" + chr(0x301) * 32), has_many_marks("a" + chr(0x301) * 33)
    (False, True)
    """
    if text.isascii():
        return False
    run = 0
    for character in text:
        run = run + 1 if combining(character) or character in MARKS_IN_ONE else 0
        if run > MAX_MARKS:
            return True
    return False


def composed(text: str) -> str:
    """Return `text` in NFC, in time linear in its length.

    Sorting marks that follow each other takes time that grows with the square of their number.

    Raises:
        TooManyMarks: too many follow each other.
    """
    if has_many_marks(text):
        raise TooManyMarks
    return normalize("NFC", text)
