from __future__ import annotations

from tests.guards.plugin import (
    guarded_test,
    no_task_is_left,
    pytest_asyncio_loop_factories,
    pytest_collection_finish,
    pytest_configure,
    pytest_runtest_protocol,
    pytest_sessionfinish,
    pytest_terminal_summary,
)

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
