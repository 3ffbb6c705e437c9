"""Entries of a cache, closed up and turned to their new positions."""
