"""Attacks on what was forgotten; one file each, by name in `registry`."""
