"""Every route and every frame with every kind of token, compared with the table of rights and a handwritten copy."""

from __future__ import annotations

import asyncio
import itertools
import math
import shutil
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from kdispatch_protocol.errors import CODES
from kdispatch_relay.api.route import ApiRoute, BearerToken
from kdispatch_relay.api.routes import ROUTES
from kdispatch_relay.auth import RIGHTS, Party
from tests.net.harness import sizes
from tests.relay.conftest import empty_database
from tests.security.people import ABSENT, FRAMES, GATE, OPEN, SHOWN, Given, People, people

__all__ = ["empty_database"]

Cell = tuple[str, str, str]  # name of a route or frame, service, token shown

#: The owner does these last, because they take other callers' rights away.
LAST: Final = ("revoke_token", "rotate_service", "delete_service")
ROUTE: Final[Mapping[str, ApiRoute]] = {route.name: route for route in ROUTES}
ACTION: Final = {"OFFER": "host", "ATTACH host": "host", "OPEN": "open", "ATTACH client": "open"}
NO_SUCH: Final = {
    "withdraw_host": "unknown_host",
    "revoke_token": "unknown_token",
    "revoke_invite": "unknown_invite",
}
NOT_LOOKED_UP: Final = {"none", "malformed", "wrong", "expired", "hst", "inv"}
PARTIES: Final = {
    "none": Party.ANYBODY,
    "other admin": Party.ADMIN,
    "svc": Party.SERVICE,
    "cli": Party.CLIENT,
    "hst": Party.HOST,
    "inv": Party.INVITATION,
    "owner": Party.OWNER,
}
#: Written by hand from docs/security.md, not from the code.
BY_HAND: Final[Mapping[Cell, str]] = {
    ("create_admin", OPEN, "none"): "yes",
    ("create_admin", OPEN, "revoked"): "yes",
    ("who_am_i", OPEN, "none"): "401 token_refused",
    ("who_am_i", OPEN, "suspended"): "401 revoked",
    ("who_am_i", OPEN, "cli"): "yes",
    ("who_am_i", OPEN, "inv"): "401 token_refused",
    ("create_service", OPEN, "svc"): "403 not_permitted",
    ("create_service", OPEN, "other admin"): "yes",
    ("list_services", OPEN, "expired"): "401 token_refused",
    ("show_service", OPEN, "none"): "yes",
    ("show_service", OPEN, "wrong"): "401 token_refused",
    ("show_service", OPEN, "other cli"): "yes",
    ("show_service", GATE, "none"): "404 unknown_service",
    ("show_service", GATE, "other admin"): "404 unknown_service",
    ("show_service", GATE, "other svc"): "404 unknown_service",
    ("show_service", GATE, "cli"): "yes",
    ("show_service", ABSENT, "owner"): "404 unknown_service",
    ("list_hosts", GATE, "other cli"): "404 unknown_service",
    ("list_hosts", GATE, "svc"): "yes",
    ("list_clients", GATE, "svc"): "403 not_permitted",
    ("list_clients", OPEN, "none"): "401 token_refused",
    ("change_service", GATE, "other admin"): "403 not_permitted",
    ("change_service", ABSENT, "other admin"): "403 not_permitted",
    ("rotate_service", GATE, "svc"): "403 not_permitted",
    ("rotate_service", GATE, "owner"): "yes",
    ("delete_service", GATE, "other admin"): "403 not_permitted",
    ("delete_service", GATE, "owner"): "yes",
    ("create_invite", GATE, "cli"): "403 not_permitted",
    ("create_invite", GATE, "inv"): "401 token_refused",
    ("revoke_invite", GATE, "other admin"): "403 not_permitted",
    ("accept_invite", OPEN, "inv"): "yes",
    ("accept_invite", OPEN, "owner"): "401 token_refused",
    ("create_token", OPEN, "svc"): "403 not_permitted",
    ("list_tokens", OPEN, "revoked"): "401 revoked",
    ("revoke_token", GATE, "other admin"): "404 unknown_token",
    ("withdraw_host", GATE, "other admin"): "404 unknown_host",
    ("withdraw_host", GATE, "svc"): "403 not_permitted",
    ("withdraw_host", GATE, "hst"): "yes",
    ("withdraw_host", ABSENT, "hst"): "404 unknown_host",
    ("read_audit", OPEN, "cli"): "403 not_permitted",
    ("OFFER", OPEN, "none"): "token_refused",
    ("OFFER", OPEN, "other admin"): "not_permitted",
    ("OFFER", GATE, "svc"): "yes",
    ("OFFER", GATE, "cli"): "not_permitted",
    ("OFFER", ABSENT, "other admin"): "not_permitted",
    ("OPEN", OPEN, "revoked"): "yes",
    ("OPEN", GATE, "none"): "unknown_service",
    ("OPEN", GATE, "svc"): "unknown_service",
    ("OPEN", GATE, "suspended"): "revoked",
    ("OPEN", GATE, "other cli"): "unknown_service",
    ("OPEN", GATE, "owner"): "yes",
    ("ATTACH host", GATE, "other svc"): "not_permitted",
    ("ATTACH host", GATE, "owner"): "yes",
    ("ATTACH client", GATE, "expired"): "token_refused",
    ("ATTACH client", GATE, "other admin"): "unknown_service",
    ("ATTACH client", OPEN, "malformed"): "yes",
}


def cells() -> list[Cell]:
    """Each combination once; the owner's destructive ones come last."""
    all_of = [
        (route.name, service, shown)
        for route in ROUTES
        for service in ((OPEN, GATE, ABSENT) if set(route.parameters) - {"handle"} else (OPEN,))
        for shown in SHOWN
        if (route.name, service) != ("revoke_token", OPEN)  # its path has no service: GATE and ABSENT suffice
    ]
    all_of += itertools.product(FRAMES, (OPEN, GATE, ABSENT), SHOWN)
    return sorted(all_of, key=lambda cell: LAST.index(cell[0]) + 1 if cell[0] in LAST and cell[2] == "owner" else 0)


def code_of(what: str, service: str, shown: str) -> str:
    """The expected code by the table of rights; empty if the request is allowed."""
    action = ROUTE[what].who if what in ROUTE else ACTION[what]
    match action:
        case "anybody":
            return "bad_request" if what == "open_tunnel" else ""  # the request is no upgrade
        case "sign_up":
            return ""
        case "relay.state":  # the caller is on this machine, and the relay has no operator's token
            return "" if shown == "none" else "token_refused"
        case "invite.accept":
            return "" if shown == "inv" else "token_refused"
    right = RIGHTS[action]
    party = PARTIES.get(shown)
    if what in FRAMES and service == OPEN and Party.ANYBODY in right.public:
        return ""
    optional = shown == "none" and (ROUTE[what].token is BearerToken.MAY if what in ROUTE else right.hidden)
    if not optional and not (shown == "hst" and Party.HOST in right.parties):
        if shown in NOT_LOOKED_UP:
            return "token_refused"
        if shown in {"revoked", "suspended"}:
            return "revoked"
    return _of_service(what, service, shown, party)


def _of_service(what: str, service: str, shown: str, party: Party | None) -> str:
    """The same, for a valid token or a request that needs none."""
    right = RIGHTS[ROUTE[what].who if what in ROUTE else ACTION[what]]
    no_such = NO_SUCH.get(what, "unknown_service")
    everybodys = party in right.parties or (Party.ADMIN in right.parties and party is Party.OWNER)
    if what == "who_am_i":
        return ""  # a token of another service is valid here, too
    if what == "withdraw_host" and party is Party.ADMIN:
        return no_such
    if what == "revoke_token" and party is Party.ADMIN:
        return no_such  # an admin may revoke tokens, but this one is another admin's
    absent = service == ABSENT and (what in FRAMES or bool(set(ROUTE[what].parameters)))
    if absent and right.hidden:
        return no_such
    if absent and party in {Party.SERVICE, Party.CLIENT}:
        return "not_permitted"  # these tokens belong to other services
    if everybodys:
        return no_such if absent else ""
    if service == OPEN and Party.ANYBODY in right.public:
        return ""
    return no_such if right.hidden else "not_permitted"


def expected(cell: Cell) -> str:
    code = code_of(*cell)
    if not code:
        return "yes"
    return code if cell[0] in FRAMES else f"{CODES[code].http} {code}"


async def _walk(folder: Path) -> dict[Cell, Given]:
    async with people(folder) as site:
        return {cell: await _does(site, *cell) for cell in cells()}


async def _does(site: People, what: str, service: str, shown: str) -> Given:
    if what in FRAMES:
        return await site.sends(what, service, shown)
    return await site.asks(ROUTE[what], service, shown)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> dict[Cell, Given]:
    """The answers for all cells, collected in one pass."""
    folder = tmp_path_factory.mktemp("matrix")
    shutil.copy(empty_database, folder / "relay.db")
    return asyncio.run(_walk(folder))


def test_each_may_what_the_table_says(answers: dict[Cell, Given]) -> None:
    """Every route and frame with every kind of token is allowed where the table says, else gets the exact code."""
    wrong = {cell: (given.word, expected(cell)) for cell, given in answers.items() if given.word != expected(cell)}
    assert wrong == {}
    assert len(answers) > 700


def test_each_may_what_people_were_told(answers: dict[Cell, Given]) -> None:
    """The answers agree with a second, handwritten table, so that an error in the first one is found."""
    assert {cell: answers[cell].word for cell in BY_HAND} == BY_HAND


def test_not_yours_is_not_there(answers: dict[Cell, Given]) -> None:
    """Callers without the right get the same bytes as for a service that does not exist."""
    pairs = 0
    for (what, service, shown), given in answers.items():
        if service == GATE and given.word != "yes":
            absent = answers[what, ABSENT, shown]
            assert given == absent, f"{what} with {shown}"
            pairs += 1
    assert pairs > 150


#: Requests that hide a service, and the token from which they hide it.
HIDDEN: Final = (
    ("show_service", "none"),
    ("show_service", "other admin"),
    ("list_hosts", "other cli"),
    ("revoke_token", "other admin"),
    ("change_service", "other admin"),
    ("OPEN", "none"),
    ("OPEN", "other cli"),
    ("OFFER", "other admin"),
    ("ATTACH client", "other admin"),
)


@pytest.mark.parametrize("pairs", sizes(25, 120))
async def test_not_yours_takes_as_long(tmp_path: Path, empty_database: Path, pairs: int) -> None:
    """The time of the answer does not reveal whether the service exists."""
    shutil.copy(empty_database, tmp_path / "relay.db")
    differ = {}
    async with people(tmp_path) as site:
        for what, shown in HIDDEN:
            there, absent = await _times(site, what, shown, pairs)
            if pairs < 100:  # with few samples only a wait can be seen, not an extra look-up
                ratio, probable = _quartile(there) / _quartile(absent), 1.0
            else:
                ratio, probable = statistics.median(there) / statistics.median(absent), same(there, absent)
            within = 10.0 if pairs < 100 else 1.5  # on a shared machine ranks are more reliable than medians
            if not 1 / within < ratio < within or probable < 1e-6:
                differ[what, shown] = (ratio, probable)
    assert differ == {}


async def _times(site: People, what: str, shown: str, pairs: int) -> tuple[list[float], list[float]]:
    """The seconds of each answer for the existing and for the missing service, measured in turns."""
    took: dict[str, list[float]] = {GATE: [], ABSENT: []}
    for turn in range(-5, pairs):
        for service in (GATE, ABSENT) if turn % 2 else (ABSENT, GATE):
            began = time.perf_counter()
            await _does(site, what, service, shown)
            if turn >= 0:  # the first rounds are slower, so they do not count
                took[service].append(time.perf_counter() - began)
    return took[GATE], took[ABSENT]


def _quartile(values: list[float]) -> float:
    return statistics.quantiles(values, n=4)[0]


def same(one: list[float], two: list[float]) -> float:
    """The probability of so large a difference between two samples of one distribution (Mann-Whitney rank test)."""
    ranked = sorted([(value, 0) for value in one] + [(value, 1) for value in two])
    ranks = sum(rank for rank, (_, which) in enumerate(ranked, 1) if which == 0)
    n, m = len(one), len(two)
    u = ranks - n * (n + 1) / 2
    z = abs(u - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)
    return math.erfc(z / math.sqrt(2))


def test_the_test_of_ranks() -> None:
    """The rank test separates samples of two distributions, and accepts samples of one."""
    one = [math.sin(number) for number in range(400)]
    assert same(one, [math.sin(number + 0.5) for number in range(400)]) > 0.1
    assert same(one, [value + 0.5 for value in one]) < 1e-6
