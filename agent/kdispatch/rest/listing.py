"""Lists of a relay, which come in pages: all entries at once, entry by entry, or page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from kdispatch_protocol.errors import KdispatchError

__all__ = ["Listing", "Page"]

_MOST_PAGES: Final = 10_000  # ten million entries; no relay's list is longer

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Page(Generic[_T]):
    """A part of a list; ``next`` is the cursor of the next page, or ``None``."""

    items: tuple[_T, ...]
    next: str | None


class Listing(Generic[_T]):
    """A list that is requested on use: ``await`` returns all entries, ``async for`` iterates over them.

    ``ask(cursor, limit)`` gets one page; ``most`` is the largest page that a relay returns.
    """

    def __init__(self, ask: Callable[[str | None, int | None], Awaitable[Page[_T]]], most: int) -> None:
        self._ask = ask
        self._most = most

    def __await__(self) -> Generator[Any, None, tuple[_T, ...]]:
        return self._all().__await__()

    async def __aiter__(self) -> AsyncIterator[_T]:
        async for page in self.pages():
            for item in page.items:
                yield item

    async def page(self, cursor: str | None = None, limit: int | None = None) -> Page[_T]:
        """The page at ``cursor``, or the first one, with at most ``limit`` entries."""
        return await self._ask(cursor, limit)

    async def pages(self) -> AsyncIterator[Page[_T]]:
        """The pages in order. Each is requested when the one before has been used."""
        # The first without a limit, because relays without pages refuse one. A cursor proves that this relay has them.
        page = await self._ask(None, None)
        yield page
        for _ in range(_MOST_PAGES):
            if page.next is None:
                return
            page = await self._ask(page.next, self._most)
            yield page
        raise KdispatchError("not_a_relay", "The list has no end: this is no kdispatch relay.")

    async def _all(self) -> tuple[_T, ...]:
        return tuple([item async for item in self])
