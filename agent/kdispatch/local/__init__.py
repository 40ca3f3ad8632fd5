"""Local programs and services: their sockets, and the pipes that tie them to streams."""
