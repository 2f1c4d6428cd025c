"""CRC-32C of many records at once, as the engine's log has them: each begins with the checksum before it.

Python's library has no CRC-32C, and byte by byte a full log would take a minute. So all records are cut into
rows of equal width, the remainders of all rows are found together, and then joined record by record.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

WIDTH = 64
MIRRORED_POLYNOMIAL = 0x82F63B78
ALL_ONES = 0xFFFFFFFF
BITS = 32
BYTE = 0xFF

Words = NDArray[np.uint32]


def checksums(records: Sequence[bytes], before: Sequence[int]) -> list[int]:
    """Return the checksum of each record.

    Args:
        records: four bytes or more each.
        before: the checksum that comes before each; the seed of its file for the first.
    """
    if not records:
        return []
    padded = [_padded(record, crc) for record, crc in zip(records, before, strict=True)]
    rows = np.frombuffer(b"".join(padded), np.uint8).reshape(-1, WIDTH)
    remainders = _remainders(rows).tolist()
    ends = list(accumulate(len(one) // WIDTH for one in padded))
    starts = [0, *ends[:-1]]
    return [_joined(remainders[start:end]) ^ ALL_ONES for start, end in zip(starts, ends, strict=True)]


def _padded(record: bytes, before: int) -> bytes:
    """Put the starting value into the first bytes, and zeros before them, which change nothing."""
    mirrored = int(f"{before:0{BITS}b}"[::-1], 2)
    first = int.from_bytes(record[:4], "little") ^ mirrored
    return b"\0" * (-len(record) % WIDTH) + first.to_bytes(4, "little") + record[4:]


def _remainders(rows: NDArray[np.uint8]) -> Words:
    table, result = _table(), np.zeros(len(rows), np.uint32)
    for column in range(rows.shape[1]):
        result = table[(result ^ rows[:, column]) & BYTE] ^ (result >> 8)
    return result


def _joined(remainders: Iterable[int]) -> int:
    first, second, third, fourth = _shifts()
    total = 0
    for remainder in remainders:
        total = (
            first[total & BYTE]
            ^ second[total >> 8 & BYTE]
            ^ third[total >> 16 & BYTE]
            ^ fourth[total >> 24]
            ^ remainder
        )
    return total


@cache
def _table() -> Words:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(MIRRORED_POLYNOMIAL), table >> 1)
    return table.astype(np.uint32)


@cache
def _shifts() -> tuple[list[int], ...]:
    """For each byte of a remainder: the value that it has one row later."""
    values = np.arange(256, dtype=np.uint32)
    zeros = np.zeros((256, WIDTH), np.uint8)
    return tuple(_moved(values << np.uint32(shift), zeros).tolist() for shift in (0, 8, 16, 24))


def _moved(values: Words, zeros: NDArray[np.uint8]) -> Words:
    result, table = values, _table()
    for column in range(zeros.shape[1]):
        result = table[(result ^ zeros[:, column]) & BYTE] ^ (result >> 8)
    return result
