"""Ingest sources: from rows to searchable points, batch by batch."""
