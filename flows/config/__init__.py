"""Read the settings from the environment."""
