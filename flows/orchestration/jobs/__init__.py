"""Run the jobs, without Prefect: each opens the stores and records its run."""
