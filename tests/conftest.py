from __future__ import annotations

import pytest

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
from tests.tiers import is_in_test_all

__all__ = [
    "guarded_test",
    "no_task_is_left",
    "pytest_asyncio_loop_factories",
    "pytest_collection_finish",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_runtest_protocol",
    "pytest_sessionfinish",
    "pytest_terminal_summary",
]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what ``make test`` leaves to ``make test-all``, before pytest chooses by marks."""
    for item in items:
        if is_in_test_all(item.nodeid):
            item.add_marker(pytest.mark.more)
