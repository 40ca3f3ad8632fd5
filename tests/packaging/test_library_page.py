from __future__ import annotations

import re
from collections.abc import Callable
from inspect import getmembers, isfunction, signature
from pathlib import Path
from typing import Any, Final, get_type_hints

import kdispatch
from kdispatch.rest import client as rest_client

PAGE: Final = (Path(__file__).parents[2] / "docs" / "library.md").read_text()
CLASSES: Final = (kdispatch.Connector, kdispatch.Server, kdispatch.RestClient)


def test_every_public_name_is_described() -> None:
    """The page describes every public name of `import kdispatch`, and uses no others."""
    described = set(re.findall(r"`(\w+)(?:\([^`]*\))?`", PAGE)) | set(re.findall(r"`(\w+)\.\w+", PAGE))
    assert set(kdispatch.__all__) <= described
    assert set(re.findall(r"\bkdispatch\.([a-zA-Z]\w+)\(", PAGE)) <= set(kdispatch.__all__)


def test_every_public_method_is_described() -> None:
    """The members in the page's tables are the public members of their classes."""
    told = set(re.findall(r"^\| `(\w+\.\w+)", PAGE, re.MULTILINE))
    public = {
        f"{cls.__name__}.{name}"
        for cls in CLASSES
        for name, _ in getmembers(cls, lambda member: isfunction(member) or isinstance(member, property))
        if not name.startswith("_")
    }
    attributes = {"RestClient.token"}
    assert told - attributes == public - {"Server.start"}  # start_server calls it


def test_every_answer_is_named() -> None:
    """The page's table has the right return type of each call of the REST client."""
    rows = re.findall(r"(?m)^\| `RestClient\.(\w+)\([^`]*\)` \| (?:`(\w+)`(s?))? ?\|", PAGE)
    assert len(rows) > 10
    for name, answer, several in rows:
        gives: Any = getattr(rest_client, answer) if answer else type(None)
        given = get_type_hints(getattr(kdispatch.RestClient, name))["return"]
        assert given == (rest_client.Listing[gives] if several else gives), name


def test_signatures() -> None:
    """The page has the right arguments and defaults."""
    told = dict(re.findall(r"`((?:\w+\.)?\w+)\(([^`]*)\)`", PAGE))
    functions: dict[str, Callable[..., object]] = {
        "open_connection": kdispatch.open_connection,
        "start_server": kdispatch.start_server,
        "Connector": kdispatch.Connector,
        **{f"{cls.__name__}.{name}": member for cls in CLASSES for name, member in getmembers(cls, isfunction)},
    }
    checked = functions.keys() & told.keys()
    assert len(checked) >= 7
    for name in checked:
        parameters = [p for p in signature(functions[name]).parameters.values() if p.name != "self"]
        real = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
        assert [part.strip() for part in told[name].split(",") if part.strip(" *")] == real, name
