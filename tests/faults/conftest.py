from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.faults.rig import Rig


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failing test shows what its processes printed."""
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        broken = item.funcargs.get("broken")
        if isinstance(broken, Rig):
            report.sections.append(("logs", broken.logs()))
    return report
