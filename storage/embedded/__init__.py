"""Run Postgres and Qdrant's engine in the data directory, without servers of the user."""
