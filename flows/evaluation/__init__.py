"""Measure the retrieval quality of models, and decide on promotions."""
