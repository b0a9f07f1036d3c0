"""The loop around the steps, and the members of a watchdog cluster, with servers that act out the model of pgpool."""

import threading
import time

import pytest

from efm_lb import Attach, Detach, Node, NodeState, PermanentError, Promote, Reach, Result, Role, TemporaryError, Truth
from efm_lb_pgpool.drive import drive
from efm_lb_pgpool.members import Member, Members, server_of
from efm_lb_pgpool.pcp import Server
from unit.pgpool.fake_pcp import Conversation, FakePgpool, error, frame, nodes_4_3
from unit.pgpool.pgpool_model import PgpoolModel

NODES = tuple(Node(f"10.0.0.{n}", f"10.0.0.{n}", 5444) for n in (11, 12, 13))
COMPLETE = b"CommandComplete\0"
REACHES = {"x": Reach.REFUSED, "-": Reach.NO_RESPONSE}
REFUSED = error("ERROR", "invalid degenerate backend request", "node id : 2 status: [3] is not valid for failover")


class Acting(Conversation):
    """A pgpool that acts out the model, ten times as fast."""

    def __init__(self, model, watchdog=True):
        self.model = model
        self.commands = []
        answers = {
            b"L": lambda _: frame(b"l", COMPLETE + b"%d\0" % len(model.databases)),
            b"I": self._nodes,
            b"A": frame(b"a", COMPLETE),
            b"C": lambda body: self._command("attach", body, b"c"),
            b"D": lambda body: self._command("detach", body, b"d"),
            b"J": lambda body: self._command("promote", body, b"d"),
            b"W": frame(b"w", COMPLETE + b"{}\0") if watchdog else error("ERROR", "failed", "watchdog is not enabled"),
        }
        super().__init__(answers)

    def _nodes(self, body):
        backends = self.model.backends(NODES)
        rows = [
            b"%s\0%d\0%d\x000\0up\x00715827882.3\0%d\0unknown\x000\0\0\x000\0"
            % (b.host.encode(), b.port, b.status, b.role)
            for b in backends
        ]
        node_id = int(body[:-1])
        return nodes_4_3(*(rows if node_id < 0 else [rows[node_id]]))

    def _command(self, verb, body, kind):
        node_id = int(body.split(b"\0")[0])
        self.commands.append(f"{verb} {node_id}")
        return frame(kind, COMPLETE) if self.model.request(verb, node_id) else REFUSED


@pytest.fixture
def living():
    """Makes models for which time passes in a thread; the first node is the primary."""
    stop = threading.Event()
    threads = []

    def work(model):
        while not stop.wait(0.01):
            model.work(0.1)

    def make(databases="Pss", later=None):
        model = PgpoolModel(databases)
        model.databases[:] = later or databases
        threads.append(threading.Thread(target=work, args=(model,)))
        threads[-1].start()
        return model

    yield make
    stop.set()
    for thread in threads:
        thread.join()


@pytest.fixture
def model(living):
    """Three healthy nodes, the first the primary."""
    return living()


def truth(letters):
    roles = {"P": Role.PRIMARY, "s": Role.STANDBY}
    reach = [Reach.ACCEPTING if letter in roles else REACHES[letter] for letter in letters]
    return Truth(tuple(map(NodeState, NODES, reach, map(roles.get, letters))))


def member_of(server):
    return Member(Server("127.0.0.1", server.port), "pcp", "secret", 0.5)


def dead_member():
    with FakePgpool(None) as server:
        return member_of(server)


def run(event, *members, seconds=3.0):
    return drive(event, Members(members), time.monotonic() + seconds)


def test_detach_is_proven_then_unchanged(model):
    with FakePgpool(Acting(model)) as server:
        first = run(Detach(NODES[2], truth("Pss")), member_of(server))
        again = run(Detach(NODES[2], truth("Pss")), member_of(server))
    assert (first.result, again.result) == (Result.CHANGED, Result.UNCHANGED)
    assert first.detail.startswith("pcp_detach_node 2 (10.0.0.13:5444)")


def test_promote_detaches_the_old_primary_only(model):
    model.databases = list("xPs")
    with FakePgpool(acting := Acting(model)) as server:
        outcome = run(Promote(NODES[1], truth("xPs")), member_of(server))
    assert outcome.result is Result.CHANGED
    assert acting.commands == ["detach 0"]
    assert model.primary == 1


class AtOnce(Acting):
    """Carries a command out before it answers.

    :ivar connections: how many there were
    """

    def __init__(self, model):
        self.connections = 0
        super().__init__(model)

    def __call__(self, connection):
        self.connections += 1
        super().__call__(connection)

    def _command(self, verb, body, kind):
        reply = super()._command(verb, body, kind)
        self.model.work(0.1)
        return reply


def test_an_effect_that_shows_at_once_is_seen_on_the_connection_of_the_command():
    with FakePgpool(acting := AtOnce(PgpoolModel("Pss"))) as server:
        outcome = run(Detach(NODES[2], truth("Pss")), member_of(server))
    assert (outcome.result, acting.connections) == (Result.CHANGED, 1)


def test_a_connection_that_goes_silent_after_the_command_is_given_up_at_once():
    silent = threading.Event()

    class Silent(AtOnce):
        def _nodes(self, body):
            if self.commands and self.connections == 1:
                silent.wait(20.0)
            return super()._nodes(body)

    with FakePgpool(acting := Silent(PgpoolModel("Pss"))) as server:
        began = time.monotonic()
        outcome = run(Detach(NODES[2], truth("Pss")), member_of(server), seconds=20.0)
        seconds = time.monotonic() - began
        silent.set()
    assert (outcome.result, acting.connections) == (Result.CHANGED, 2)
    assert seconds < 10.0  # half of what was left


def test_a_false_ok_is_a_temporary_failure(model):
    acting = Acting(model)
    acting.answers[b"D"] = frame(b"d", COMPLETE)
    with FakePgpool(acting) as server, pytest.raises(TemporaryError, match=r"pcp_detach_node 2 .* was sent, but"):
        run(Detach(NODES[2], truth("Pss")), member_of(server), seconds=1)


def test_a_refusal_that_lasts_is_told_in_the_words_of_pgpool(model):
    acting = Acting(model)
    acting.answers[b"D"] = error("ERROR", "something new")
    with FakePgpool(acting) as server, pytest.raises(TemporaryError, match="something new"):
        run(Detach(NODES[2], truth("Pss")), member_of(server), seconds=30)


def test_a_watchdog_without_a_leader_is_waited_for(model):
    acting = Acting(model)
    cancelled = error("ERROR", "degenerate backend request for 1 node(s) from pid [1] is canceled by other pgpool")
    refusals = iter([cancelled] * 4)
    acting.answers[b"D"] = lambda body: next(refusals, None) or acting._command("detach", body, b"d")
    with FakePgpool(acting) as server:
        assert run(Detach(NODES[2], truth("Pss")), member_of(server)).result is Result.CHANGED


def test_a_cancelled_promote_is_seen_in_the_log(model):
    model.databases = list("xPx")
    model.attached = [False, True, False]
    model.primary = None
    acting = Acting(model)
    log = frame(b"N", b"SLOG\0Mpromote backend request for node_id: 1 is canceled  by other pgpool\0\0")
    acting.answers[b"J"] = log + frame(b"d", COMPLETE)
    with FakePgpool(acting) as server, pytest.raises(TemporaryError, match="canceled"):
        run(Promote(NODES[1], truth("xPx")), member_of(server), seconds=1)


def test_a_flag_that_forbids_the_detach_is_permanent(model):
    acting = Acting(model)
    acting.answers[b"D"] = error("ERROR", "request is canceled because failover is disallowed on the node")
    with FakePgpool(acting) as server, pytest.raises(PermanentError, match="ALLOW_TO_FAILOVER"):
        run(Detach(NODES[2], truth("Pss")), member_of(server))


def test_a_connection_that_breaks_now_and_then_does_no_harm(model):
    acting = Acting(model)
    count = iter(range(1000))

    def flaky(connection):
        if next(count) % 3:
            acting(connection)

    with FakePgpool(flaky) as server:
        assert run(Detach(NODES[2], truth("Pss")), member_of(server)).result is Result.CHANGED
    assert acting.commands == ["detach 2"]


def test_a_port_that_only_closes_costs_the_connect_timeout():
    started = time.monotonic()
    with FakePgpool(lambda connection: None) as server, pytest.raises(TemporaryError, match="is it pgpool's pcp_port"):
        run(Detach(NODES[2], truth("Pss")), member_of(server), seconds=30)
    assert time.monotonic() - started < 1.5


def test_a_dead_member_is_passed_over_and_owed(model):
    dead = dead_member()
    with (
        FakePgpool(acting := Acting(model)) as server,
        pytest.raises(TemporaryError, match=f"is detached; but cannot connect to {dead}"),
    ):
        run(Detach(NODES[2], truth("Pss")), dead, member_of(server))
    assert acting.commands == ["detach 2"]


def test_a_member_that_hangs_costs_no_time_until_the_others_are_told(model):
    told_at = []

    def telling(connection):
        acting(connection)
        if acting.commands and not told_at:
            told_at.append(time.monotonic())

    acting = Acting(model)
    with FakePgpool(lambda connection: connection.recv(1) and time.sleep(3)) as hung, FakePgpool(telling) as server:
        started = time.monotonic()
        with pytest.raises(TemporaryError, match=f"127.0.0.1:{hung.port} accepted the connection and did not answer"):
            run(Detach(NODES[2], truth("Pss")), member_of(hung), member_of(server), seconds=3)
    assert told_at[0] - started < 0.7


def test_a_member_that_refuses_the_login_is_passed_over_and_owed(model):
    refusing = Acting(PgpoolModel("Pss"))
    refusing.answers[b"R"] = error("FATAL", 'authentication failed for user "pcpadm"')
    with (
        FakePgpool(refusing) as first,
        FakePgpool(acting := Acting(model)) as second,
        pytest.raises(TemporaryError, match=f"is detached; but 127.0.0.1:{first.port} refuses the login"),
    ):
        run(Detach(NODES[2], truth("Pss")), member_of(first), member_of(second))
    assert acting.commands == ["detach 2"]


def test_logins_that_all_members_refuse_are_permanent(model):
    refusing = Acting(model)
    refusing.answers[b"R"] = error("FATAL", 'authentication failed for user "pcpadm"')
    with (
        FakePgpool(refusing) as first,
        FakePgpool(refusing) as second,
        pytest.raises(PermanentError, match="refuses the login"),
    ):
        run(Detach(NODES[2], truth("Pss")), member_of(first), member_of(second))


def test_a_silent_standby_that_had_to_go_is_owed(living):
    model = living("Pss", later="xP-")
    with (
        FakePgpool(acting := Acting(model)) as server,
        pytest.raises(TemporaryError, match=r"writes go to node 1 .*; but node 2 .* was silent and is detached"),
    ):
        run(Promote(NODES[1], truth("xP-")), member_of(server))
    assert acting.commands == ["detach 2", "detach 0"]


def test_a_silent_old_primary_is_not_owed(living):
    model = living("Pss", later="-Ps")
    with FakePgpool(acting := Acting(model)) as server:
        assert run(Promote(NODES[1], truth("-Ps")), member_of(server)).result is Result.CHANGED
    assert acting.commands == ["detach 0"]


def test_a_command_goes_to_one_member_and_is_proven_on_all(model):
    with FakePgpool(one := Acting(model)) as first, FakePgpool(two := Acting(model)) as second:
        outcome = run(Detach(NODES[2], truth("Pss")), member_of(first), member_of(second))
    assert outcome.result is Result.CHANGED
    assert sorted([one.commands, two.commands]) == [[], ["detach 2"]]
    assert one.requests
    assert two.requests


def test_a_member_that_believes_otherwise_is_a_failure(living):
    with (
        FakePgpool(Acting(living())) as first,
        FakePgpool(Acting(living())) as second,
        pytest.raises(TemporaryError, match=r"does not follow 127\.0\.0\.1"),
    ):
        run(Detach(NODES[2], truth("Pss")), member_of(first), member_of(second), seconds=1)


def test_several_pgpools_without_watchdog_are_refused(model):
    with (
        FakePgpool(acting := Acting(model, watchdog=False)) as server,
        pytest.raises(PermanentError, match="make each a balancer of its own"),
    ):
        run(Detach(NODES[2], truth("Pss")), member_of(server), dead_member())
    assert not acting.commands


def test_all_members_dead_names_all():
    dead, other = dead_member(), dead_member()
    with pytest.raises(TemporaryError) as caught:
        run(Attach(NODES[0], truth("sPs")), dead, other)
    assert f"cannot connect to {dead}" in str(caught.value)
    assert f"cannot connect to {other}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pool1", ("pool1", 9898)),
        (" pool1:9899 ", ("pool1", 9899)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
        ("::1", ("::1", 9898)),
        ("[::1]", ("::1", 9898)),
        ("[::1]:9899", ("::1", 9899)),
        ("/run/pgpool", ("/run/pgpool", 9898)),
    ],
)
def test_host_entries(text, expected):
    assert server_of(text, 9898) == expected


@pytest.mark.parametrize(
    "text", ["", ":9898", "pool1:", "pool1:x", "pool1:0", "pool1:65536", "[::1", "[::1]9898", "a:²"]
)
def test_host_entries_that_are_none(text):
    with pytest.raises(PermanentError, match="no host"):
        server_of(text, 9898)
