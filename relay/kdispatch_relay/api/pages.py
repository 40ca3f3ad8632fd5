"""Lists in pages: the query parameters of a list, and the cursors that lead from one page to the next.

A cursor names the last entry of its page by the list's sort key, so it stays valid while entries come and go. An entry
that exists all the time is listed exactly once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, Field

from kdispatch_protocol.names import NAME_PATTERN
from kdispatch_relay.api.fields import Body, Given, Number

__all__ = ["NEXT", "ByAgent", "ByHost", "ByName", "NewestFirst", "page_of"]

#: The description of ``next`` in an answer.
NEXT: Final = "give it as `cursor` to get what follows; absent on the last page"

_CURSOR: Final = "the `next` of the page before; without it the first page"
_NAMED: Final = NAME_PATTERN
_MADE: Final = "[0-9]{1,18}-[0-9a-f]{16}"
_HOST: Final = "[0-9a-f]{32}"
_AGENT: Final = "[0-9a-f]{1,64}~[0-9A-Za-z.:%-]{0,64}~(?:[0-9a-f]{16})?"

_Entry = TypeVar("_Entry")


def _looks_like(pattern: str) -> AfterValidator:
    compiled = re.compile(pattern)

    def check(cursor: str) -> str:
        if compiled.fullmatch(cursor) is None:
            raise ValueError("this is not the 'next' of a page of this list; leave it out to begin at the first page")
        return cursor

    return AfterValidator(check)


def _told_as(pattern: str) -> Any:
    return Field(json_schema_extra={"pattern": f"^{pattern}$"})


class _Paged(Body):
    limit: Number = Field(default=100, ge=1, le=1000, description="how many at most")


class ByName(_Paged):
    """Which part of a list sorted by name to return."""

    cursor: Given[Annotated[str, _looks_like(_NAMED), _told_as(_NAMED)]] = Field(default=None, description=_CURSOR)

    @property
    def after(self) -> str:
        """The name after which the page begins."""
        return self.cursor or ""


class NewestFirst(_Paged):
    """Which part of a list to return, sorted by creation time."""

    cursor: Given[Annotated[str, _looks_like(_MADE), _told_as(_MADE)]] = Field(default=None, description=_CURSOR)

    @property
    def after(self) -> tuple[int, str] | None:
        """The creation time and id of the entry after which the page begins."""
        if self.cursor is None:
            return None
        created, _, called = self.cursor.partition("-")
        return int(created), called


class ByHost(_Paged):
    """Which part of the hosts to return. With 16 labels of 320 characters, a host is thirty times a token's size."""

    limit: Number = Field(default=50, ge=1, le=200, description="how many at most")
    cursor: Given[Annotated[str, _looks_like(_HOST), _told_as(_HOST)]] = Field(default=None, description=_CURSOR)

    @property
    def after(self) -> str:
        """The id of the host after which the page begins."""
        return self.cursor or ""


class ByAgent(_Paged):
    """Which part of the clients to return."""

    cursor: Given[Annotated[str, _looks_like(_AGENT), _told_as(_AGENT)]] = Field(default=None, description=_CURSOR)

    @property
    def after(self) -> tuple[str, str, str]:
        """The agent, address and token after which the page begins."""
        agent, source, token = self.cursor.split("~") if self.cursor is not None else ("", "", "")
        return agent, source, token


def page_of(
    found: Sequence[_Entry], limit: int, cursor: Callable[[_Entry], str]
) -> tuple[Sequence[_Entry], str | None]:
    """One page, and the cursor of the next. ``found`` has one entry more than ``limit`` if there are more."""
    if len(found) <= limit:
        return found, None
    return found[:limit], cursor(found[limit - 1])
