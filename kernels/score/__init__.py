"""Which blocks a query needs, by their summaries."""
