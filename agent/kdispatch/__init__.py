"""kdispatch: reach a TCP service on a machine that can only make outgoing HTTPS connections."""
