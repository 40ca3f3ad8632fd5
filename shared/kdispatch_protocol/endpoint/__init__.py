"""An agent's end of sessions and streams, sans-I/O."""
