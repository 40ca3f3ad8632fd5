"""The client of the relay's REST API."""
