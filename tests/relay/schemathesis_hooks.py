"""What schemathesis knows of the relay beside its OpenAPI document: the callers, and what exists.

It runs in schemathesis' own process, which loads it by ``SCHEMATHESIS_HOOKS``; test_schemathesis.py starts that.
Without it nearly every request would end with 404, because no generated id exists.
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import random
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import schemathesis
from schemathesis import AuthContext, Case, HookContext, Response
from schemathesis.core.parameters import ParameterLocation

__all__ = ["GIVEN", "after_call", "before_call", "before_load_schema"]

GIVEN: Final = "KDISPATCH_SCHEMATHESIS"  # names the file with what the test has created

_given: Final[dict[str, Any]] = json.loads(Path(os.environ[GIVEN]).read_text())
_random: Final = random.Random(_given["seed"])
_counted: Counter[tuple[str, int]] = Counter()
#: What is there, by the parameter of a path that takes it; in a pair with its service, where it belongs to one.
_there: Final[dict[str, deque[Any]]] = {
    name: deque(_given[name], maxlen=50) for name in ("name", "token", "invite", "code", "host")
}
_known: Final[set[str]] = {
    _given["hosted"],
    _given["used"],
    *_given["name"],
    *_given["token"],
    *_given["host"],
    *(id_ for _, id_ in _given["invite"]),
}
_turns: Final[defaultdict[str, Iterator[int]]] = defaultdict(itertools.count)

_OF_SERVICE: Final = {
    "handle": "$response.body#/service#regex:^(.+)/",
    "name": "$response.body#/service#regex:/(.+)$",
}
#: What follows from what, in OpenAPI's own form; an expression of a response's part is schemathesis' own.
_LINKS: Final[dict[tuple[str, str, str], dict[str, dict[str, str]]]] = {
    ("/api/v1/services", "post", "201"): dict.fromkeys(
        (
            "show_service", "list_hosts", "list_clients", "change_service", "rotate_service", "create_invite",
            "list_invites", "delete_service",
        ),
        _OF_SERVICE,
    ),
    ("/api/v1/services/{handle}/{name}", "delete", "204"): {
        "show_service": {"handle": "$request.path.handle", "name": "$request.path.name"},
        "list_hosts": {"handle": "$request.path.handle", "name": "$request.path.name"},
    },
    ("/api/v1/services/{handle}/{name}/invites", "post", "201"): {
        "revoke_invite": {**_OF_SERVICE, "invite": "$response.body#/id"},
    },
    ("/api/v1/tokens", "post", "201"): {"revoke_token": {"token": "$response.body#/id"}},
    ("/api/v1/services/{handle}/{name}/hosts", "get", "200"): {
        "withdraw_host": {"host": "$response.body#/hosts/0/host"},
    },
}  # fmt: skip


@schemathesis.hook
def before_load_schema(context: HookContext, raw_schema: dict[str, Any]) -> None:
    """State which answers contain what other operations take."""
    for (path, method, status), links in _LINKS.items():
        raw_schema["paths"][path][method]["responses"][status]["links"] = {
            name: {"operationId": name, "parameters": parameters} for name, parameters in links.items()
        }


@schemathesis.auth(refresh_interval=None)
class Shown:
    """The caller's token; a code where an invitation is accepted, and the operator's token where that is needed."""

    def get(self, case: Case[Any], context: AuthContext) -> str | None:
        """``None`` without a caller, or if no token is described."""
        if not _given["own"] or not case.operation.definition.raw.get("security"):
            return None
        match _name_of(case):
            case "accept_invite":
                return str(_random.choice(_there["code"]))
            case "relay_state":
                return str(_given["operator"])
            case _:
                return str(_given["own"])

    def set(self, case: Case[Any], data: str, context: AuthContext) -> None:
        """Put the token where the document describes it."""
        case.headers["Authorization"] = f"Bearer {data}"


@schemathesis.hook
def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:
    """Let valid requests name things that exist, and let none remove what all others need."""
    if case.path_parameters and not _is_wrong(case, ParameterLocation.PATH):
        _make_real(_name_of(case), case.path_parameters)
    if isinstance(case.body, dict) and "service" in case.body and not _is_wrong(case, ParameterLocation.BODY):
        case.body["service"] = _random.choice(_there["name"])


@schemathesis.hook
def after_call(context: HookContext, case: Case[Any], response: Response) -> None:
    """Count the answer, and keep what was created."""
    _counted[f"{case.method.upper()} {case.operation.path}", response.status_code] += 1
    if not 200 <= response.status_code < 300 or case.method.upper() != case.operation.method.upper():
        return
    match _name_of(case):
        case "create_service":
            _keep("name", response.json()["service"].partition("/")[2])
        case "create_token":
            _keep("token", response.json()["id"])
        case "create_invite":
            made = response.json()
            _there["code"].append(made["code"])
            if made["service"].startswith(f"{_given['handle']}/"):
                _there["invite"].append((made["service"].partition("/")[2], made["id"]))
                _known.add(made["id"])
        case "list_hosts" if response.json()["service"] == f"{_given['handle']}/{_given['hosted']}":
            for host in response.json()["hosts"]:
                if host["host"] not in _known:
                    _keep("host", host["host"])


def _keep(kind: str, value: str) -> None:
    _there[kind].append(value)
    _known.add(value)


def _name_of(case: Case[Any]) -> str:
    return str(case.operation.definition.raw["operationId"])


def _is_wrong(case: Case[Any], where: ParameterLocation) -> bool:
    return case.meta is not None and case.meta.is_negative_at(where)


def _make_real(name: str, path: dict[str, Any]) -> None:
    """Replace what no generator could know; values from an earlier answer stay as they are."""
    if "handle" in path and path["name"] not in _known:
        turn = next(_turns[name]) % 3
        path["handle"] = _given["other"] if turn == 2 else _given["handle"]
        lively = _given["hosted" if name == "list_hosts" else "used"]
        path["name"] = lively if turn == 0 else _random.choice([_given["hosted"], *_there["name"]])
    if name == "delete_service" and path["name"] in {_given["hosted"], _given["used"]}:
        path["name"] = _there["name"].popleft() if len(_there["name"]) > 1 else "gone"
    for kind in ("token", "host", "invite"):
        if kind in path and path[kind] not in _known and _there[kind]:
            real = _there[kind].popleft()
            path.update(
                {"handle": _given["handle"], "name": real[0], kind: real[1]} if kind == "invite" else {kind: real}
            )
    if path.get("token") == _given["id"]:  # it would lock itself out
        path["token"] = "0" * 16


def _tell() -> None:
    counts = [[label, status, count] for (label, status), count in sorted(_counted.items())]
    Path(_given["counts"]).write_text(json.dumps(counts))


atexit.register(_tell)
