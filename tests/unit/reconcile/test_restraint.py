"""Which differences are acted on now, look after look, with a clock of the test's own."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from efm_lb import Attach, Detach, Node, NodeState, Promote, Reach, Role, Truth
from efm_lb.configuration import Reconcile
from efm_lb.reconcile.restraint import Judgement, Restraint, Sight
from unit.reconcile.test_differences import NODES, truth, view

DB1, DB2, DB3 = NODES
POLICY = Reconcile(period=5.0, settle=2.0, hold=60.0, detach_after=15.0)
BEGAN = 1_700_000_000.0
"""When the clock was 0, in seconds since 1970."""


class Watch:
    """Looks at one balancer, ``watch(10.0, "Pss", "Waa")``; a database's state is as old as its letter is the same."""

    def __init__(self, policy: Reconcile = POLICY, obeys: bool = False) -> None:
        self._policy, self._obeys, self._began = policy, obeys, BEGAN
        self.restraint = Restraint(policy, obeys)
        self._letters = ""
        self._since = dict.fromkeys(NODES, -1000.0)

    def __call__(self, now: float, databases: str, belief: str | None, maintenance: tuple[str, ...] = ()) -> Judgement:
        for node, before, letter in zip(NODES, self._letters or databases, databases, strict=True):
            if before != letter:
                self._since[node] = now
        self._letters = databases
        sight = Sight(truth(databases), dict(self._since))
        return self.restraint.judge("pool1", sight, view(belief) if belief else None, now, maintenance)

    def begins_anew(self, at: float, called_out: Mapping[Node, float] | None = None) -> None:
        """Another process, with what this one has kept; its clock is 0 when this one's is ``at``."""
        text = self.restraint.recollection(self._began)
        self._began += at
        self.restraint = Restraint(self._policy, self._obeys)
        self.restraint.recall(text, ["pool1"], NODES, 0.0, self._began)
        self.restraint.hear(called_out or {})
        self._since = dict.fromkeys(NODES, 0.0)


@pytest.fixture
def watch() -> Watch:
    return Watch()


def events(verdict: Judgement) -> list[tuple[type, str]]:
    return [(type(event), event.node.name) for event in verdict.events]


def waiting(verdict: Judgement) -> list[str]:
    return [held.why for held in verdict.held]


def test_a_call_from_before_its_node_went_down_says_nothing_any_more(watch: Watch) -> None:
    watch(0, "Pss", "Wda")
    watch(10, "Psx", "Wdd")
    watch.begins_anew(20, {DB3: -15.0, DB2: -15.0})
    watch(0, "Pss", "Wdd")
    back = watch(5, "Pss", "Wdd")
    assert (events(back), waiting(back)) == (
        [(Attach, "db3")],
        ["db2 was taken out while it was up: somebody wants it so"],
    )


def test_a_promotion_that_nobody_calls_about_is_acted_on_once_it_has_settled(watch: Watch) -> None:
    assert watch(0, "Pss", "Waa") == ((), ())
    watch(10, "xss", "Waa")
    early = watch(11, "xPs", "Waa")
    assert early.events == ()
    assert waiting(early) == ["db2 has just changed: that is for EFM's own call", "first db2 gets the writes"]
    assert {held.until for held in early.held} == {13}
    assert watch(12.9, "xPs", "Waa").events == ()
    assert events(watch(13, "xPs", "Waa")) == [(Promote, "db2"), (Detach, "db1")]


def test_what_efm_has_done_in_the_meantime_needs_nothing(watch: Watch) -> None:
    watch(0, "Pss", "Waa")
    watch(11, "xPs", "Waa")
    assert watch(13, "xPs", "dWa") == ((), ())


def test_a_balancer_that_comes_back_is_made_right_at_once(watch: Watch) -> None:
    watch(0, "Pss", "Waa")
    watch(5, "xPs", None)
    assert watch(100, "xPs", None) == ((), ())
    assert events(watch(105, "xPs", "Waa")) == [(Promote, "db2"), (Detach, "db1")]


def test_a_standby_that_came_back_without_a_call_is_attached(watch: Watch) -> None:
    watch(0, "Psx", "Wad")
    assert watch(50, "Pss", "Wad").events == ()
    assert events(watch(52, "Pss", "Wad")) == [(Attach, "db3")]


def test_a_standby_that_somebody_took_out_while_it_is_up_stays_out_for_a_while(watch: Watch) -> None:
    watch(0, "Pss", "Waa")
    watch(5, "Pss", "Wad")
    assert waiting(watch(10, "Pss", "Wad")) == ["db3 was taken out while it was up: somebody wants it so"]
    assert watch(64, "Pss", "Wad").events == ()
    assert events(watch(65, "Pss", "Wad")) == [(Attach, "db3")]
    watch.restraint.sent("pool1", True, 65)
    watch(70, "Pss", "Waa")
    watch(80, "Pss", "Wad")
    assert watch(199, "Pss", "Wad").events == (), "twice as long the second time"
    assert events(watch(201, "Pss", "Wad")) == [(Attach, "db3")]


def test_a_standby_that_somebody_took_out_in_the_file_stays_so_for_a_while(watch: Watch) -> None:
    """Who edits the file means to reload; the file of one that is taken out itself may say what it wants."""
    watch(0, "Pss", "Waa")
    watch(5, "Pss", "Wai")
    assert waiting(watch(10, "Pss", "Wai")) == ["db3 was taken out while it was up: somebody wants it so"]
    watch.begins_anew(20)
    assert watch(44, "Pss", "Wai").events == ()
    assert events(watch(45, "Pss", "Wai")) == [(Attach, "db3")]
    watch.restraint.sent("pool1", True, 45, [DB3])
    watch(46, "Pss", "Waa")
    watch(300, "Pss", "Wao")
    assert [held.until for held in watch(310, "Pss", "Wao").held] == [360]


def test_one_that_is_taken_out_of_the_file_first_is_taken_out_once(watch: Watch) -> None:
    """As a PgBouncer is told: its file is written, and loaded then."""
    watch(0, "Pss", "Waa")
    watch(5.0, "Pss", "Wai")
    watch(6.0, "Pss", "Wad")
    assert [held.until for held in watch(10, "Pss", "Wad").held] == [66]


def test_one_that_was_taken_out_right_after_something_was_sent_stays_out() -> None:
    """Before the next look: EFM calls whenever it wants."""
    watch = Watch(obeys=True)
    watch(0, "xPs", "daa")
    watch.restraint.sent("pool1", True, 2, [], DB2)
    watch(5, "xPs", "dWd")
    assert waiting(watch(10, "xPs", "dWd")) == ["db3 was taken out while it was up: somebody wants it so"]
    watch.restraint.sent("pool1", False, 12, [], DB2)
    watch(15, "xPs", "ddd")
    assert waiting(watch(20, "xPs", "ddd"))[0] == "db2 was taken out while it was up: somebody wants it so"


def test_one_that_got_the_writes_and_lost_them_before_the_next_look_was_not_taken_out(watch: Watch) -> None:
    """Another host had promoted it there a moment before, and does not know yet that it is a standby again."""
    watch(0, "xPs", "Waa")
    watch.restraint.sent("pool1", True, 2, [], DB2)
    watch(5, "xPs", "dWd")
    assert events(watch(10, "xPs", "dWd")) == [(Attach, "db3")]


def test_what_was_not_finished_may_have_left_a_standby_out(watch: Watch) -> None:
    watch(0, "Pss", "aaa")
    watch.restraint.sent("pool1", False, 2, is_done=False)
    watch.begins_anew(2)
    assert events(watch(3, "Pss", "aad")) == [(Promote, "db1"), (Attach, "db3")]
    watch.restraint.sent("pool1", True, 3, [], DB1)
    watch(5, "Pss", "Wad")
    assert events(watch(10, "Pss", "Wad")) == [(Attach, "db3")], "it was out when the rest was sent"


def test_one_that_was_down_in_between_does_not_stay_out(watch: Watch) -> None:
    watch(0, "Pss", "Waa")
    watch(5, "Pss", "Wad")
    watch(10, "Psx", "Wad")
    watch(15, "Pss", "Wad")
    assert events(watch(17, "Pss", "Wad")) == [(Attach, "db3")]


def test_one_that_stayed_in_as_long_as_it_was_out_is_taken_out_for_the_first_time_again(watch: Watch) -> None:
    watch(0, "Pss", "Waa")
    watch(5, "Pss", "Wad")
    watch(65, "Pss", "Wad")
    watch.restraint.sent("pool1", True, 65)
    watch(70, "Pss", "Waa")
    watch(125, "Pss", "Wad")
    assert watch(184, "Pss", "Wad").events == ()
    assert events(watch(185, "Pss", "Wad")) == [(Attach, "db3")]


def test_a_standby_that_is_only_restarted_stays_in(watch: Watch) -> None:
    watch(0, "Pss", "Waa")
    watch(10, "Psx", "Waa")
    early = watch(24, "Psx", "Waa")
    assert [(held.why, held.until) for held in early.held] == [("db3 is down, and may only be restarted", 25)]
    assert events(watch(25, "Psx", "Waa")) == [(Detach, "db3")]
    watch(26, "Pss", "Waa")
    assert watch(30, "Psx", "Waa").events == (), "it has been up in between"


def test_a_standby_that_says_one_thing_after_the_other_while_it_is_down_is_taken_out(watch: Watch) -> None:
    watch(0, "Pss", "Waa")
    for now in range(10, 25):
        assert watch(now, "Psx" if now % 2 else "Ps-", "Waa").events == ()
    assert events(watch(25, "Psx", "Waa")) == [(Detach, "db3")]


def test_a_primary_that_is_dead_is_not_waited_for(watch: Watch) -> None:
    """Another one is promoted: it comes back as something else, if it does."""
    watch(0, "Pss", "Waa")
    watch(10, "xPs", "aWa")
    assert events(watch(12, "xPs", "aWa")) == [(Detach, "db1")]


def test_a_new_process_knows_what_the_last_one_has_seen(watch: Watch) -> None:
    watch(0, "Pss", "Waa")
    watch(5, "Pss", "Wda")
    watch(10, "Psx", "Wda")
    watch.begins_anew(20)
    assert watch(1, "Psx", "Wda").events == ()
    assert events(watch(5, "Psx", "Wda")) == [(Detach, "db3")], "it was down at 10"
    assert waiting(watch(44, "Psx", "Wda")) == ["db2 was taken out while it was up: somebody wants it so"]
    assert events(watch(45, "Psx", "Wda")) == [(Detach, "db3"), (Attach, "db2")]


def test_what_happened_while_no_process_looked_was_somebodys_wish(watch: Watch) -> None:
    watch(0, "Pss", "Waa")
    watch.begins_anew(1000)
    watch(0, "Pss", "Wad")
    assert waiting(watch(10, "Pss", "Wad")) == ["db3 was taken out while it was up: somebody wants it so"]
    assert events(watch(60, "Pss", "Wad")) == [(Attach, "db3")]


def test_a_new_process_knows_what_the_last_one_has_done_itself(watch: Watch) -> None:
    watch(0, "Pss", "Wad")
    watch.restraint.sent("pool1", True, 0, [DB3])
    watch.begins_anew(5)
    watch(0, "Pxs", "Waa")
    assert events(watch(20, "Pxs", "Waa")) == [(Detach, "db2")]
    watch.restraint.sent("pool1", True, 20, [DB3])
    watch.begins_anew(25)
    watch(0, "Pss", "Wdd")
    assert waiting(watch(10, "Pss", "Wdd")) == ["db3 was taken out while it was up: somebody wants it so"]


def test_a_call_that_took_out_what_the_last_process_has_put_in_counts_once(watch: Watch) -> None:
    watch(0, "Pss", "Wad")
    watch.restraint.sent("pool1", True, 0, [DB3])
    watch.begins_anew(25, {DB3: -10.0})
    watch(0, "Pss", "Wad")
    assert [held.until for held in watch(10, "Pss", "Wad").held] == [50]


def test_what_efm_took_out_while_no_process_looked_stays_out_until_then(watch: Watch) -> None:
    watch(0, "Pss", "Wad")
    watch.begins_anew(100, {DB3: -10.0, DB2: -80.0})
    watch(0, "Pss", "Wdd")
    assert [held.until for held in watch(10, "Pss", "Wdd").held] == [60, 50], "db2 was there at the last look"


def test_what_efm_took_out_before_the_very_first_look_stays_out(watch: Watch) -> None:
    watch.begins_anew(100, {DB2: -80.0, DB3: -10.0})
    assert events(watch(5, "Pss", "Wdd")) == [(Attach, "db2")], "that was long ago"
    watch(10, "Pss", "Wad")
    assert waiting(watch(20, "Pss", "Wad")) == ["db3 was taken out while it was up: somebody wants it so"]
    assert watch(49, "Pss", "Wad").events == ()
    assert events(watch(50, "Pss", "Wad")) == [(Attach, "db3")]


@pytest.mark.parametrize(
    "text", ["", "out\tpool1\tdb3\tstandby\tnan\t1e9", "saw\tpool1\tdb3", "moved\tpool1\tdb9", "x"]
)
def test_what_makes_no_sense_means_nothing(watch: Watch, text: str) -> None:
    watch.restraint.recall(text, ["pool1"], NODES, 0, BEGAN)
    assert events(watch(5, "Pss", "Wad")) == [(Attach, "db3")]


def test_a_wrong_clock_makes_nobody_wait_for_years(watch: Watch) -> None:
    text = f"out\tpool1\tdb3\tstandby\t9e9\t{BEGAN + 9e9}\ndown\tdb2\t{BEGAN + 9e9}"
    watch.restraint.recall(text, ["pool1"], NODES, 0, BEGAN)
    assert [(held.event.node.name, held.until) for held in watch(10, "Pxs", "Wad").held] == [
        ("db2", 15),
        ("db3", 3600),
    ]


def test_one_that_was_taken_out_while_it_was_down_does_not_stay_out(watch: Watch) -> None:
    watch(0, "Pss", "Waa")
    watch(5, "Psx", "Waa")
    watch(9, "Pss", "Wad")
    assert events(watch(11, "Pss", "Wad")) == [(Attach, "db3")]
    watch(20, "Psx", "Waa")
    watch.begins_anew(30)
    watch(0, "Pss", "Wad")
    assert events(watch(3, "Pss", "Wad")) == [(Attach, "db3")], "nor does the next process think so"


def test_one_that_denied_a_login_in_between_stays_out(watch: Watch) -> None:
    watch(0, "Pss", "Waa")
    watch(5, "Pss", "Wad")
    watch(10, "Ps?", "Wad")
    watch(20, "Pss", "Wad")
    assert watch(30, "Pss", "Wad").events == ()


def test_standbys_that_a_moving_balancer_threw_out_do_not_stay_out(watch: Watch) -> None:
    watch(0, "Pss", "Waa")
    watch(5, "xPs", "dWd")
    assert events(watch(10, "xPs", "dWd")) == [(Attach, "db3")]


def test_a_view_that_has_just_changed_is_work_in_progress(watch: Watch) -> None:
    watch(0, "Pss", "Waa")
    watch(10, "xPs", "Waa")
    changed = watch(13, "xPs", "dWd")
    assert waiting(changed) == ["somebody else has just changed something there"]
    assert events(watch(15, "xPs", "dWd")) == [(Attach, "db3")]


def test_a_balancer_that_fails_is_left_alone_longer_each_time(watch: Watch) -> None:
    tries = []
    for now in range(600):
        if watch(float(now), "xPs", "Waa").events:
            tries.append(now)
            watch.restraint.sent("pool1", False, float(now))
    assert tries == [0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 303, 363, 423, 483, 543]
    watch(600, "xPs", "dWa")
    watch(610, "xPP", "dWa")
    watch(620, "xPs", "Waa")
    assert watch(622, "xPs", "Waa").events, "and forgiven once it was right"


def fails_for_half_a_minute(watch: Watch) -> None:
    """The primary is db2, db1 has the writes, and each try fails; the next one is due at 63."""
    for now in (0, 1, 3, 7, 15, 31):
        assert watch(now, "xPs", "Waa").events
        watch.restraint.sent("pool1", False, now)


def test_a_balancer_that_comes_back_is_forgiven_what_failed_before(watch: Watch) -> None:
    """It hung, say, and somebody has started it again."""
    fails_for_half_a_minute(watch)
    assert waiting(watch(35, "xPs", "Waa"))[0] == "it failed before"
    watch(40, "xPs", None)
    assert watch(45, "xPs", "Waa").events


def test_what_a_balancer_does_while_it_starts_is_nobodys_work(watch: Watch) -> None:
    """A pgpool that comes back looks for its primary, and believes something new each second."""
    watch(0, "xPs", "dWa")
    watch(20, "xPs", None)
    watch(25, "xPs", "dad")
    assert events(watch(30, "xPs", "aWa")) == [(Detach, "db1")]
    assert waiting(watch(35, "xPs", "Waa"))[0] == "somebody else has just changed something there"


def test_what_failed_is_tried_again_once_somebody_else_has_changed_something(watch: Watch) -> None:
    fails_for_half_a_minute(watch)
    watch(32, "xPs", "Waa")
    watch(40, "xPs", "Wda")
    assert watch(42, "xPs", "Wda").events


def test_what_failed_is_tried_again_once_the_databases_say_something_new(watch: Watch) -> None:
    fails_for_half_a_minute(watch)
    watch(32, "xss", "Waa")
    watch(33, "xPs", "Waa")
    assert events(watch(35, "xPs", "Waa")) == [(Promote, "db2"), (Detach, "db1")]


def test_what_made_no_difference_holds_up_nothing_else() -> None:
    watch = Watch(POLICY._replace(majority=False))
    watch(0, "Pxx", "Wad")
    for now, letters in ((100, "Pxx"), (101, "Pxx"), (103, "Pxx"), (104, "Pxs"), (105, "Pxs")):
        verdict = watch(now, letters, "Wad")
        assert events(verdict) == [(Detach, "db2")]
        watch.restraint.sent("pool1", False, now, in_vain=verdict.events)
    back = watch(106, "Pxs", "Wad")
    assert (events(back), waiting(back)) == ([(Attach, "db3")], ["it failed before"])


@pytest.mark.parametrize(
    ("databases", "is_enough"),
    [("-P-", False), ("-Ps", True), ("xPs", True), ("xP-", False), ("xPx", False), ("?P-", True)],
)
def test_a_host_that_may_be_cut_off_changes_nothing(watch: Watch, databases: str, is_enough: bool) -> None:
    watch(0, databases, "Waa")
    verdict = watch(100, databases, "Waa")
    assert bool(verdict.events) is is_enough
    if not is_enough:
        assert set(waiting(verdict)) == {"this host reaches 1 of 3 nodes: it may be what is cut off"}


def test_the_majority_is_a_policy() -> None:
    watch = Watch(POLICY._replace(majority=False))
    watch(0, "-P-", "Waa")
    assert events(watch(100, "-P-", "Waa"))[0] == (Promote, "db2")


def test_nothing_is_done_about_what_is_in_maintenance(watch: Watch) -> None:
    out = watch(0, "Pss", "Wad", ("db3",))
    assert waiting(out) == ["db3 is in maintenance"]
    assert [held.until for held in out.held] == [float("inf")]
    assert waiting(watch(5, "Pss", "Wad", ("pool1",))) == ["pool1 is in maintenance"]
    assert events(watch(10, "Pss", "Wad")) == [(Attach, "db3")]


def test_a_primary_gets_the_writes_also_when_it_is_in_maintenance(watch: Watch) -> None:
    """It was a standby when somebody took it into his hands; writes must not stay on a dead primary."""
    watch(0, "Pss", "Waa", ("db2",))
    watch(10, "xPs", "Waa", ("db2",))
    assert events(watch(12, "xPs", "Waa", ("db2",))) == [(Promote, "db2"), (Detach, "db1")]
    assert waiting(watch(15, "xPs", "dWd", ("db3",))) == ["db3 is in maintenance"]


def test_two_primaries_are_for_a_person(watch: Watch) -> None:
    assert watch(100, "PPs", "Waa") == ((), ())


def test_a_node_that_flaps_does_not_keep_writes_from_where_they_belong(watch: Watch) -> None:
    watch(0, "xPs", "Waa")
    watch(3, "xPx", "Waa")
    assert events(watch(4, "xPs", "Waa")) == [(Promote, "db2"), (Detach, "db1")]


@pytest.mark.parametrize("obeys", [True, False])
def test_a_live_primary_that_was_taken_out_stays_out_only_where_efm_may_do_that(obeys: bool) -> None:
    watch = Watch(obeys=obeys)
    watch(0, "Pss", "Waa")
    watch(5, "Pss", "daa")
    verdict = watch(10, "Pss", "daa")
    assert bool(verdict.events) is not obeys
    if obeys:
        assert waiting(verdict) == ["db1 was taken out while it was up: somebody wants it so"]
        assert events(watch(65, "Pss", "daa")) == [(Promote, "db1")]


def test_a_live_primary_that_only_loses_the_writes_was_not_taken_out() -> None:
    """A pgpool that has looked for its primary in vain attaches all nodes and gives nobody the writes."""
    watch = Watch(obeys=True)
    watch(0, "Pss", "Waa")
    watch(5, "Pss", "aaa")
    assert events(watch(7, "Pss", "aaa")) == [(Promote, "db1")]
    watch(8, "Pss", "Waa")
    watch(10, "Pss", "daa")
    assert [held.until for held in watch(12, "Pss", "daa").held] == [70], "and this is the first time"


def test_a_standby_that_was_taken_out_gets_the_writes_when_it_is_promoted(watch: Watch) -> None:
    watch(0, "Pss", "Waa")
    watch(5, "Pss", "Wda")
    assert waiting(watch(10, "Pss", "Wda")) == ["db2 was taken out while it was up: somebody wants it so"]
    watch(20, "xPs", "Wda")
    assert events(watch(22, "xPs", "Wda")) == [(Promote, "db2"), (Detach, "db1")]


def test_writes_that_move_to_another_node_were_not_taken_from_the_old_one() -> None:
    watch = Watch(obeys=True)
    watch(0, "Pss", "Waa")
    watch(5, "Pss", "aWa")
    assert events(watch(10, "Pss", "aWa")) == [(Promote, "db1")]


def test_a_host_that_reaches_nobody_changes_nothing_whatever_the_policy_is() -> None:
    """Of two nodes one is enough, for the other may be dead; none is not."""
    restraint = Restraint(POLICY._replace(majority=False))
    for letters, is_enough in (("--", False), ("P-", True)):
        said = truth(letters)
        sight = Sight(said, dict.fromkeys(said.nodes, -1000.0))
        verdict = restraint.judge("pool1", sight, view("Wa"), 0.0)
        assert bool(verdict.events) is is_enough
        assert is_enough or waiting(verdict) == ["this host reaches 0 of 2 nodes: it may be what is cut off"]


@pytest.mark.parametrize("cut", ["P-", "Px"])
def test_writes_that_were_moved_to_a_node_that_is_not_heard_here_stay_there(cut: str) -> None:
    """Two nodes, and this host is on the old primary's side of the cut: there is a newer one on the other side."""
    restraint = Restraint(POLICY)

    def look(now: float, letters: str, belief: str) -> Judgement:
        said = truth(letters)
        return restraint.judge("pool1", Sight(said, dict.fromkeys(said.nodes, -1000.0)), view(belief), now)

    assert look(0, "Ps", "Wa").events == ()
    look(5, cut, "Wa")
    moved = look(10, cut, "aW")
    assert waiting(moved)[0] == "somebody has moved the writes to db2, which does not answer here"
    assert look(5000, "P-", "aW").events == ()
    assert look(5005, "PP", "aW").events == (), "two primaries are for a person"
    assert events(look(5010, "Ps", "aW")) == [(Promote, "db1")], "it was undone"


@pytest.mark.parametrize("silence", [Reach.REFUSED, Reach.NO_RESPONSE])
def test_an_old_file_that_sends_writes_to_the_old_primary_of_two_is_made_right(silence: Reach) -> None:
    """It was the primary when it was last heard, and the other one was promoted since."""
    restraint = Restraint(POLICY)
    old = NodeState(DB1, Reach.ACCEPTING, Role.PRIMARY, 1)
    standby = NodeState(DB2, Reach.ACCEPTING, Role.STANDBY, 1)
    gone, promoted = NodeState(DB1, silence), NodeState(DB2, Reach.ACCEPTING, Role.PRIMARY, 2)

    def look(now: float, states: tuple[NodeState, ...], belief: str) -> Judgement:
        return restraint.judge("pool1", Sight(Truth(states), dict.fromkeys(NODES, -1000.0)), view(belief), now)

    look(0, (old, standby), "Wa")
    look(5, (gone, promoted), "dW")
    look(10, (gone, promoted), "Wd")
    assert events(look(12, (gone, promoted), "Wd"))[0] == (Promote, "db2")


def test_an_old_file_that_sends_writes_to_a_silent_old_primary_is_made_right_by_a_majority(watch: Watch) -> None:
    watch(0, "-Ps", "dWa")
    watch(5, "-Ps", "Wda")
    assert events(watch(10, "-Ps", "Wda"))[0] == (Promote, "db2")


def test_a_standby_that_loses_the_writes_does_not_stay_out(watch: Watch) -> None:
    """A late call for the primary that it was. In a HAProxy the primary may be in no proxy for reads at all."""
    watch(0, "Pss", "Waa")
    watch(5, "sPs", "Waa")
    watch(6, "sPs", "daa")
    assert events(watch(8, "sPs", "daa")) == [(Promote, "db2"), (Attach, "db1")]


def test_writes_that_were_moved_to_a_silent_node_while_no_process_looked_stay_there() -> None:
    """The service is started again after the network was cut: that is no old file."""
    sight = {letters: Sight(truth(letters), dict.fromkeys(NODES[:2], -1000.0)) for letters in ("Ps", "P-")}
    for is_promoted in (False, True):
        before, after = Restraint(POLICY), Restraint(POLICY)
        before.judge("pool1", sight["Ps"], view("Wa"), 0.0)
        after.recall(before.recollection(BEGAN), ["pool1"], NODES[:2], 50.0, BEGAN)
        now = sight["P-"]
        if is_promoted:
            primary, silent = now.truth.states
            now = now._replace(truth=Truth((primary._replace(timeline=3), silent)))
        after.judge("pool1", now, view("aW"), 50.0)
        verdict = after.judge("pool1", now, view("aW"), 100.0)
        assert bool(verdict.events) is is_promoted, "db1 was promoted since: it is db2 that missed something"
        assert is_promoted or waiting(verdict)[0] == "somebody has moved the writes to db2, which does not answer here"


@pytest.mark.parametrize("is_promoted", [False, True])
def test_a_standby_that_is_out_since_the_writes_were_moved_away_and_back(is_promoted: bool) -> None:
    """Two switchovers between two looks: db1 has the writes as before, on a newer timeline."""
    restraint = Restraint(POLICY)
    before, (primary, *standbys) = truth("Pss"), truth("Pss").states
    after = Truth((primary._replace(timeline=3), *standbys)) if is_promoted else before
    since = dict.fromkeys(NODES, -1000.0)
    restraint.judge("pool1", Sight(before, since), view("Waa"), 0.0)
    restraint.judge("pool1", Sight(after, since), view("Wad"), 5.0)
    verdict = restraint.judge("pool1", Sight(after, since), view("Wad"), 10.0)
    assert events(verdict) == ([(Attach, "db3")] if is_promoted else [])


def test_two_hosts_that_see_different_things_do_not_undo_each_other_for_ever() -> None:
    """One cannot reach db3 and takes it out; the other can, and puts it in. Both look every five seconds."""
    sees, misses = Restraint(POLICY), Restraint(POLICY)
    is_in = True
    changes: list[int] = []
    for now in range(1800):
        belief = view("Waa" if is_in else "Wad")
        for restraint, letters, phase in ((sees, "Pss", 0), (misses, "Ps-", 1)):
            if now % 5 != phase and not (restraint is misses and now % 5 == 3):
                continue  # at 3 it looks again, for what was held back until then
            said = truth(letters)
            sight = Sight(said, dict.fromkeys(said.nodes, -1000.0))
            for event in restraint.judge("pool1", sight, belief, float(now)).events:
                is_in = isinstance(event, Attach)
                restraint.sent("pool1", True, float(now), [event.node] if is_in else [])
                changes.append(now)
    assert len(changes) < 15, f"each time it stays out twice as long: {changes}"


def test_an_old_primary_gets_no_writes_when_the_newer_one_is_gone() -> None:
    """Both were seen for a moment, so this host has remembered neither's timeline."""
    restraint = Restraint(POLICY)

    def look(now: float, states: tuple[NodeState, ...], belief: str) -> Judgement:
        return restraint.judge("pool1", Sight(Truth(states), dict.fromkeys(NODES, -1000.0)), view(belief), now)

    old = NodeState(DB1, Reach.ACCEPTING, Role.PRIMARY, 1)
    new = NodeState(DB2, Reach.ACCEPTING, Role.PRIMARY, 2)
    assert look(0, (old, new), "aW").events == ()
    for reach in (Reach.NO_RESPONSE, Reach.REFUSED):
        gone = look(10, (old, NodeState(DB2, reach)), "aW")
        assert waiting(gone)[0] == "db2 was a primary on timeline 2 when it last answered, db1 is on 1"
    assert events(look(20, (old, NodeState(DB2, Reach.ACCEPTING, Role.STANDBY, 1)), "aW"))[0] == (Promote, "db1")
