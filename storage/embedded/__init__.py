"""Run Postgres and Qdrant's engine inside the data directory."""
