"""The protocol that agent and relay speak: a sans-I/O core, and in ``aio`` the one asyncio driver."""
