"""Run the jobs without Prefect; each records its run."""
