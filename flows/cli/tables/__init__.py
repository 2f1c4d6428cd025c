"""Reports as tables that line up in a terminal."""
