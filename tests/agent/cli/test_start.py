"""How the console script starts, explains itself, and fails where it is at fault itself."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.agent.cli.fake_relay import Ended, Shell

pytestmark = pytest.mark.slow  # each test starts several processes

HOST = {"host": "0f" * 8, "since": "2026-01-01T00:00:00Z", "labels": {}, "streams": 0}

#: In an order in which each example finds what it needs.
COMMANDS = ["sign-up", "whoami", "service create", "service list", "service show", "service hosts"]

#: Runs its arguments as command lines, one after the other in one interpreter, which saves most of their time.
MANY = """
import contextlib, io, json, sys
from kdispatch.cli.main import run
lines, ended = sys.argv[1:], []
for line in lines:
    sys.argv = ["kdispatch", *line.split()]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            status = run()
        except SystemExit as end:
            status = end.code
    ended.append([status, out.getvalue(), err.getvalue()])
print(json.dumps(ended))
"""


async def many(kdispatch: Shell, *lines: str) -> list[Ended]:
    return [Ended(*fields) for fields in json.loads((await python(kdispatch, MANY, *lines)).out)]


async def python(kdispatch: Shell, script: str, *arguments: str, **environment: str) -> Ended:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, *arguments, env=kdispatch.environment(**environment),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


async def test_the_version_needs_no_heavy_import(kdispatch: Shell) -> None:
    """--version prints one line and imports neither aiohttp, asyncio, rich nor pydantic."""
    script = (
        "import sys; sys.argv = ['kdispatch', '--version']\n"
        "from kdispatch.cli.main import run\nstatus = run()\n"
        "print(*sorted({'aiohttp', 'asyncio', 'rich', 'pydantic'} & set(sys.modules))); sys.exit(status)"
    )
    ended = await python(kdispatch, script)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out == f"kdispatch {version('kdispatch')}\n\n"


async def test_the_example_of_each_help_runs(kdispatch: Shell) -> None:
    """Each command's help has an example, and the examples succeed in their order."""
    helps = await many(kdispatch, *(f"{command} --help" for command in COMMANDS))
    outputs: dict[str, str] = {}
    for command, shown in zip(COMMANDS, helps, strict=True):
        found = re.search(r"^ *Example: kdispatch (.*)$", shown.out, re.MULTILINE)
        assert found is not None, command
        assert found[1].startswith(command)
        kdispatch.relay.hosts["ann/web"] = [HOST]
        ended = await kdispatch(found[1].replace("https://relay.example.org", kdispatch.relay.url))
        assert (ended.status, shown.status) == (0, 0), ended.err
        outputs[command] = ended.out
    assert outputs["whoami"] == f"handle  ann\nrelay   {kdispatch.relay.url}\nkind    adm\n"
    assert outputs["service list"] == "SERVICE  ACCESS  LIVE HOSTS\nann/web  public  1\n"
    assert outputs["service hosts"] == f"{HOST['host']}\n"


async def test_a_typing_error_gets_a_suggestion(kdispatch: Shell) -> None:
    """A command, subcommand or option that does not exist ends with 2 and names the likely one."""
    lines = ("srvice list", "service creat", "whoami --rely x", "service show", "sign-up --json")
    top, sub, option, missing, as_json = await many(kdispatch, *lines)
    assert {one.status for one in (top, sub, option, missing, as_json)} == {2}
    assert "Did you mean 'service'?" in top.err
    assert "Did you mean 'create'?" in sub.err
    assert "--relay" in option.err
    assert option.err.endswith("  try:   kdispatch whoami --help\n")
    assert missing.code == "bad_request"
    assert json.loads(as_json.err)["error"]["code"] == "bad_request"


async def test_help_lists_every_command_without_colour(kdispatch: Shell) -> None:
    """Without arguments the help names all commands, agent's and the relay's too, in plain text on stdout."""
    ended = await kdispatch("", FORCE_COLOR="1", TERM="xterm-256color")
    assert (ended.status, ended.err, "\x1b" in ended.out) == (0, "", False)
    for command in ("sign-up", "whoami", "service", "agent", "relay"):
        assert re.search(rf"^  {command} ", ended.out, re.MULTILINE)


async def test_commands_of_other_packages_say_what_to_install(kdispatch: Shell, tmp_path: Path) -> None:
    """A plug-in runs below its name; where it lacks a package the error names the pip command, and ends with 1."""
    plug_in = tmp_path / "site" / "other-1.dist-info"
    plug_in.mkdir(parents=True)
    (plug_in / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    (plug_in / "entry_points.txt").write_text(
        "[kdispatch.commands]\nhello = greeting:app\nlacking = no_such_module:app\nwhoami = no_such_module:app\n"
    )
    (plug_in.parent / "greeting.py").write_text(
        "import typer\napp = typer.Typer()\n"
        "@app.command()\ndef now(): print('hello')\n@app.command()\ndef then(): 1 / 0\n"
    )
    path = str(plug_in.parent)
    fake_missing = (
        "import sys; sys.modules['sqlalchemy'] = None\n"
        "sys.argv = ['kdispatch', 'relay', 'serve', '--listen', '127.0.0.1:0']\n"
        "from kdispatch.cli.main import run\nsys.exit(run())"
    )
    hello, lacking, relay, builtin = await asyncio.gather(
        kdispatch("hello now", PYTHONPATH=path),
        kdispatch("lacking", PYTHONPATH=path),
        python(kdispatch, fake_missing),
        kdispatch("whoami --help", PYTHONPATH=path),
    )
    assert (hello.status, hello.out) == (0, "hello\n")
    assert lacking.status == 1
    assert lacking.err.endswith("  try:   pip install other\n")
    assert relay.status == 1
    assert relay.err.endswith("  try:   pip install 'kdispatch[relay]'\n")
    assert "Ask the relay" in builtin.out


async def test_a_defect_is_one_line_unless_asked(kdispatch: Shell) -> None:
    """An unexpected exception names itself and KDISPATCH_DEBUG=1, which shows the traceback; both end with 1."""
    script = (
        "import sys, kdispatch.cli.account as a\n"
        "def broken(*args, **kwargs): secret_local = 'adm_x'; raise ZeroDivisionError('oh')\n"
        "a.load_settings = broken\nsys.argv = ['kdispatch', 'whoami']\n"
        "from kdispatch.cli.main import run\nsys.exit(run())"
    )
    short, long = await asyncio.gather(python(kdispatch, script), python(kdispatch, script, KDISPATCH_DEBUG="1"))
    assert (short.status, long.status) == (1, 1)
    assert short.err.splitlines()[0] == "kdispatch: This is a defect of kdispatch: ZeroDivisionError: oh"
    assert "KDISPATCH_DEBUG=1" in short.err
    assert "Traceback" not in short.err
    assert "Traceback (most recent call last)" in long.err
    assert "adm_x" not in long.err
