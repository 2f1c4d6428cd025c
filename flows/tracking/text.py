"""Numbers and texts as people read them."""

import re

UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What a terminal obeys instead of showing it, and what changes the order of what it shows."""


def visible(text: str) -> str:
    r"""Show control characters by their codes; lines and tabs stay.

    >>> visible("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def many(count: int, name: str) -> str:
    """Return a count with its noun.

    >>> many(1, "record"), many(12000, "record")
    ('1 record', '12,000 records')
    """
    return f"{count:,} {name}" + ("" if count == 1 else "s")
