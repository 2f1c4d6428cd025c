"""Turning texts and pictures into vectors, and judging them. Knows no stores and no Prefect."""
