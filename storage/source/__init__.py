"""Sources: a folder of pictures, or a manifest in JSONL, CSV or Parquet, read row by row."""

from storage.source.fetch import FetchError, fetch
from storage.source.location import count_rows, read_source, source_name
from storage.source.manifest import BadSource

__all__ = ["BadSource", "FetchError", "count_rows", "fetch", "read_source", "source_name"]
