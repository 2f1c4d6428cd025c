"""Decode untrusted images in worker processes, within limits of memory and time."""
