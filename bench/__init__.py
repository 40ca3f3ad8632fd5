"""How fast kdispatch is."""
