"""Rows that clients were told are written, and where they are in the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

from efm_lb.rehearsal import sql
from efm_lb.rehearsal.balancer import Entrance
from efm_lb.rehearsal.cluster import TABLE, Server
from efm_lb.rehearsal.waiting import wait_until
from faults.servers.estate import Estate
from faults.servers.event import Promotion
from faults.watch import AnyBalancer

__all__ = ["Accounts", "Writers"]

_PAUSE = 0.05
_READ_ONLY = "25006"


class Accounts(NamedTuple):
    """What became of the rows.

    :param acknowledged: to a client
    :param died: with a server that crashed, see `Writers.accounts`
    :param lost: one line for each that is missing for another reason
    """

    acknowledged: int
    died: int
    lost: tuple[str, ...]


class _Row(NamedTuple):
    number: int
    host: str
    acknowledged: float


class _Writer(threading.Thread):
    """One client of one balancer, with a session for as long as that lives.

    :ivar rows: acknowledged
    :ivar in_vain: when each write began that a node in recovery refused
    """

    def __init__(self, balancer: str, entrance: Entrance, number: int) -> None:
        super().__init__(daemon=True)
        self.balancer = balancer
        self.number = number
        self.rows: list[_Row] = []
        self.in_vain: list[float] = []
        self.over = threading.Event()
        self._entrance = entrance

    def run(self) -> None:
        session: sql.Session | None = None
        count = 0
        while not self.over.wait(_PAUSE):
            began = time.monotonic()
            count += 1
            try:
                session = session or self._log_in()
                answer = session.execute(
                    f"insert into {TABLE} values ({self.number}, {count}) returning host(inet_server_addr()) as host",
                    self._entrance.patience,
                )
            except sql.SqlError as error:
                if error.sqlstate == _READ_ONLY:
                    self.in_vain.append(began)
                if session:
                    session.close()  # as most applications do
                session = None
            else:
                self.rows.append(_Row(count, str(answer[0]["host"]), time.monotonic()))
        if session:
            session.close()

    def _log_in(self) -> sql.Session:
        entrance = self._entrance
        return sql.Session(entrance.host, entrance.port, dbname=entrance.dbname, timeout=entrance.login_patience)


class Writers:
    """A client that writes through each balancer while the block runs.

    :param first: the number of the first; each of all plays has another one
    """

    def __init__(self, balancers: Sequence[AnyBalancer], first: int) -> None:
        self._writers = [_Writer(each.name, each.writing, first + number) for number, each in enumerate(balancers)]

    def __enter__(self) -> Writers:
        for writer in self._writers:
            writer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers:
            writer.over.set()
        for writer in self._writers:
            writer.join()

    @property
    def balancers(self) -> list[str]:
        """Their names."""
        return [each.balancer for each in self._writers]

    def silent(self, timeout: float = 10.0) -> list[str]:
        """The balancers through which nothing is written from now on, for ``timeout`` seconds."""
        since = time.monotonic()

        def silent() -> list[str]:
            return [each.balancer for each in self._writers if not each.rows or each.rows[-1].acknowledged < since]

        wait_until(lambda: not silent(), timeout, interval=0.05)
        return silent()

    def in_vain(self, balancer: str, since: float) -> int:
        """Writes that this balancer sent to a node in recovery, of those that began after ``since``."""
        return sum(began > since for each in self._writers if each.balancer == balancer for began in each.in_vain)

    def accounts(self, estate: Estate, promotion: Promotion | None) -> Accounts:
        """Compare what was acknowledged with what the primary has.

        PostgreSQL itself loses a row when its primary has acknowledged it, crashes before a standby has received it,
        and that standby is promoted. So of the missing rows those died with a server that the old primary, not another
        one, has acknowledged before anybody else was promoted, while it was the right place for them, in an event in
        which it or its successor was killed or away. For all others a load balancer would have to be blamed.
        """
        primary = estate.primary()
        acknowledged = died = 0
        lost = []
        for writer in self._writers:
            found = {row["number"] for row in _stored(primary, writer.number)}
            acknowledged += len(writer.rows)
            for row in writer.rows:
                if str(row.number) in found:
                    continue
                if promotion and _died(row, promotion, estate):
                    died += 1
                else:
                    lost.append(f"row {row.number} through {writer.balancer}, acknowledged by {row.host}, is lost")
        return Accounts(acknowledged, died, tuple(lost))


def _stored(primary: Server, writer: int) -> list[dict[str, str]]:
    return primary.query(f"select number from {TABLE} where writer = {writer}", timeout=30)


def _died(row: _Row, promotion: Promotion, estate: Estate) -> bool:
    old, new, asked, _ = promotion
    return row.host == old.host and row.acknowledged < asked and bool({old, new} & estate.crashed)
