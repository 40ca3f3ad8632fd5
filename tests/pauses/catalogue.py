"""All cases."""

from __future__ import annotations

from typing import Final

from tests.pauses import database_cases, file_cases, http_cases, mail_cases, message_cases
from tests.pauses.rig import Case

__all__ = ["CASES"]

CASES: Final[list[Case]] = [
    *file_cases.CASES,
    *database_cases.CASES,
    *http_cases.CASES,
    *message_cases.CASES,
    *mail_cases.CASES,
]
