"""How the console script starts, explains itself, and reports its own defects."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.agent.cli.fake_relay import Ended, Shell
from tests.net.harness import needs

pytestmark = pytest.mark.slow  # each test starts several processes

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

#: The same on the terminal that it was started on.
IN_TURN = """
import sys
from kdispatch.cli.main import run
for line in sys.argv[1:]:
    sys.argv = ["kdispatch", *line.split()]
    try:
        run()
    except SystemExit:
        pass
"""

#: Completes as the environment says, and then names what it has imported that takes long.
COMPLETING = """
import sys
from kdispatch.cli.main import run
sys.argv = ["kdispatch"]
try:
    run()
except SystemExit:
    pass
print("heavy", *sorted({"aiohttp", "alembic", "asyncio", "rich", "sqlalchemy", "structlog", "websockets"} & {
    name for name, module in sys.modules.items() if module is not None
}))
"""

#: Makes typer ask for the shell's name, instead of looking at which one has started us.
UNDETECTED = "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"


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
    """--version prints one line and imports nothing slow."""
    script = (
        "import sys; sys.argv = ['kdispatch', '--version']\n"
        "from kdispatch.cli.main import run\nstatus = run()\n"
        "heavy = {'aiohttp', 'asyncio', 'rich', 'pydantic', 'sqlalchemy', 'structlog'}\n"
        "print(*sorted(heavy & set(sys.modules))); sys.exit(status)"
    )
    ended = await python(kdispatch, script)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out == f"kdispatch {version('kdispatch')}\n\n"


async def test_a_typing_error_gets_a_suggestion(kdispatch: Shell) -> None:
    """A command, subcommand or option that does not exist ends with 2; the first line suggests the likely one."""
    meant = {
        "agnt host": ("agent", "kdispatch"),
        "srvice list": ("service", "kdispatch"),
        "service creat": ("create", "kdispatch service"),
        "relay serv": ("serve", "kdispatch relay"),
        "agent conect ann/web": ("connect", "kdispatch agent"),
        "--versoin": ("--version", "kdispatch"),
        "whoami --rely x": ("--relay", "kdispatch whoami"),
        "service list --jsn": ("--json", "kdispatch service list"),
        "agent host ann/web --prot 1": ("--port", "kdispatch agent host"),
        "relay serve --lisen x": ("--listen", "kdispatch relay serve"),
        "dev --conect-port 1": ("--connect-port", "kdispatch dev"),
    }
    for (line, (name, command)), ended in zip(meant.items(), await many(kdispatch, *meant), strict=True):
        assert (ended.status, ended.code, ended.out) == (2, "bad_request", ""), line
        first, *others = ended.err.splitlines()
        assert f"Did you mean '{name}'?" in first, line
        assert others == ["  where: you", f"  try:   {command} --help"]


async def test_what_lacks_is_a_usage_error(kdispatch: Shell) -> None:
    """A missing argument ends with 2 like a mistyped one, and with --json the error is JSON."""
    missing, as_json, nothing_like_it = await many(kdispatch, "service show", "sign-up --json", "xyzzy")
    assert [one.status for one in (missing, as_json, nothing_like_it)] == [2, 2, 2]
    assert missing.code == "bad_request"
    assert json.loads(as_json.err)["error"]["code"] == "bad_request"
    assert nothing_like_it.err.startswith("kdispatch: No such command 'xyzzy'. [bad_request]\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_completion_knows_every_command_without_a_heavy_import(kdispatch: Shell, shell: str) -> None:
    """Completion covers all commands, also lazy ones, without importing loops, HTTP, logs or databases."""
    words = {
        "kdispatch ": "sign-up login relay agent dev",
        "kdispatch relay ": "serve",
        "kdispatch relay serve --": "--listen --database",
        "kdispatch agent ": "host connect",
        "kdispatch agent host --": "--port --address",
        "kdispatch service cr": "create",
        "kdispatch dev --": "--connect-port",
    }
    for line, expected in words.items():
        ended = await python(
            kdispatch, COMPLETING, _KDISPATCH_COMPLETE=f"complete_{shell}", _TYPER_COMPLETE_ARGS=line,
            _TYPER_COMPLETE_FISH_ACTION="get-args", COMP_WORDS=line, COMP_CWORD=str(len(line.split(" ")) - 1),
        )  # fmt: skip
        assert all(word in ended.out for word in expected.split()), (line, ended)
        assert ended.out.endswith("heavy\n"), (line, ended.out)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_completion_is_shown_and_installed(kdispatch: Shell, tmp_path: Path, shell: str) -> None:
    """The completion script of a shell is printed, and installed below the home directory, for this command's name."""
    environment = {"HOME": str(tmp_path / "home"), UNDETECTED: "1"}
    (tmp_path / "home").mkdir()
    shown = await kdispatch(f"--show-completion {shell}", **environment)
    assert (shown.status, shown.err) == (0, "")
    assert f"_KDISPATCH_COMPLETE=complete_{shell}" in shown.out
    installed = await kdispatch(f"--install-completion {shell}", **environment)
    assert (installed.status, installed.err) == (0, "")
    files = [path.read_text() for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert any(shown.out.strip() in text for text in files)


@needs("bash")
async def test_bash_completes(kdispatch: Shell, tmp_path: Path) -> None:
    """In bash, the printed script offers the words that begin with the typed text."""
    script = (
        'eval "$(kdispatch --show-completion bash)"\n'
        'COMP_WORDS=(kdispatch relay se) COMP_CWORD=2\n_kdispatch_completion kdispatch\necho "${COMPREPLY[@]}"'
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", script, env=kdispatch.environment(**{"PATH": path, UNDETECTED: "1"}),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert (await process.communicate())[0] == b"serve\n"


async def test_help_lists_every_command(kdispatch: Shell) -> None:
    """Without arguments the help lists all commands, the agent's and the relay's, on stdout."""
    ended = await kdispatch("")
    assert (ended.status, ended.err) == (0, "")
    for command in ("sign-up", "whoami", "login", "service", "dev", "agent", "relay"):
        assert re.search(rf"^  {command} ", ended.out, re.MULTILINE)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
@pytest.mark.parametrize("variable", ["NO_COLOR", "FORCE_COLOR"])
async def test_nothing_is_coloured_on_a_terminal(kdispatch: Shell, tmp_path: Path, variable: str) -> None:
    """On a terminal, in any environment, help, errors and messages have no escape sequence."""
    lines = ("", "--help", "agent --help", "relay serve --help", "agnt", "whoami --jsn", "service show", "whoami")
    environment = kdispatch.environment(
        **{variable: "1", "TERM": "xterm-256color", "HOME": str(tmp_path), UNDETECTED: "1"}
    )
    ours, theirs = os.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", IN_TURN, *lines, "--install-completion bash",
            env=environment, stdin=theirs, stdout=theirs, stderr=theirs,
        )  # fmt: skip
    finally:
        os.close(theirs)
    shown = await asyncio.to_thread(read_terminal, ours)
    assert await process.wait() == 0
    for part in ("Usage: kdispatch relay serve", "No such command 'agnt'", "[bad_relay_url]", "completion installed"):
        assert part in shown
    assert "\x1b" not in shown


def read_terminal(descriptor: int) -> str:
    """Everything that was written to the other end, until all writers have closed it."""
    data = b""
    with open(descriptor, "rb", buffering=0) as terminal, contextlib.suppress(OSError):  # EIO is its end
        while chunk := terminal.read(65536):
            data += chunk
    return data.decode()


async def test_commands_of_other_packages_say_what_to_install(kdispatch: Shell, tmp_path: Path) -> None:
    """A plug-in runs below its name; if it lacks a package, the error has the pip command, and ends with 1."""
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
    assert (lacking.code, relay.code) == ("not_installed", "not_installed")
    assert "Ask the relay" in builtin.out


async def test_dev_without_a_relay_says_what_to_install(kdispatch: Shell) -> None:
    """If the relay's packages are missing, dev ends with not_installed and the pip command, and creates nothing."""
    script = (
        "import sys; sys.modules['sqlalchemy'] = None; sys.argv = ['kdispatch', 'dev']\n"
        "from kdispatch.cli.main import run\nsys.exit(run())"
    )
    ended = await python(kdispatch, script)
    assert (ended.status, ended.code) == (1, "not_installed")
    assert ended.err.endswith("  try:   pip install 'kdispatch[relay]'\n")


async def test_a_defect_is_one_line_unless_asked(kdispatch: Shell) -> None:
    """An unexpected exception names itself and KDISPATCH_DEBUG=1, which shows the traceback; both end with 1."""
    script = (
        "import sys, kdispatch.cli.account as a\n"
        # Assembled, because tracebacks of 3.13 show the lines of a script given by -c, but never its locals.
        "def broken(*args, **kwargs): secret_local = 'adm' + '_x'; raise ZeroDivisionError('oh')\n"
        "a.load_settings = broken\nsys.argv = ['kdispatch', 'whoami']\n"
        "from kdispatch.cli.main import run\nsys.exit(run())"
    )
    short, long = await asyncio.gather(python(kdispatch, script), python(kdispatch, script, KDISPATCH_DEBUG="1"))
    assert (short.status, long.status) == (1, 1)
    assert short.err.splitlines()[0] == "kdispatch: This is a defect of kdispatch: ZeroDivisionError: oh."
    assert "KDISPATCH_DEBUG=1" in short.err
    assert "Traceback" not in short.err
    assert "Traceback (most recent call last)" in long.err
    assert "adm_x" not in long.err
