"""What of our own environment the processes of tests keep."""

from __future__ import annotations

import os
from typing import Final

__all__ = ["KEPT", "inherited"]

#: How the run is made, which no test may drop: the event loop, the guard against what blocks it, and the run's mark.
KEPT: Final = ("KDISPATCH_NO_UVLOOP", "KDISPATCH_GUARD", "KDISPATCH_TEST_RUN")


def inherited() -> dict[str, str]:
    """The environment without the kdispatch settings of whoever runs the tests."""
    return {name: value for name, value in os.environ.items() if name in KEPT or not name.startswith("KDISPATCH_")}
