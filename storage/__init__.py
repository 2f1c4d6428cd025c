"""Store records, images and vectors. Imports neither models nor Prefect."""
