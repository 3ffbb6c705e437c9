"""One search over texts: by their words, their meaning, who spoke and when, as one probability."""
