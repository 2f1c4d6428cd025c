"""Open the stores and the models, and read what they hold."""
