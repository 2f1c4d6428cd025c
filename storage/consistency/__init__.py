"""Decide what differs or has to change. Pure: no store is read here."""
