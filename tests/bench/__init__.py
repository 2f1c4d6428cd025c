"""Measurements: run by hand with `make bench`, never as tests."""

from embedding.process_tuning import shorten_spinning

shorten_spinning()  # here, as it comes before the first import of torch
