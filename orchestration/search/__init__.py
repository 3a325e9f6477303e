"""Searches for settings: what is tried next, what is stopped early, which setting is chosen."""
