"""The rules one by one: what to do next about three nodes, of which pgpool believes this and the databases say that."""

import pytest

from efm_lb import Attach, Detach, Node, NodeState, Origin, Promote, Reach, Role, Truth
from efm_lb_pgpool.node_info import PRIMARY, STANDBY, Backend
from efm_lb_pgpool.steps import (
    HOLD,
    RESEND,
    SETTLE,
    Ask,
    Command,
    Defer,
    Done,
    Fail,
    Memory,
    Wait,
    next_step,
    observed,
    sent,
)

NODES = tuple(Node(f"10.0.0.{n}", f"10.0.0.{n}", 5444) for n in (11, 12, 13))
ROLES = {"P": Role.PRIMARY, "s": Role.STANDBY}
REACHES = {"x": Reach.REFUSED, "-": Reach.NO_RESPONSE, "?": Reach.DENIED}


def truth(letters):
    """P: primary, s: standby, x: refuses, -: silent, ?: does not let the probe in."""
    return Truth(
        tuple(
            NodeState(node, REACHES.get(letter, Reach.ACCEPTING), ROLES.get(letter))
            for node, letter in zip(NODES, letters, strict=True)
        )
    )


def pool(text):
    """Per node u: up, w: waiting, d: down, q: quarantined; with + when pgpool calls it the primary."""
    status = {"u": 2, "w": 1, "d": 3, "q": 3}
    return tuple(
        Backend(i, node.host, node.port, status[word[0]], PRIMARY if "+" in word else STANDBY, word[0] == "q")
        for i, (node, word) in enumerate(zip(NODES, text.split(), strict=True))
    )


def step(event, text, memory=None):
    backends = pool(text)
    return next_step(event, backends, memory or Memory(backends))


def say(result):
    """A command as ``detach 0``, anything else as its kind."""
    return f"{result.verb} {result.backend.id}" if isinstance(result, Command) else type(result).__name__


def after(text, *commands, quiet=0.0):
    """The memory of a run that began with ``text`` and sent ``commands``, all of which showed their effect."""
    first = pool(text)
    done = tuple(Command(verb, first[i]) for verb, i in (command.split() for command in commands) for i in [int(i)])
    return Memory(first, done, None, quiet)


@pytest.mark.parametrize(
    ("databases", "belief", "expected"),
    [
        ("sPs", "u u+ u", "Done"),
        ("sPs", "u w+ d", "Done"),  # a standby that was down before stays down
        ("sPs", "u+ u u", "detach 0"),
        ("xPs", "u+ u u", "detach 0"),
        ("xPs", "d u+ u", "Done"),
        ("xPs", "d+ u u", "Wait"),  # it looks for its primary
        ("xPs", "d+ d u", "attach 1"),  # and cannot find what is detached
        ("sPs", "u+ d u", "attach 1"),
        ("xPx", "d d+ d", "attach 1"),
        ("xPs", "d u u", "detach 2"),  # so does a detach, and it is put back
        ("xPx", "d u u", "promote 1"),
        ("sPs", "d u u", "attach 0"),  # an attach makes it look, and throws nobody out
        ("xPs", "d u d", "attach 2"),
        ("xPx", "d u d", "promote 1"),
        ("xPs", "q u u", "detach 2"),
        # silent nodes hang its search
        ("-Ps", "u+ u u", "detach 0"),
        ("xP-", "u+ u u", "detach 2"),
        ("-Ps", "u+ d u", "detach 0"),
        ("-P-", "u+ d u", "detach 2"),
        ("-Ps", "u u d", "promote 1"),
        # not proven
        ("PPs", "u+ u u", "Fail"),
        ("sss", "u+ u u", "Fail"),
        ("Pss", "u+ u u", "Fail"),
    ],
)
def test_promote_of_the_second(databases, belief, expected):
    assert say(step(Promote(NODES[1], truth(databases)), belief)) == expected


@pytest.mark.parametrize(
    ("databases", "belief", "expected"),
    [
        ("xPs", "d u+ d", "attach 2"),  # thrown out by the promotion
        ("sPs", "d u+ d", "attach 0"),
        ("xPx", "d u+ d", "Done"),
        ("xP-", "d u+ u", "Done"),  # nothing needs to be looked for
    ],
)
def test_promote_puts_back_what_it_threw_out(databases, belief, expected):
    memory = after("u u u", "promote 1")
    assert say(step(Promote(NODES[1], truth(databases)), belief, memory)) == expected


def test_promote_is_never_sent_twice():
    event = Promote(NODES[1], truth("xPx"))
    assert say(step(event, "d u d", after("d u d", "promote 1", quiet=99))) == "Wait"
    pending = sent(Memory(pool("d u d")), Command("promote", pool("d u d")[1]))
    assert say(step(event, "d u d", pending._replace(quiet=99))) == "Wait"


def test_a_search_that_an_attach_started_gets_time():
    event = Promote(NODES[1], truth("sPs"))
    for quiet, expected in ((SETTLE / 2, "Wait"), (SETTLE, "detach 0")):
        assert say(step(event, "u+ w u", after("u+ d u", "attach 1", quiet=quiet))) == expected


@pytest.mark.parametrize(
    ("databases", "belief", "origin", "expected"),
    [
        ("xPs", "d u+ u", Origin.HOOK, "Done"),
        ("xss", "d+ u u", Origin.HOOK, "Done"),
        ("xPs", "u u+ u", Origin.HOOK, "detach 0"),
        ("xPs", "q u+ u", Origin.HOOK, "detach 0"),  # a quarantine ends by itself
        ("xPs", "u+ u u", Origin.HOOK, "detach 0"),
        # the new one is detached, maybe on purpose: nothing is attached but by the promote that names it
        ("xPs", "u+ d u", Origin.HOOK, "Defer"),
        ("xPs", "u+ d u", Origin.FOLLOW_UP, "Ask"),
        # the last one that answers
        ("sxx", "u u+ u", Origin.HOOK, "Defer"),
        ("sxs", "u u+ d", Origin.HOOK, "Defer"),
        ("sxs", "u u+ d", Origin.FOLLOW_UP, "Defer"),
        ("sxs", "u u+ d", Origin.OPERATOR, "detach 0"),
        ("sxs", "u u+ u", Origin.HOOK, "detach 0"),
        ("s?x", "u u+ u", Origin.HOOK, "detach 0"),  # refuses the probe's login, not everybody's
        ("?xs", "u u+ d", Origin.HOOK, "Defer"),
        ("xP-", "u+ u u", Origin.HOOK, "detach 2"),
        ("xP-", "u u+ u", Origin.HOOK, "detach 0"),  # nothing is looked for
        ("xss", "u+ u u", Origin.HOOK, "Defer"),
        ("Pss", "u+ u u", Origin.HOOK, "Defer"),
        ("xss", "u u u", Origin.HOOK, "Defer"),
        ("xPs", "u u u", Origin.HOOK, "detach 0"),
        ("xss", "u+ u u", Origin.FOLLOW_UP, "Ask"),
        ("Pss", "u+ u u", Origin.FOLLOW_UP, "Defer"),
        ("xss", "u+ u u", Origin.RECONCILE, "Ask"),
        ("xss", "u+ u u", Origin.OPERATOR, "detach 0"),
        ("Pss", "u+ u u", Origin.OPERATOR, "detach 0"),
        # it would choose one by its node id
        ("PPs", "u+ u u", Origin.OPERATOR, "Fail"),
        ("xPP", "u+ u u", Origin.FOLLOW_UP, "Fail"),
        ("PPs", "u u+ u", Origin.HOOK, "detach 0"),
    ],
)
def test_detach_of_the_first(databases, belief, origin, expected):
    assert say(step(Detach(NODES[0], truth(databases), origin), belief)) == expected


@pytest.mark.parametrize(("timeout", "expected"), [(1, "detach 0"), (300, "detach 0"), (0, "Defer")])
def test_a_detach_that_blocks_is_done_when_it_does_not_block_for_ever(timeout, expected):
    event = Detach(NODES[0], truth("xss"), Origin.FOLLOW_UP)
    backends = pool("u+ u u")
    assert next_step(event, backends, Memory(backends)) == Ask("search_primary_node_timeout")
    assert say(next_step(event, backends, Memory(backends, search_timeout=timeout))) == expected


def test_a_detach_that_blocks_is_held_back_once():
    first = step(Detach(NODES[0], truth("xss")), "u+ u u")
    assert isinstance(first, Defer)
    assert first.again_after == HOLD
    backends = pool("u+ u u")
    later = next_step(Detach(NODES[0], truth("xss"), Origin.FOLLOW_UP), backends, Memory(backends, search_timeout=0))
    assert isinstance(later, Defer)
    assert later.again_after is None


def test_detach_of_the_primary_ends_with_the_new_one_found():
    event = Detach(NODES[0], truth("xPs"))
    memory = after("u+ u u", "detach 0")
    assert say(step(event, "d+ u u", memory)) == "Wait"
    assert say(step(event, "d u+ u", memory)) == "Done"
    # but it does not answer for what somebody else missed
    assert say(step(event, "d u u+", after("u u u+", "detach 0"))) == "Done"


@pytest.mark.parametrize(
    ("databases", "belief", "expected"),
    [
        ("sPs", "u u+ u", "Done"),
        ("sPs", "w u+ u", "Done"),
        ("sss", "u+ u u", "Done"),
        ("sPP", "u+ u u", "Done"),
        # writes go to a standby: the call for the primary is on its way, or did not come
        ("sPs", "u+ u u", "Wait"),
        ("sPs", "u u u+", "Wait"),
        ("sPs", "d u+ u", "attach 0"),
        ("sPs", "q u+ u", "attach 0"),
        ("xPs", "d u+ u", "Fail"),
        ("-Ps", "d u+ u", "Fail"),
        ("PPs", "d u+ u", "Fail"),
        ("sPP", "d u+ u", "Fail"),
        ("sss", "d u+ u", "Defer"),
        ("sxs", "d u+ u", "Defer"),
        ("sxs", "d d+ u", "Defer"),
        ("sPs", "d+ u u", "Wait"),
        ("sPs", "d+ d u", "Defer"),
        ("sPs", "d u u", "Defer"),
        ("sPs", "d u u+", "Defer"),
        ("sP-", "d u+ u", "Defer"),
        ("sP-", "d u+ d", "attach 0"),
        ("Pss", "d+ u u", "attach 0"),
        ("Ps-", "d+ u u", "Defer"),  # it would hang, and no clearing of the way is an attach's business
        ("Ps-", "d+ u d", "attach 0"),
        ("Pss", "d u u", "Defer"),
        ("Pss", "d u+ u", "Defer"),
    ],
)
def test_attach_of_the_first(databases, belief, expected):
    assert say(step(Attach(NODES[0], truth(databases)), belief)) == expected
    assert say(step(Attach(NODES[0], truth(databases), Origin.FOLLOW_UP), belief)) == expected


@pytest.mark.parametrize("belief", ["u+ u u", "u u u+"])
def test_an_attach_that_finds_writes_at_a_standby_says_what_call_is_missing(belief):
    result = step(Attach(NODES[0], truth("sPs")), belief, Memory(pool(belief), quiet=SETTLE))
    assert isinstance(result, Fail)
    assert not result.permanent
    assert "efm-lb attach 10.0.0.12 p" in result.why


def test_a_detach_of_what_another_host_s_promote_detached_for_a_moment_looks_again():
    event = Detach(NODES[2], truth("xPs"))
    for quiet, expected in ((0.0, "Wait"), (SETTLE, "Done")):
        assert say(step(event, "d u d", Memory(pool("d u d"), quiet=quiet))) == expected
    assert say(step(event, "d u u", Memory(pool("d u d"), quiet=SETTLE / 2))) == "detach 2"
    assert say(step(event, "d u+ d")) == "Done"


@pytest.mark.parametrize("kind", [Attach, Detach, Promote])
def test_an_unknown_node_is_named_with_what_there_is(kind):
    stranger = Node("10.0.0.1", "10.0.0.1", 5444)  # a prefix of the others
    result = step(kind(stranger, truth("Pss")), "u+ u u")
    assert isinstance(result, Fail)
    assert result.permanent
    assert "10.0.0.1:5444" in result.why
    assert "0 (10.0.0.11:5444), 1 (10.0.0.12:5444), 2 (10.0.0.13:5444)" in result.why


def test_a_node_on_another_port_is_another_node():
    result = step(Detach(NODES[0]._replace(port=5432), truth("Pss")), "u+ u u")
    assert isinstance(result, Fail)


def test_a_pgpool_that_tells_no_roles_is_refused():
    backends = tuple(backend._replace(role=None) for backend in pool("u u u"))
    result = next_step(Detach(NODES[2], truth("Pss")), backends, Memory(backends))
    assert isinstance(result, Fail)
    assert result.permanent


def test_a_command_is_waited_for_then_sent_once_more_then_given_up():
    event = Attach(NODES[0], truth("sPs"))
    backends = pool("d u+ u")
    attach = Command("attach", backends[0])
    memory = sent(Memory(backends), attach)
    assert isinstance(next_step(event, backends, observed(memory, backends)), Wait)
    late = memory._replace(quiet=RESEND)
    assert next_step(event, backends, observed(late, backends)) == attach
    twice = sent(late, attach)._replace(quiet=RESEND)
    result = next_step(event, backends, twice)
    assert isinstance(result, Wait)
    assert "pgpool's main process is busy or hangs" in result.why
    undone = observed(twice, pool("w u+ u"))
    again = next_step(event, backends, undone)
    assert isinstance(again, Wait)
    assert "something else manages this pgpool" in again.why


def test_nothing_is_sent_again_while_pgpool_searches():
    event = Promote(NODES[1], truth("xPs"))
    backends = pool("d+ d u")
    memory = sent(Memory(backends), Command("attach", backends[1]))._replace(quiet=60)
    assert isinstance(next_step(event, backends, memory), Wait)


def test_a_command_that_landed_is_pending_no_more():
    before, later = pool("u+ u u"), pool("d+ u u")
    memory = sent(Memory(before), Command("detach", before[0]))
    assert observed(memory, before).pending
    assert observed(memory, later).pending is None
    assert isinstance(next_step(Detach(NODES[0], truth("xss")), later, observed(memory, later)), Done)
