"""Python imports this at the start of each process of a test: it guards the event loops of kdispatch."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def _guard() -> None:
    if not os.environ.get("KDISPATCH_GUARD") or not any(Path(word).name == "kdispatch" for word in sys.orig_argv[1:2]):
        return
    root = str(Path(__file__).parents[3])
    sys.path.append(root)
    try:
        from tests.guards.blocking import make_guard  # noqa: PLC0415 - only where it is wanted
    finally:
        sys.path.remove(root)
    make_guard().activate()


_guard()
