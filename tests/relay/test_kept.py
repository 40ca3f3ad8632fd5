"""The cache of look-ups: how long values count, and that no change is overlooked."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

import pytest

from kdispatch_relay.store import kept as module
from kdispatch_relay.store.batches import Batches
from kdispatch_relay.store.kept import Kept


class _Source:
    def __init__(self) -> None:
        self.values: dict[str, int] = {"one": 1}
        self.asked = 0
        self.now = 100.0
        self.go = asyncio.Event()
        self.go.set()

    async def fetch(self, keys: Collection[str]) -> Mapping[str, int]:
        self.asked += 1
        found = {key: self.values[key] for key in keys if key in self.values}
        await self.go.wait()
        return found

    def kept(self) -> Kept[str, int]:
        return Kept(Batches(self.fetch), lambda key, _: key, lambda: self.now)


async def test_for_a_second() -> None:
    """A value is looked up once a second, and a missing one each time."""
    source = _Source()
    kept = source.kept()
    assert [await kept.get("one") for _ in range(3)] == [1] * 3 and source.asked == 1
    source.values["one"] = 2
    source.now += 0.99
    assert await kept.get("one") == 1
    source.now += 0.01
    assert await kept.get("one") == 2
    assert [await kept.get("two") for _ in range(3)] == [None] * 3 and source.asked == 5


async def test_a_change() -> None:
    """After a change no earlier value counts, not even that of a look-up under way."""
    source = _Source()
    kept = source.kept()
    assert await kept.get("one") == 1
    source.values["one"] = 2
    kept.forget("one")
    assert await kept.get("one") == 2
    kept.forget("one")
    source.go.clear()
    late = asyncio.create_task(kept.get("one"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    source.values["one"] = 3
    kept.forget("one")
    source.go.set()
    assert await late == 2
    assert await kept.get("one") == 3


async def test_its_size_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache has a bounded number of values, because strangers choose the names."""
    monkeypatch.setattr(module, "_MOST", 10)
    source = _Source()
    kept = source.kept()
    source.values = {f"n{number}": number for number in range(100)}
    for name in source.values:
        await kept.get(name)
    assert len(kept._values) <= 10


async def test_a_change_of_another_handle() -> None:
    """A change of another handle invalidates neither cached values nor look-ups under way."""
    source = _Source()
    kept = source.kept()
    assert await kept.get("one") == 1
    kept.forget("two")
    assert await kept.get("one") == 1 and source.asked == 1
    kept.forget("one")
    source.go.clear()
    late = asyncio.create_task(kept.get("one"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    kept.forget("two")
    source.go.set()
    assert await late == 1 and await kept.get("one") == 1 and source.asked == 2
    assert not kept._changed


async def test_the_memory_of_changes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """If very many handles change during one look-up, its caller gets the result, but it is not cached."""
    monkeypatch.setattr(module, "_MOST", 10)
    source = _Source()
    kept = source.kept()
    source.go.clear()
    late = asyncio.create_task(kept.get("one"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    kept.forget("one")
    for number in range(100):
        kept.forget(f"n{number}")
        assert len(kept._changed) <= 10
    source.go.set()
    assert await late == 1 and kept.kept("one") is None
