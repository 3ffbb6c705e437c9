"""Files from elsewhere as texts: one parser a file, and their table in `registry`."""
