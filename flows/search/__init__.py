"""Search the stored items by text, image or item, and show the hits."""
