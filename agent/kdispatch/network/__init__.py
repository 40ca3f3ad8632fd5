"""The path to a relay: addresses, proxies, TLS, the WebSocket handshake."""
