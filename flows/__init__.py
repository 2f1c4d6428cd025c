"""The order of work: what a person or a schedule starts. Knows Prefect and the environment."""
