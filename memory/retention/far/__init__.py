"""Memory of what left the window: blocks that are looked up (InfLLM), or single keys."""
