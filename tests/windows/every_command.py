"""Each command of the agent, right and wrong, one after the other; docs/platforms.md has their codes and statuses.

    python -m tests.windows.every_command      # run them on Linux, and write the table

tests/windows/test_every_command.py runs the same under Wine.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from tests.demo.processes import KDISPATCH
from tests.docs.examples import free_ports
from tests.guards.environment import inherited
from tests.net.harness import Relay
from tests.windows.running import Done

__all__ = ["COMMANDS", "PAGE", "Linux", "Row", "outcomes", "rows_of", "written"]

PAGE: Final = Path(__file__).parents[2] / "docs" / "platforms.md"
_BEGIN: Final = "<!-- each command: python -m tests.windows.every_command -->\n"
_END: Final = "<!-- each command: end -->\n"

#: Commands in the order in which they run. ``me``, ``port`` (something listens there), ``closed`` (nothing does)
#: and the ids of what a command has made are filled in; behind " < " stands what a command reads.
COMMANDS: Final = (
    "--version",
    "frobnicate",
    "sign-up {me}",
    "sign-up {me}",
    "sign-up Not_A_Name!",
    "whoami",
    "whoami --token-file missing.txt",
    "whoami --relay ftp://relay.example.org",
    "whoami --relay http://127.0.0.1:{closed}",
    "login < nothing",
    "service create web",
    "service create web",
    "service create Not_A_Name!",
    "service list",
    "service list --frobnicate",
    "service show {me}/web",
    "service show {me}/nothing",
    "service update {me}/web --access token",
    "service update {me}/web --access everybody",
    "service rotate {me}/web",
    "service rotate {me}/nothing",
    "service hosts {me}/web",
    "service hosts {me}/nothing",
    "service clients {me}/web",
    "service clients {me}/nothing",
    "service withdraw 0123456789abcdef0123456789abcdef",
    "token create laptop",
    "token create laptop --for everything",
    "token list",
    "token list --frobnicate",
    "token revoke {id} --yes",
    "token revoke {id} --yes",
    "invite create {me}/web --for connect",
    "invite create {me}/nothing --for connect",
    "invite list {me}/web",
    "invite list {me}/nothing",
    "invite accept < {code}",
    "invite accept < {code}",
    "invite revoke {me}/web {id}",
    "invite revoke {me}/web 0123456789abcdef",
    "audit",
    "audit --limit 0",
    "doctor",
    "doctor --relay http://127.0.0.1:{closed}",
    "dev --port 70000",
    "dev --port {closed}",
    "agent host {me}/web --port {port} --detach",
    "agent host {me}/web --port {closed} --wait 0",
    "agent host {me}/web --port {port} --grace soon",
    "agent connect {me}/web --detach",
    "agent connect {me}/nothing --wait 0",
    "agent connect {me}/web --port {port} --wait 0",
    "status",
    "status --frobnicate",
    "agent stop {me}/web",
    "agent stop {me}/web",
    "agent host {me}/web --port {closed} --wait 0 --detach",
    "agent connect {me}/nothing --wait 0 --detach",
    "service delete {me}/web --yes",
    "service delete {me}/web --yes",
    "login < {token}",
    "logout {me} --yes",
    "logout {me} --yes",
)


class Row(NamedTuple):
    """What a command ended with."""

    command: str
    status: int
    code: str  #: empty without an error


Run = Callable[[list[str], str], Awaitable[Done]]


async def outcomes(run: Run, port: int, closed: int, me: str) -> list[Row]:
    """Run all commands by ``run``, which gets the words and the input; the relay and a listener at ``port`` are up."""
    filled = {"me": me, "port": str(port), "closed": str(closed)}
    rows = []
    for command in COMMANDS:
        words, _, given = command.partition(" < ")
        options = [] if words.startswith("--") else ["--json"]
        done = await run([*words.format(**filled).split(), *options], given.format(**filled) + "\n" if given else "")
        rows.append(Row(command, done.status, _code(done)))
        if done.status == 0:
            filled |= _made(words, done.out)
    return rows


def _code(done: Done) -> str:
    """The error's code: from an object, or, in a message about the usage, from its end."""
    for line in (*done.out.splitlines(), *done.err.splitlines()):
        found = re.search(r'"code": ?"([a-z_]+)"|\[([a-z_]+)\]$', line)
        if found:
            return found[1] or found[2]
    return ""


def _made(words: str, out: str) -> Mapping[str, str]:
    """What later commands need of a command's result."""
    kept = {"sign-up": ("token",), "token create": ("id",), "invite create": ("id", "code")}
    names = next((names for begin, names in kept.items() if words.startswith(begin)), ())
    return {name: str(json.loads(out)[name]) for name in names}


def written(rows: list[Row]) -> str:
    """The table of these rows."""
    lines = [f"| `{row.command}` | {row.status} | {f'`{row.code}`' if row.code else ''} |\n" for row in rows]
    return "".join(("| command | status | code |\n|---|---|---|\n", *lines))


def rows_of(page: str) -> list[Row]:
    """The rows of the page's table."""
    table = page.partition(_BEGIN)[2].partition(_END)[0]
    found = re.findall(r"^\| `([^`]+)` \| (\d+) \| (?:`(\w+)`)? ?\|$", table, re.MULTILINE)
    return [Row(command, int(status), code) for command, status, code in found]


class Linux:
    """Commands of Linux with directories of their own."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._environment = {**inherited(), "KDISPATCH_RELAY": url}
        for kind in ("CONFIG", "STATE"):
            self._environment[f"KDISPATCH_{kind}_DIR"] = str(folder / kind.lower())

    async def run(self, words: list[str], given: str) -> Done:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            KDISPATCH, *words, cwd=self._folder, env=self._environment, stdin=pipe, stdout=pipe, stderr=pipe
        )
        out, err = await process.communicate(given.encode())
        assert process.returncode is not None
        return Done(process.returncode, out.decode(), err.decode())


async def main() -> None:
    """Write the table."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        relay = Relay(folder)
        await relay.start()
        listener = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        try:
            port, [closed] = listener.sockets[0].getsockname()[1], free_ports(1)
            rows = await outcomes(Linux(folder, relay.url).run, port, int(closed), "bob")
        finally:
            listener.close()
            relay.stop()
    before, _, rest = PAGE.read_text().partition(_BEGIN)
    if not rest:
        sys.exit(f"{PAGE} has no line {_BEGIN.strip()}")
    PAGE.write_text(f"{before}{_BEGIN}\n{written(rows)}\n{_END}{rest.partition(_END)[2]}")


if __name__ == "__main__":
    asyncio.run(main())
