"""The installed version."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of

__all__ = ["version"]


@cache
def version() -> str:
    """The installed version of kdispatch."""
    try:
        return version_of("kdispatch")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
