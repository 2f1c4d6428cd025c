"""Run jobs under Prefect, on schedules and on request. The only package that imports Prefect."""
