"""The OpenAPI document of the routes, with schemas of the same models that validate requests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final, cast

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from kdispatch_protocol.errors import CODES
from kdispatch_relay.api.fields import Answer
from kdispatch_relay.api.route import PATH_PARAMETERS, ApiRoute, BearerToken

__all__ = ["Description", "ProblemSchema", "SchemaOfModels", "document"]

_REF: Final = "#/components/schemas/{model}"
_JSON: Final = "application/json"
_PROBLEM: Final = "application/problem+json"
_TEXT: Final = """\
Reach TCP services on machines that can only make outgoing HTTPS connections.

Every error is a problem (RFC 9457); programs should look at its `code`. A wrong method is answered with 405,
`wrong_method` and `Allow`. HEAD works like GET, except for the tunnel and the relay's state.
Answers may gain fields."""
_BEARER: Final = """\
A token: `adm_...` of an admin, `svc_...` to host a service, `cli_...` to connect to one, `hst_...` of a live host,
`inv_...` an invitation."""
_SECURITY: Final[Mapping[BearerToken, list[dict[str, list[str]]]]] = {
    BearerToken.NONE: [],
    BearerToken.MAY: [{}, {"token": []}],
    BearerToken.MUST: [{"token": []}],
}


class ProblemSchema(Answer):
    """An error, as in RFC 9457."""

    type: str = Field(description="always `about:blank`")
    title: str = Field(description="the HTTP status in words")
    status: int = Field(description="the HTTP status")
    code: str = Field(description="what went wrong, for programs: it is stable")
    detail: str = Field(description="what went wrong here, for people")
    hint: str = Field(description="what to try")
    request_id: str = Field(
        pattern="^[0-9a-f]{16}$",
        description="new for each error; for `internal_error` the relay's log shows it next to the cause",
    )


class Description(Answer):
    """An OpenAPI document."""

    model_config = ConfigDict(extra="allow")

    openapi: str


class SchemaOfModels(GenerateJsonSchema):
    """Schemas without null, because ``None`` is left out, and without titles that repeat the names of fields."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        """The schema without null."""
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """The schema, with a default only if that is a value."""
        without = schema.get("default") is None
        return self.generate_inner(schema["schema"]) if without else super().default_schema(schema)

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - pydantic's signature
        """No field gets a title."""
        return False


def document(routes: Iterable[ApiRoute], version: str) -> bytes:
    """The whole document as JSON."""
    routes = list(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return json.dumps({
        "openapi": "3.1.0",
        "info": {"title": "kdispatch relay", "version": version, "description": _TEXT, "license": {"name": "MIT"}},
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in dict.fromkeys(route.section.value for route in routes)],
        "paths": paths,
        "components": {
            "schemas": _schemas(routes),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": _BEARER}},
        },
    }).encode()  # fmt: skip


def _schemas(routes: list[ApiRoute]) -> dict[str, Any]:
    models: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {(ProblemSchema, "serialization"): None}
    for route in routes:
        if route.body is not None:
            models[route.body, "validation"] = None
        if route.answer is not None:
            models[route.answer, "serialization"] = None
    _, schemas = models_json_schema(list(models), ref_template=_REF, schema_generator=SchemaOfModels)
    return cast("dict[str, Any]", schemas["$defs"])


def _operation(route: ApiRoute) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "tags": [route.section.value],
        "summary": route.does[0].upper() + route.does[1:] + ".",
        "description": route.text,
        "security": _SECURITY[route.token],
    }
    if parameters := [*_path(route), *_query(route)]:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": {_JSON: _content(route.body, _body_of(route))}}
    answers = {str(int(route.status)): _answer(route)}
    answers |= {str(int(status)): _problem(status, codes) for status, codes in route.problems.items()}
    return operation | {"responses": answers}


def _path(route: ApiRoute) -> list[dict[str, Any]]:
    example = _values(route)
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": PATH_PARAMETERS[name][1],
            "schema": {"type": "string", "pattern": PATH_PARAMETERS[name][0]},
            **({"example": example[name]} if name in example else {}),
        }
        for name in route.parameters
    ]


def _values(route: ApiRoute) -> dict[str, str]:
    if route.example is None or not route.example.path:
        return {}
    pairs = zip(route.path.split("/"), route.example.path.partition("?")[0].split("/"), strict=True)
    return {part[1:-1]: value for part, value in pairs if part.startswith("{")}


def _query(route: ApiRoute) -> list[dict[str, Any]]:
    if route.query is None:
        return []
    schema = route.query.model_json_schema(schema_generator=SchemaOfModels)
    return [
        {
            "name": name,
            "in": "query",
            "required": name in schema.get("required", ()),
            "description": value.pop("description"),
            "schema": value,
        }
        for name, value in schema["properties"].items()
    ]


def _body_of(route: ApiRoute) -> Mapping[str, Any] | None:
    return None if route.example is None else route.example.body


def _content(model: type[BaseModel], example: Mapping[str, Any] | None) -> dict[str, Any]:
    schema = {"schema": {"$ref": _REF.format(model=model.__name__)}}
    return schema if example is None else schema | {"example": example}


def _answer(route: ApiRoute) -> dict[str, Any]:
    described: dict[str, Any] = {"description": f"{HTTPStatus(route.status).phrase}: {route.does}."}
    if route.status == HTTPStatus.SWITCHING_PROTOCOLS:
        return described
    described["headers"] = {"Cache-Control": _header("no-store")}
    if route.answer is not None:
        example = None if route.example is None else route.example.answer
        described["content"] = {_JSON: _content(route.answer, example)}
    return described


def _problem(status: int, codes: list[str]) -> dict[str, Any]:
    headers = {"Cache-Control": _header("no-store")}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = _header("Bearer")
    if status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        seconds = {"type": "integer", "minimum": 1}
        headers["Retry-After"] = {"required": True, "description": "Seconds to wait.", "schema": seconds}
    schema = {
        "allOf": [
            {"$ref": _REF.format(model="ProblemSchema")},
            {"properties": {"status": {"const": int(status)}, "code": {"enum": codes}}},
        ]
    }
    return {
        "description": " ".join(f"`{code}`: {CODES[code].meaning}" for code in codes),
        "headers": headers,
        "content": {_PROBLEM: {"schema": schema}},
    }


def _header(value: str) -> dict[str, Any]:
    return {"required": True, "schema": {"type": "string", "const": value}}
