from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kdispatch.cli.output import Output, choose_loop, run_async
from kdispatch.settings import SetupError
from kdispatch_protocol.errors import KdispatchError
from tests.guards.environment import inherited

DRAINING = """
import asyncio, sys
from kdispatch.cli import interruption
from kdispatch.cli.output import Output, run_async
async def main():
    print("up", flush=True)
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        print("draining", flush=True)
        if sys.argv[1] == "slowly":
            await asyncio.sleep(60)
        if sys.argv[1] == "raise":
            raise
        if sys.argv[1] in {"twice", "stubbornly"}:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                print("ending", flush=True)
                if sys.argv[1] == "twice":
                    raise
                await asyncio.sleep(60)
    return 7
interruption.LAST_WORDS = 0.3
run_async(main, Output(), interruption.Interruption(drains=True) if sys.argv[2:] else None)
"""


@pytest.mark.parametrize(
    ("drains", "signals", "status"),
    [
        ("quickly", [signal.SIGINT], 7),
        ("raise", [signal.SIGINT], 130),
        ("raise", [signal.SIGTERM], 143),
        ("slowly", [signal.SIGINT, signal.SIGINT], 130),
        ("slowly", [signal.SIGTERM, signal.SIGINT], 130),
    ],
)
async def test_the_first_signal_drains_and_the_second_ends(drains: str, signals: list[int], status: int) -> None:
    """A signal cancels the command, which may drain and set its own status; a second one ends it at once."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DRAINING, drains, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert await process.stdout.readline() == b"up\n"
    process.send_signal(signals[0])
    assert await process.stdout.readline() == b"draining\n"
    for number in signals[1:]:
        process.send_signal(number)
    assert await asyncio.wait_for(process.wait(), 10) == status
    assert await process.stderr.read() == b""


@pytest.mark.parametrize(
    ("drains", "signals", "status"),
    [
        ("quickly", [signal.SIGTERM], 7),
        ("twice", [signal.SIGTERM, signal.SIGINT], 130),
        ("stubbornly", [signal.SIGINT, signal.SIGTERM], 143),  # its last output takes too long
        ("stubbornly", [signal.SIGINT, signal.SIGTERM, signal.SIGINT], 130),
    ],
)
async def test_the_second_signal_cancels_what_drains(drains: str, signals: list[int], status: int) -> None:
    """A draining command is cancelled again by the second signal, and ended by the third, or soon after."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DRAINING, drains, "drains", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    for number, said in zip(signals, (b"up\n", b"draining\n", b"ending\n"), strict=False):
        assert await process.stdout.readline() == said
        process.send_signal(number)
    assert await asyncio.wait_for(process.wait(), 10) == status


def test_a_status_of_zero_returns_and_any_other_ends() -> None:
    """run_async returns after None or 0 and raises SystemExit with any other status."""

    async def ending(status: int | None) -> int | None:
        await asyncio.sleep(0)
        return status

    run_async(lambda: ending(None), Output())
    run_async(lambda: ending(0), Output())
    with pytest.raises(SystemExit) as caught:
        run_async(lambda: ending(3), Output())
    assert caught.value.code == 3


def test_a_failure_inside_a_group_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    """A KdispatchError in a task group is printed like a bare one; a group without one passes through."""

    async def fail(error: Exception) -> None:
        raise ExceptionGroup("tasks", [ValueError(), ExceptionGroup("inner", [error])])

    with pytest.raises(SystemExit) as caught:
        run_async(lambda: fail(KdispatchError("no_live_host", "Nobody is there.")), Output())
    assert caught.value.code == 3
    assert capsys.readouterr().err.startswith("kdispatch: Nobody is there. [no_live_host]\n  where: relay -> host\n")
    with pytest.raises(ExceptionGroup):
        run_async(lambda: fail(OSError()), Output())


def test_a_code_without_a_status_ends_with_one(capsys: pytest.CaptureFixture[str]) -> None:
    """A code without an exit status ends with 1."""
    assert Output().failed(KdispatchError("resume_expired")) == 1
    assert "[resume_expired]" in capsys.readouterr().err


def test_the_three_modes_of_a_result(capsys: pytest.CaptureFixture[str]) -> None:
    """Plain and quiet print their lines, JSON takes precedence over quiet, and messages leave stdout alone."""
    for quiet, as_json in ((False, False), (True, False), (True, True)):
        output = Output(quiet=quiet, json=as_json)
        output.result({"port": 7}, quiet=["7"], plain=["listening on", "7"])
        output.note("to a person")
        output.warn("reset", code="no_live_host")
    out, err = capsys.readouterr()
    assert out == 'listening on\n7\n7\n{"schema": 1, "port": 7}\n'
    assert err.splitlines()[:3] == ["to a person", *["kdispatch: reset [no_live_host]"] * 2]
    assert json.loads(err.splitlines()[3]) == {"schema": 1, "warning": {"code": "no_live_host", "text": "reset"}}


def test_what_is_wrong_here_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """A fault in this machine's configuration has the hop 'you' and its own hint."""
    assert Output().failed(SetupError("token_refused", "Cut.", hint="Copy it whole.")) == 4
    assert capsys.readouterr().err == "kdispatch: Cut. [token_refused]\n  where: you\n  try:   Copy it whole.\n"


def test_the_loop_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """KDISPATCH_NO_UVLOOP=1 selects the standard loop, and 0 whatever is installed."""
    monkeypatch.setenv("KDISPATCH_NO_UVLOOP", "1")
    assert choose_loop() is asyncio.new_event_loop
    monkeypatch.setenv("KDISPATCH_NO_UVLOOP", "0")
    loop = choose_loop()()
    loop.close()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("command", ["--version", "--help", "status", "relay --help", "agent stop nobody"])
def test_output_that_takes_nothing(command: str, tmp_path: Path) -> None:
    """A full disk behind standard output is reported in three lines; one behind standard error changes no status."""
    whole = [str(Path(sys.executable).with_name("kdispatch")), *command.split()]
    environment = {**inherited(), "KDISPATCH_STATE_DIR": str(tmp_path), "KDISPATCH_CONFIG_DIR": str(tmp_path)}
    good = subprocess.run(whole, capture_output=True, env=environment, check=False)
    with Path("/dev/full").open("w") as full:
        mute = subprocess.run(whole, stdout=subprocess.DEVNULL, stderr=full, env=environment, check=False)
        ended = subprocess.run(whole, stdout=full, stderr=subprocess.PIPE, env=environment, text=True, check=False)
    assert mute.returncode == good.returncode
    if good.stdout:
        first, *more = ended.stderr.splitlines()
        assert (ended.returncode, first) == (1, "kdispatch: The result can't be written: No space left on device.")
        assert len(more) == 2
