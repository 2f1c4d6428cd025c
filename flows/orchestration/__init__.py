"""Run jobs under Prefect; no other package imports it."""
