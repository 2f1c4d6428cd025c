"""Encode texts and images as vectors, train models and judge them. Imports neither stores nor Prefect."""
