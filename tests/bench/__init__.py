"""Measurements: run by hand with `make bench`, never as tests."""

from embedding.process_tuning import wait_briefly

wait_briefly()  # here, as it comes before the first import of torch
