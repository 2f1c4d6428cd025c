"""Run the Postgres server of a data directory."""
