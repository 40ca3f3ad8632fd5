"""Checks for every test: no blocked event loop, no task or process left behind, no error that only a log shows.

``tests/conftest.py`` imports these fixtures and hooks; ``test_planted.py`` proves that each of them fails a test.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest
from blockbuster import BlockBuster
from pytest_asyncio import is_async_test

from tests.guards.blocking import FOLDER, PRODUCT, SITE, make_guard
from tests.guards.processes import Survivor, end_survivors, mark_run

__all__ = [
    "guarded_test",
    "no_task_is_left",
    "pytest_asyncio_loop_factories",
    "pytest_collection_finish",
    "pytest_configure",
    "pytest_runtest_protocol",
    "pytest_sessionfinish",
    "pytest_terminal_summary",
]

_LOOP: Final = "KDISPATCH_TEST_LOOP"  # uvloop or asyncio; by default uvloop if it is installed, as for users
_ENDING: Final = 0.5  # seconds for tasks to end, such as those of a server's connections
_GUARD: Final = pytest.StashKey[BlockBuster]()
_FACTORY: Final = pytest.StashKey[Mapping[str, Callable[[], asyncio.AbstractEventLoop]]]()
_FINDINGS: Final = pytest.StashKey[Path]()
_RUN: Final = pytest.StashKey[str]()
_SURVIVORS: Final = pytest.StashKey[list[Survivor]]()


def pytest_configure(config: pytest.Config) -> None:
    _unignore_signals()
    config.stash[_FACTORY] = _loop_factory()
    if "uvloop" in config.stash[_FACTORY]:
        # uvloop only logs exceptions of a signal handler, so a test would hang.
        config.option.timeout_method = "thread"
    config.stash[_GUARD] = make_guard(*PRODUCT)
    if not hasattr(config, "workerinput"):  # xdist's workers inherit the controller's mark
        config.stash[_RUN] = mark_run()


def _unignore_signals() -> None:
    """Let processes that tests start heed the signals that this run ignores, after ``nohup`` or in a background.

    A program inherits what is ignored, but not a handler.
    """
    for name in ("SIGHUP", "SIGINT", "SIGQUIT"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def _loop_factory() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    wanted = os.environ.get(_LOOP, "")
    if wanted not in ("", "asyncio", "uvloop"):
        raise pytest.UsageError(f"{_LOOP} is asyncio or uvloop, not {wanted}")
    if wanted != "asyncio":
        try:
            uvloop = importlib.import_module("uvloop")
        except ImportError:
            if wanted:
                raise pytest.UsageError(f"{_LOOP}=uvloop, and uvloop is not installed: pip install uvloop") from None
        else:
            os.environ.pop("KDISPATCH_NO_UVLOOP", None)
            return {"uvloop": uvloop.new_event_loop}
    # Processes that tests start use the same loop.
    os.environ["KDISPATCH_NO_UVLOOP"] = "1"
    return {"asyncio": asyncio.new_event_loop}


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run every async test on the loop that the run has chosen."""
    return config.stash[_FACTORY]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run if a test left a process; this runs last, after the workers and the session's fixtures."""
    if _RUN not in session.config.stash:
        return
    session.config.stash[_SURVIVORS] = end_survivors(session.config.stash[_RUN])
    if session.config.stash[_SURVIVORS] and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print each process left behind, with the test that started it."""
    if survivors := config.stash.get(_SURVIVORS, []):
        terminalreporter.section("processes are left", red=True)
        for survivor in survivors:
            terminalreporter.write_line(f"{survivor.test} left process {survivor.pid}: {survivor.command}")


def pytest_collection_finish() -> None:
    """Exclude permanent objects from collection, which makes a collection after each test cheap."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Guard the processes of a test, except in the acceptance run and in tests with the mark, which measure."""
    if os.environ.get(FOLDER) == "0" or item.get_closest_marker("accept") or item.get_closest_marker("unguarded"):
        return (yield)
    findings = _findings(item.config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(findings))
        patch.setenv("PYTHONPATH", str(SITE), prepend=os.pathsep)
        return (yield)


def _findings(config: pytest.Config) -> Path:
    factory: pytest.TempPathFactory = config._tmp_path_factory  # type: ignore[attr-defined] # what the fixture gives
    if _FINDINGS not in config.stash:
        config.stash[_FINDINGS] = factory.mktemp("blocking")
    return config.stash[_FINDINGS]


@pytest.fixture(autouse=True)
def guarded_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """The guards of one test, around all its other fixtures, so that these are checked too."""
    if not is_async_test(request.node):
        yield
        return
    errors = _Errors()
    logging.getLogger("asyncio").addHandler(errors)
    try:
        # What is alive now outlives the test: the collection below need not look at it (4 ms instead of 95).
        gc.collect()
        gc.freeze()
        request.getfixturevalue("no_task_is_left")
        yield
        # Coroutines never awaited and exceptions never retrieved are reported when they are collected.
        gc.collect()
    finally:
        logging.getLogger("asyncio").removeHandler(errors)
    if errors.texts:
        pytest.fail("asyncio logged an error:\n" + "\n".join(errors.texts), pytrace=False)


@pytest.fixture
async def no_task_is_left(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Check that only the test's own task is left, and that nothing has blocked the loop."""
    folder = os.environ.get(FOLDER)
    guard = request.config.stash[_GUARD]
    if folder:
        guard.activate()
    before = asyncio.all_tasks()
    try:
        yield
        deadline = asyncio.get_running_loop().time() + _ENDING
        # This fixture's teardown runs in another task than its setup.
        while left := asyncio.all_tasks() - before - {asyncio.current_task()}:
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(0.005)
    finally:
        guard.deactivate()
    mark = request.node.get_closest_marker("leaves")
    if left := {task for task in left if mark is None or task.get_name() not in mark.args}:
        pytest.fail("tasks are left:\n" + "\n".join(str(task) for task in left), pytrace=False)
    if folder and (blocked := _blocked(Path(folder))):
        pytest.fail(blocked, pytrace=False)


def _blocked(folder: Path) -> str:
    texts = []
    for file in sorted(folder.iterdir()):
        texts.append(file.read_text())
        file.unlink()
    return "\n".join(texts)


class _Errors(logging.Handler):
    """Collects asyncio's logged errors, such as an unretrieved exception of a task, or an exception of a callback."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))
