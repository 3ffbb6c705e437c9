"""The ledger, the vector index, and every store."""
