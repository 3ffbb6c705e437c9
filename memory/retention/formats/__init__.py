"""How near keys and values are held in few bits, a format a file."""
