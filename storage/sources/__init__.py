"""Read sources: image folders, and manifests in JSONL, CSV or Parquet."""

from storage.redaction import redacted
from storage.sources.image_fetch import FetchError, fetch
from storage.sources.location import find_row, read_source, source_name
from storage.sources.manifest_rows import BadSource
from storage.sources.validation import checked_metadata, checked_texts, is_storable, printable, rejected

__all__ = [
    "BadSource",
    "FetchError",
    "checked_metadata",
    "checked_texts",
    "fetch",
    "find_row",
    "is_storable",
    "printable",
    "read_source",
    "redacted",
    "rejected",
    "source_name",
]
