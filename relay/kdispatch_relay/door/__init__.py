"""The entrance: the listener, unauthenticated connections, and requests that are refused before the app sees them."""
