"""Connections before a request is anybody's: the listener, and what it refuses."""
