"""The relay: REST and tunnels on one port; a switch for frames, not an end of streams."""
