"""The real servers of the integration tests, for the fault suite too, and its report."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from faults.tally import COUNTED, KIND, TRIED, accounts, counts, table
from integration.conftest import (
    cluster,
    haproxy,
    pgbouncer,
    pgpool,
    standing_cluster,
    standing_haproxy,
    standing_pgbouncer,
    standing_pgpool,
    start_haproxy,
)

__all__ = [
    "cluster",
    "counted",
    "haproxy",
    "pgbouncer",
    "pgpool",
    "standing_cluster",
    "standing_haproxy",
    "standing_pgbouncer",
    "standing_pgpool",
    "start_haproxy",
    "tried",
]


def pytest_itemcollected(item: pytest.Item) -> None:
    """The kind of fault is that of the test's ``fault`` mark; no fixture says so, for one before it may fail."""
    mark = item.get_closest_marker("fault")
    if mark:
        item.user_properties.append((KIND, mark.args[0]))


@pytest.fixture
def tried(record_property: Callable[[str, object], None]) -> Callable[[int], None]:
    """Say how many faults a test has tried, when it is not one: ``tried(100)``; several times if need be."""
    return lambda count: record_property(TRIED, count)


@pytest.fixture
def counted(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Say that something happened that the report is to count: ``counted("pgpool: SIGSTOP")``."""
    return lambda words: record_property(COUNTED, words)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found = accounts(terminalreporter.stats)
    if found:
        terminalreporter.section("faults: what was tried, and what was lost")
        for line in table(found):
            terminalreporter.write_line(line)
        for line in counts(terminalreporter.stats):
            terminalreporter.write_line(line)
