"""Attention of a query to selected blocks of a bank."""
