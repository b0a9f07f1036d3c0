"""What ``haproxy -c`` has accepted is not asked about again, and nothing else is taken for accepted."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given, settings

from efm_lb import Attach, Detach, Promote, TemporaryError
from efm_lb_haproxy import adapter, validate
from efm_lb_haproxy.accepted import is_accepted, remember, toggled
from efm_lb_haproxy.check import check
from efm_lb_haproxy.config import edited, server_lines
from efm_lb_haproxy.settings import setup_of
from unit.haproxy.haproxy_model import CONFIG, NODES, FakeHaproxy, Model, balancer, disabled, truth
from unit.haproxy.test_config import FILE

HOOKS = {Attach: adapter.efm_lb_attach, Detach: adapter.efm_lb_detach, Promote: adapter.efm_lb_promote}
ATTACH = Attach(NODES[2], truth("Pss"))
DETACH = Detach(NODES[2], truth("Psx"))
PROMOTE = Promote(NODES[1], truth("xPs"))


@pytest.fixture
def haproxy():
    with FakeHaproxy(Model(w="RMM", r="MRD")) as fake:
        yield fake


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "haproxy.cfg"
    path.write_text(CONFIG.removesuffix("\n") + " disabled\n")
    return path


@pytest.fixture
def program(tmp_path):
    """It notes that it was started, and refuses what holds the word ``wrong``."""
    path = tmp_path / "haproxy"
    path.write_text(f'#!/bin/sh\necho run >> {tmp_path}/runs\nfor file; do :; done\n! grep -q wrong "$file"\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def send(haproxy, config, program, tmp_path):
    """Sends an event, and tells how often haproxy was asked for it."""
    runs = tmp_path / "runs"

    def send(event):
        runs.write_text("")
        given = balancer(haproxy.path, config=[str(config)], program=program)
        HOOKS[type(event)](event, given, time.monotonic() + 5)
        return runs.read_text().count("run")

    return send


def test_a_failover_does_not_ask_what_is_known(send, config):
    assert send(ATTACH) == 3, "as it shall be, and both forms of every line"
    assert [send(DETACH), send(ATTACH), send(PROMOTE)] == [0, 0, 0]
    assert disabled(config, "w") == "n1 n3"


def test_who_is_waited_for_asks_once_and_learns_nothing(send):
    assert [send(PROMOTE), send(Attach(NODES[2], truth("sPs")))] == [1, 3]
    assert send(Detach(NODES[2], truth("sPx"))) == 0


@pytest.mark.parametrize("change", ["# a remark\n", "defaults\n"])
def test_what_somebody_else_has_changed_is_asked_about(send, config, change):
    send(ATTACH)
    config.write_text(config.read_text() + change)
    assert send(DETACH) == 1


def test_another_program_is_asked(send, program):
    send(ATTACH)
    os.utime(program, (1, 1))
    assert send(DETACH) == 1


@pytest.mark.parametrize("spoil", [os.unlink, lambda path: os.truncate(path, 20)])
def test_what_was_lost_is_asked_about(send, tmp_path, spoil):
    send(ATTACH)
    spoil(tmp_path / ".haproxy.cfg.accepted")
    assert send(DETACH) == 1


def test_a_line_that_is_right_in_one_form_alone_is_asked_about_each_time(send, config, program, tmp_path):
    """Such as one with a keyword that takes a value and is not known to us: its value is no word of ours."""
    (tmp_path / "haproxy").write_text(
        f'#!/bin/sh\necho run >> {tmp_path}/runs\nfor file; do :; done\n! grep -qE "check new( *#|$)" "$file"\n'
    )
    config.write_text(config.read_text() + "    server x 10.9.9.9:1 check new disabled\n")
    assert send(ATTACH) == 4, "what is refused is asked about without our own lines as well"
    assert send(DETACH) == 1
    assert not (tmp_path / ".haproxy.cfg.accepted").exists()


def test_what_is_refused_is_not_accepted(send, config, tmp_path):
    config.write_text(config.read_text() + "    wrong\n")
    for _ in range(2):
        with pytest.raises(TemporaryError, match="haproxy -c refuses"):
            send(ATTACH)
    assert not (tmp_path / ".haproxy.cfg.accepted").exists()


def test_a_check_asks_in_any_case_and_spares_the_failover(send, haproxy, config, program, tmp_path):
    setup = setup_of(balancer(haproxy.path, config=[str(config)], program=program))

    def told():
        (tmp_path / "runs").write_text("")
        findings = [finding.detail for finding in check(truth("Pss"), setup, time.monotonic() + 5)]
        return any("accepts it" in words for words in findings), (tmp_path / "runs").read_text().count("run")

    assert told() == (True, 3)
    assert send(DETACH) == 0 == send(PROMOTE)
    assert told() == (True, 1)
    (tmp_path / "haproxy").write_text("#!/bin/sh\nexit 1\n")
    assert not told()[0]


def test_it_is_told_to_others_without_a_change_of_owner(config, program, tmp_path):
    """EFM's user reads what root's check has found, and replaces it where it can write the directory."""
    files = {str(config): config.read_bytes()}
    remember(program, files)
    path = tmp_path / ".haproxy.cfg.accepted"
    assert path.stat().st_mode & 0o777 == 0o644 & ~_umask()
    path.unlink()
    path.symlink_to(config)
    assert not is_accepted(program, files)
    remember(program, files)
    assert is_accepted(program, files)
    assert config.read_bytes() == files[str(config)], "what a link leads to is not written"


def test_where_it_cannot_be_remembered_it_is_asked_again(tmp_path, program):
    assert not is_accepted(program, {str(tmp_path / "absent" / "a.cfg"): b""})
    remember(program, {str(tmp_path / "absent" / "a.cfg"): b""})
    remember("/absent", {str(tmp_path / "a.cfg"): b""})
    assert not (tmp_path / ".a.cfg.accepted").exists()


def test_without_a_program_nothing_is_learnt(haproxy, config, tmp_path):
    validate.learn(validate.NONE, None, {str(config): config.read_bytes()}, time.monotonic() + 5)
    assert os.listdir(tmp_path) == ["haproxy.cfg"]


@given(FILE)
@settings(deadline=None)
def test_every_line_takes_its_other_form(content):
    """Each one that our words can be put on, and taken from."""
    lines, others = server_lines(content), server_lines(toggled(content))
    assert len(lines) == len(others)
    for line, other in zip(lines, others, strict=True):
        possible = server_lines(edited(content, {line.number: not line.disabled}))[lines.index(line)]
        assert other.disabled == possible.disabled


@given(FILE)
@settings(deadline=None)
def test_our_words_make_no_difference_and_other_ones_do(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("files") / "a.cfg"
    files = {str(path): content}
    remember("/bin/sh", files)
    lines = server_lines(content)
    ours = edited(content, {line.number: True for line in lines}, {line.number: 7 for line in lines})
    assert is_accepted("/bin/sh", {str(path): ours})
    assert is_accepted("/bin/sh", {str(path): toggled(content)})
    assert not is_accepted("/bin/sh", {str(path): content + b"x"})
    assert not is_accepted("/bin/sh", {**files, str(path) + "2": b""})


def _umask():
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
