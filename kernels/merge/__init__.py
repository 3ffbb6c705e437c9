"""Partitions of one softmax, joined by their log-sum-exp."""
