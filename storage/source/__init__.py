"""Sources: a folder of pictures, or a manifest in JSONL, CSV or Parquet, read row by row."""

from storage.source.fetch import FetchError, fetch
from storage.source.location import count_rows, find_row, read_source, source_name
from storage.source.manifest import BadSource
from storage.source.validate import printable

__all__ = [
    "BadSource",
    "FetchError",
    "count_rows",
    "fetch",
    "find_row",
    "printable",
    "read_source",
    "source_name",
]
