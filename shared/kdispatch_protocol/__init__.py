"""The protocol between agents and relay: a sans-I/O core, and the asyncio drivers in the ``aio`` packages."""
