"""Serve the console, the API and the metrics of one process."""
