"""Whatever is wrong with a load balancer's file: it stays whole, the reason is told, and the other one is right.

A whole `efm-lb` run each, with a real HAProxy and a real PgBouncer behind it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from efm_lb.rehearsal.cluster import Cluster
from efm_lb.rehearsal.haproxy import READ, Haproxy
from efm_lb.rehearsal.hooks import BARE_ENVIRONMENT, Hook
from efm_lb.rehearsal.pgbouncer import READ as READ_ENTRY
from efm_lb.rehearsal.pgbouncer import Pgbouncer
from integration.real import told

MakePair = Callable[..., Hook]


@pytest.fixture
def hook(pair: MakePair, haproxy: Haproxy, pgbouncer: Pgbouncer) -> Hook:
    return pair(haproxy, pgbouncer)


def files_in(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file() and not path.is_symlink()}


def number_of(text: str, part: str) -> int:
    """The number of the last line that holds ``part``."""
    return max(number for number, line in enumerate(text.splitlines(), start=1) if part in line)


# haproxy.cfg. Clients do not wait for the file, so the running HAProxy is right in each case.


def _misspelled(text: str) -> str:
    return text.replace("mode tcp", "mdoe tcp")


def _twice(text: str) -> str:
    """The last server line of the proxy for reads a second time."""
    last = text.rstrip("\n").splitlines()[-1]
    return text + f"{last}\n"


@pytest.mark.parametrize(
    ("spoil", "part", "message"),
    [
        (_misspelled, "mdoe", r"haproxy -c refuses .*{path}:{line}\] : unknown keyword 'mdoe'"),
        (_twice, "server n3", r"haproxy -c refuses .*{path}:{line}\] : .*another server named 'n3'"),
        (lambda text: text + f"listen {READ}\n", f"listen {READ}", r"haproxy -c refuses .*{path}:{line}\]"),
        (lambda text: text + 'log "half\n', 'log "half', r"haproxy -c refuses .*{path}:{line}\]"),
        (lambda text: text.rstrip("\n"), "server", "{path} has no newline at its end, so it may be cut off"),
    ],
    ids=["syntax", "server twice", "proxy twice", "quote", "cut off"],
)
def test_a_haproxy_cfg_that_haproxy_refuses(
    hook: Hook,
    cluster: Cluster,
    haproxy: Haproxy,
    pgbouncer: Pgbouncer,
    spoil: Callable[[str], str],
    part: str,
    message: str,
) -> None:
    good = haproxy.config.read_text()
    bad = spoil(good)
    haproxy.write_config(bad)
    before = files_in(haproxy.directory)
    node = cluster.nodes[2]
    run = hook("detach", node.name, "s")
    assert run.exit_code == 75, run.output
    said = told(run.output, "edge1")
    expected = message.format(path=re.escape(str(haproxy.config)), line=number_of(bad, part))
    assert re.search(expected, said), said
    assert "not kept, so that a reload undoes it" in said
    assert files_in(haproxy.directory) == before
    assert node.host not in haproxy.ready(READ), "the running one is right"
    assert told(run.output, "pgb1").startswith("changed")
    assert node.host not in pgbouncer.places()[READ_ENTRY]

    haproxy.write_config(good)
    again = hook("detach", node.name, "s")
    assert again.exit_code == 0, again.output
    assert f"{haproxy.config}:{number_of(good, 'server n3')} written" in told(again.output, "edge1")
    assert told(again.output, "pgb1").startswith("unchanged")


def test_a_server_that_is_missing_in_haproxy_cfg(
    hook: Hook, cluster: Cluster, haproxy: Haproxy, pgbouncer: Pgbouncer
) -> None:
    node = cluster.nodes[2]
    assert hook("detach", node.name, "s").exit_code == 0
    lines = haproxy.config.read_text().splitlines(keepends=True)
    haproxy.write_config("".join(line for line in lines if "server n3" not in line))
    before = files_in(haproxy.directory)
    run = hook("attach", node.name, "s")
    assert run.exit_code == 69, run.output
    assert f"CONFIG has no server line for {node.address} in proxy {READ}" in told(run.output, "edge1")
    assert files_in(haproxy.directory) == before
    assert node.host in haproxy.ready(READ)
    assert told(run.output, "pgb1").startswith("changed")


def test_a_server_that_haproxy_does_not_have(
    pair: MakePair, cluster: Cluster, start_haproxy: Callable[..., Haproxy], pgbouncer: Pgbouncer
) -> None:
    haproxy = start_haproxy()
    node = cluster.nodes[2]
    lines = haproxy.config.read_text().splitlines(keepends=True)
    haproxy.write_config("".join(line for line in lines if "server n3" not in line))
    haproxy.process.stop()
    haproxy.launch()
    before = files_in(haproxy.directory)
    run = pair(haproxy, pgbouncer)("detach", node.name, "s")
    assert run.exit_code == 69, run.output
    said = told(run.output, "edge1")
    assert f"HAProxy has no server {node.address} ({node.name}); it has " in said
    assert cluster.nodes[1].address in said, "those that it has are listed"
    assert files_in(haproxy.directory) == before
    assert node.host not in pgbouncer.places()[READ_ENTRY]


def test_carriage_returns_stay(hook: Hook, cluster: Cluster, haproxy: Haproxy, pgbouncer: Pgbouncer) -> None:
    first = {path: path.read_text() for path in (haproxy.config, pgbouncer.entries)}
    for path, text in first.items():
        path.write_bytes(text.replace("\n", "\r\n").encode())
    before = {path: path.read_bytes() for path in first}
    node = cluster.nodes[2]
    assert hook("detach", node.name, "s").exit_code == 0
    assert haproxy.config.read_bytes() != before[haproxy.config]
    assert pgbouncer.entries.read_bytes() != before[pgbouncer.entries]
    for path in first:
        assert path.read_bytes().count(b"\r\n") == path.read_bytes().count(b"\n") == first[path].count("\n")
    worker = haproxy.worker() or 0
    haproxy.reload()
    haproxy.wait_reloaded(worker)
    pgbouncer.restart()
    assert node.host not in haproxy.ready(READ)
    assert node.host not in pgbouncer.places()[READ_ENTRY]
    assert hook("attach", node.name, "s").exit_code == 0
    assert {path: path.read_bytes() for path in first} == before


# PgBouncer's file. RELOAD would answer success whatever is in it, so nothing is written that is not understood.


@pytest.mark.parametrize(
    ("spoil", "line", "message"),
    [
        (
            lambda text: text.replace("dbname=postgres\n", "dbname=postgres ; why\n", 1),
            2,
            "entry app: ; why is no name",
        ),
        (lambda text: text + "this is no line\n", 4, "neither a comment nor key = value"),
        (lambda text: text + "[pgbouncer\n", 4, "a section without its closing bracket"),
        (lambda text: text + "\0\n", 4, "a byte that is no text"),
        (lambda text: text.replace("port=", "port='", 1), 2, "entry app: the quote after port= is not closed"),
        (lambda text: text.replace("port=", "port=x", 1), 2, "entry app: its port is no number"),
        (
            lambda text: text.replace("host=", "host=", 1) + text.splitlines()[1] + "\n",
            4,
            "a second entry app, after l",
        ),
        (lambda text: text.replace("host=", "host=192.0.2.1 host=", 1), 2, "entry app has host= twice: remove one"),
        (lambda text: text.replace("app_ro", "app_readonly"), 0, "there is no entry app_ro"),
        (lambda text: text.replace("[databases]", "[users]"), 0, "there is no entry app"),
        (
            lambda text: f"%include {text.splitlines()[1].split()[0]}.ini\n",
            0,
            "there is no entry app; it includes app.i",
        ),
        (lambda text: "", 0, "there is no entry app"),
    ],
)
def test_entries_that_cannot_be_understood(
    hook: Hook,
    cluster: Cluster,
    haproxy: Haproxy,
    pgbouncer: Pgbouncer,
    spoil: Callable[[str], str],
    line: int,
    message: str,
) -> None:
    good = pgbouncer.entries.read_text()
    pgbouncer.write_entries(spoil(good))
    before, places = files_in(pgbouncer.directory), pgbouncer.places()
    node = cluster.nodes[2]
    run = hook("detach", node.name, "s")
    assert run.exit_code == 69, run.output
    place = f"{pgbouncer.entries}:{line}" if line else str(pgbouncer.entries)
    assert f"{place}: {message}" in told(run.output, "pgb1")
    assert files_in(pgbouncer.directory) == before
    assert pgbouncer.places() == places
    assert told(run.output, "edge1").startswith("changed")
    assert node.host not in haproxy.ready(READ)

    pgbouncer.write_entries(good)
    again = hook("detach", node.name, "s")
    assert again.exit_code == 0, again.output
    assert node.host not in pgbouncer.places()[READ_ENTRY]


@pytest.mark.parametrize("where", ["before", "behind"])
def test_a_file_that_includes_itself(
    hook: Hook, cluster: Cluster, haproxy: Haproxy, pgbouncer: Pgbouncer, where: str
) -> None:
    """PgBouncer gives up at the tenth level, keeps what it has read until then, and answers RELOAD."""
    loop = f"%include {pgbouncer.entries}\n"
    good = pgbouncer.entries.read_text()
    bad = good + loop if where == "behind" else good.replace("[databases]\n", f"[databases]\n{loop}")
    pgbouncer.write_entries(bad)
    node, other = cluster.nodes[2], cluster.nodes[1]
    run = hook("detach", node.name, "s")
    assert run.exit_code == 69, run.output
    said = told(run.output, "pgb1")
    assert ("would not start with it: see its log" if where == "behind" else "after RELOAD") in said, said
    wanted = bad.replace(f"{other.host},{node.host}", other.host)
    assert pgbouncer.entries.read_text() == wanted, "right and whole for the day that it is loaded"
    settings = {row["key"]: row["value"] for row in pgbouncer.show("config")}
    assert settings["server_login_retry"] == "15", "nothing is left that was only for the moment"
    assert told(run.output, "edge1").startswith("changed")

    pgbouncer.write_entries(wanted.replace(loop, ""))
    again = hook("detach", node.name, "s")
    assert again.exit_code == 0, again.output
    assert node.host not in pgbouncer.places()[READ_ENTRY]


def test_an_error_in_the_file_that_includes_ours(
    hook: Hook, cluster: Cluster, start_pgbouncer: Callable[..., Pgbouncer], pair: MakePair, haproxy: Haproxy
) -> None:
    """The entries are read before it, so they are right, but a PgBouncer that is restarted does not come up."""
    pgbouncer = start_pgbouncer()
    ini = pgbouncer.directory / "pgbouncer.ini"
    ini.write_text(ini.read_text().replace("[pgbouncer]\n", "this is no line\n[pgbouncer]\n"))
    node = cluster.nodes[2]
    run = pair(haproxy, pgbouncer)("detach", node.name, "s")
    assert run.exit_code == 69, run.output
    assert "does not load its configuration to the end" in told(run.output, "pgb1")
    assert node.host not in pgbouncer.places()[READ_ENTRY]
    assert {row["key"]: row["value"] for row in pgbouncer.show("config")}["server_login_retry"] == "15"


# What both have to do with: links, directories, rights and disks


def _links_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def _is_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("spoil", "code", "message"),
    [
        (Path.unlink, 75, "cannot read {path}: No such file or directory"),
        (_links_to_itself, 75, "cannot read {path}: Too many levels of symbolic links"),
        (_is_a_pipe, 69, "{path} is no regular file"),
    ],
)
@pytest.mark.parametrize("of", ["edge1", "pgb1"])
def test_files_that_are_none(
    hook: Hook,
    cluster: Cluster,
    haproxy: Haproxy,
    pgbouncer: Pgbouncer,
    of: str,
    spoil: Callable[[Path], None],
    code: int,
    message: str,
) -> None:
    path = haproxy.config if of == "edge1" else pgbouncer.entries
    good = path.read_text()
    try:
        spoil(path)
        run = hook("detach", cluster.nodes[2].name, "s")
    finally:
        path.unlink(missing_ok=True)
        cluster.stage.write(path, good)
    assert run.exit_code == code, run.output
    assert message.format(path=path) in told(run.output, of)
    assert told(run.output, "pgb1" if of == "edge1" else "edge1").startswith("changed")


@contextmanager
def mounted(directory: Path, cluster: Cluster) -> Iterator[None]:
    """A file system of 64 KiB at ``directory``, which the servers may write."""
    argv = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=755", "none", str(directory)]
    if subprocess.run(argv, check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        cluster.stage.give(directory)
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.fixture
def small(
    cluster: Cluster, start_haproxy: Callable[..., Haproxy], start_pgbouncer: Callable[..., Pgbouncer]
) -> Iterator[tuple[Path, Haproxy, Pgbouncer]]:
    """A HAProxy and a PgBouncer that have their files in a small file system of its own."""
    if os.geteuid():
        pytest.skip("only root can mount a small file system")
    haproxy, pgbouncer = start_haproxy(), start_pgbouncer()
    directory = cluster.stage.make_directory(f"small-{haproxy.name}")
    with mounted(directory, cluster):
        cluster.stage.write(directory / "haproxy.cfg", haproxy.config.read_text())
        haproxy.process.stop()
        haproxy.config = directory / "haproxy.cfg"
        haproxy.launch()
        ini = pgbouncer.directory / "pgbouncer.ini"
        ini.write_text(ini.read_text().replace(str(pgbouncer.entries), str(directory / "databases.ini")))
        pgbouncer.entries = directory / "databases.ini"
        pgbouncer.write_entries(pgbouncer.first_entries())
        pgbouncer.restart()
        yield directory, haproxy, pgbouncer


def test_a_full_disk(small: tuple[Path, Haproxy, Pgbouncer], pair: MakePair, cluster: Cluster) -> None:
    directory, haproxy, pgbouncer = small
    hook = pair(haproxy, pgbouncer)
    node = cluster.nodes[2]
    filler = directory / "filler"
    with pytest.raises(OSError, match="space"):
        filler.write_bytes(b"x" * 100_000)
    before, places = files_in(directory), pgbouncer.places()
    run = hook("detach", node.name, "s")
    assert run.exit_code == 75, run.output
    assert f"cannot write next to {haproxy.config} to validate it: No space left on device" in told(run.output, "edge1")
    assert f"cannot replace {pgbouncer.entries}: No space left on device" in told(run.output, "pgb1")
    assert files_in(directory) == before
    assert node.host not in haproxy.ready(READ)
    assert pgbouncer.places() == places, "not told what no file says"

    unvalidated = pair(haproxy, pgbouncer, EFM_LB_BALANCERS__EDGE1__PROGRAM="none")("detach", node.name, "s")
    assert f"cannot replace {haproxy.config}: No space left on device" in told(unvalidated.output, "edge1")
    assert files_in(directory) == before

    filler.unlink()
    again = pair(haproxy, pgbouncer)("detach", node.name, "s")
    assert again.exit_code == 0, again.output
    assert sorted(files_in(directory)) == ["databases.ini", "haproxy.cfg"]
    assert node.host not in pgbouncer.places()[READ_ENTRY]


def test_a_read_only_file_system(small: tuple[Path, Haproxy, Pgbouncer], pair: MakePair, cluster: Cluster) -> None:
    directory, haproxy, pgbouncer = small
    hook = pair(haproxy, pgbouncer)
    before = files_in(directory)
    subprocess.run(["mount", "-o", "remount,ro", str(directory)], check=True)
    run = hook("detach", cluster.nodes[2].name, "s")
    assert run.exit_code == 75, run.output
    assert f"cannot write next to {haproxy.config} to validate it: Read-only file system" in told(run.output, "edge1")
    assert f"cannot replace {pgbouncer.entries}: Read-only file system; uid 0 must be" in told(run.output, "pgb1")
    assert files_in(directory) == before
    subprocess.run(["mount", "-o", "remount,rw", str(directory)], check=True)
    assert hook("detach", cluster.nodes[2].name, "s").exit_code == 0


AS_USER = """
import importlib, os, pkgutil, sys
for name in ("efm_lb", "efm_lb_haproxy", "efm_lb_pgbouncer"):
    for module in pkgutil.iter_modules(importlib.import_module(name).__path__, f"{name}."):
        if not module.ispkg and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
from efm_lb.calls import parse
from efm_lb.hook import main
from efm_lb.settings import settings_of
uid, gid = int(sys.argv.pop(1)), int(sys.argv.pop(1))
arguments = parse(sys.argv[1:])
settings_of(arguments.cluster, arguments.env_file, os.environ)
os.setgroups([]), os.setgid(gid), os.setuid(uid)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take rights from another user")
def test_directories_that_may_not_be_written(
    pair: MakePair,
    cluster: Cluster,
    start_haproxy: Callable[..., Haproxy],
    start_pgbouncer: Callable[..., Pgbouncer],
    tmp_path: Path,
) -> None:
    """The hook of an ordinary user, who may write the files and not make new ones beside them."""
    account = cluster.stage.account
    assert account
    haproxy, pgbouncer = start_haproxy(), start_pgbouncer()
    pair(haproxy, pgbouncer)
    env_file = cluster.stage.directory / f"{tmp_path.name}.env"
    env_file.chmod(0o644)
    mine = (env_file.with_suffix(".state"), pgbouncer.passfile, cluster.stage.directory / "probe.pgpass")
    for path in mine:
        cluster.stage.give(path)
    # The interpreter itself may be where only root can read it, so the user changes after the imports.
    command = [sys.executable, "-I", "-c", AS_USER, str(account.uid), str(account.gid)]
    hook = Hook(lambda words: [*command, *words, f"--env-file={env_file}"])
    node = cluster.nodes[2]
    before = files_in(haproxy.directory) | files_in(pgbouncer.directory)
    for server in (haproxy, pgbouncer):
        os.chown(server.directory, 0, 0)
        server.directory.chmod(0o755)
    try:
        run = hook("detach", node.name, "s")
    finally:
        for server in (haproxy, pgbouncer):
            cluster.stage.give(server.directory)
        for path in mine:
            os.chown(path, 0, 0)
    assert run.exit_code == 75, run.output
    uid = account.uid
    assert f"next to {haproxy.config} to validate it: Permission denied (as uid {uid})" in told(run.output, "edge1")
    assert f"{pgbouncer.entries}: Permission denied; uid {uid} must be able to write" in told(run.output, "pgb1")
    assert files_in(haproxy.directory) | files_in(pgbouncer.directory) == before


def test_files_that_somebody_else_writes_all_the_time(
    hook: Hook, cluster: Cluster, haproxy: Haproxy, pgbouncer: Pgbouncer
) -> None:
    """A lost race is told: what is there is theirs, or theirs with our change, and never a mix."""
    node = cluster.nodes[2]
    first = {path: path.read_text() for path in (haproxy.config, pgbouncer.entries)}
    script = """
import os, sys, time
number = lost = 0
while os.getppid() == int(sys.argv[1]):
    for path in sys.argv[2:]:
        with open(path) as file:
            text = file.read()
        lost += number > 0 and f"# {number}\\n" not in text
        with open(path + ".theirs", "w") as file:
            file.write("".join(line for line in text.splitlines(True) if line[0] != "#") + f"# {number + 1}\\n")
        status = os.stat(path)
        os.chown(path + ".theirs", status.st_uid, status.st_gid)
        os.chmod(path + ".theirs", status.st_mode & 0o777)
        os.rename(path + ".theirs", path)
    number += 1
    os.write(1, b"%d " % lost)
    time.sleep(0.02)
"""
    argv = [sys.executable, "-c", script, str(os.getpid()), *map(str, first)]
    codes = set()
    with subprocess.Popen(argv, env=dict(BARE_ENVIRONMENT), stdout=subprocess.PIPE) as theirs:
        try:
            for number in range(6):
                run = hook("attach" if number % 2 else "detach", node.name, "s")
                codes.add(run.exit_code)
                if run.exit_code:
                    assert "was changed by somebody else meanwhile" in run.output
                for path, text in first.items():
                    mine = [line for line in path.read_text().splitlines() if not line.startswith("#")]
                    assert len(mine) == len(text.splitlines())
                    assert [line.split()[:1] for line in mine] == [line.split()[:1] for line in text.splitlines()]
        finally:
            theirs.kill()
            assert theirs.stdout
            lost = int(theirs.stdout.read().split()[-1])
    # Between the last look at the file and its replacement are some microseconds, in which a busy machine may stop us.
    assert lost <= 1, "what they wrote stays"
    assert codes <= {0, 75}
    left = [path.name for path in (*haproxy.directory.iterdir(), *pgbouncer.directory.iterdir())]
    assert not [name for name in left if name.endswith((".efm-lb", ".check"))]
    run = hook("detach", node.name, "s")
    assert run.exit_code == 0, run.output
