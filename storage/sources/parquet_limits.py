"""What decoding a Parquet file may take; without imports, for both of the processes that know it."""

MEMORY_BYTES = 512 * 2**20
"""Of memory, beyond what the libraries have."""

CPU_S = 30
"""Of time on a processor, for each batch of rows."""

MAX_COLUMNS = 10_000
"""Of a manifest: each costs memory in every batch of rows."""

OUT_OF_MEMORY = 77
"""Exit status of a process that was refused memory."""
