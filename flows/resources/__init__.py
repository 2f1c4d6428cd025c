"""Open the stores and the models, and read their content."""
