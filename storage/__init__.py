"""Everything at rest: sources, Postgres, Qdrant and picture bytes. Knows no models and no Prefect."""
