"""docs/performance.md: tools write the figures between markers, people write the rest."""

from __future__ import annotations

import re
import sys
from typing import Final

from bench.processes import ROOT

__all__ = ["PAGE", "write"]

PAGE: Final = ROOT / "docs" / "performance.md"


def write(part: str, text: str) -> None:
    """Put ``text`` between the page's ``<!-- measured: PART -->`` and ``<!-- end -->``."""
    old = PAGE.read_text()
    pattern = re.compile(rf"(<!-- measured: {part} -->\n).*?(<!-- end -->)", re.DOTALL)
    new, places = pattern.subn(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", old)
    if places != 1:
        raise RuntimeError(f"{PAGE} has {places} places for {part}")
    PAGE.write_text(new)
    print(f"docs/{PAGE.name}: {part} is written", file=sys.stderr)
