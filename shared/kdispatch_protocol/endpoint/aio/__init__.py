"""An agent's end on an event loop: its driver and its streams' transports."""
