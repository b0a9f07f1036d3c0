"""What ``haproxy -c`` has accepted is not asked about again, and nothing else is taken for accepted."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given, settings

from efm_lb import Attach, Detach, Promote, TemporaryError
from efm_lb_haproxy import validate
from efm_lb_haproxy.accepted import forms, is_accepted, remember
from efm_lb_haproxy.check import check
from efm_lb_haproxy.config import edited, lines, server_lines
from efm_lb_haproxy.settings import setup_of
from unit.haproxy.haproxy_model import CONFIG, HOOKS, NODES, FakeHaproxy, Model, balancer, disabled, program_of, truth
from unit.haproxy.test_config import FILE

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
    return program_of(tmp_path, refusing(tmp_path, "wrong"))


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
    program_of(tmp_path, refusing(tmp_path, "check new( *#|$)"))
    config.write_text(config.read_text() + "    server x 10.9.9.9:1 check new disabled\n")
    assert send(ATTACH) == 3, "what is refused is asked about without our own lines as well"
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
    program_of(tmp_path, "exit 1")
    assert not told()[0]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_it_is_for_those_who_may_read_the_configuration(config, program, tmp_path, mode):
    """A checksum of all lets one try what a short secret may be."""
    config.chmod(mode)
    remember(program, {str(config): config.read_bytes()})
    assert (tmp_path / ".haproxy.cfg.accepted").stat().st_mode & 0o777 == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_it_belongs_to_the_configurations_owner(config, program, tmp_path):
    os.chown(config, 1, 1)
    remember(program, {str(config): config.read_bytes()})
    assert (tmp_path / ".haproxy.cfg.accepted").stat().st_uid == 1


def test_what_a_link_leads_to_is_left_alone(config, program, tmp_path):
    files = {str(config): config.read_bytes()}
    (tmp_path / ".haproxy.cfg.accepted").symlink_to(config)
    assert not is_accepted(program, files)
    remember(program, files)
    assert is_accepted(program, files)
    assert config.read_bytes() == files[str(config)]


def test_lines_that_haproxy_may_pass_over_are_asked_about(send, config):
    config.write_text(config.read_text() + ".if defined(A)\n    server x 10.9.9.9:1\n.endif\n")
    assert [send(ATTACH), send(DETACH), send(ATTACH)] == [1, 1, 1]


def test_learning_takes_no_more_than_its_share(haproxy, config, program, tmp_path, monkeypatch):
    program_of(tmp_path, "exec sleep 60")
    files = {str(config): config.read_bytes()}
    began = time.monotonic()
    validate.learn(program, None, files, began + 0.4)
    assert time.monotonic() - began < 0.39
    monkeypatch.setattr(validate, "_LEARNING", 0.1)
    began = time.monotonic()
    validate.learn(program, None, files, began + 60)
    assert time.monotonic() - began < 10
    assert sorted(os.listdir(tmp_path)) == ["haproxy", "haproxy.cfg"]


def test_what_cannot_be_learnt_is_no_failure(haproxy, config, program, monkeypatch):
    """The change is made and kept by then."""

    def fail(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pipe", fail)
    validate.learn(program, None, {str(config): config.read_bytes()}, time.monotonic() + 5)


def test_several_files_are_accepted_together(program, tmp_path):
    files = {str(tmp_path / name): b"backend r\n server a 10.0.0.1:1\n" for name in ("a.cfg", "b.cfg")}
    for path, content in files.items():
        with open(path, "wb") as file:
            file.write(content)
    validate.learn(program, None, files, time.monotonic() + 5)
    assert is_accepted(program, files)
    assert not is_accepted(program, dict(reversed(files.items())))
    assert not is_accepted(program, {**files, str(tmp_path / "b.cfg"): b"backend s\n server a 10.0.0.1:1\n"})


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
def test_whatever_an_edit_makes_of_a_line_is_one_of_its_forms(content):
    """But for the place of a word that is there already, and marks, which are no words."""
    found = forms({"a": content})
    if not found:
        assert b".if" in content
        return
    both = [words_of(form["a"]) for form in found]
    numbers = [line.number for line in server_lines(content)]
    for out in (False, True):
        made = words_of(edited(content, dict.fromkeys(numbers, out)))
        for number in numbers:
            assert made[number] in [form[number] for form in both]


@given(FILE)
@settings(deadline=None)
def test_our_words_make_no_difference_and_other_ones_do(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("files") / "a.cfg"
    path.write_bytes(content)
    files = {str(path): content}
    remember("/bin/sh", files)
    numbers = [line.number for line in server_lines(content)]
    ours = edited(content, dict.fromkeys(numbers, True), dict.fromkeys(numbers, 7))
    assert is_accepted("/bin/sh", {str(path): ours})
    assert not is_accepted("/bin/sh", {str(path): content + b"x"})
    assert not is_accepted("/bin/sh", {**files, str(path) + "2": b""})


def refusing(tmp_path, pattern):
    """What a program does that notes its start, and refuses a last file with this in it."""
    return f'echo run >> {tmp_path}/runs; for file; do :; done; ! grep -qE "{pattern}" "$file"'


def words_of(content):
    return {line.number: set(line.values) for line in lines(content)}
