from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest

from kdispatch_relay.store.batches import Batches


class Source:
    """Numbers by name; records what was asked, and answers when the test lets it."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.numbers = {"one": 1, "two": 2}
        self.error: Exception | None = None
        self.go = asyncio.Event()

    async def fetch(self, keys: Collection[str]) -> dict[str, int]:
        self.asked.append(list(keys))
        found = {key: self.numbers[key] for key in keys if key in self.numbers}
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return found


async def test_look_ups_are_put_together() -> None:
    """Look-ups that arrive during a query go into the next one, each key once."""
    source = Source()
    batches = Batches(source.fetch)
    first = asyncio.create_task(batches.get("one"))
    await asyncio.sleep(0.001)
    later = [asyncio.create_task(batches.get(key)) for key in ("two", "two", "three")]
    await asyncio.sleep(0.001)
    source.go.set()
    assert await asyncio.gather(first, *later) == [1, 2, 2, None]
    assert source.asked == [["one"], ["two", "three"]]


async def test_answers_are_fresh() -> None:
    """A look-up never gets what an earlier query saw, not even for the same key."""
    source = Source()
    batches = Batches(source.fetch)
    before = asyncio.create_task(batches.get("one"))
    await asyncio.sleep(0.001)
    source.numbers["one"] = 100
    after = asyncio.create_task(batches.get("one"))
    await asyncio.sleep(0.001)
    source.go.set()
    assert (await before, await after) == (1, 100)


async def test_failure_reaches_everybody_once() -> None:
    """A failed query fails its own look-ups, and the next one is made again."""
    source = Source()
    batches = Batches(source.fetch)
    source.go.set()
    source.error = failure = RuntimeError("away")
    results = await asyncio.gather(batches.get("one"), batches.get("two"), return_exceptions=True)
    assert all(result is failure for result in results)
    source.error = None
    assert await batches.get("one") == 1


async def test_leaving_takes_nothing_from_others() -> None:
    """A caller that stops waiting for a key does not end the look-up of the others."""
    source = Source()
    batches = Batches(source.fetch)
    leaver, stayer = asyncio.create_task(batches.get("one")), asyncio.create_task(batches.get("one"))
    await asyncio.sleep(0.001)
    leaver.cancel()
    source.go.set()
    assert await stayer == 1
    with pytest.raises(asyncio.CancelledError):
        await leaver
