"""Change a fact in the weights, and change it back."""
