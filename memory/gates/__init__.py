"""Gates: which of the things a memory keeps a prompt is about, decided from the prompt alone."""
