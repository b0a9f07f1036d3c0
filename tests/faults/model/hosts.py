"""The hosts that efm-lb runs on: its own hook, follow-up and reconcile, with what is around them simulated."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import efm_lb.lock
import efm_lb.state
import efm_lb.watch
import efm_lb_haproxy.down
import efm_lb_haproxy.drive
import efm_lb_haproxy.persist
import efm_lb_haproxy.validate
import efm_lb_pgbouncer.drive
import efm_lb_pgbouncer.entries
import efm_lb_pgbouncer.guard
import efm_lb_pgbouncer.hold
import efm_lb_pgbouncer.mark
import efm_lb_pgbouncer.pooler
import efm_lb_pgbouncer.settle
import efm_lb_pgpool.drive
import efm_lb_pgpool.members
from efm_lb import (
    Balancer,
    Detach,
    Event,
    Node,
    NodeState,
    Outcome,
    PermanentError,
    Reach,
    TemporaryError,
    Truth,
    View,
    calls,
    dispatch,
    follow_up,
    hook,
)
from efm_lb.configuration import Configuration, DetachLivePrimary, Reconcile
from efm_lb.decide import Decision
from efm_lb.errors import EfmLbError
from efm_lb.outcomes import Result
from efm_lb.probe import SECOND_LOOK
from efm_lb.reconcile import attempts, rounds, service
from efm_lb.reconcile.restraint import Sight
from efm_lb.reconcile.supervisor import Supervisor
from efm_lb_haproxy.config import server_lines
from efm_lb_haproxy.servers import Server
from efm_lb_haproxy.settings import Setup
from efm_lb_haproxy.view import unkept
from efm_lb_haproxy.view import view_of as haproxy_view
from efm_lb_pgbouncer.console import Database as Entry
from efm_lb_pgbouncer.entries import Location
from efm_lb_pgbouncer.pooler import Pooler
from efm_lb_pgbouncer.view import view_of as pgbouncer_view
from efm_lb_pgpool.node_info import Backend
from efm_lb_pgpool.view import view_of as pgpool_view
from faults.model.databases import Cluster, Database
from faults.model.haproxy import WRITE, Haproxy
from faults.model.pgbouncer import Pgbouncer
from faults.model.pgpool import Pgpool
from faults.model.right import FENCED, Watch
from faults.model.simulation import Signal, SimulatedBackground, Simulation, Task, Violation

__all__ = ["Host", "World", "installed"]

AnyBalancer = Pgpool | Haproxy | Pgbouncer


class World:
    """All that is there.

    :ivar files: of the balancers' host, by path
    """

    def __init__(self, simulation: Simulation, cluster: Cluster, watch: Watch) -> None:
        self.simulation = simulation
        self.watch = watch
        self.cluster = cluster
        self.files: dict[str, bytes] = {}
        self.balancers: list[AnyBalancer] = []
        self.hosts: dict[str, Host] = {}
        self.locks: dict[str, Task] = {}
        self.waiting: dict[str, list[Task]] = {}
        self.free = Signal()
        self.marks: dict[str, Task] = {}
        self.guards = 0
        self.notes: dict[str, str] = {}
        self.calls: list[Task] = []

    @property
    def obeys(self) -> bool:
        """Whether a live primary may be taken out, and stays so for a while."""
        return any(host.configuration.detach_live_primary is DetachLivePrimary.OBEY for host in self.hosts.values())

    def balancer(self, name: str) -> AnyBalancer:
        return next(balancer for balancer in self.balancers if balancer.name == name)


class Host:
    """A host that EFM's agent runs on."""

    def __init__(
        self,
        name: str,
        world: World,
        rhythm: Reconcile,
        detach_live_primary: DetachLivePrimary,
        deadline: float,
        connect_timeout: float,
        by_timer: bool,
    ) -> None:
        self.name = name
        self.world = world
        self.by_timer = by_timer
        self.service: Task | None = None
        self._look: Task | None = None
        self.looked = 0.0
        self.rounds: rounds.Rounds | None = None
        self.configuration = Configuration(
            "efm",
            world.cluster.nodes,
            {},
            deadline,
            connect_timeout,
            f"/{name}",
            detach_live_primary,
            tuple(
                sorted(
                    Balancer(balancer.name, balancer.kind, {"name": balancer.name}, 2.0) for balancer in world.balancers
                )
            ),
            (),
            rhythm,
        )

    def call(self, *argv: str) -> Task:
        """Run a hook."""
        world = self.world
        short = f"{self.name} {' '.join(argv[:3])}"

        def run() -> None:
            world.simulation.say("begins")
            world.calls.append(task)
            try:
                report = hook.run(calls.parse(argv), {"HOST": self.name})
            except EfmLbError as error:
                raise Violation(f"{argv}: {error}") from None
            for outcome in report.outcomes:
                # That one is right, which is seen to where it comes from.
                is_fenced = outcome.result is Result.PERMANENT and FENCED in outcome.detail
                if outcome.result in (Result.BUG, Result.PERMANENT) and not is_fenced:
                    raise Violation(f"{short}: {outcome.balancer}: {outcome.result.value}: {outcome.detail}")
            done = (Result.CHANGED, Result.UNCHANGED)
            is_held = bool(report.decision and report.decision.hold)  # clients are, and nobody is taken out
            done_by = [each.result in done for each in report.outcomes]
            if not report.exit_code and not is_held and done_by and all(done_by):
                world.watch.carried_out(self.name, task.began, argv)
            world.simulation.say(f"ends with {report.exit_code}: {report.decision and report.decision.reason}")

        task = world.simulation.spawn(run, short, host=self)
        task.argv = list(argv)
        task.began = int(argv[-1].partition("-")[0], 16) / 1e9 if "--call" in argv else world.simulation.now
        return task

    def serve(self) -> None:
        """Run reconcile: as a service, or by a timer, each time for one look."""
        simulation = self.world.simulation
        if not self.by_timer:

            def goes_on(its: rounds.Rounds, vigil: Any) -> None:
                service._watch(self.configuration, False, lambda: False, vigil, its, Supervisor({}))

            self.service = self._reconcile(goes_on)
            return

        def timer() -> None:
            while True:
                self._look = self._reconcile(lambda its, vigil: service._once(self.configuration, its, False))
                while not self._look.done:
                    simulation.wait(float("inf"), self._look.ended)
                simulation.sleep(self.configuration.reconcile.period)

        self.service = simulation.spawn(timer, f"{self.name} timer", host=self)

    def _reconcile(self, work: Callable[[rounds.Rounds, Any], object]) -> Task:
        """Begin a process of reconcile's."""
        world = self.world

        def run() -> None:
            vigil: Any = _Vigil(world, self.name, self.configuration.connect_timeout)
            self.rounds = rounds.Rounds(self.configuration, vigil)
            self.rounds.play = functools.partial(self._play, self.rounds.play)  # type: ignore[method-assign]
            work(self.rounds, vigil)

        task = world.simulation.spawn(run, f"{self.name} reconcile", host=self)
        task.began = world.simulation.now
        world.watch.looks(self.name, self.looked)
        return task

    def _play(self, play: Callable[[float], rounds.Round], patience: float) -> rounds.Round:
        """Play a round, and note when it began: at its end is kept what it has seen."""
        began = self.world.simulation.now
        played = play(patience)
        self.looked = began
        self.world.watch.looked(self.name, began)
        return played

    def ends(self) -> None:
        """Kill reconcile."""
        if self.service:
            self.world.simulation.say(f"{self.name} reconcile is killed")
            self.world.simulation.kill(self.service)
            if self._look:
                self.world.simulation.kill(self._look)
            self.service = self._look = None

    def forget(self) -> None:
        """Remove what this host has seen of timelines, and start the service again."""
        self.world.notes.pop(f"{self.configuration.state_dir}/efm.timeline", None)
        if self.service:
            self.ends()
            self.serve()


class _Vigil:
    """As `efm_lb.reconcile.vigil.Vigil`: each node is asked twice a second, and some time after it has changed."""

    POLL = 0.5

    def __init__(self, world: World, host: str, timeout: float) -> None:
        self._world = world
        self._host = host
        self._timeout = timeout
        self._news = Signal()
        self._changes = self._seen = 0
        self._states: dict[Node, tuple[NodeState, float]] = {}
        for database in world.cluster.all:
            simulation = world.simulation
            simulation.spawn(
                functools.partial(self._follow, database), f"{host} vigil {database}", process=simulation.current
            )

    def _follow(self, database: Database) -> None:
        world = self._world
        simulation = world.simulation
        while True:
            state = world.cluster.answer(self._host, database)
            if state.reach is Reach.NO_RESPONSE:
                simulation.sleep(self._timeout)
            self._take(database, state)
            while world.cluster.answer(self._host, database)[1:4] == state[1:4]:
                simulation.wait(float("inf"), world.cluster.changed)
            # Asked twice a second, it has said so until now.
            last, since = self._states[database.node]
            self._states[database.node] = last._replace(seconds=max(last.seconds, simulation.now - self.POLL)), since
            simulation.pause(0.0, self.POLL)

    def _take(self, database: Database, state: NodeState) -> None:
        now = self._world.simulation.now
        last = self._states.get(database.node)
        is_new = last is None or last[0][1:4] != state[1:4]
        self._states[database.node] = state, now if is_new or last is None else last[1]
        self._changes += is_new
        if is_new:
            self._world.simulation.notify(self._news)

    def sight(self, newest: int) -> Sight:
        world = self._world
        while len(self._states) < len(world.cluster.all):
            world.simulation.wait(float("inf"), self._news)
        self._seen = self._changes
        states, since = [], {}
        for database in world.cluster.all:
            state, since[database.node] = self._states[database.node]
            now = world.cluster.answer(self._host, database)
            states.append(now if now[1:4] == state[1:4] else state)
        return Sight(Truth(tuple(states), newest), since)

    def refresh(self, seconds: float, needed: Collection[Node]) -> list[Node]:
        """Each node answers at a moment of its own, and is slow now and then."""
        cluster, simulation = self._world.cluster, self._world.simulation
        began, random = simulation.now, simulation.random
        moments = [(random.random() * (1.5 if random.random() < 0.03 else 0.01), each) for each in cluster.all]
        heard: list[Node] = []

        def until() -> float:
            return began + (seconds if set(needed).issubset(heard) else max(seconds, self._timeout))

        for moment, database in sorted(moments, key=lambda each: each[0]):
            simulation.wait(max(simulation.now, min(began + moment, until())))
            state = cluster.answer(self._host, database)
            if began + moment <= until() and state.reach is not Reach.NO_RESPONSE:
                self._take(database, state)
                heard.append(database.node)
        if len(heard) < len(cluster.all):
            simulation.wait(max(simulation.now, until()))
        return heard

    def wait(self, until: float) -> bool:
        simulation = self._world.simulation
        while self._changes == self._seen and simulation.now < until:
            simulation.wait(until, self._news)
        return self._changes != self._seen


class _Answers:
    def __init__(
        self, world: World, host: str, nodes: tuple[Node, ...], timeout: float, silent: dict[Node, float]
    ) -> None:
        self._world = world
        self._silent = silent
        self._host = host
        self._nodes = nodes
        self._began = world.simulation.now
        self._timeout = timeout

    def truth(self) -> Truth:
        """Each node answers at a moment of its own; the answers are complete when the last one is there."""
        simulation, cluster = self._world.simulation, self._world.cluster
        moments = sorted((simulation.random.random() ** 3 * 0.05, node) for node in self._nodes)
        states: dict[Node, NodeState] = {}
        until = simulation.now
        for moment, node in moments:
            simulation.wait(max(self._began + moment, simulation.now))
            states[node] = cluster.answer(self._host, cluster.of(node))
            if states[node].reach is Reach.NO_RESPONSE:
                since = self._silent.setdefault(node, self._began)
                second = self._began + min(SECOND_LOOK, self._timeout)
                until = max(until, second, min(since, self._began) + self._timeout)
            else:
                self._silent.pop(node, None)
        if until > simulation.now:
            simulation.wait(until)
        return Truth(tuple([states[node] for node in self._nodes]))


class _Probe:
    def __init__(self, keywords: Mapping[str, str], timeout: float, begun: object = None) -> None:
        task = _world.simulation.current
        assert task
        self._host: str = task.host.name
        self._timeout = timeout
        self._silent: dict[Node, float] = {}

    def ask(self, nodes: tuple[Node, ...], timeout: float | None = None) -> _Answers:
        return _Answers(_world, self._host, nodes, min(self._timeout, timeout or self._timeout), self._silent)

    def truth(self, nodes: tuple[Node, ...], timeout: float | None = None) -> Truth:
        return self.ask(nodes, timeout).truth()

    def start_over(self) -> None:
        return


class _Journal:
    failure, is_behind = "", False

    def __init__(self, path: str, call: str) -> None:
        return

    def record(self, what: str, **fields: Any) -> None:
        if what == "decision" and _world.simulation.trace is not None:
            truth = fields["truth"] and {
                each.node.name: (each.role or each.reach).value for each in fields["truth"].states
            }
            _world.simulation.say(f"{fields['decision'].verdict.value}: {fields['decision'].reason} {truth}")
        elif what == "outcome" and "outcomes" in fields and _world.simulation.trace is not None:
            said = {each.balancer: f"{each.result.value}: {each.detail}" for each in fields["outcomes"]}
            _world.simulation.say(f"outcome {fields['exit_code']}: {said}")

    def settle(self, patience: float) -> None:
        return


class _Journals:
    """The module `efm_lb.journal`; records are told, not written."""

    Journal = _Journal
    AT_LAST = BEFORE_ACTING = 0.0

    @staticmethod
    def decided(decision: Decision, truth: Truth | None) -> dict[str, object]:
        return {"decision": decision, "truth": truth}

    @staticmethod
    def outcomes_of(outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
        return outcomes


class _Time:
    """The module `time`."""

    @staticmethod
    def monotonic() -> float:
        return _world.simulation.now

    time = monotonic

    @staticmethod
    def time_ns() -> int:
        return int(_world.simulation.now * 1e9)

    @staticmethod
    def sleep(seconds: float) -> None:
        _world.simulation.sleep(seconds)


class _Os:
    """The module `os`, as far as the lock is closed with it."""

    environ: Mapping[str, str] = {}

    @staticmethod
    def getpid() -> int:
        return 1

    @staticmethod
    def close(descriptor: int) -> None:
        simulation = _world.simulation
        task = simulation.current
        for path, holder in list(_world.locks.items()):
            if task and holder is task.process:
                del _world.locks[path]
                simulation.notify(_world.free)


def _acquire(path: str, patience: float, *, gives_way: bool = False) -> int:
    simulation = _world.simulation
    task = simulation.current
    assert task
    until = simulation.now + patience
    waiting = _world.waiting.setdefault(path, [])
    try:
        while True:
            holder = _world.locks.get(path)
            is_free = holder is None or holder.done
            if is_free and not (gives_way and any(not each.done for each in waiting)):
                _world.locks[path] = task.process
                task.process.judged = simulation.now
                return 7
            if simulation.now >= until:
                raise TimeoutError(f"another call holds {path}")
            if not gives_way and task.process not in waiting:
                waiting.append(task.process)
            signals = [_world.free] if is_free else [_world.free, holder.ended]
            simulation.wait(min(until, simulation.now + efm_lb.lock.POLL) if is_free else until, *signals)
    finally:
        if task.process in waiting:
            waiting.remove(task.process)


def _wait_for_primary(nodes: list[Node], probe: object, until: float) -> bool:
    simulation, cluster = _world.simulation, _world.cluster
    task = simulation.current
    assert task
    watched = [database for database in cluster.all if database.node in nodes]
    while True:
        if any(database.is_primary and (task.host.name, database) not in cluster.cut for database in watched):
            simulation.pause(0.001, 0.03)
            return True
        if simulation.now >= until:
            return False
        simulation.wait(until, cluster.changed)


def _start_follow_up(seconds: float, call: str, run: object) -> None:
    task = _world.simulation.current
    assert task
    host: Host = task.host
    host.call(*task.process.argv, "--follow-up", f"{seconds:g}", "--call", call)


def _settings_of(cluster: str, env_file: str | None, environ: Mapping[str, str]) -> tuple[Configuration, str]:
    return _world.hosts[environ["HOST"]].configuration, ""


def _read_file(path: str) -> bytes:
    return _world.files[path]


def _replace_file(path: str, expected: bytes, content: bytes) -> None:
    simulation = _world.simulation
    simulation.pause(0.0005, 0.01)
    if _world.files[path] != expected:
        raise TemporaryError(f"{path} was changed by somebody else meanwhile")
    simulation.say(f"writes {path}")
    balancer = next(each for each in _world.balancers if getattr(each, "config", None) == path)
    if isinstance(balancer, Haproxy):
        before_, after_ = (_enabled(text) for text in (expected, content))
        for name in after_ - before_:
            _world.watch.gives_writes(
                balancer, _world.cluster.of(next(each for each in _world.cluster.nodes if each.host == name))
            )
        _world.watch.in_file(balancer, sorted(after_))
    elif isinstance(balancer, Pgbouncer):
        before, after = balancer.in_file(expected), balancer.in_file(content)
        for name in balancer.pooler().write:
            if after[name] != before[name] and not balancer.leads(name, after[name]):
                for host in after[name].hosts:
                    node = next(node for node in _world.cluster.nodes if node.host == host)
                    _world.watch.gives_writes(balancer, _world.cluster.of(node))
    _world.files[path] = content
    _world.watch.touched(balancer, _world.watch.teller)
    _world.watch.remembers(balancer, content)
    if isinstance(balancer, Pgbouncer):
        balancer.told_in_file = balancer.in_file(content)


def _enabled(content: bytes) -> set[str]:
    """The hosts that a HAProxy gives writes to when it starts with this file."""
    return {line.host for line in server_lines(content) if line.proxy == WRITE and not line.disabled}


class _Way:
    """How a dispatcher reaches one balancer: its adapter's own work."""

    def __init__(self, name: str) -> None:
        self._name = name

    def hook(self, name: str, deadline: float) -> Callable[..., Any]:
        return functools.partial(getattr(self, name), _world.balancer(self._name))

    def __str__(self) -> str:
        return self._name

    def _drive(self, model: AnyBalancer, event: Event, balancer: Balancer, deadline: float) -> Outcome:
        task = _world.simulation.current
        assert task
        task.event = event
        began = _world.simulation.now
        argv = task.process.argv
        _world.watch.sends(model, event, task.process.began, argv)
        try:
            if isinstance(model, Pgpool):
                outcome = efm_lb_pgpool.drive.drive(event, model.members(), deadline)
            elif isinstance(model, Haproxy):
                outcome = efm_lb_haproxy.drive.drive(event, model.setup(), deadline)
            else:
                outcome = efm_lb_pgbouncer.drive.drive(event, model.pooler(), deadline)
        except PermanentError as error:
            if FENCED in str(error):
                _world.watch.refused(model, event)
            raise
        _world.watch.reported(model, event, outcome.result, began)
        return outcome

    efm_lb_attach = efm_lb_detach = efm_lb_promote = _drive

    def efm_lb_hold(self, model: AnyBalancer, event: Detach, balancer: Balancer, deadline: float) -> Outcome | None:
        if not isinstance(model, Pgbouncer):
            return None
        return efm_lb_pgbouncer.hold.hold(event, model.pooler(), deadline)

    def efm_lb_view(self, model: AnyBalancer, nodes: tuple[Node, ...], balancer: Balancer, deadline: float) -> View:
        if isinstance(model, Pgpool):
            return _pgpool_view(nodes, model.members().nodes(deadline).backends)
        if isinstance(model, Haproxy):
            setup = model.setup()
            proxies = tuple(model.look(setup.proxies, ()).proxies.items())
            return _haproxy_view(nodes, setup, proxies, tuple([(path, _world.files[path]) for path in setup.config]))
        pooler = model.pooler()
        databases = pooler.consoles[0].session(deadline).databases(deadline)
        return _pgbouncer_view(
            nodes,
            pooler.write,
            pooler.read,
            tuple(databases.items()),
            pooler.is_abandoned(),
            tuple(pooler.locations(pooler.content()).items()),
        )


# The adapters' views are pure, and nearly always of the same.


@functools.lru_cache(1000)
def _pgpool_view(nodes: tuple[Node, ...], backends: tuple[Backend, ...]) -> View:
    return pgpool_view(nodes, backends, {})


@functools.lru_cache(1000)
def _haproxy_view(
    nodes: tuple[Node, ...],
    setup: Setup,
    proxies: tuple[tuple[str, tuple[Server, ...]], ...],
    files: tuple[tuple[str, bytes], ...],
) -> View:
    return haproxy_view(nodes, setup, dict(proxies), unkept(dict(files), nodes, dict(proxies)))


@functools.lru_cache(1000)
def _pgbouncer_view(
    nodes: tuple[Node, ...],
    write: tuple[str, ...],
    read: tuple[str, ...],
    databases: tuple[tuple[str, Entry], ...],
    abandoned: bool,
    kept: tuple[tuple[str, Location], ...],
) -> View:
    pooler = Pooler((), "", write, read, "never", 0.0, 0.0, 0.0)
    return pgbouncer_view(nodes, pooler, [dict(databases)], [], abandoned, dict(kept))


def _dispatcher(configuration: Configuration, call: str = "") -> dispatch.Dispatcher:
    dispatcher: Any = object.__new__(dispatch.Dispatcher)
    dispatcher._balancers = configuration.balancers
    dispatcher._running = {}
    dispatcher._ways = {balancer.name: _Way(balancer.name) for balancer in configuration.balancers}
    dispatcher.connect = lambda clients, logins: None
    result: dispatch.Dispatcher = dispatcher
    return result


class _Runtime:
    def __init__(self, endpoint: Any, connect_timeout: float, tls: object = None) -> None:
        self.endpoint = endpoint

    def look(self, proxies: tuple[str, ...], deadline: float, commands: tuple[str, ...] = ()) -> Any:
        name = self.endpoint.host.split("/")[1]
        model = _world.balancer(name)
        assert isinstance(model, Haproxy)
        return model.look(proxies, commands)


def _is_reloading(pid: int) -> bool:
    model = next(each for each in _world.balancers if isinstance(each, Haproxy))
    return model.reloading is not None and model.pid == pid


class _Guard:
    """The process that lets clients go, and the pipe to it, which ends with the hook at the latest."""

    def __init__(self, hook: Task) -> None:
        _world.guards += 1
        self.pid = 1000 + _world.guards
        self._hook = hook
        self._said: bytes | None = None
        self._told = Signal()
        self.process: Task | None = None

    def tell_done(self) -> bool:
        self._say(efm_lb_pgbouncer.guard._DONE)
        return bool(self.process and not self.process.done)

    def leave(self) -> None:
        self._say(b"")

    def _say(self, said: bytes) -> None:
        if self._said is None:
            self._said = said
            _world.simulation.notify(self._told)

    def hear(self, seconds: float | None) -> bytes | None:
        simulation = _world.simulation
        until = float("inf") if seconds is None else simulation.now + seconds
        while self._said is None and not self._hook.done and simulation.now < until:
            simulation.wait(until, self._told, self._hook.ended)
        return b"" if self._said is None and self._hook.done else self._said


def _start_guard(consoles: Any, names: Any, hold: float, mark: str, limit: float) -> _Guard:
    """Its own code, but for the start."""
    simulation = _world.simulation
    code = efm_lb_pgbouncer.guard
    task = simulation.current
    assert task
    guard = _Guard(task.process)
    watched = [code._Watched(console, names) for console in consoles]
    until = simulation.now + hold
    try:
        for each in watched:
            each.look(until)
    except TemporaryError as error:
        raise code.NotGuarded(str(error)) from None

    def work() -> None:
        if code._watch_over(watched, guard.hear, until, []) and _world.marks.get(mark) is guard.process:
            del _world.marks[mark]

    guard.process = simulation.spawn(work, f"{task.host.name} guard {guard.pid}", host=task.host)
    _world.marks[mark] = guard.process
    return guard


def _is_abandoned(path: str) -> bool:
    mark = _world.marks.get(path)
    return mark is not None and mark.done


def _state_read(state: Any, path: str, limit: int = 200) -> str:
    return _world.notes.get(path, "")


def _state_write(state: Any, path: str, text: str) -> bool:
    _world.notes[path] = text
    return True


_world: World


def use(world: World) -> None:
    """Make a world the one that efm-lb's code is in."""
    global _world
    _world = world
    SimulatedBackground.simulation = world.simulation


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Have efm-lb's code run on simulated time."""
    cached = functools.lru_cache(1000)
    time = _Time()
    pooler: Any = efm_lb_pgbouncer.pooler
    persist = efm_lb_haproxy.persist
    changes: list[tuple[Any, str, Any]] = [
        *[(module, "time", time) for module in (hook, follow_up, dispatch, attempts, rounds, service, efm_lb.state)],
        *[
            (module, name, value)
            for module in (
                efm_lb_pgpool.drive,
                efm_lb_pgpool.members,
                efm_lb_haproxy.drive,
                efm_lb_pgbouncer.drive,
                efm_lb_pgbouncer.guard,
                efm_lb_pgbouncer.hold,
                efm_lb_pgbouncer.settle,
            )
            for name, value in (("monotonic", time.monotonic), ("sleep", time.sleep))
            if hasattr(module, name)
        ],
        (dispatch, "Background", SimulatedBackground),
        (hook, "os", _Os),
        (rounds, "os", _Os),
        (hook, "settings_of", _settings_of),
        (hook, "Probe", _Probe),
        (hook, "journals", _Journals),
        (hook, "in_force", lambda *_: ()),
        (hook._Cluster, "dispatcher", lambda self, call="": _dispatcher(self.configuration, call)),
        (hook, "POLL", 0.2),
        (attempts, "Journal", _Journal),
        (attempts, "decided", _Journals.decided),
        (attempts, "outcomes_of", _Journals.outcomes_of),
        (rounds, "in_force", lambda *_: ()),
        (rounds, "Dispatcher", _dispatcher),
        (service, "_say", lambda line: _world.simulation.say(line)),
        (efm_lb.lock, "acquire", _acquire),
        (efm_lb.watch, "wait_for_primary", _wait_for_primary),
        (follow_up, "start", _start_follow_up),
        (efm_lb.state.State, "_read", _state_read),
        (efm_lb.state.State, "_write", _state_write),
        (efm_lb_haproxy.drive, "Runtime", _Runtime),
        (efm_lb_haproxy.drive, "is_reloading", _is_reloading),
        (persist, "read", lambda config: {path: _world.files[path] for path in config}),
        (persist, "replace_file", _replace_file),
        (persist, "server_lines", cached(persist.server_lines)),
        (efm_lb_haproxy.down, "read", lambda config: {path: _world.files[path] for path in config}),
        (efm_lb_haproxy.down, "server_lines", cached(server_lines)),
        (efm_lb_haproxy.validate, "validate", lambda *_: ""),
        (efm_lb_pgbouncer.drive, "replace_file", _replace_file),
        (efm_lb_pgbouncer.settle, "getpid", lambda: _world.simulation.current.process.pid),  # type: ignore[union-attr]
        (efm_lb_pgbouncer.guard, "start", _start_guard),
        (efm_lb_pgbouncer.hold, "start", _start_guard),
        (Node, "is_at", cached(Node.is_at)),
        (pooler, "read_file", _read_file),
        (pooler, "parse", cached(pooler.parse)),
        (pooler.Pooler, "is_abandoned", lambda self: _is_abandoned(self.mark)),
        (efm_lb_pgbouncer.mark, "remove", lambda path: _world.marks.pop(path, None)),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
