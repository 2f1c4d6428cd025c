"""Run ingestion, search, training and maintenance."""
