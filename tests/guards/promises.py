"""Times that the product promises, such as "within two seconds".

``make accept`` takes them as they are, because nothing else runs beside it. Elsewhere a test shares the processors with
others, so there a promise only has to be kept five times as late: late enough for a loaded machine, and early enough
to notice that something waits for its time-out. A test with such a bound has the mark ``timed``, so that it runs in
``make accept``, too.
"""

from __future__ import annotations

import os
from typing import Final

__all__ = ["MEASURED", "promised"]

#: The variable that ``make accept`` sets to 1.
MEASURED: Final = "KDISPATCH_MEASURED"
#: Times as late. It is read once, because some tests clear the environment.
_LATER: Final = 1 if os.environ.get(MEASURED) == "1" else 5


def promised(seconds: float) -> float:
    """The bound for something that is promised within ``seconds``."""
    return _LATER * seconds
