"""The nearest rows of a table of embeddings."""
