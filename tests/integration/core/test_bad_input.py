"""Bad input ends in one clear line and the right exit code, and pgpool is as it was."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from efm_lb.rehearsal.cluster import Cluster
from efm_lb.rehearsal.hooks import BARE_ENVIRONMENT, EFM_LB, Hook, hook_environment
from efm_lb.rehearsal.pgpool import Pgpool

NOBODY = 65534
MakeHook = Callable[..., Hook]


@pytest.fixture
def untouched(pgpool: Pgpool) -> Iterator[None]:
    """Whatever the test did, pgpool saw no command and cut no session."""
    before = [{key: row[key] for key in ("hostname", "status", "role")} for row in pgpool.show_pool_nodes()]
    log = len(pgpool.log.read_text(errors="replace"))
    yield
    after = [{key: row[key] for key in ("hostname", "status", "role")} for row in pgpool.show_pool_nodes()]
    assert after == before
    assert "has received failover request" not in pgpool.log.read_text(errors="replace")[log:]


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("attach", "%h", "%t"), 2, "EFM did not replace %h"),
        (("attach", "", "p"), 2, "no HOST given"),
        (("attach", "127.0.0.11", "p", "more"), 2, "too many words"),
        (("attach", "127.0.0.1", "p"), 69, "127.0.0.1 is not in EFM_LB_NODES"),
        (("detach", "127.0.0.1", "s"), 69, "127.0.0.1 is not in EFM_LB_NODES"),
        (("promote", "db-1_x.example.com"), 69, "db-1_x.example.com is not in EFM_LB_NODES"),
        (("detach", "2001:db8::11", "s"), 69, "2001:db8::11 is not in EFM_LB_NODES"),
    ],
)
def test_wrong_calls(hook: Hook, words: tuple[str, ...], code: int, message: str) -> None:
    run = hook(*words)
    assert run.exit_code == code, run.output
    assert message in run.output
    assert "Traceback" not in run.output


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"EFM_LB_CONECT_TIMEOUT": "1"}, "EFM_LB_CONNECT_TIMEOUT"),
        ({"EFM_LB_DEADLINE": "soon"}, "EFM_LB_DEADLINE"),
        ({"EFM_LB_NODES": "a:b:c"}, "EFM_LB_NODES"),
        ({"EFM_LB_BALANCERS__POOL1__ADAPTER": "nginx"}, "pgpool"),
        ({"EFM_LB_BALANCERS__POOL1__PORT": "many"}, "EFM_LB_BALANCERS__POOL1__PORT"),
        ({"EFM_LB_BALANCERS__POOL1__PASSWORD": "geheim"}, "EFM_LB_BALANCERS__POOL1__PASSWORD"),
        ({"EFM_LB_BALANCERS__POOL1__HOST": None}, "EFM_LB_BALANCERS__POOL1__HOST"),
    ],
)
def test_wrong_settings(make_hook: MakeHook, pgpool: Pgpool, extra: dict[str, str | None], message: str) -> None:
    run = make_hook(pgpool, extra=extra)("attach", "127.0.0.11", "p")
    assert run.exit_code == 78, run.output
    assert message in run.output
    assert "geheim" not in run.output
    assert "Traceback" not in run.output


def run_with(env_file: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*EFM_LB, *words, f"--env-file={env_file}"],
        env=dict(BARE_ENVIRONMENT),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.usefixtures("untouched")
def test_env_files(cluster: Cluster, pgpool: Pgpool, tmp_path: Path) -> None:
    env_file = hook_environment(cluster, [pgpool], tmp_path.name)
    missing = run_with(tmp_path / "missing.env", "attach", "127.0.0.11", "p")
    assert (missing.returncode, "missing.env" in missing.stdout) == (78, True)
    env_file.chmod(0o666)
    open_to_all = run_with(env_file, "attach", "127.0.0.11", "p")
    assert (open_to_all.returncode, "writable" in open_to_all.stdout) == (78, True), open_to_all.stdout
    env_file.chmod(0o600)
    env_file.write_text(env_file.read_text() + "this is no assignment\n")
    broken = run_with(env_file, "attach", "127.0.0.11", "p")
    line = len(env_file.read_text().splitlines())
    assert (broken.returncode, f"{env_file}:{line}" in broken.stdout) == (78, True), broken.stdout
    env_file.write_text("EFM_LB_BALANCERS__POOL1__ADAPTER=pgpool\nEFM_LB_BALANCERS__pool1__ADAPTER=pgpool\n")
    twice = run_with(env_file, "attach", "127.0.0.11", "p")
    assert twice.returncode == 78
    assert "POOL1" in twice.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file that another user may not read")
def test_an_env_file_that_may_not_be_read(cluster: Cluster, pgpool: Pgpool, tmp_path: Path) -> None:
    env_file = hook_environment(cluster, [pgpool], tmp_path.name)
    env_file.chmod(0o600)
    # The interpreter itself may be where only root can read it, so the user changes after the imports.
    script = (
        "import os, sys, efm_lb.hook, efm_lb.__main__;"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY}); efm_lb.__main__.main()"
    )
    argv = [sys.executable, "-I", "-c", script, "attach", "127.0.0.11", "p", f"--env-file={env_file}"]
    run = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False, cwd="/")
    assert run.returncode == 77, run.stdout + run.stderr
    assert str(env_file) in run.stdout


@pytest.mark.usefixtures("untouched")
def test_a_node_that_pgpool_does_not_know(make_hook: MakeHook, cluster: Cluster, pgpool: Pgpool) -> None:
    standby = cluster.nodes[2]
    nodes = ",".join(node.address for node in cluster.nodes[:2])
    # The same server at an address that pgpool.conf does not name: alike is not the same.
    hook = make_hook(pgpool, extra={"EFM_LB_NODES": f"{nodes},db3=localhost.localdomain=127.0.0.3:{standby.port}"})
    run = hook("detach", "db3", "s")
    assert run.exit_code == 69, run.output
    assert "127.0.0.3" in run.output
    assert cluster.nodes[2].address in run.output, "the backends that it has are listed"


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("spoil", ["mode", "password", "missing", "line"])
def test_password_files(make_hook: MakeHook, cluster: Cluster, pgpool: Pgpool, tmp_path: Path, spoil: str) -> None:
    passfile = tmp_path / "pcppass"
    text = Path(pgpool.pcp_passfile).read_text()
    passfile.write_text({"password": "*:*:*:mistaken\n", "line": "elsewhere:1:x:y\n"}.get(spoil, text))
    passfile.chmod(0o644 if spoil == "mode" else 0o600)
    path = tmp_path / "none" if spoil == "missing" else passfile
    hook = make_hook(pgpool, extra={"EFM_LB_BALANCERS__POOL1__PASSFILE": path})
    run = hook("detach", cluster.nodes[2].name, "s")
    assert run.exit_code == 69, run.output
    assert "mistaken" not in run.output
    expected = {"mode": "0600", "password": "authentication failed", "missing": str(path), "line": str(path)}[spoil]
    assert expected in run.output


@pytest.mark.usefixtures("untouched")
def test_a_pcp_port_that_speaks_another_protocol(make_hook: MakeHook, cluster: Cluster, pgpool: Pgpool) -> None:
    hook = make_hook(pgpool, extra={"EFM_LB_BALANCERS__POOL1__PORT": pgpool.port})
    run = hook("detach", cluster.nodes[2].name, "s")
    assert run.exit_code == 75, run.output
    assert f":{pgpool.port} speaks PostgreSQL's protocol and not PCP" in run.output
    assert run.seconds < 2, "it is not asked again"


def test_a_state_directory_that_cannot_be_written(make_hook: MakeHook, cluster: Cluster, pgpool: Pgpool) -> None:
    hook = make_hook(pgpool, extra={"EFM_LB_STATE_DIR": "/proc/efm-lb"})
    run = hook("detach", cluster.nodes[2].name, "s")
    assert run.exit_code == 0, run.output
    assert "not journalled: /proc/efm-lb" in run.output
    assert cluster.nodes[2].host not in [row["hostname"] for row in pgpool.show_pool_nodes() if row["status"] == "up"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_full_disk(make_hook: MakeHook, cluster: Cluster, pgpool: Pgpool, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(small)], check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        (small / "fill").write_bytes(b"x" * 8192)
        with pytest.raises(OSError, match="space"):
            (small / "more").write_bytes(b"x" * 65536)
        run = make_hook(pgpool, extra={"EFM_LB_STATE_DIR": small})("detach", cluster.nodes[2].name, "s")
        assert run.exit_code == 0, run.output
        assert "not journalled" in run.output
        assert "No space left on device" in run.output
        litter = [path.name for path in small.iterdir() if path.suffix.removeprefix(".").isdigit()]
        assert not litter, "nothing is left half written"
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle(cluster: Cluster, pgpool: Pgpool, tmp_path: Path, number: signal.Signals) -> None:
    """A call that waits for a promotion which does not come."""
    cluster.nodes[0].freeze()
    try:
        env_file = hook_environment(cluster, [pgpool], tmp_path.name)
        argv = [*EFM_LB, "attach", cluster.nodes[1].name, "p", f"--env-file={env_file}"]
        with subprocess.Popen(argv, env=dict(BARE_ENVIRONMENT), cwd="/", stdout=subprocess.PIPE, text=True) as process:
            time.sleep(2.5)
            process.send_signal(number)
            output, _ = process.communicate(timeout=10)
    finally:
        cluster.nodes[0].thaw()
    assert process.returncode == 75
    assert "terminated by a signal" in output
    assert "Traceback" not in output


def test_two_pgpools_of_which_one_accepts_and_never_answers(
    make_hook: MakeHook, cluster: Cluster, pgpool: Pgpool, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        passfile = tmp_path / "pcppass"
        passfile.write_text(f"*:*:{pgpool.pcp_user}:x\n")
        passfile.chmod(0o600)
        hook = make_hook(
            pgpool,
            extra={
                "EFM_LB_BALANCERS__DEAD__ADAPTER": "pgpool",
                "EFM_LB_BALANCERS__DEAD__HOST": "127.0.0.1",
                "EFM_LB_BALANCERS__DEAD__PORT": silent.getsockname()[1],
                "EFM_LB_BALANCERS__DEAD__USER": pgpool.pcp_user,
                "EFM_LB_BALANCERS__DEAD__PASSFILE": passfile,
                "EFM_LB_CONNECT_TIMEOUT": 1,
            },
        )
        run = hook("detach", cluster.nodes[2].name, "s")
    assert run.exit_code == 75, run.output
    assert run.seconds < 1 + 1
    dead, live = run.output.splitlines()[1:3]
    assert dead.startswith("dead: failed temporarily")
    assert live.startswith("pool1: changed")
