"""The result of a check: a level, a sentence, and a hint."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from kdispatch.doctor.redaction import clean
from kdispatch.setup_error import HintedError, SetupError
from kdispatch_protocol.errors import CODES, KdispatchError

__all__ = ["Finding", "Level", "exit_status", "failed", "fails", "is_sound", "ok", "skipped", "warns", "worst"]

_ON_THE_WAY: Final = "you -> relay"


class Level(StrEnum):
    """How bad it is. ``SKIP``: the check could not run, because an earlier one failed."""

    OK = "ok"
    SKIP = "skip"
    WARN = "warn"
    FAIL = "fail"


_STATUS: Final = {Level.OK: 0, Level.SKIP: 0, Level.WARN: 7, Level.FAIL: 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line. Problems have ``hop``, ``hint`` and ``code``; ``code`` is a name in the error table."""

    check: str
    level: Level
    text: str
    hop: str | None = None
    hint: str | None = None
    code: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields for JSON, without secrets."""
        return {
            "check": self.check,
            "level": str(self.level),
            "text": clean(self.text),
            "code": self.code,
            "hop": self.hop,
            "hint": None if self.hint is None else clean(self.hint),
        }

    def lines(self, width: int) -> list[str]:
        """The finding as text; check names are padded to ``width``."""
        first = f"{self.level.upper():<4}  {self.check:<{width}}  {clean(self.text)}"
        more = [
            f"{'':<6}{'':<{width}}  {name:<4} {clean(value)}"
            for name, value in (("at:", self.hop), ("try:", self.hint))
            if value
        ]
        return [first, *more]


def ok(check: str, text: str) -> Finding:
    """A finding without a problem."""
    return Finding(check=check, level=Level.OK, text=text)


def skipped(check: str, text: str) -> Finding:
    """A finding for a check that did not run, with the reason."""
    return Finding(check=check, level=Level.SKIP, text=text)


def warns(check: str, text: str, hint: str, *, hop: str = _ON_THE_WAY, code: str | None = None) -> Finding:
    """A finding for something that works, but not as it should."""
    return Finding(check=check, level=Level.WARN, text=text, hop=hop, hint=hint, code=code)


def fails(check: str, text: str, hint: str, *, hop: str = _ON_THE_WAY, code: str | None = None) -> Finding:
    """A finding for something that does not work."""
    return Finding(check=check, level=Level.FAIL, text=text, hop=hop, hint=hint, code=code)


def failed(check: str, error: KdispatchError, hint: str = "") -> Finding:
    """A finding for something that does not work because of ``error``."""
    row = CODES[error.code]
    own = error.hint if isinstance(error, HintedError) else row.hint
    hop = "you" if isinstance(error, SetupError) else row.hop
    return fails(check, error.text, hint or own, hop=hop, code=error.code)


def worst(findings: Iterable[Finding]) -> Level:
    """The worst level among them."""
    levels = {finding.level for finding in findings}
    return next((level for level in (Level.FAIL, Level.WARN) if level in levels), Level.OK)


def exit_status(findings: Iterable[Finding]) -> int:
    """0 without problems, 7 for warnings, 1 for failures."""
    return _STATUS[worst(findings)]


def is_sound(findings: Iterable[Finding]) -> bool:
    """Whether all of them ran without failure."""
    return all(finding.level in {Level.OK, Level.WARN} for finding in findings)
