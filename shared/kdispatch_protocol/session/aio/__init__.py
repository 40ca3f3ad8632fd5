"""A session on an event loop: its socket, its link, its alarm."""
