"""Read the settings from the environment.

Public: `load_settings` returns the `Settings` of the environment.
"""

from flows.config.settings import Settings, load_settings

__all__ = ["Settings", "load_settings"]
