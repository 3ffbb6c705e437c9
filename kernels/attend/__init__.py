"""Attention to keys that lie next to each other, with its log-sum-exp."""
