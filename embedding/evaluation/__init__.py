"""Compute retrieval metrics and their confidence intervals."""
