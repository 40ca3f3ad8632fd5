"""An agent's end on an event loop: its driver, and the transports of its streams."""
