"""The part of the environment that the processes of tests inherit."""

from __future__ import annotations

import os
from typing import Final

__all__ = ["KEPT", "inherited"]

#: Settings of the run that every test must pass on: the event loop, the blocking guard, and the run's mark.
KEPT: Final = ("KDISPATCH_NO_UVLOOP", "KDISPATCH_GUARD", "KDISPATCH_TEST_RUN")


def inherited() -> dict[str, str]:
    """Return the environment without the user's own kdispatch settings."""
    return {name: value for name, value in os.environ.items() if name in KEPT or not name.startswith("KDISPATCH_")}
