"""A balancer that the hook reaches by ssh alone, through a real sshd."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from efm_lb import __version__, lock
from efm_lb.rehearsal.hooks import EFM_LB, Run, efm_lb_hook
from efm_lb.rehearsal.pgbouncer import WRITE
from efm_lb.rehearsal.sshd import Sshd
from efm_lb.rehearsal.waiting import wait_until
from efm_lb.remote import documents
from integration.remote.conftest import Estate
from integration.remote.line import Line

READY = f"echo '{documents.encoded(documents.ready_document()).decode().strip()}'"
"""What the forced command says first, as a command for a shell."""
LOGIN = "login attempt: db=pgbouncer user=efm_lb"
"""What PgBouncer's log says of a login to its console."""


def fail_over(estate: Estate) -> str:
    """The name of the new primary."""
    old, new, other = estate.cluster.nodes
    old.stop()
    new.promote()
    other.follow(new)
    return new.name


def attach_standby(estate: Estate, **extra: object) -> Run:
    return estate.hook(**extra)("attach", estate.cluster.nodes[2].name, "s")


@contextmanager
def way_to(estate: Estate) -> Iterator[tuple[Line, str]]:
    """A network between the hook and the balancer's host, and the destination for HOST_SSH by it."""
    with Line(estate.sshd.port) as line:
        estate.sshd.know(port=line.port)
        yield line, estate.sshd.destination.replace(str(estate.sshd.port), str(line.port))


def line_of(run: Run) -> str:
    (line,) = [line for line in run.output.splitlines() if line.startswith("pgb1: ")]
    return line


def journal(estate: Estate, where: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (estate.state(where) / "efm.journal").read_text().splitlines()]


def test_the_balancer_is_logged_in_to_once_before_the_request_comes(estate: Estate) -> None:
    assert attach_standby(estate).exit_code == 0, "its settings are compiled now"
    before = estate.pooler.log.read_text().count(LOGIN)
    with subprocess.Popen([*EFM_LB, "apply", f"--env-file={estate.there}"], stdin=subprocess.PIPE) as waiting:
        assert wait_until(lambda: estate.pooler.log.read_text().count(LOGIN) == before + 1, timeout=10)
        assert waiting.stdin
        waiting.stdin.close()
    assert attach_standby(estate).exit_code == 0
    assert estate.pooler.log.read_text().count(LOGIN) == before + 2


def test_a_promotion_moves_the_writes_and_both_hosts_have_it_in_their_journals(estate: Estate) -> None:
    new = fail_over(estate)
    moved = estate.hook()("attach", new, "p")
    assert moved.exit_code == 0, moved.output
    assert line_of(moved).startswith("pgb1: changed")
    assert new in str(estate.pooler.query("select inet_server_addr()::text as address"))
    again = estate.hook()("attach", new, "p")
    assert line_of(again).startswith("pgb1: unchanged"), again.output
    here, there = journal(estate, "here"), journal(estate, "there")
    assert [record["record"] for record in there] == ["call", "outcome"] * 2
    assert {record["call"] for record in there} == {record["call"] for record in here}
    assert there[0]["kind"] == "act promote"
    assert there[0]["sender"] == "127.0.0.1"


def test_the_history_there_shows_the_call_of_the_host_that_made_it(estate: Estate) -> None:
    new = fail_over(estate)
    assert estate.hook()("attach", new, "p").exit_code == 0
    name = str(journal(estate, "here")[0]["call"])
    there = efm_lb_hook(estate.there)
    listed = there("history")
    assert listed.exit_code == 0, listed.output
    assert f"act promote {new} at pgb1 for 127.0.0.1: ended in 0." in listed.stdout
    text = there("history", "show", name).stdout
    assert text.startswith(f"call {name} of cluster ")
    assert f"127.0.0.1 asked: act promote {new}" in text
    assert f"{new}  is a primary, timeline 2" in text
    assert "pgb1  changed in " in text
    assert "pgb1  changed in " in estate.hook()("history", "show", name).stdout


def test_a_planned_switchover_holds_and_lets_go(estate: Estate) -> None:
    held = estate.hook()("detach", estate.cluster.nodes[0].name, "p")
    assert held.exit_code == 0, held.output
    assert f"{WRITE} held for at most" in held.output
    assert estate.pooler.paused() == [WRITE], "ssh has ended, and the one who lets go has not"
    assert estate.hook()("attach", fail_over(estate), "p").exit_code == 0
    assert not estate.pooler.paused()


def test_every_command_for_people_sees_it(estate: Estate) -> None:
    hook = estate.hook()
    status = hook("status", "--json")
    assert json.loads(status.stdout)["balancers"]["pgb1"]["failure"] is None
    assert [node["writes"] for node in json.loads(status.stdout)["balancers"]["pgb1"]["nodes"]] == [True, False, False]
    assert "pgb1: nothing to do" in hook("plan").output
    assert [f["subject"] for f in json.loads(hook("check", "--json").stdout)["findings"] if f["where"] == "pgb1"]
    dry = hook("detach", estate.cluster.nodes[2].name, "s", "--dry-run")
    assert "pgb1: " in dry.output
    assert dry.exit_code == 0
    assert not (estate.state("there") / "efm.journal").exists(), "looking is no call"


def test_a_stale_host_cannot_move_writes_back(estate: Estate) -> None:
    """The balancer's host has seen a newer timeline than the hook's host, which sees the old primary only."""
    old, new, other = estate.cluster.nodes
    old.stop()
    new.promote()
    other.follow(new)
    assert estate.hook()("attach", new.name, "p").exit_code == 0
    for node in (new, other):
        node.stop()
    old.start()
    (estate.state("here") / "efm.timeline").unlink()
    wrong = estate.hook()("attach", old.name, "p")
    assert wrong.exit_code == 69, wrong.output
    assert "not proven to be the only primary: this host has seen timeline 2" in line_of(wrong)
    assert new.name in estate.pooler.entries.read_text()


# What goes wrong on the way


def on_a_terminal(argv: list[str], estate: Estate) -> str:
    """What a program says on a terminal of its own, until it ends or wants a password."""
    pid, terminal = os.forkpty()
    if not pid:
        os.execvpe(argv[0], argv, {"PATH": estate.sshd.path})
    said = b""
    try:
        while b"password:" not in said:
            if not select.select([terminal], [], [], 30)[0]:
                break
            said += os.read(terminal, 65536)
    except OSError:  # it has ended
        pass
    finally:
        os.close(terminal)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return said.decode()


def test_nobody_listens(estate: Estate) -> None:
    estate.sshd.stop()
    failed = attach_standby(estate)
    assert failed.exit_code == 75
    assert "Connection refused" in line_of(failed)


def test_the_host_is_silent(estate: Estate) -> None:
    """Its kernel takes the connection and nobody answers."""
    with estate.sshd.silent() as destination:
        failed = attach_standby(estate, EFM_LB_BALANCERS__PGB1__HOST_SSH=destination, EFM_LB_CONNECT_TIMEOUT=1)
    assert failed.exit_code == 75
    assert failed.seconds < 6
    assert f"ssh to {destination}" in line_of(failed)


def test_trap_31_a_dead_host_delays_no_other(estate: Estate) -> None:
    """The published scripts call one host after the other, without a time-out."""
    reached = estate.sshd.directory / "reached"
    with estate.sshd.silent() as dead:
        estate.sshd.force(f"touch {reached}")
        loop = f"for host in {dead} {estate.sshd.destination}; do ssh $host redirect; done"
        environment = {"PATH": estate.sshd.path}
        with subprocess.Popen(["sh", "-c", loop], env=environment, start_new_session=True) as script:
            with pytest.raises(subprocess.TimeoutExpired):
                script.wait(3)
            os.killpg(script.pid, signal.SIGKILL)
        assert not reached.exists(), "this is the trap"

        estate.sshd.force(estate.forced())
        another = {
            "EFM_LB_BALANCERS__AAA__ADAPTER": "pgbouncer",
            "EFM_LB_BALANCERS__AAA__HOST_SSH": dead,
            "EFM_LB_CONNECT_TIMEOUT": 8,
            "EFM_LB_DEADLINE": 20,
        }
        new = fail_over(estate)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(estate.hook(**another), "attach", new, "p")
            moved = wait_until(lambda: new in estate.pooler.places()[WRITE], timeout=20)
            assert moved
            assert not running.done()
            failed = running.result()
    assert failed.exit_code == 75
    assert line_of(failed).startswith("pgb1: changed")
    assert f"ssh to {dead}" in failed.output
    assert failed.seconds < 18, "and itself costs its time-out, and not the deadline"


def test_trap_31_nobody_is_asked_for_a_password(estate: Estate) -> None:
    """As ssh does on a terminal, which whoever tries the hook by hand has."""
    estate.sshd.refuse()
    estate.sshd.stop()
    estate.sshd.start({"PasswordAuthentication": "yes"})
    env_file = estate.hook()("config", "show").argv[-1]
    hook = [*EFM_LB, "attach", estate.cluster.nodes[2].name, "s", env_file]
    assert "password:" in on_a_terminal(["ssh", estate.sshd.destination], estate), "this is the trap"
    said = on_a_terminal(hook, estate)
    assert "password:" not in said
    assert "Permission denied" in said


def test_the_key_is_refused(estate: Estate) -> None:
    estate.sshd.refuse()
    failed = attach_standby(estate)
    assert failed.exit_code == 69
    assert "Permission denied" in line_of(failed)


def test_the_host_key_has_changed(estate: Estate) -> None:
    estate.sshd.make_key("other")
    estate.sshd.know("other")
    failed = attach_standby(estate)
    assert failed.exit_code == 69
    assert "Host key verification failed" in line_of(failed)


def test_the_host_key_is_not_known(estate: Estate) -> None:
    (estate.sshd.directory / "known_hosts").write_text("")
    failed = attach_standby(estate)
    assert failed.exit_code == 69
    assert "Host key verification failed" in line_of(failed)


def test_ssh_does_not_take_the_destination(estate: Estate) -> None:
    """9.2 takes no IPv6 address in a URI, and prints how it is to be called."""
    ssh = estate.sshd.directory / "bin" / "ssh"
    ssh.write_text("#!/bin/sh\nexec /usr/bin/ssh 'ssh://nobody@[::1:22' id\n")
    failed = attach_standby(estate)
    assert failed.exit_code == 69
    assert "ssh does not take this HOST_SSH" in line_of(failed)


def test_a_slow_host_is_waited_for(estate: Estate) -> None:
    estate.sshd.force(f"sleep 1; exec {estate.forced()}")
    assert attach_standby(estate, EFM_LB_CONNECT_TIMEOUT=5).exit_code == 0


def test_one_ssh_does_it(estate: Estate, tmp_path: Path) -> None:
    """The one that was started before the settings were read."""
    counting = tmp_path / "counting"
    counting.mkdir()
    (counting / "ssh").write_text(f'#!/bin/sh\necho >> {tmp_path}/started\nPATH={estate.sshd.path} exec ssh "$@"\n')
    (counting / "ssh").chmod(0o755)
    hook = estate.hook()
    hook("attach", estate.cluster.nodes[2].name, "s")  # compiles the settings
    counted = replace(hook, environment={"PATH": f"{counting}:{estate.sshd.path}"})
    for words in (["detach"], ["attach"], ["attach", "--dry-run"]):
        run = counted(words[0], estate.cluster.nodes[2].name, "s", *words[1:])
        assert run.exit_code == 0, run.output
    assert (tmp_path / "started").read_text() == "\n" * 3


def test_a_host_that_is_too_slow_is_not_asked(estate: Estate) -> None:
    """Nor does it do anything late: what the hook has given up is not on its way."""
    heard = estate.sshd.directory / "heard"
    answer = '{"schema": "efm-lb/apply-answer/v4", "version": "0.1.0", "answer": {"nothing": null}}'
    estate.sshd.force(f"cat >{heard}; {READY}; echo '{answer}'")
    failed = attach_standby(estate)
    assert failed.exit_code == 75
    assert "efm-lb apply was not ready within EFM_LB_CONNECT_TIMEOUT (2 s)" in line_of(failed)
    assert "ask" not in json.loads(heard.read_text())


def test_a_host_that_does_not_answer_is_not_waited_for_longer_than_the_deadline(estate: Estate) -> None:
    estate.sshd.force(f"{READY}; sleep 20")
    failed = attach_standby(estate, EFM_LB_DEADLINE=3)
    assert failed.exit_code == 75
    assert failed.seconds < 6
    assert "no answer in time" in line_of(failed)


def test_an_answer_has_time_for_its_way(estate: Estate) -> None:
    """What the adapter there could not do in its time is told, not only that no answer came."""
    document = estate.sshd.directory / "document"
    estate.sshd.force(f"{READY}; cat >{document}")
    attach_standby(estate)
    assert 0 < json.loads(document.read_text())["seconds"] <= 9.5


@pytest.mark.parametrize("noise", ["", "echo Welcome to pgb1;"])
def test_the_connection_is_cut(estate: Estate, noise: str) -> None:
    estate.sshd.force(f"{noise} kill -9 $PPID")
    failed = attach_standby(estate)
    assert failed.exit_code == 75
    assert "ssh to" in line_of(failed)


def test_the_answer_is_cut(estate: Estate) -> None:
    estate.sshd.force(f"""{READY}; cat >/dev/null; printf '{{"schema": "efm-lb/app'""")
    failed = attach_standby(estate)
    assert failed.exit_code == 75
    assert "the answer was cut off" in line_of(failed)


def test_a_shared_connection_to_a_host_that_was_started_anew_is_not_the_last_word(estate: Estate) -> None:
    assert attach_standby(estate).exit_code == 0
    estate.sshd.stop()
    estate.sshd.start()
    done = attach_standby(estate)
    assert done.exit_code == 0, done.output


def test_a_shared_connection_that_is_lost_is_not_the_last_word(estate: Estate) -> None:
    with way_to(estate) as (line, destination):
        hook = {"EFM_LB_BALANCERS__PGB1__HOST_SSH": destination, "EFM_LB_CONNECT_TIMEOUT": 9, "EFM_LB_DEADLINE": 30}
        assert attach_standby(estate, **hook).exit_code == 0
        line.lose()
        done = attach_standby(estate, **hook)
        assert done.exit_code == 0, done.output
        assert done.seconds < 8, "half of the time-out, and a login; ssh itself tries anew after all of it"


def test_a_silent_host_costs_the_connect_timeout_with_a_shared_connection_too(estate: Estate) -> None:
    """Until the connection's own keepalive had noticed it, it would cost as much again."""
    with way_to(estate) as (line, destination):
        hook = {"EFM_LB_BALANCERS__PGB1__HOST_SSH": destination, "EFM_LB_CONNECT_TIMEOUT": 6, "EFM_LB_DEADLINE": 30}
        assert attach_standby(estate, **hook).exit_code == 0
        line.cut()
        failed = attach_standby(estate, **hook)
    assert failed.exit_code == 75
    assert f"ssh to {destination}" in line_of(failed)
    assert failed.seconds < 9.5


def test_a_host_that_vanishes_is_not_waited_for_until_the_deadline(estate: Estate) -> None:
    """The connection is there, the question is on its way, and the network goes."""
    begun = estate.sshd.directory / "begun"
    estate.sshd.force(f"{READY}; cat >/dev/null; touch {begun}; sleep 60")
    with way_to(estate) as (line, destination):
        hook = estate.hook(EFM_LB_BALANCERS__PGB1__HOST_SSH=destination, EFM_LB_DEADLINE=60)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(hook, "attach", estate.cluster.nodes[2].name, "s")
            assert wait_until(begun.exists, timeout=20)
            line.cut()
            failed = running.result()
    assert failed.exit_code == 75
    assert "ssh to" in line_of(failed)
    assert failed.seconds < 30, "three seconds, and what a busy machine adds; not the deadline"


def test_a_shared_connection_is_not_taken_for_one_to_another_host(estate: Estate, tmp_path: Path) -> None:
    """Right after the balancer was moved, and HOST_SSH with it."""
    assert attach_standby(estate).exit_code == 0
    (tmp_path / "moved").mkdir()
    with Sshd(tmp_path / "moved", "echo the other host") as moved:
        estate.sshd.trust(moved)
        reached = attach_standby(estate, EFM_LB_BALANCERS__PGB1__HOST_SSH=moved.destination)
    assert "answered 'the other host'" in line_of(reached)


@pytest.mark.parametrize(
    "command", ["/nowhere/efm-lb apply", "/etc/passwd", "echo Welcome to pgb1; /nowhere/efm-lb apply"]
)
def test_efm_lb_is_not_there(estate: Estate, command: str) -> None:
    estate.sshd.force(command)
    failed = attach_standby(estate)
    assert failed.exit_code == 69
    assert "efm-lb is not there" in line_of(failed)
    assert "authorized_keys" in line_of(failed)


@pytest.mark.parametrize("noise", ["", "echo Welcome to pgb1;"])
def test_an_older_efm_lb_there_does_not_know_apply(estate: Estate, noise: str) -> None:
    estate.sshd.force(" ".join([noise, *EFM_LB, "aply"]))
    failed = attach_standby(estate)
    assert failed.exit_code == 69
    assert "does not know apply" in line_of(failed)
    assert "upgrade" in line_of(failed)


def test_an_older_version_there_tells_its_own(estate: Estate) -> None:
    """Version 1 of the protocol has no word for being ready: it reads, and refuses what it does not know."""
    heard = estate.sshd.directory / "heard"
    answer = '{"schema": "efm-lb/apply-answer/v1", "version": "0.0.9", "answer": {"nothing": null}}'
    estate.sshd.force(f"cat >{heard}; echo '{answer}'")
    failed = attach_standby(estate)
    assert failed.exit_code == 69
    assert "efm-lb 0.0.9 on the load balancer's host speaks version 1 of the protocol" in line_of(failed)
    assert f"efm-lb {__version__} on the host that asks version 4" in line_of(failed)
    assert line_of(failed).endswith("upgrade efm-lb on the load balancer's host")
    assert set(json.loads(heard.read_text())) == {"schema", "version"}, "nothing that anybody could act on"


def test_a_newer_version_there_tells_its_own_before_it_is_asked(estate: Estate) -> None:
    heard = estate.sshd.directory / "heard"
    estate.sshd.force(f"""echo '{{"schema": "efm-lb/apply-ready/v5", "version": "9.0", "new": 1}}'; cat >{heard}""")
    failed = attach_standby(estate, EFM_LB_DEADLINE=30)
    assert failed.exit_code == 69
    assert "efm-lb 9.0 on the load balancer's host speaks version 5 of the protocol" in line_of(failed)
    assert line_of(failed).endswith("upgrade efm-lb on the host that asks")
    assert failed.seconds < 20
    assert wait_until(heard.exists, timeout=10)
    assert not heard.read_text()


def test_the_account_says_something_else(estate: Estate) -> None:
    estate.sshd.force("echo Welcome to pgb1")
    failed = attach_standby(estate)
    assert failed.exit_code == 69
    assert "answered 'Welcome to pgb1'" in line_of(failed)


def test_what_the_account_says_before_the_answer_does_no_harm(estate: Estate) -> None:
    """As a .bashrc may, which bash reads for a forced command too."""
    said = "echo Welcome to pgb1; echo; echo 'Have a {nice} day' >&2; printf '\\033]0;pgb1\\007'"
    estate.sshd.force(f"{said}; exec {estate.forced()}")
    done = attach_standby(estate)
    assert done.exit_code == 0, done.output
    assert line_of(done).startswith("pgb1: unchanged")


def test_the_account_says_something_and_then_nothing(estate: Estate) -> None:
    """It may only be slow: that is temporary."""
    estate.sshd.force("echo Welcome to pgb1; sleep 20")
    failed = attach_standby(estate)
    assert failed.exit_code == 75
    assert "efm-lb apply was not ready within EFM_LB_CONNECT_TIMEOUT (2 s)" in line_of(failed)


def test_a_banner_is_nothing_that_anybody_said(estate: Estate) -> None:
    """sshd sends it before the login, whatever comes of that."""
    banner = estate.sshd.directory / "banner"
    banner.write_text("Permission denied to all strangers.\nWelcome to pgb1\n")
    estate.sshd.stop()
    estate.sshd.start({"Banner": banner})
    estate.sshd.force("kill -9 $PPID")
    cut = attach_standby(estate)
    assert cut.exit_code == 75
    assert "Welcome" not in cut.output
    estate.sshd.force(estate.forced())
    assert attach_standby(estate).exit_code == 0


def test_the_account_says_something_without_end(estate: Estate) -> None:
    estate.sshd.force("yes")
    began = time.monotonic()
    failed = attach_standby(estate, EFM_LB_DEADLINE=30)
    assert failed.exit_code == 69
    assert "answered 'y y " in line_of(failed)
    assert time.monotonic() - began < 15


def test_ssh_is_killed(estate: Estate) -> None:
    ssh = estate.sshd.directory / "bin" / "ssh"
    ssh.write_text("#!/bin/sh\nkill -9 $$\n")
    failed = attach_standby(estate)
    assert failed.exit_code == 75
    assert "ssh was killed by signal 9" in line_of(failed)


def test_a_parent_that_ignores_its_children_costs_no_answer(estate: Estate) -> None:
    """Such a disposition is inherited, and then no exit code can be had."""
    env_file = estate.hook()("config", "show").argv[-1]
    argv = [*EFM_LB, "attach", estate.cluster.nodes[2].name, "s", env_file]
    ignore = "import os, signal as s, sys; s.signal(s.SIGCHLD, s.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    ignoring = [sys.executable, "-c", ignore, *argv]
    done = subprocess.run(ignoring, env={"PATH": estate.sshd.path}, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_ssh_is_not_installed(estate: Estate, tmp_path: Path) -> None:
    env_file = estate.hook()("config", "show").argv[-1]
    empty = tmp_path / "empty"
    empty.mkdir()
    argv = [*EFM_LB, "attach", estate.cluster.nodes[2].name, "s", env_file]
    failed = subprocess.run(argv, env={"PATH": str(empty)}, capture_output=True, text=True, timeout=30, check=False)
    assert failed.returncode == 69
    assert "ssh cannot be run on this host" in failed.stdout


# What the other host does not do


def test_it_answers_for_its_own_cluster_only(estate: Estate) -> None:
    estate.sshd.force(f"{estate.forced()} --cluster=other")
    failed = attach_standby(estate)
    assert failed.exit_code == 69
    assert "this host answers for cluster other, not for efm" in line_of(failed)


def test_it_knows_its_own_nodes_only(estate: Estate) -> None:
    text = estate.there.read_text()
    nodes = ",".join(node.address for node in estate.cluster.nodes)
    estate.there.write_text(text.replace(nodes, nodes.rpartition(",")[0]))
    failed = attach_standby(estate)
    assert failed.exit_code == 69
    assert "EFM_LB_NODES is another one on the balancer's host" in line_of(failed)


def test_it_knows_its_own_balancers_only(estate: Estate) -> None:
    extra = {name.replace("PGB1", "PGB2"): value for name, value in estate.extra.items()}
    none = dict.fromkeys(estate.extra)
    failed = estate.hook(**extra, **none)("attach", estate.cluster.nodes[2].name, "s")
    assert failed.exit_code == 69
    assert "no balancer pgb2 in the settings of its host; there are pgb1" in failed.output


def test_it_knows_no_balancer_at_all(estate: Estate) -> None:
    """Its env file names those of other hosts only."""
    text = estate.there.read_text().splitlines(keepends=True)
    kept = [line for line in text if "BALANCERS" not in line or "ADAPTER" in line]
    estate.there.write_text("".join(kept) + "EFM_LB_BALANCERS__PGB1__HOST_SSH=efm-lb@elsewhere\n")
    failed = attach_standby(estate)
    assert failed.exit_code == 69
    assert "no balancer pgb1 in the settings of its host; there are none" in line_of(failed)


def test_its_settings_are_wrong(estate: Estate) -> None:
    estate.there.write_text(estate.there.read_text() + "EFM_LB_BALANCERS__PGB1__HODL=3\n")
    failed = attach_standby(estate)
    assert failed.exit_code == 69
    assert "EFM_LB_BALANCERS__PGB1__HODL" in line_of(failed)
    assert "did you mean" in line_of(failed)


def test_the_key_can_do_nothing_else(estate: Estate) -> None:
    """Whatever command is sent with it, and whatever is written to it."""
    argv = ["ssh", "-o", "BatchMode=yes", estate.sshd.destination, "id; cat /etc/passwd"]
    for text in ("", "id\n", '{"schema": "efm-lb/apply/v1"}\n', "[" * 100_000, "\xff" * 2_000_000):
        done = subprocess.run(
            argv,
            env={"PATH": estate.sshd.path},
            input=text.encode("latin-1"),
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert b"root" not in done.stdout
        assert b"Traceback" not in done.stderr
        if text:
            ready, answer = done.stdout.splitlines()
            documents.read_ready(ready)
            assert json.loads(answer)["answer"]["outcome"]["result"] == "failed"


def test_the_key_cannot_change_the_settings(estate: Estate, tmp_path: Path) -> None:
    """An sshd that takes variables from its clients would hand them to the forced command."""
    entries = tmp_path / "entries.ini"
    entries.write_text(estate.pooler.entries.read_text())
    state = tmp_path / "stolen"
    state.mkdir(mode=0o700)
    estate.sshd.stop()
    estate.sshd.start({"AcceptEnv": "EFM_LB_* PG* PCP*"})
    estate.sshd.send_environment(
        {
            "EFM_LB_STATE_DIR": state,
            "EFM_LB_BALANCERS__PGB1__CONFIG": entries,
            "PGREQUIREPEER": "nobody",
        }
    )
    new = fail_over(estate)
    done = estate.hook()("attach", new, "p")
    assert done.exit_code == 0, done.output
    assert f"{WRITE} = host={new} " in estate.pooler.entries.read_text()
    assert new not in entries.read_text().partition("\n")[0]
    assert not list(state.iterdir())
    assert journal(estate, "there")


def test_one_env_file_can_serve_every_host(estate: Estate) -> None:
    """HOST_SSH does not count where the balancer is."""
    text = estate.there.read_text()
    estate.there.write_text(text + f"EFM_LB_BALANCERS__PGB1__HOST_SSH={estate.sshd.destination}\n")
    assert attach_standby(estate).exit_code == 0


def test_one_env_file_and_one_state_directory_where_a_database_and_the_balancer_share_a_host(estate: Estate) -> None:
    """The hook holds the lock of its host while it waits for the answer."""
    text = estate.there.read_text()
    estate.there.write_text(f"{text}EFM_LB_BALANCERS__PGB1__HOST_SSH={estate.sshd.destination}\nEFM_LB_DEADLINE=30\n")
    argv = [*EFM_LB, "attach", estate.cluster.nodes[2].name, "s", f"--env-file={estate.there}"]
    began = time.monotonic()
    done = subprocess.run(argv, env={"PATH": estate.sshd.path}, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    assert time.monotonic() - began < 10


def test_calls_about_one_balancer_come_one_after_the_other(estate: Estate) -> None:
    held = lock.acquire(str(estate.state("there") / "efm.pgb1.apply.lock"), 0)
    began = time.monotonic()
    done = attach_standby(estate, EFM_LB_DEADLINE=6)
    os.close(held)
    assert done.exit_code == 0, "better two at once than none"
    assert "another call holds" in line_of(done).partition("; on its host: ")[2]
    assert time.monotonic() - began > 2


def test_a_hook_that_is_terminated_does_not_cut_the_change_on_the_other_host(estate: Estate) -> None:
    new = fail_over(estate)
    env_file = estate.hook()("config", "show").argv[-1]
    held = lock.acquire(str(estate.state("there") / "efm.pgb1.apply.lock"), 0)
    hook = subprocess.Popen(
        [*EFM_LB, "attach", new, "p", env_file],
        env={"PATH": estate.sshd.path},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert wait_until((estate.state("there") / "efm.journal").exists, timeout=20), "the request has arrived"
        os.killpg(hook.pid, signal.SIGTERM)
        said, _ = hook.communicate(timeout=10)
    finally:
        os.close(held)
    assert hook.returncode == 75
    assert b"terminated" in said
    assert wait_until(lambda: f"{WRITE} = host={new} " in estate.pooler.entries.read_text(), timeout=10)
