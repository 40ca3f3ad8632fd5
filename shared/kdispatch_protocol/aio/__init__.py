"""The asyncio side of the protocol: carriers, links and transports."""
