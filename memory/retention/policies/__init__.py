"""What to keep when the budget is full, a policy a file."""
