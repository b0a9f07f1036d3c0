"""The running HAProxy first, then the files; what was not kept is told, and makes the call fail."""

from __future__ import annotations

import copy
import os
import subprocess
import time

import pytest

from efm_lb import Attach, Detach, Origin, PermanentError, Promote, Result, TemporaryError, Truth
from efm_lb.reconcile.differences import differences, disagreement
from efm_lb_haproxy import adapter, drive, persist, validate
from unit.haproxy.haproxy_model import CONFIG, HOOKS, NODES, FakeHaproxy, Model, balancer, disabled, program_of, truth


@pytest.fixture
def model():
    return Model(w="RMM", r="MRR")


@pytest.fixture
def haproxy(model):
    with FakeHaproxy(model) as fake:
        yield fake


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "haproxy.cfg"
    path.write_text(CONFIG)
    return path


def send(haproxy, event, seconds=5.0, **settings):
    return HOOKS[type(event)](event, balancer(haproxy.path, **settings), time.monotonic() + seconds)


PROMOTE = Promote(NODES[1], truth("xPs"))


def test_a_promotion(haproxy, model):
    outcome = send(haproxy, PROMOTE)
    assert outcome.result is Result.CHANGED
    assert outcome.detail == (
        "w/n1 (10.0.0.1:5444) is in maintenance, its sessions are shut down; w/n2 (10.0.0.2:5444) is ready;"
        " r/n2 (10.0.0.2:5444) is drained"
    )
    assert model.ready("w") == ["n2"]
    again = send(haproxy, PROMOTE)
    assert again.result is Result.UNCHANGED
    assert again.detail.startswith("writes of w go to w/n2 (10.0.0.2:5444)")


def test_what_is_right_takes_one_request_and_writes_nothing(haproxy, model, config):
    before = config.stat()
    outcome = send(haproxy, Promote(NODES[0], truth("Pss")), config=[str(config)])
    assert outcome.result is Result.UNCHANGED
    assert (haproxy.connections, model.sent) == (1, [])
    assert (config.stat().st_ino, config.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_change_is_kept(haproxy, config):
    outcome = send(haproxy, PROMOTE, config=[str(config)])
    assert outcome.detail.endswith(f"r/n2 (10.0.0.2:5444) is drained; {config}:5,6,10 written")
    assert (disabled(config, "w"), disabled(config, "r")) == ("n1 n3", "n1 n2")
    assert "check disabled     # the first" in config.read_text()
    assert send(haproxy, PROMOTE, config=[str(config)]).result is Result.UNCHANGED


def test_a_file_that_lags_behind_is_brought_right_without_a_command(haproxy, model, config):
    send(haproxy, PROMOTE)
    model.sent.clear()
    outcome = send(haproxy, PROMOTE, config=[str(config)])
    assert outcome.result is Result.CHANGED
    assert outcome.detail == f"{config}:5,6,10 written"
    assert model.sent == []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "cannot read .*haproxy.cfg: No such file"),
        (lambda path: path.write_text(CONFIG.rstrip()), "has no newline at its end"),
        (lambda path: (path.unlink(), path.mkdir(), (path / "x").mkdir()), "has no servers of proxy w"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "is no regular file"),
        (lambda path: path.write_text("listen other\n"), "has no servers of proxy w"),
        (
            lambda path: path.write_text(
                CONFIG.replace("    server n2 10.0.0.2:5444 check", "    server n2 10.0.0.9:1")
            ),
            "no server line for 10.0.0.2:5444 in proxy w",
        ),
        (
            lambda path: path.write_text(CONFIG.replace("listen w\n", "listen w\n default-server disabled\n")),
            "haproxy.cfg:7: is disabled by a default-server line",
        ),
        (
            lambda path: path.write_text(
                CONFIG.replace("    server n2 10.0.0.2:5444 check", "    server-template n 3 db:1")
            ),
            "haproxy.cfg:6: server-template stands for several servers",
        ),
    ],
)
def test_writes_move_whatever_is_wrong_with_the_file(haproxy, model, config, spoil, message):
    spoil(config)
    with pytest.raises((TemporaryError, PermanentError), match=message) as caught:
        send(haproxy, PROMOTE, config=[str(config)])
    assert model.ready("w") == ["n2"]
    assert "w/n2 (10.0.0.2:5444) is ready" in str(caught.value)
    assert "not kept, so that a reload undoes it" in str(caught.value)


def test_a_file_that_changes_between_read_and_write_is_read_anew(haproxy, config, monkeypatch):
    replace_file = persist.replace_file
    interferences = [CONFIG + "# theirs\n"]

    def interfere(path, expected, content):
        if interferences:
            config.write_text(interferences.pop())
        replace_file(path, expected, content)

    monkeypatch.setattr(persist, "replace_file", interfere)
    assert send(haproxy, PROMOTE, config=[str(config)]).result is Result.CHANGED
    assert config.read_text().endswith("# theirs\n")
    assert disabled(config, "w") == "n1 n3"


def test_a_file_that_never_stops_changing(haproxy, model, config, monkeypatch):
    replace_file = persist.replace_file
    numbers = iter(range(100))

    def interfere(path, expected, content):
        config.write_text(f"{CONFIG}# {next(numbers)}\n")
        replace_file(path, expected, content)

    monkeypatch.setattr(persist, "replace_file", interfere)
    with pytest.raises(TemporaryError, match="was changed by somebody else meanwhile"):
        send(haproxy, PROMOTE, config=[str(config)])
    assert config.read_text() == f"{CONFIG}# 2\n", "three tries, and theirs is whole"
    assert model.ready("w") == ["n2"]


def test_what_haproxy_refuses_is_validated_once(haproxy, config, monkeypatch):
    calls = []

    def refuse(*arguments):
        calls.append(arguments)
        raise TemporaryError("haproxy -c refuses")

    monkeypatch.setattr(validate, "validate", refuse)
    with pytest.raises(TemporaryError, match="haproxy -c refuses"):
        send(haproxy, PROMOTE, config=[str(config)])
    assert len(calls) == 1
    assert config.read_text() == CONFIG


def test_one_of_two_files_cannot_be_written(haproxy, model, tmp_path, monkeypatch):
    """Neither is half of anything, and what was written is told."""
    write, read = CONFIG.split("backend r\n")
    paths = [tmp_path / "a.cfg", tmp_path / "b.cfg"]
    for path, text in zip(paths, (write, "backend r\n" + read), strict=True):
        path.write_text(text)
    replace_file = persist.replace_file

    def fail(path, expected, content):
        if path == str(paths[1]):
            raise TemporaryError(f"cannot replace {path}: No space left on device")
        replace_file(path, expected, content)

    with monkeypatch.context() as patch:
        patch.setattr(persist, "replace_file", fail)
        with pytest.raises(TemporaryError, match=r"a.cfg:\d,\d written; not kept, .*b.cfg: No space left"):
            send(haproxy, PROMOTE, config=[str(path) for path in paths])
    assert disabled(paths[0], "w") == "n1 n3"
    assert paths[1].read_text() == "backend r\n" + read
    assert send(haproxy, PROMOTE, config=[str(path) for path in paths]).result is Result.CHANGED
    assert disabled(paths[1], "r") == "n1 n2"


def test_several_files_and_a_directory(haproxy, tmp_path):
    write, read = CONFIG.split("backend r\n")
    (tmp_path / "a.cfg").write_text(write)
    (tmp_path / "d").mkdir()
    for name in ("10.cfg", ".20.cfg", "30.cfg.bak"):
        (tmp_path / "d" / name).write_text("backend r\n" + read)
    (tmp_path / "d" / "40.cfg").mkdir()
    send(haproxy, PROMOTE, config=[str(tmp_path / "a.cfg"), str(tmp_path / "d")])
    assert disabled(tmp_path / "a.cfg", "w") == "n1 n3"
    assert disabled(tmp_path / "d/10.cfg", "r") == "n1 n2"
    assert disabled(tmp_path / "d/.20.cfg", "r") == disabled(tmp_path / "d/30.cfg.bak", "r") == "n1"
    assert sorted(os.listdir(tmp_path / "d")) == [".20.cfg", "10.cfg", "30.cfg.bak", "40.cfg"]


def test_a_line_is_matched_by_its_address_and_by_name_only_where_it_has_none(haproxy, config):
    """Where the file has moved on since it was loaded, the next reload goes by the file."""
    config.write_text(
        "listen w\n"
        " server n2 10.0.0.1:5444\n"
        " server n1 10.0.0.2:5444\n"
        ' server n3 "${DB3}":5444\n'
        "backend r\n"
        ' server n1 10.0.0.1:"${PGPORT}" disabled\n'
        ' server n2 10.0.0.2:"${PGPORT}"\n'
        ' server n3 10.0.0.3:"${PGPORT}"\n'
    )
    send(haproxy, PROMOTE, config=[str(config)])
    assert disabled(config, "w") == "n2 n3"
    assert disabled(config, "r") == "n1 n2"


def test_all_branches_of_a_condition_are_kept_alike(haproxy, config):
    text = CONFIG.replace(
        "    server n2 10.0.0.2:5444 check disabled\n",
        ".if defined(TLS)\n server n2 10.0.0.2:5444 ssl disabled\n.else\n server n2 10.0.0.2:5444 disabled\n.endif\n",
    )
    config.write_text(text)
    send(haproxy, PROMOTE, config=[str(config)])
    assert disabled(config, "w") == "n1 n3"


MARK = "# efm-lb: writes follow timeline "
MARKED = CONFIG.replace("# the first", f"# the first {MARK}7")


def on_timeline(timeline, letters="xPs"):
    """A promote of the second node, on a timeline of its own."""
    first, second, third = truth(letters).states
    return Promote(NODES[1], Truth((first, second._replace(timeline=timeline), third)))


def test_the_file_remembers_the_timeline(haproxy, config):
    send(haproxy, on_timeline(7), config=[str(config)])
    assert config.read_text().splitlines()[3:7] == [
        "listen w",
        "    server n1 10.0.0.1:5444 check disabled     # the first",
        f"    server n2 10.0.0.2:5444 check {MARK}7",
        "    server n3 10.0.0.3:5444 check disabled",
    ]
    assert config.read_text().count(MARK) == 1
    assert send(haproxy, on_timeline(7), config=[str(config)]).result is Result.UNCHANGED


def test_a_file_that_is_right_is_not_written_because_of_a_timeline(haproxy, config):
    send(haproxy, on_timeline(7), config=[str(config)])
    before = config.read_text()
    assert send(haproxy, on_timeline(8), config=[str(config)]).result is Result.UNCHANGED
    assert config.read_text() == before


def test_what_moves_no_writes_leaves_the_mark(haproxy, config):
    config.write_text(MARKED)
    assert send(haproxy, Detach(NODES[0], truth("xss")), config=[str(config)]).result is Result.CHANGED
    assert send(haproxy, Attach(NODES[0], truth("ssP")), config=[str(config)]).result is Result.CHANGED
    assert f"server n1 10.0.0.1:5444 check disabled     # the first {MARK}7\n" in config.read_text()


@pytest.mark.parametrize("hook", [adapter.efm_lb_promote, adapter.efm_lb_plan])
@pytest.mark.parametrize("moved", [False, True])
def test_an_older_timeline_gets_no_writes(haproxy, model, config, hook, moved):
    """Also when nothing would change: it is told by day, and not at the next failover."""
    config.write_text(MARKED)
    if moved:
        send(haproxy, on_timeline(7), config=[str(config)])
        model.sent.clear()
    before = config.read_text()
    with pytest.raises(PermanentError) as caught:
        hook(on_timeline(6), balancer(haproxy.path, config=[str(config)]), time.monotonic() + 5)
    assert str(caught.value) == (
        f"{config}:{6 if moved else 5}: writes follow timeline 7, and 10.0.0.2:5444 is on timeline 6: it has missed a"
        " promotion, so it gets no writes: stop it. Only where the newer timeline is gone for good (pg_upgrade, initdb,"
        " a restore, a primary that is given up), remove the mark, and call again: sed -i --follow-symlinks"
        f" 's/ *# efm-lb: writes follow timeline [0-9]*$//' {config}"
    )
    assert model.sent == [], "the runtime comes first, but not that first"
    assert config.read_text() == before


def test_the_command_of_the_refusal_is_all_that_it_takes(haproxy, config):
    config.write_text(MARKED)
    with pytest.raises(PermanentError) as caught:
        send(haproxy, on_timeline(6), config=[str(config)])
    subprocess.run(str(caught.value).rpartition("call again: ")[2], shell=True, check=True)
    assert config.read_text() == CONFIG
    assert send(haproxy, on_timeline(6), config=[str(config)]).result is Result.CHANGED


@pytest.mark.parametrize("timeline", [7, 8, None])
def test_the_same_timeline_a_newer_one_and_one_that_is_not_known_go_through(haproxy, config, timeline):
    config.write_text(MARKED)
    assert send(haproxy, on_timeline(timeline), config=[str(config)]).result is Result.CHANGED
    assert (disabled(config, "w"), config.read_text().count(MARK)) == ("n1 n3", 1)
    place = f"10.0.0.2:5444 check {MARK}{timeline}\n" if timeline else f"# the first {MARK}7\n"
    assert place in config.read_text()


def test_a_haproxy_that_is_down_is_fenced_by_its_file_as_well(tmp_path, config):
    config.write_text(MARKED)
    there = balancer(str(tmp_path / "none.sock"), config=[str(config)])
    with pytest.raises(
        TemporaryError, match=r"CONFIG is not right .*:5: writes follow timeline 7, and 10\.0\.0\.2:5444"
    ):
        adapter.efm_lb_promote(on_timeline(6), there, time.monotonic() + 5)
    assert config.read_text() == MARKED


def test_several_files_and_proxies_are_fenced_and_marked_each(haproxy, model, tmp_path):
    model.servers["v"] = {name: list(server) for name, server in model.servers["w"].items()}
    write, read = CONFIG.split("backend r\n")
    texts = (write, write.replace("listen w", "backend v").replace("# the first", f"{MARK}5"), "backend r\n" + read)
    paths = [tmp_path / name for name in ("a.cfg", "b c.cfg", "d.cfg")]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    given = {"config": [str(path) for path in paths], "write": ["w", "v"]}
    with pytest.raises(PermanentError, match=rf"^{tmp_path}/b c.cfg:5: .* call again: sed .* '{tmp_path}/b c.cfg'$"):
        send(haproxy, on_timeline(4), **given)
    assert (model.ready("w"), model.sent) == (["n1"], [])
    send(haproxy, on_timeline(6), **given)
    assert [[line for line in path.read_text().splitlines() if "efm-lb" in line] for path in paths] == [
        [f"    server n2 10.0.0.2:5444 check {MARK}6"],
        [f"    server n2 10.0.0.2:5444 check {MARK}6"],
        [],
    ]


def test_a_mark_that_somebody_else_writes_meanwhile_counts(haproxy, config, monkeypatch):
    replace_file = persist.replace_file

    def interfere(path, expected, content):
        config.write_text(MARKED)
        replace_file(path, expected, content)

    monkeypatch.setattr(persist, "replace_file", interfere)
    with pytest.raises(PermanentError, match=r"not kept, .*: writes follow timeline 7, and"):
        send(haproxy, on_timeline(6), config=[str(config)])
    assert config.read_text() == MARKED


def test_a_server_that_does_not_stay_ready(haproxy, model):
    model.answers["set server w/n2 state ready"] = ""
    with pytest.raises(TemporaryError, match=r"w/n2 .* shall be ready and is maint: it did not last"):
        send(haproxy, PROMOTE)
    assert len(model.sent) < 30


def test_sessions_that_are_still_connecting_are_waited_for(haproxy, model, monkeypatch):
    """HAProxy ends one that connects to a silent server at its time-out only, however often it is told to."""
    carry_out = model.command
    asked = []

    def stay_for_a_while(command):
        if command == "shutdown sessions server w/n1":
            asked.append(command)
            if len(asked) < 12:
                return ""
        return carry_out(command)

    monkeypatch.setattr(model, "command", stay_for_a_while)
    outcome = send(haproxy, Promote(NODES[1], truth("-Ps")))
    assert outcome.result is Result.CHANGED
    assert len(asked) == 12
    assert model.servers["w"]["n1"][4] == 0


def test_a_refusal_is_told(haproxy, model):
    model.answers["set server w/n2 state ready"] = "Backend is using a static LB algorithm\n"
    with pytest.raises(TemporaryError, match=r"w/n2 state ready: Backend is using a static LB algorithm"):
        send(haproxy, PROMOTE)
    assert model.ready("w") == [], "the others are out all the same: an old primary must get no writes"


def test_a_server_that_tracks_another_one(haproxy, model):
    model.servers["w"]["n2"][3] = 2
    model.answers["set server w/n2 state ready"] = ""
    with pytest.raises(TemporaryError, match="is maint as the server that it tracks"):
        send(haproxy, PROMOTE)


def test_time_that_is_up(haproxy, model):
    with pytest.raises(TemporaryError):
        send(haproxy, PROMOTE, seconds=-1)
    assert model.sent == []


def test_the_other_proxies_are_done_although_one_is_missing(haproxy, model):
    with pytest.raises(
        PermanentError, match=r"no proxy gone \(EFM_LB_BALANCERS__EDGE__WRITE\); w/n1 .* w/n2 .* is ready"
    ):
        send(haproxy, PROMOTE, write=["w", "gone"])
    assert model.ready("w") == ["n2"]


def test_a_worker_that_is_replaced_meanwhile_is_brought_right_too(haproxy, model, config, monkeypatch):
    """The new one came up with the state that the file had when it was read."""
    reloads = [5000, 5001]
    command = model.command

    def reload_after_the_change(text):
        if text == "show info" and getattr(model, "pending", 0):
            model.pid, model.pending = model.pending, 0
            model.servers = Model(w="RCC", r="CRR").servers
        if text == "set server r/n2 state drain" and reloads:
            model.pending = reloads.pop(0)
        return command(text)

    model.command = reload_after_the_change
    monkeypatch.setattr(drive, "is_reloading", lambda pid: False)
    outcome = send(haproxy, PROMOTE, config=[str(config)])
    assert outcome.result is Result.CHANGED
    assert model.pid == 5001
    assert model.ready("w") == ["n2"]


def test_a_reload_in_flight_is_waited_for_although_nothing_was_changed(haproxy, model, monkeypatch):
    asked = []

    def reloading(pid):
        asked.append(pid)
        if len(asked) == 3:
            model.pid = 5000
            model.servers = Model(w="MRM", r="MRR").servers
        return len(asked) < 3

    monkeypatch.setattr(drive, "is_reloading", reloading)
    outcome = send(haproxy, Promote(NODES[0], truth("Pss")))
    assert outcome.result is Result.CHANGED
    assert model.ready("w") == ["n1"]
    assert asked == [4711, 4711, 4711, 5000]


def test_the_last_server_for_reads_is_told(haproxy):
    outcome = send(haproxy, Detach(NODES[2], truth("Psx")), read_includes_primary="never")
    assert "no server of r" not in outcome.detail
    outcome = send(haproxy, Detach(NODES[1], truth("Pxx")), read_includes_primary="never")
    assert outcome.detail.endswith("; no server of r is ready")


# A HAProxy that is down


def down(config, event=PROMOTE, message="CONFIG is right for its next start", **settings):
    given = balancer(str(config.parent / "absent.sock"), config=[str(config)], **settings)
    with pytest.raises(TemporaryError, match=message) as caught:
        HOOKS[type(event)](event, given._replace(connect_timeout=0.05), time.monotonic() + 5)
    assert str(caught.value).startswith(f"cannot connect to {config.parent}/absent.sock: No such file or directory; ")
    return str(caught.value)


def test_what_is_known_from_the_files_alone(config):
    down(config, message=f"; {config}:5,6,10 written; CONFIG is right for its next start")
    assert (disabled(config, "w"), disabled(config, "r")) == ("n1 n3", "n1 n2")
    assert "written" not in down(config)
    down(config, Detach(NODES[2], truth("-Px")))
    assert disabled(config, "r") == "n1 n3", "the primary serves reads while nobody else does"
    down(config, Attach(NODES[0], truth("sP-")))
    assert (disabled(config, "w"), disabled(config, "r")) == ("n1 n3", "n2 n3")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("server n3 10.0.0.3:5444 check disabled", 'server n3 "${DB3}":5444 check disabled'),
        ("server n3 10.0.0.3:5444 check disabled", "server n3 10.0.0.3 check disabled"),
        ("server n3 10.0.0.3:5444 check disabled", "server n3 db-three:5444 check disabled"),
        ("server n3 10.0.0.3:5444 check disabled", "server-template n 1 10.0.0.3:5444"),
    ],
)
def test_a_server_that_only_a_running_haproxy_could_tell(config, before, after):
    text = CONFIG.replace(before, after)
    config.write_text(text)
    down(config, message=f"CONFIG is not right for its next start: {config}:7: which node this server is can be told")
    assert config.read_text() == text


def test_a_name_that_is_a_nodes_and_an_address_that_is_none_are_told_by_the_files(config):
    config.write_text(
        CONFIG.replace("server n2 10.0.0.2:5444 check", "server n2 db2:5444 check").replace(
            "server n3 10.0.0.3:5444 check disabled", "server n3 10.9.9.9:5444 check"
        )
    )
    down(config)
    assert disabled(config, "w") == "n1 n3"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "cannot read .*haproxy.cfg: No such file"),
        (lambda path: path.write_text(CONFIG.rstrip()), "has no newline at its end"),
        (lambda path: path.write_text(CONFIG.replace("listen w", "listen x")), "HAProxy has no proxy w "),
        (lambda path: path.write_text(CONFIG.replace("10.0.0.2", "10.0.0.9")), "HAProxy has no server 10.0.0.2:5444"),
        (
            lambda path: path.write_text(CONFIG.replace("listen w\n", "listen w\n default-server disabled\n")),
            "haproxy.cfg:7: is disabled by a default-server line",
        ),
    ],
)
def test_files_that_cannot_be_made_right(config, spoil, message):
    spoil(config)
    down(config, message=f"CONFIG is not right for its next start: .*{message}")


def test_without_a_file_a_haproxy_that_is_down_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(drive, "sleep", None)
    with pytest.raises(TemporaryError, match="No such file or directory") as caught:
        HOOKS[Promote](PROMOTE, balancer(str(tmp_path / "absent.sock")), time.monotonic() + 5)
    assert "CONFIG" not in str(caught.value)


# The state file


STATE_FILE = """\
global
 server-state-file {path}
defaults
 load-server-state-from-file global
"""


def test_a_stale_state_file_is_written_anew(haproxy, model, config, tmp_path):
    path = tmp_path / "state"
    path.write_text(model.command("show servers state"))
    config.write_text(STATE_FILE.format(path=path) + CONFIG)
    outcome = send(haproxy, PROMOTE, config=[str(config)])
    assert outcome.detail.endswith(f"{path} written")
    assert path.read_text() == model.command("show servers state")
    before = path.stat().st_ino
    assert send(haproxy, PROMOTE, config=[str(config)]).result is Result.UNCHANGED
    assert path.stat().st_ino == before


def test_a_state_file_per_proxy(haproxy, model, config, tmp_path):
    for proxy in ("w", "r"):
        (tmp_path / f"{proxy}.state").write_text(model.command(f"show servers state {proxy}"))
    text = f"global\n server-state-base {tmp_path}\ndefaults\n load-server-state-from-file local\n" + CONFIG
    config.write_text(text.replace("listen w\n", "listen w\n server-state-file-name w.state\n"))
    send(haproxy, PROMOTE, config=[str(config)])
    assert (tmp_path / "w.state").read_text() == model.command("show servers state w")


def test_a_state_file_that_does_not_exist_or_is_not_loaded_is_left_so(haproxy, config, tmp_path):
    path = tmp_path / "state"
    config.write_text(STATE_FILE.format(path=path) + CONFIG)
    assert send(haproxy, PROMOTE, config=[str(config)]).result is Result.CHANGED
    assert not path.exists()
    path.write_text("1\nstale\n")
    config.write_text(STATE_FILE.format(path=path).replace("from-file global", "from-file none") + CONFIG)
    send(haproxy, Promote(NODES[0], truth("Pss")), config=[str(config)])
    assert path.read_text() == "1\nstale\n"


def test_a_state_file_whose_place_cannot_be_told(haproxy, model, config):
    config.write_text(STATE_FILE.format(path="state") + CONFIG)
    with pytest.raises(PermanentError, match=r"haproxy.cfg:4: .*server state file .* absolute path"):
        send(haproxy, PROMOTE, config=[str(config)])
    assert model.ready("w") == ["n2"]
    assert disabled(config, "w") == "n1 n3"


# Validation


def test_what_haproxy_refuses_is_not_written(haproxy, model, config, tmp_path):
    script = 'echo "[ALERT]    (1) : config : [$3:6] : unknown keyword." >&2; exit 1'
    with pytest.raises(TemporaryError, match=rf"haproxy -c refuses .*: config : \[{config}:6\] : unknown keyword\."):
        send(haproxy, PROMOTE, config=[str(config)], program=program_of(tmp_path, script))
    assert config.read_text() == CONFIG
    assert model.ready("w") == ["n2"]
    assert sorted(os.listdir(tmp_path)) == ["haproxy", "haproxy.cfg"]


def test_validation_sees_the_new_content_next_to_the_old_file_and_haproxys_environment(
    haproxy, model, config, tmp_path
):
    model.answers["show env"] = "PGPORT=5444\nHAPROXY_MWORKER=1\n"
    script = f'echo "$PGPORT $*" > {tmp_path}/told; cat "$5" > {tmp_path}/seen'
    send(haproxy, PROMOTE, config=[str(config)], program=program_of(tmp_path, script))
    port, *words = (tmp_path / "told").read_text().split()
    assert (port, words[0], words[3]) == ("5444", "-c", "-f")
    assert os.path.dirname(words[4]) == str(tmp_path)
    assert (tmp_path / "seen").read_text() == config.read_text() != CONFIG


def test_a_haproxy_that_does_not_understand_our_own_lines_is_asked_without_them(haproxy, config, tmp_path):
    script = f'echo run >> {tmp_path}/runs; case "$*" in *quick.cfg*) exit 1;; esac'
    assert send(haproxy, PROMOTE, config=[str(config)], program=program_of(tmp_path, script)).detail.endswith("written")
    assert (tmp_path / "runs").read_text() == "run\nrun\n"


def test_a_validation_that_hangs_is_ended(haproxy, model, config, tmp_path, monkeypatch):
    monkeypatch.setattr(validate, "_LONGEST", 0.1)
    started = time.monotonic()
    with pytest.raises(TemporaryError, match="did not end in time, so nothing was written"):
        send(haproxy, PROMOTE, config=[str(config)], program=program_of(tmp_path, "exec sleep 60"))
    assert time.monotonic() - started < 3
    assert config.read_text() == CONFIG


def test_a_program_that_cannot_be_started(haproxy, config, tmp_path):
    with pytest.raises(PermanentError, match=r"PROGRAM: cannot start /absent: No such file"):
        send(haproxy, PROMOTE, config=[str(config)], program="/absent")
    assert config.read_text() == CONFIG


def test_no_program_is_a_note(haproxy, config, monkeypatch):
    monkeypatch.setattr(validate, "_DIRECTORIES", ())
    monkeypatch.setenv("PATH", "/nowhere")
    outcome = send(haproxy, PROMOTE, config=[str(config)], program=None)
    assert "written (not validated: there is no haproxy program on this host)" in outcome.detail


# Plan


def test_a_plan_does_nothing(haproxy, model, config):
    given = balancer(haproxy.path, config=[str(config)])
    told = adapter.efm_lb_plan(PROMOTE, given, time.monotonic() + 5)
    assert list(told) == [
        "w/n1 (10.0.0.1:5444): set server w/n1 state maint; shutdown sessions server w/n1",
        "w/n2 (10.0.0.2:5444): set server w/n2 state ready",
        "r/n2 (10.0.0.2:5444): set server r/n2 state drain",
        f"write {config}:5,6,10",
    ]
    assert model.sent == []
    assert config.read_text() == CONFIG
    send(haproxy, PROMOTE, config=[str(config)])
    assert adapter.efm_lb_plan(PROMOTE, given, time.monotonic() + 5) == ()
    config.unlink()
    assert "not kept: cannot read" in adapter.efm_lb_plan(PROMOTE, given, time.monotonic() + 5)[0]


# View


def test_a_view(haproxy, model):
    model.servers["r"]["other"] = ["10.9.9.9", 5444, 2, 0, 0]
    view = adapter.efm_lb_view(NODES, balancer(haproxy.path), time.monotonic() + 5)
    assert [(seen.node.name, seen.attached, seen.writes, seen.detail) for seen in view.nodes] == [
        ("db1", True, True, "w/n1 ready, r/n1 maint"),
        ("db2", True, False, "w/n2 maint, r/n2 ready"),
        ("db3", True, False, "w/n3 maint, r/n3 ready"),
    ]
    assert view.strangers == ("10.9.9.9:5444",)


@pytest.mark.parametrize(("reads", "attached"), [("fallback", False), ("always", False), ("never", True)])
def test_where_nobody_serves_reads_the_primary_is_missing(haproxy, model, reads, attached):
    """So that reconcile sees it, whose promote puts it there."""
    given = balancer(haproxy.path, read_includes_primary=reads)
    for name in ("n2", "n3"):
        model.servers["r"][name][3] = 1
    before = adapter.efm_lb_view(NODES, given, time.monotonic() + 5).nodes
    assert [(seen.attached, seen.writes) for seen in before] == [(attached, True), (False, False), (False, False)]
    send(haproxy, Promote(NODES[0], truth("Pxx")), read_includes_primary=reads)
    assert adapter.efm_lb_view(NODES, given, time.monotonic() + 5).nodes[0].attached


@pytest.mark.parametrize("databases", ["Ps-", "P--", "Pss"])
def test_who_stands_in_for_a_standby_is_only_wrong_once_that_serves_again(haproxy, model, databases):
    """The standby is ready as ever while its host is silent; reconcile looks after the primary all the same."""
    model.servers["r"]["n2"][3] = 1
    send(haproxy, Attach(NODES[0], truth("P--")))
    assert model.ready("r") == ["n1", "n3"]
    view = adapter.efm_lb_view(NODES, balancer(haproxy.path), time.monotonic() + 5)
    assert (view.nodes[0].attached, view.nodes[0].beside) == (False, (NODES[2],))
    said = truth(databases)
    assert differences(said, view)[:1] == (Promote(NODES[0], said, Origin.RECONCILE),)
    wrong = "still serves reads in place of db3" if databases == "Pss" else None
    assert disagreement(said, view).get("db1") == wrong


@pytest.mark.parametrize("case", ["a stranger", "nobody elsewhere"])
def test_who_is_to_do_otherwise_whatever_the_databases_say_stands_in_for_nobody(haproxy, model, case):
    given = balancer(haproxy.path, read=["r", "r2"])
    model.servers["r2"] = copy.deepcopy(model.servers["r"])
    send(haproxy, Attach(NODES[0], truth("P--")), read=["r", "r2"])
    if case == "a stranger":
        model.servers["r"]["other"] = ["10.9.9.9", 5444, 2, 0, 0]
    else:
        for server in model.servers["r2"].values():
            server[3] = 1
    view = adapter.efm_lb_view(NODES, given, time.monotonic() + 5)
    assert (view.nodes[0].attached, view.nodes[0].beside) == (False, ())
    assert disagreement(truth("P--"), view)["db1"] == "is up, but detached"


def test_a_view_without_reads_has_no_place_for_a_standby(haproxy):
    view = adapter.efm_lb_view(NODES, balancer(haproxy.path, read=None), time.monotonic() + 5)
    assert [seen.attached for seen in view.nodes] == [True, None, None]


def test_a_view_of_nothing(haproxy):
    with pytest.raises(PermanentError, match="has no proxy absent"):
        adapter.efm_lb_view(NODES, balancer(haproxy.path, write=["absent"], read=None), time.monotonic() + 5)
