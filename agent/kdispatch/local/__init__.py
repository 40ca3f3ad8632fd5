"""Local programs and services: their sockets, and the pipes that connect them to streams."""
