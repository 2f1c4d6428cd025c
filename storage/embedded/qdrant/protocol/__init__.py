"""Translate between the REST API of Qdrant and its engine."""
