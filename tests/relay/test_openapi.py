"""The OpenAPI document: what it says of routes is what routes do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from kdispatch_protocol.errors import CODES
from kdispatch_relay.api.openapi import document
from kdispatch_relay.api.route import ApiRoute, BearerToken
from kdispatch_relay.api.routes import ROUTES
from kdispatch_relay.auth import RIGHTS, Party
from tests.relay.support import Api

DOCUMENT: dict[str, Any] = json.loads(document(ROUTES, "0"))


async def test_it_is_answered(api: Api) -> None:
    """Everyone may read it, and it belongs to this relay."""
    answer = await api("GET", "/api/v1/openapi.json")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.body["paths"] == DOCUMENT["paths"]
    assert answer.body["components"] == DOCUMENT["components"]


def test_routes_differ() -> None:
    """No two routes have the same method and path, or the same name."""
    assert len({route.label for route in ROUTES}) == len({route.name for route in ROUTES}) == len(ROUTES)


def test_who_may_is_one_table() -> None:
    """Each route names an action of the table of rights, or one that needs none, and each action is named."""
    named = {route.who for route in ROUTES}
    assert named - RIGHTS.keys() == {"anybody", "relay.state"}
    assert RIGHTS.keys() - named == {"host", "open"}  # used by the tunnel itself
    for route in ROUTES:
        if (right := RIGHTS.get(route.who)) is not None:
            assert (route.token is BearerToken.MUST) == (Party.ANYBODY not in right.parties | right.public)


def test_every_reference_leads_somewhere() -> None:
    """Every schema that is referred to exists, and every existing one is referred to."""
    text = json.dumps(DOCUMENT)
    schemas = DOCUMENT["components"]["schemas"]
    assert {name for name in schemas if f'"#/components/schemas/{name}"' in text} == set(schemas)
    assert text.count('"$ref"') == sum(text.count(f'"#/components/schemas/{name}"') for name in schemas)


#: All that schemas are made of here. Where a validator stands before a bound, pydantic writes it as ``ge`` or ``le``.
_KEYWORDS = {
    "$ref", "additionalProperties", "allOf", "const", "default", "description", "enum", "format", "items", "maxLength",
    "maximum", "minLength", "minProperties", "minimum", "not", "oneOf", "pattern", "properties", "required", "title",
    "type",
}  # fmt: skip


def _schemas(node: object) -> Iterator[dict[str, Any]]:
    """All schemas within ``schema``."""
    if isinstance(node, dict):
        for name, inner in node.items():
            if name == "schema":
                yield inner
            elif name == "schemas":
                yield from inner.values()
            yield from _schemas(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from _schemas(inner)


def _keywords(schema: dict[str, Any]) -> set[str]:
    inner = [*schema.get("properties", {}).values(), *schema.get("oneOf", ()), *schema.get("allOf", ())]
    return set(schema).union(*map(_keywords, inner))


def test_schemas_are_plain() -> None:
    """Every schema uses only JSON Schema's own keywords, and no pattern names lone surrogates."""
    schemas = list(_schemas(DOCUMENT))
    assert len(schemas) > 50
    assert set().union(*map(_keywords, schemas)) == _KEYWORDS
    assert "ud800" not in json.dumps(schemas)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_what_is_told_of_a_route(route: ApiRoute) -> None:
    """Each route has its answer and problems with codes of the table, and its description ends with a full stop."""
    operation = DOCUMENT["paths"][route.path][route.method.lower()]
    assert str(int(route.status)) in operation["responses"]
    assert route.text.endswith((".", ")")) and not route.does.endswith(".")
    for status, codes in route.problems.items():
        schema = operation["responses"][str(int(status))]["content"]["application/problem+json"]["schema"]
        assert schema["allOf"][1]["properties"]["code"]["enum"] == codes
        for code in codes:
            assert CODES[code].http == status or code == "bad_request"


@pytest.mark.parametrize("route", [route for route in ROUTES if route.example], ids=lambda route: route.name)
def test_examples_fit(route: ApiRoute) -> None:
    """The models accept each example's body and answer."""
    assert route.example is not None
    if route.body is not None:
        route.body.model_validate_json(json.dumps(route.example.body))
    if route.answer is not None:
        route.answer.model_validate_json(json.dumps(route.example.answer))
    assert (route.answer is None) == (route.example.answer is None)
    assert (route.body is None) == (route.example.body is None)
