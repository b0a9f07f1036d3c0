"""The adapter is one, by efm-lb's own definition."""

from __future__ import annotations

import json
import os
from pathlib import Path

import efm_lb_textfile
import pytest

from efm_lb import Attach, Balancer, Detach, Node, NodeState, Outcome, Promote, Reach, Role, Truth
from efm_lb.testing import AdapterConformance

NODES = tuple(Node(host, host, 5444) for host in ("10.0.0.11", "10.0.0.12", "10.0.0.13"))
ADDRESSES = [node.address for node in NODES]


def file_balancer(path: os.PathLike[str]) -> Balancer:
    return Balancer("edge", "textfile", {"path": str(path), "nodes": ADDRESSES}, connect_timeout=1.0)


def truth_with(primary: int) -> Truth:
    roles = [Role.PRIMARY if number == primary else Role.STANDBY for number in range(3)]
    return Truth(tuple(NodeState(node, Reach.ACCEPTING, role, 1) for node, role in zip(NODES, roles, strict=True)))


def content(balancer: Balancer) -> object:
    return json.loads(Path(balancer.settings["path"]).read_text())


class TestTextfile(AdapterConformance):
    @pytest.fixture
    def adapter(self):
        return efm_lb_textfile

    @pytest.fixture
    def truth(self):
        return truth_with(0)

    @pytest.fixture
    def balancer(self, tmp_path):
        path = tmp_path / "nodes.json"
        path.write_text(json.dumps({"writer": ADDRESSES[0], "readers": ADDRESSES[1:]}))
        return file_balancer(path)

    @pytest.fixture
    def unreachable(self, tmp_path):
        """A file's way not to answer: it is not there."""
        return file_balancer(tmp_path / "missing.json")

    @pytest.fixture
    def silent(self, tmp_path):
        """A file's way to be silent: it cannot be opened."""
        (tmp_path / "loop.json").symlink_to("loop.json")
        return file_balancer(tmp_path / "loop.json")

    def test_a_promotion_moves_the_writer_and_drops_the_dead_one(self, balancer):
        states = truth_with(1).states
        truth = Truth((NodeState(NODES[0], Reach.REFUSED), *states[1:]))
        outcome = efm_lb_textfile.efm_lb_promote(Promote(NODES[1], truth), balancer)
        assert outcome == Outcome.changed(f'is {{"writer": "{ADDRESSES[1]}", "readers": ["{ADDRESSES[2]}"]}}')
        efm_lb_textfile.efm_lb_attach(Attach(NODES[0], truth_with(1)), balancer)
        assert content(balancer) == {"writer": ADDRESSES[1], "readers": [ADDRESSES[0], ADDRESSES[2]]}

    def test_a_promotion_keeps_the_old_primary_when_it_is_a_standby_already(self, balancer):
        efm_lb_textfile.efm_lb_promote(Promote(NODES[1], truth_with(1)), balancer)
        assert content(balancer) == {"writer": ADDRESSES[1], "readers": [ADDRESSES[0], ADDRESSES[2]]}

    def test_a_detached_writer_leaves_no_writer(self, balancer):
        efm_lb_textfile.efm_lb_detach(Detach(NODES[0], truth_with(0)), balancer)
        assert content(balancer) == {"writer": None, "readers": ADDRESSES[1:]}
