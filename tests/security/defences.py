"""For each threat: the code of its defence, the edit that switches it off, and the test that then fails."""

from __future__ import annotations

from typing import Final

from tests.security.defence import THREATS, Defence, Edit
from tests.security.defences_of_rights import OF_RIGHTS
from tests.security.defences_of_work import OF_WORK

__all__ = ["DEFENCES", "THREATS", "Defence", "Edit"]

#: By threat.
DEFENCES: Final = (*OF_RIGHTS, *OF_WORK)
