"""Read the scans of a JPEG from its markers, without decoding them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

MARKER = re.compile(rb"(?s)\xff([\x01-\xcf\xd8-\xfe])")
"""Of a JPEG, except restarts and stuffed bytes, of which compressed data are full."""

START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
WITHOUT_LENGTH = (0x01, 0xD8)
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
COEFFICIENTS = 64


@dataclass(frozen=True, slots=True)
class Scan:
    """Describe the components, coefficients and bits that a scan sends."""

    components: bytes
    of_components: int
    is_progressive: bool
    coefficients: range
    low_bit: int


def has_more_scans(data: bytes, most: int) -> bool:
    """Return whether a JPEG's first image has more than `most` scans."""
    return next(islice(scans(data), most, None), None) is not None


def has_all_coefficients(data: bytes) -> bool:
    """Return whether a JPEG sends each coefficient to its last bit."""
    found: set[tuple[int, int]] = set()
    for scan in scans(data):
        if scan.low_bit == 0:
            found |= {(component, k) for component in scan.components for k in scan.coefficients}
        if not scan.is_progressive or len(found) >= scan.of_components * COEFFICIENTS:
            return True
    return False


def scans(data: bytes) -> Iterator[Scan]:
    """Yield the scans of a JPEG's first image.

    Reads the markers as libjpeg does. Where the first scan of a sequential JPEG holds all of its
    components, as nearly all photographs have it, libjpeg reads no other, and neither does this.
    """
    at, components, is_progressive = 2, 0, False
    while (found := MARKER.search(data, at)) is not None:
        marker, at = found[1][0], found.end()
        if marker == END_OF_IMAGE:
            return
        if marker in WITHOUT_LENGTH:
            continue
        if marker in FRAMES and len(data) > at + 7:
            components, is_progressive = data[at + 7], marker & 3 == 2
        if marker == START_OF_SCAN and len(data) > at + 2:
            yield _scan(data, at, components, is_progressive)
            if data[at + 2] >= components and not is_progressive:
                return
        at += int.from_bytes(data[at : at + 2], "big")


def _scan(data: bytes, at: int, components: int, is_progressive: bool) -> Scan:
    """Read the scan header at `at`; fields beyond the end are 0."""
    end = at + 3 + 2 * data[at + 2]
    first, last, bits = data[end : end + 3].ljust(3, b"\0")
    return Scan(
        data[at + 3 : end : 2],
        components,
        is_progressive,
        range(first, min(last, COEFFICIENTS - 1) + 1),
        bits & 15,
    )
