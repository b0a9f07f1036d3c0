"""A PgBouncer of the model and a real one: the console's commands, restarts, and the file that efm-lb keeps.

The real one has clients whose transactions are short: PAUSE has something to wait for, and waits without end when the
database behind an entry is frozen.
"""

from __future__ import annotations

import contextlib
import math
import re
import threading
import time
from collections.abc import Iterator
from random import Random

from efm_lb.rehearsal import sql
from efm_lb.rehearsal.cluster import SUPERUSER
from efm_lb.rehearsal.pgbouncer import Pgbouncer as RealPgbouncer
from efm_lb_pgbouncer.console import LOGIN_RETRY, Console, Interrupted, Refused, Server, Session
from efm_lb_pgbouncer.drive import drive
from efm_lb_pgbouncer.pooler import Pooler
from faults.model.databases import Life
from faults.model.hosts import installed
from faults.model.pgbouncer import READ, WRITE, Pgbouncer
from faults.twins.sides import DEADLINE, World, answer_of, twin_of

__all__ = ["PgbouncerTwins"]

_ENTRIES = (*WRITE, *READ)
_PATIENCE = 0.5
"""Seconds that a console waits for an answer."""
_CLIENTS = 4
"""So many that each server of an entry has some."""
_LIFTED = "0.0000035"


class PgbouncerTwins:
    """One of each, with the same policy for reads."""

    def __init__(self, world: World, real: RealPgbouncer, random: Random) -> None:
        self._world = world
        self._random = random
        self._real = real
        policy = random.choice(("never", "always", "fallback"))
        self._model = Pgbouncer("pgb1", world.simulation, world.cluster, world.watch, world.world.files, policy, 0.0)
        world.world.balancers.append(self._model)
        self._pooler = Pooler(
            (Console(real.admin, str(real.passfile), 2.0),), str(real.entries), WRITE, READ, policy, 0.0, 1.0, 2.0
        )
        self._first = self._as_real(self._model.first_config)
        real.write_entries(self._first)
        real.console("RELOAD")

    def _as_real(self, content: bytes) -> str:
        """A file of the model's, about the real servers."""
        nodes = self._real.cluster.nodes
        text = re.sub(r"\b10\.0\.0\.([0-9])\b", lambda found: nodes[int(found[1]) - 1].host, content.decode())
        text = text.replace("port=5444", f"port={nodes[0].port}")
        return re.sub("dbname=[a-z]+", "dbname=postgres", text)

    def step(self) -> tuple[str, str, str]:
        """Do something on both sides.

        :return: what it was, and the answers of the model and of the real one
        """
        does = self._random.choice(
            [self._command] * 5
            + [self._event] * 4
            + [self._freeze, self._moved_in_transaction, self._restart, self._put_back]
        )
        return does()

    def _command(self) -> tuple[str, str, str]:
        name = self._random.choice(_ENTRIES)
        verb = self._random.choice(("RELOAD", "SET", "PAUSE", "PAUSE", "RESUME", "RESUME", "KILL"))
        if verb == "PAUSE" and self._is_anybody_silent:  # in the model alone
            verb = "RELOAD"
        statement = {"RELOAD": verb, "SET": f"SET {LOGIN_RETRY} = '{_LIFTED}'"}.get(verb, f'{verb} "{name}"')
        return statement, self._tell_model(statement), self._tell_real(statement)

    def _tell_model(self, statement: str) -> str:
        def tell() -> str:
            session = self._model.pooler().consoles[0].session(float("inf"))
            return _told(session, statement, float("inf"))

        return self._world.do(tell)

    def _tell_real(self, statement: str) -> str:
        session = self._pooler.consoles[0].session(time.monotonic() + 5.0)
        try:
            return answer_of(lambda: _told(session, statement, time.monotonic() + 5.0))
        finally:
            session.close()

    def _event(self) -> tuple[str, str, str]:
        event = self._world.event(self._random)
        with installed():
            model = self._world.do(lambda: drive(event, self._model.pooler(), self._deadline()).result.value)
        twin = twin_of(event, self._real.cluster.nodes)
        real = answer_of(lambda: drive(twin, self._pooler, time.monotonic() + DEADLINE).result.value)
        roles = [(state.role or state.reach).value for state in event.truth.states]
        return f"{type(event).__name__} {event.node.name} {roles}", model, real

    def _deadline(self) -> float:
        return self._world.simulation.now + DEADLINE

    def _freeze(self) -> tuple[str, str, str]:
        """Freeze a node, PAUSE an entry, and thaw it."""
        database = self._world.some(self._random, Life.RUNNING)
        if database is None or self._is_anybody_silent:
            return "nothing", "", ""
        name = self._random.choice(_ENTRIES)
        told = f'PAUSE "{name}"'
        server = self._real.cluster.nodes[database.number]
        # Nobody gets in where an entry is paused, and nothing is waited for.
        with contextlib.nullcontext() if name in self._real.paused() else _clients(self._real, name):
            self._world.cluster.silence(database)
            server.freeze()
            try:
                answers = self._tell_model(told), self._tell_real(told)
            finally:
                self._world.cluster.thaw(database)
                server.thaw()
        return f"{told} while {database} is frozen", *answers

    def _moved_in_transaction(self) -> tuple[str, str, str]:
        """Lead an entry elsewhere while a client is in a transaction, then KILL it."""
        name = self._random.choice(WRITE)
        if name in self._real.paused():  # nobody gets in
            return "nothing", "", ""
        path = self._model.config
        before = self._world.world.files[path]
        (host,) = self._model.entries[name].location.hosts
        other = self._random.choice([node.host for node in self._world.cluster.nodes if node.host != host])
        after = re.sub(rf"(?m)^({name} = host=)\S+".encode(), rb"\g<1>" + other.encode(), before)
        self._model.leftovers.clear()  # until now the real one had no client to leave any
        answers: list[list[str]] = [[], []]
        with sql.Session(self._real.host, self._real.port, SUPERUSER, name, 5.0) as client:
            client.execute("begin")
            client.execute("select 1")
            self._world.world.files[path] = after
            self._real.write_entries(self._as_real(after))
            for statement in ("RELOAD", f'KILL "{name}"', f'RESUME "{name}"'):
                answers[0] += [self._tell_model(statement), self._left_in_model(name)]
                answers[1] += [self._tell_real(statement), self._left_in_real(name)]
        return f"{name} is led to {other} while a client is in a transaction", *map(str, answers)

    def _left_in_model(self, name: str) -> str:
        """The sessions to where an entry led before. How long they last is their clients' doing: for ever here."""
        self._model.leftovers = [(server, math.inf) for server, _ in self._model.leftovers if server.database == name]
        console = self._model.pooler().consoles[0]
        servers: list[Server] = []
        self._world.do(lambda: servers.extend(console.session(math.inf).servers(math.inf)))
        return self._left(servers, [node.host for node in self._world.cluster.nodes])

    def _left_in_real(self, name: str) -> str:
        session = self._pooler.consoles[0].session(time.monotonic() + 5.0)
        try:
            servers = session.servers(time.monotonic() + 5.0)
        finally:
            session.close()
        left = [server for server in servers if server.close_needed and server.database == name]
        return self._left(left, [node.host for node in self._real.cluster.nodes])

    @staticmethod
    def _left(servers: list[Server], hosts: list[str]) -> str:
        return str([(each.database, hosts.index(each.host), each.close_needed, each.logged_in) for each in servers])

    @property
    def _is_anybody_silent(self) -> bool:
        return any(each.life is Life.SILENT for each in self._world.cluster.all)

    def _restart(self) -> tuple[str, str, str]:
        self._model.stop()
        self._model.start()
        self._real.process.kill()
        self._real.launch()
        return "killed and started", "", ""

    def _put_back(self) -> tuple[str, str, str]:
        self._model.put_back_file()
        self._real.write_entries(self._first)
        return "its file is put back", "", ""

    def beliefs(self) -> tuple[object, object]:
        """What the model and the real one believe, with what their files say."""
        consoles = self._model.pooler().consoles[0], self._pooler.consoles[0]
        told: list[object] = []
        self._world.do(lambda: told.append(_belief(consoles[0].session(float("inf")), float("inf"))))
        session = consoles[1].session(time.monotonic() + 5.0)
        try:
            told.append(_belief(session, time.monotonic() + 5.0))
        finally:
            session.close()
        nodes = self._world.cluster.nodes, self._real.cluster.nodes
        hosts = [{node.host: number for number, node in enumerate(each)} for each in nodes]
        entries = [_numbered(each, names) for each, names in zip(told, hosts, strict=True)]
        files = self._as_real(self._world.world.files[self._model.config]), self._real.entries.read_text()
        return (entries[0], files[0]), (entries[1], files[1])


def _told(session: Session, statement: str, limit: float) -> str:
    try:
        return session.command(statement, limit, _PATIENCE)
    except Refused as refusal:
        return "not paused" if "not paused" in str(refusal) else "refused"
    except Interrupted:
        return "no answer"


def _belief(session: Session, limit: float) -> tuple[dict[str, object], int]:
    """What efm-lb makes of SHOW DATABASES and SHOW CONFIG."""
    databases = session.databases(limit)
    entries = {name: databases[name] for name in _ENTRIES}
    told = {name: (entry.location.hosts, entry.paused, entry.disabled) for name, entry in entries.items()}
    return told, int(float(session.settings(limit)[LOGIN_RETRY]) * 1e6 + 0.25)


def _numbered(belief: object, numbers: dict[str, int]) -> object:
    told, login_retry = belief  # type: ignore[misc]
    return {name: ([numbers[host] for host in hosts], *more) for name, (hosts, *more) in told.items()}, login_retry


@contextlib.contextmanager
def _clients(real: RealPgbouncer, entry: str) -> Iterator[None]:
    """Several clients with one short transaction after the other; they are at work when it begins."""
    over = threading.Event()
    busy = threading.Barrier(_CLIENTS + 1)

    def work() -> None:
        with contextlib.suppress(sql.SqlError), sql.Session(real.host, real.port, SUPERUSER, entry, 2.0) as session:
            session.execute("select 1", 2.0)
            busy.wait(2.0)
            while not over.is_set():
                session.execute("select pg_sleep(0.02)", _PATIENCE + 1.0)

    threads = [threading.Thread(target=work) for _ in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        busy.wait(3.0)
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
