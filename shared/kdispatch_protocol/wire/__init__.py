"""Frames, messages and WebSocket framing: bytes in, values out."""
