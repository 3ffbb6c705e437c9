"""Forgetting: across all tiers with `erasure`, and the report that shows it."""
