"""The model an agent talks to, and the places where memory enters it."""
