"""What the fault suite has tried, by kind, and what was lost: the table at the end of `make faults`.

A test is one try, and something is lost when it fails. A test that tries many things says how many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import pytest

__all__ = ["COUNTED", "KIND", "TRIED", "Account", "accounts", "counts", "table"]

KIND = "fault"
"""The property of a test's report that says what kind of fault it tried."""
TRIED = "faults tried"
"""The same for how many; it may be there several times."""
COUNTED = "fault counted"
"""The same for what else is to be counted, in words; as often as it happened."""
_HEADINGS = ("kind of fault", "tried", "lost", "skipped")


class Account(NamedTuple):
    """What became of one kind of fault.

    :param tried: how often it was tried
    :param lost: tries after which something was not as it must be; of a test that fails, one at least
    :param skipped: tests that cannot be run here
    """

    tried: int = 0
    lost: int = 0
    skipped: int = 0

    def __add__(self, other: object) -> Account:
        assert isinstance(other, Account)
        return Account(*[one + another for one, another in zip(self, other, strict=True)])


def accounts(reports: Mapping[str, Iterable[object]]) -> dict[str, Account]:
    """One account for each kind, in the order of the tests.

    :param reports: pytest's, by what became of them: ``passed``, ``failed``, ``error``, ``skipped``, ...
    """
    found: dict[str, Account] = {}
    for became, each in reports.items():
        for report in each:
            if not isinstance(report, pytest.TestReport):
                continue
            properties = report.user_properties
            kind = next((str(value) for name, value in properties if name == KIND), "")
            if kind:
                tried = sum(int(str(value)) for name, value in properties if name == TRIED)
                found[kind] = found.get(kind, Account()) + _account(became, report.when, tried)
    return found


def _account(became: str, when: str | None, tried: int) -> Account:
    if became == "skipped":
        return Account(skipped=1)
    if became == "error":  # before the test, or after it: then it is counted already
        return Account(lost=1)
    if when != "call" or not became:
        return Account()
    return Account(max(tried, 1), int(became == "failed"))


def table(found: Mapping[str, Account]) -> list[str]:
    """The lines of the table, with the sum at the end."""
    every = {**found, "together": sum(found.values(), Account())}
    rows = [_HEADINGS, *((kind, *map(str, account)) for kind, account in every.items())]
    width = max(len(row[0]) for row in rows)
    return [f"{kind:<{width}}" + "".join(f"{number:>10}" for number in numbers) for kind, *numbers in rows]


def counts(reports: Mapping[str, Iterable[object]]) -> list[str]:
    """What else happened and how often, one line each, whatever became of the test.

    :param reports: pytest's, see `accounts`
    """
    calls = [
        each for of in reports.values() for each in of if isinstance(each, pytest.TestReport) and each.when == "call"
    ]
    found = Counter(str(value) for each in calls for name, value in each.user_properties if name == COUNTED)
    return [f"{words}: {count}" for words, count in sorted(found.items())]
