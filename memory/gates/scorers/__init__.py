"""Scores that tell how surely a prompt belongs to a set of prompts, one file each."""
