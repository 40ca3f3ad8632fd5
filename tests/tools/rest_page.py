"""The generated parts of docs/rest-api.md, from the routes of the relay."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel

from kdispatch_protocol.errors import CODES
from kdispatch_relay.api.openapi import ProblemSchema, SchemaOfModels
from kdispatch_relay.api.route import NEEDS, ApiRoute, Example, Section
from kdispatch_relay.api.routes import ROUTES
from tests.tools.markdown import table

__all__ = ["codes", "problem", "routes", "section"]

_WIDTH: Final = 120
_KEEP: Final = 'sed \'s/.*"{1}":"\\([^"]*\\)".*/Authorization: Bearer \\1/\' {0}.json > {0}.header'
#: What a code means as an answer to a request, if the table of codes is not specific enough.
_WHEN: Final[Mapping[str, str]] = {
    "bad_name": "a handle or a name that can't be one",
    "bad_request": "422: a body that is no JSON, lacks a field, or has one that is not known, or a query that is not "
    "as described. 408: a body that takes longer than 8 s to arrive. 415: one that is not `application/json`. "
    "400: what is not HTTP",
    "unknown_address": "no such address",
    "wrong_method": "an address that does not take this method; `Allow` says which it takes",
    "too_large": "a body that is larger than 64 KiB",
    "misdirected": "the `Host` is none of the names that the relay "
    "[answers to](operations.md#scanners-and-silent-connections)",
    "token_refused": "no token where one is needed, or one that is malformed, not known or expired",
    "rate_limited": "[too much](operations.md#limits) of one kind from one source or with one token; `Retry-After` "
    "says how many seconds to wait",
    "not_permitted": "a token that is known, but may not do this; a web page",
    "busy": "no place for one more session, or for one more connection that has said nothing of use; "
    "`Retry-After` says how many seconds to wait",
    "unknown_service": "no such service, or it is not open to you: the two can't be told apart",
    "unknown_host": "no such host is live, or it is not yours to withdraw",
    "storage_unavailable": "the database does not answer; `Retry-After` says how many seconds to wait",
    "internal_error": "a defect of the relay",
}
_NUMBERS: Final = {"integer": "number", "number": "number"}


def routes() -> str:
    """The table of all routes, each with a link to its description."""
    rows = ((f"[`{route.label}`](#{_anchor(route.label)})", NEEDS[route.who][1], route.does) for route in ROUTES)
    return table(("route", "needs", "does"), rows)


def section(wanted: Section) -> str:
    """All routes of one section."""
    return "\n".join(_route(route) for route in ROUTES if route.section is wanted)


def problem() -> str:
    """The fields of an error."""
    return _fields("field", ProblemSchema, "serialization")


def codes() -> str:
    """Every code of an answer, with its statuses and its causes."""
    found: dict[str, dict[int, None]] = {}
    for route in ROUTES:
        for status, names in route.problems.items():
            for name in names:
                found.setdefault(name, {})[status] = None
    found |= {"unknown_address": {404: None}, "wrong_method": {405: None}}
    rows = (
        (f"`{name}`", ", ".join(map(str, sorted(found[name]))), _WHEN.get(name) or _small(code.meaning))
        for name, code in CODES.items()
        if name in found
    )
    return table(("code", "status", "when"), rows)


def _small(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:].rstrip(".")


def _route(route: ApiRoute) -> str:
    parts = [f"### `{route.label}`", route.text]
    if route.query is not None:
        parts.append(_fields("in the query", route.query, "validation").rstrip())
    if route.body is not None:
        parts.append(_fields("field", route.body, "validation").rstrip())
    if route.answer is not None and _is_told(route):
        parts.append(_fields("field of the answer", route.answer, "serialization").rstrip())
    if route.example is not None:
        parts += [f"```sh\n{_command(route, route.example)}\n```", f"```json\n{_shown(_answer(route.example))}\n```"]
    if told := _errors(route):
        parts.append(told)
    return "\n\n".join(parts) + "\n"


def _is_told(route: ApiRoute) -> bool:
    return route.answer is not None and route.answer.model_config.get("extra") != "allow"


def _errors(route: ApiRoute) -> str:
    told = [
        f"`{code}` ({', '.join(filter(None, (str(CODES[code].http), reason)))})"
        for code, reason in route.own_errors.items()
    ]
    return textwrap.fill(f"Errors: {', '.join(told)}.", _WIDTH, break_on_hyphens=False) if told else ""


# --- fields -----------------------------------------------------------------------------------------


def _fields(head: str, model: type[BaseModel], mode: Any) -> str:
    schema = model.model_json_schema(mode=mode, schema_generator=SchemaOfModels)
    return table((head, "type", "meaning"), _rows(schema, schema.get("$defs", {}), ""))


def _rows(schema: Mapping[str, Any], models: Mapping[str, Any], before: str) -> Iterator[tuple[str, str, str]]:
    for name, value in schema["properties"].items():
        optional = name not in schema.get("required", ())
        meaning = _meaning(value)
        yield f"`{before}{name}`", f"{_type(value)}{', optional' if optional else ''}", meaning
        of_each = value.get("items", {})
        inner = models.get(str(of_each.get("$ref") or value.get("$ref", "")).rpartition("/")[2])
        if inner is not None:
            yield from _rows(inner, models, f"{before}{name}{'[]' if of_each else ''}.")


def _meaning(value: Mapping[str, Any]) -> str:
    bounds = [f"{value[bound]:,}" for bound in ("minimum", "maximum") if bound in value]
    default = value.get("default")
    told = [value["description"].rstrip(".")]
    if len(bounds) == 2:
        told.append(" to ".join(bounds))
    if default is not None:
        told.append(f"without it `{json.dumps(default).strip(chr(34))}`")
    return "; ".join(told)


def _type(value: Mapping[str, Any]) -> str:
    if "enum" in value or "const" in value:
        return "string"
    if "$ref" in value:
        return "object"
    kind = str(value["type"])
    if kind == "array":
        return f"list of {_type(value['items'])}s"
    if kind == "object" and isinstance(value.get("additionalProperties"), dict):
        return f"object of {_type(value['additionalProperties'])}s"
    return _NUMBERS.get(kind, kind)


# --- examples ---------------------------------------------------------------------------------------


def _command(route: ApiRoute, example: Example) -> str:
    words = ["curl -sS"]
    if route.method not in {"GET", "POST"} or (route.method == "POST" and example.body is None):
        words.append(f"--request {route.method}")
    words.append(f'"$RELAY{example.path or route.path}"')
    if example.shows:
        words.append(f"--header @{example.shows}.header")
    if example.body is not None:
        words.append(f"--json '{json.dumps(example.body)}'")
    if example.answer is None:
        words.append("--write-out '{\"status\": %{http_code}}'")
    if not example.keeps:
        return _folded(words)
    return f"umask 077\n{_folded([*words, f'| tee {example.keeps}.json'])}\n{_KEEP.format(example.keeps, example.kept)}"


def _folded(words: list[str]) -> str:
    line = " ".join(words)
    return line if len(line) <= _WIDTH else " \\\n  ".join((" ".join(words[:-2]), " ".join(words[-2:])))


def _answer(example: Example) -> Mapping[str, Any]:
    return {"status": 204} if example.answer is None else example.answer


def _shown(answer: Mapping[str, Any]) -> str:
    """An answer's JSON in one line, or if that is too long a line per field and per object in a list."""
    line = json.dumps(answer)
    if len(line) <= _WIDTH:
        return line
    parts = (f"  {json.dumps(name)}: {_value(value)}" for name, value in answer.items())
    return "{\n" + ",\n".join(parts) + "\n}"


def _value(value: object) -> str:
    line = json.dumps(value)
    if not isinstance(value, list) or len(line) < _WIDTH - 20:
        return line
    return "[\n" + ",\n".join(f"    {json.dumps(item)}" for item in value) + "\n  ]"


def _anchor(label: str) -> str:
    return re.sub(r"[^\w -]", "", label.lower()).replace(" ", "-")
