"""Combines look-ups that arrive while a query is under way into one query.

One query through SQLAlchemy and aiosqlite costs about 0.9 ms of processor time, nearly all of it for going to the
driver's thread and back, so a query for a hundred keys costs little more than one for a single key. Nothing is cached:
a query begins after the last of its look-ups arrived, so that each sees the state at that time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping
from itertools import islice
from typing import Final, Generic, TypeVar

__all__ = ["Batches"]

_LARGEST: Final = 200  # keys in a query: more save no time, and drivers limit the number of parameters

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class Batches(Generic[_Key, _Value]):
    """Look-ups by one kind of key. ``fetch`` gets some keys and returns the values that exist, by key."""

    def __init__(self, fetch: Callable[[Collection[_Key]], Awaitable[Mapping[_Key, _Value]]]) -> None:
        self._fetch = fetch
        self._waiting: dict[_Key, asyncio.Future[_Value | None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def get(self, key: _Key) -> _Value | None:
        """The value of ``key``, ``None`` if there is none; raises what ``fetch`` raised."""
        future = self._waiting.get(key)
        if future is None:
            future = self._waiting[key] = asyncio.get_running_loop().create_future()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="look-ups")
        # Others may wait for the same future, so a caller that is cancelled must not cancel it.
        return await asyncio.shield(future)

    async def _run(self) -> None:
        try:
            while self._waiting:
                keys = list(islice(self._waiting, _LARGEST))
                await self._answer({key: self._waiting.pop(key) for key in keys})
        finally:
            self._task = None

    async def _answer(self, batch: Mapping[_Key, asyncio.Future[_Value | None]]) -> None:
        try:
            found = await self._fetch(batch.keys())
        except Exception as error:  # noqa: BLE001 - passed on to the callers
            for future in batch.values():
                future.set_exception(error)
        else:
            for key, future in batch.items():
                future.set_result(found.get(key))
