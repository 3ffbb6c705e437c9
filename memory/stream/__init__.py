"""SCM: the memory stream, its controller, and the readers of long documents."""
