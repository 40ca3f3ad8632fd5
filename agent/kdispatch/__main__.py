"""``python -m kdispatch``: the same as the console script."""

from __future__ import annotations

import sys

from kdispatch.cli.main import run

sys.exit(run())
