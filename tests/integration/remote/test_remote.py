"""A balancer that the hook reaches by ssh alone, through a real sshd."""

from __future__ import annotations

from integration.remote.conftest import Estate


def test_a_promotion_moves_the_writes_of_a_pooler_on_another_host(estate: Estate) -> None:
    old, new, other = estate.cluster.nodes
    old.stop()
    new.promote()
    other.follow(new)
    run = estate.hook()("attach", new.name, "p")
    assert run.exit_code == 0, run.output
    print(run.output)
    for n in range(3):
        run = estate.hook()("attach", new.name, "p")
        print(run.output)
    print(estate.hook()("status").output)
    print(estate.hook()("check").output)
    print(estate.hook()("plan").output)
