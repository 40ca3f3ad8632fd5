"""The path of the API."""

from __future__ import annotations

from typing import Final

__all__ = ["PREFIX"]

PREFIX: Final = "/api/v1"
