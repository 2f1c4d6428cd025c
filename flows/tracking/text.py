"""Format numbers and texts for users."""

import re

UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters, and those that change the order of text."""


def visible(text: str) -> str:
    r"""Replace control characters by their codes; lines and tabs stay.

    >>> visible("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def count_of(count: int, name: str) -> str:
    """Format a count with its noun.

    >>> count_of(1, "record"), count_of(12000, "record")
    ('1 record', '12,000 records')
    """
    return f"{count:,} {name}" + ("" if count == 1 else "s")
