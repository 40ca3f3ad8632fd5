"""The relay: serves REST and tunnels on one port. It switches frames, and is not an end of streams."""
