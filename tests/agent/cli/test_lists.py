"""Lists that come in pages: the calls of the library, and the commands that print them."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from aiohttp import web

from kdispatch.cli.output import Table
from kdispatch.network.dialer import Dialer
from kdispatch.relay_url import RelayUrl
from kdispatch.rest.client import RestClient
from kdispatch.rest.listing import Listing
from kdispatch.rest.service_query import ServiceQuery
from kdispatch_protocol.console import JsonList
from kdispatch_protocol.errors import KdispatchError
from tests.agent.cli.fake_relay import FakeRelay, Shell, new_token

AT: Final = "2026-01-01T00:00:00Z"
NAMES: Final = [f"ann/s{number}" for number in range(25)]


class Paged:
    """Answers every list with ten entries a page, and records the requests."""

    def __init__(self, *, pages: bool = True, endless: bool = False) -> None:
        self.queries: list[dict[str, str]] = []
        self._pages = pages
        self._endless = endless

    async def __call__(self, request: web.Request) -> web.Response:
        if request.path.endswith("whoami"):
            return web.json_response({"kind": "adm", "handle": "ann"})
        query = dict(request.query)
        self.queries.append(query)
        if not self._pages:
            assert not query.keys() - {"service"}, "this relay knows no pages"
            return web.json_response(self._some(request.path, range(25)))
        first = int(query.get("cursor") or query.get("before") or 0)
        numbers = range(first, min(first + 10, 25))
        more: dict[str, Any] = {}
        if self._endless or numbers.stop < 25:
            more["next"] = numbers.stop if request.path.endswith("audit") else str(numbers.stop)
        return web.json_response(self._some(request.path, numbers) | more)

    def _some(self, path: str, numbers: range) -> dict[str, Any]:
        ids = [f"{number:016x}" for number in numbers]
        match path.rpartition("/")[2]:
            case "services":
                seen = [{"service": NAMES[n], "access": "public", "live_hosts": 0} for n in numbers]
                return {"services": seen}
            case "tokens":
                return {
                    "tokens": [{"id": one, "kind": "cli", "name": "n" * int(one, 16), "created": AT} for one in ids]
                }
            case "hosts":
                return {"hosts": [{"host": one, "since": AT, "labels": {}, "streams": 0} for one in ids]}
            case "clients":
                return {"clients": [{"agent": one, "source": "::1", "since": AT, "streams": 1} for one in ids]}
            case "invites":
                times = {"created": AT, "expires": AT}
                return {
                    "invites": [{"id": one, "for": "host", "name": "n", "uses": 1, "used": 0, **times} for one in ids]
                }
        told = {"at": AT, "actor": "a", "action": "b", "subject": "c", "source": "::1", "detail": {}}
        return {"events": [{"id": number + 1, **told} for number in numbers]}


LISTS: Final[dict[str, Any]] = {
    "services": lambda relay: relay.services(),
    "tokens": lambda relay: relay.tokens(),
    "invites": lambda relay: relay.invites("ann/web"),
    "hosts": lambda relay: relay.hosts("ann/web"),
    "clients": lambda relay: relay.clients("ann/web"),
    "events": lambda relay: relay.events(),
}


@pytest.mark.parametrize("what", LISTS)
async def test_each_list_is_followed(relay: FakeRelay, what: str) -> None:
    """A list is returned complete, entry by entry or page by page; only a relay that gave a cursor gets a size."""
    relay.instead = paged = Paged()
    async with RestClient(relay.url, token=new_token("adm")) as client:
        listing: Listing[Any] = LISTS[what](client)
        assert paged.queries == []
        whole = await listing
        assert len(whole) == len(set(map(str, whole))) == 25
        most, key = ("200" if what == "hosts" else "1000"), ("before" if what == "events" else "cursor")
        assert paged.queries == [{}, {"limit": most, key: "10"}, {"limit": most, key: "20"}]
        assert [one async for one in listing] == list(whole)
        assert [len(page.items) async for page in listing.pages()] == [10, 10, 5]
        page = await listing.page("20", 7)
        assert (page.items, page.next, paged.queries[-1]) == (whole[20:], None, {"limit": "7", key: "20"})


async def test_pages_are_asked_for_when_they_are_needed(relay: FakeRelay) -> None:
    """A caller that stops early requests no further page."""
    relay.instead = paged = Paged()
    async with RestClient(relay.url, token=new_token("adm")) as client:
        async for token in client.tokens():
            if token.id == f"{3:016x}":
                break
    assert len(paged.queries) == 1


@pytest.mark.parametrize("what", LISTS)
async def test_a_relay_without_pages(relay: FakeRelay, what: str) -> None:
    """A relay without pages, which refuses unknown parameters, is understood as before."""
    relay.instead = paged = Paged(pages=False)
    async with RestClient(relay.url, token=new_token("adm")) as client:
        assert len(await LISTS[what](client)) == 25
    assert paged.queries == [{}]


async def test_a_list_without_an_end(relay: FakeRelay, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endless list is refused as not a relay's."""
    monkeypatch.setattr("kdispatch.rest.listing._MOST_PAGES", 20)
    relay.instead = paged = Paged(endless=True)
    async with RestClient(relay.url, token=new_token("adm")) as client:
        with pytest.raises(KdispatchError, match="not_a_relay"):
            await client.services()
    assert len(paged.queries) == 21


async def test_hosts_without_aiohttp(relay: FakeRelay) -> None:
    """A search for a certain host sees all pages, too."""
    relay.instead = paged = Paged()
    async with ServiceQuery(Dialer(RelayUrl.parse(relay.url)), new_token("cli")) as query:
        assert [host.host for host in await query.hosts("ann/web")] == [f"{number:016x}" for number in range(25)]
    assert paged.queries == [{}, {"cursor": "10"}, {"cursor": "20"}]


def test_a_table_in_parts() -> None:
    """A table's head is printed once, if there is any row, and columns never become narrower."""
    grid = Table(("ID", "NAME"))
    assert grid.lines([]) == []
    assert grid.lines([("1", "a"), ("22222", "b")]) == ["ID     NAME", "1      a", "22222  b"]
    assert grid.lines([("3", "c")]) == ["3      c"]


@pytest.mark.parametrize("parts", [[], [[]], [[{"a": 1}], [], [{"b": 2}, {"c": 3}]]])
def test_json_in_parts(parts: list[list[dict[str, int]]]) -> None:
    """The parts joined are the line of the whole object."""
    written: list[str] = []
    objects = JsonList(written.append, "of", {"service": 'a"/b'})
    for part in parts:
        objects.add(part)
    assert written or not any(parts)
    objects.end()
    whole = {"schema": 1, "service": 'a"/b', "of": [item for part in parts for item in part]}
    assert "".join(written) == json.dumps(whole) + "\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("token list", "tokens"),
        ("service list", "services"),
        ("invite list ann/web", "invites"),
        ("service hosts ann/web", "hosts"),
        ("service clients ann/web", "clients"),
    ],
)
async def test_commands_print_all_pages(kdispatch: Shell, words: str, key: str) -> None:
    """Each output form has every entry once: a table with one head, one object of JSON, one id a line."""
    kdispatch.relay.instead = Paged()
    flags = {"KDISPATCH_TOKEN": new_token("adm"), "KDISPATCH_RELAY": kdispatch.relay.url}
    plain, as_json, quiet = [await kdispatch.here(f"{words} {flag}", **flags) for flag in ("", "--json", "--quiet")]
    assert {(one.status, one.err) for one in (plain, as_json, quiet)} == {(0, "")}
    ids = quiet.out.split()
    assert len(ids) == len(set(ids)) == 25
    lines = plain.out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ids and lines[0].split()[0].isupper()
    [line] = as_json.out.splitlines()
    assert len(json.loads(line)[key]) == 25


@pytest.mark.slow
async def test_a_page_that_fails(kdispatch: Shell) -> None:
    """If a page fails, the output so far stays, the error has its three lines, and the status is its own."""
    paged = Paged()

    async def answer(request: web.Request) -> web.Response:
        if request.query.get("cursor") == "20":
            raise KdispatchError("storage_unavailable")
        return await paged(request)

    kdispatch.relay.instead = answer
    flags = {"KDISPATCH_TOKEN": new_token("adm"), "KDISPATCH_RELAY": kdispatch.relay.url}
    ended = await kdispatch("service list --quiet", **flags)
    assert (ended.status, ended.code) == (1, "storage_unavailable")
    assert ended.out.split() == NAMES[:20]
