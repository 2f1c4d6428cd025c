"""Numbers as people read them."""


def many(count: int, name: str) -> str:
    """Return a count with its noun.

    >>> many(1, "record"), many(12000, "record")
    ('1 record', '12,000 records')
    """
    return f"{count:,} {name}" + ("" if count == 1 else "s")
