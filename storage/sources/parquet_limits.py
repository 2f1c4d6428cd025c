"""Define the limits of Parquet decoding.

Both processes import this module, so it imports nothing.
"""

MEMORY_BYTES = 512 * 2**20
"""Memory limit, in addition to the libraries."""

CPU_S = 30
"""CPU time per batch of rows."""

MAX_COLUMNS = 10_000
"""Columns of a manifest: each costs memory in every batch of rows."""

OUT_OF_MEMORY = 77
"""Exit status of a process that ran out of memory."""
