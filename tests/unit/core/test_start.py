"""The first moments of a hook run, before there is a report: signals, and standard streams that the caller closed."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from itertools import count
from pathlib import Path

import pytest

# What the console script does, with SIGINT sent by the n-th import after our own first one.
SIGNALLED = """
import os, signal, sys
seen, nth = [], int(sys.argv.pop(1))

def look(event, arguments):
    if event == "import" and (seen or arguments[0].startswith("efm_lb")):
        seen.append(arguments[0])
        if len(seen) == nth + 1:
            os.kill(os.getpid(), signal.SIGINT)

sys.addaudithook(look)
from {module} import {attribute} as main
main()
"""


@pytest.mark.parametrize(
    ("words", "code", "over"),
    [
        (("attach", "db1", "p"), 75, 78),
        # EFM takes anything else for a failed database.
        (("reconcile", "--custom-monitor"), 0, 0),
    ],
    ids=["attach", "monitor"],
)
def test_a_signal_at_any_import_ends_it_with_a_line_and_no_traceback(
    words: tuple[str, ...], code: int, over: int
) -> None:
    (command,) = entry_points(group="console_scripts", name="efm-lb")
    script = SIGNALLED.format(module=command.module, attribute=command.attr)
    for nth in count(1):
        argv = [sys.executable, "-I", "-c", script, str(nth), *words, "--env-file=/nonexistent"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
        assert done.stderr == "", nth
        if "terminated by a signal before it" not in done.stdout:
            break
        assert done.returncode == code, nth
        assert done.stdout.splitlines()[0].startswith("efm-lb"), nth
        assert len(done.stdout.splitlines()) == 1, nth
    assert done.returncode == over, "no signal was sent: all imports were over"
    assert nth > 20


# The same, but from the n-th import on no file can be opened.
STARVED = """
import resource, sys
seen, nth = [], int(sys.argv.pop(1))

def look(event, arguments):
    if event == "import" and (seen or arguments[0].startswith("efm_lb")):
        seen.append(arguments[0])
        if len(seen) == nth + 1:
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

sys.addaudithook(look)
from {module} import {attribute} as main
main()
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("attach", "db1", "p"), 75),
        (("apply",), 75),
        (("reconcile",), 75),
        # EFM takes anything else for a failed database.
        (("reconcile", "--custom-monitor"), 0),
        (("status",), 75),
    ],
    ids=["attach", "apply", "reconcile", "monitor", "status"],
)
def test_no_file_descriptor_left_at_any_import_is_a_line_and_no_traceback(
    tmp_path: Path, words: tuple[str, ...], code: int
) -> None:
    (command,) = entry_points(group="console_scripts", name="efm-lb")
    script = STARVED.format(module=command.module, attribute=command.attr)
    env_file = tmp_path / "efm.env"
    env_file.write_text(
        "EFM_LB_NODES=127.0.0.1:1\nEFM_LB_PROBE__USER=efm\nEFM_LB_PROBE__DBNAME=postgres\n"
        f"EFM_LB_STATE_DIR={tmp_path}\nEFM_LB_BALANCERS__EDGE__ADAPTER=haproxy\n"
        "EFM_LB_BALANCERS__EDGE__SOCKET=/nonexistent\nEFM_LB_BALANCERS__EDGE__WRITE=w\n"
    )
    env_file.chmod(0o600)
    for nth in (*range(1, 16), 20, 40, 80, 160, 212, 320):
        argv = [sys.executable, "-I", "-c", script, str(nth), *words, f"--env-file={env_file}"]
        done = subprocess.run(argv, input="", capture_output=True, text=True, check=False, timeout=60)
        assert "Traceback" not in done.stdout + done.stderr, (nth, done)
        assert "a bug in efm-lb" not in done.stdout, (nth, done)
        if "Too many open files" in done.stdout:
            assert done.returncode == code, (nth, done)
            assert len(done.stdout.splitlines()) <= 3, (nth, done)


# What the standard streams lead to while a hook runs, as its exit code: a bit for each that is open.
OPEN = """
import os
import efm_lb.hook
from efm_lb.__main__ import main

def hook(argv, begun):
    return sum(1 << number for number in range(3) if os.path.exists(f"/proc/self/fd/{number}"))

efm_lb.hook.main = hook
main()
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_the_number_of_a_standard_stream_that_was_closed(closed: str) -> None:
    """What is printed would go there: a database, a load balancer's console."""
    argv = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", OPEN, "attach", "db1"]
    assert subprocess.run(argv, capture_output=True, check=False, timeout=60).returncode == 0b111


# What the console script does, with the system's log on standard error.
LOGGED = """
import sys, syslog
syslog.syslog = lambda priority, line: print(line, file=sys.stderr)
from {module} import {attribute} as main
main()
"""


@pytest.mark.parametrize(
    "words",
    [
        ("reconcile", "--custom-monitor", "--wacth"),
        ("reconcile", "--custom-monitor=1"),
        ("reconcile", "--cluster", "--custom-monitor"),
        ("--cluster", "efm", "reconcile", "--custom-monitor"),
        ("--custom-monitor=1", "reconcile"),
        ("--custom-monitor",),
        ("reconcil", "--custom-monitor"),
        ("status", "--custom-monitor", "--json"),
    ],
    ids=" ".join,
)
def test_whatever_is_wrong_with_the_line_of_the_monitor_does_not_make_efm_promote(words: tuple[str, ...]) -> None:
    (command,) = entry_points(group="console_scripts", name="efm-lb")
    script = LOGGED.format(module=command.module, attribute=command.attr)
    done = subprocess.run([sys.executable, "-I", "-c", script, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done
    assert "Usage" not in done.stdout
    (told,) = done.stderr.splitlines()
    assert told.startswith("efm-lb reconcile: ")
    if "--json" not in words:
        assert done.stdout == f"{told}\n"


def test_the_help_about_the_monitor_is_no_failure() -> None:
    (command,) = entry_points(group="console_scripts", name="efm-lb")
    script = LOGGED.format(module=command.module, attribute=command.attr)
    argv = [sys.executable, "-I", "-c", script, "reconcile", "--custom-monitor", "--help"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage" in done.stdout


# A module that cannot be imported, for whatever reason: cut off by a power loss, say.
BROKEN = """
import sys, syslog
syslog.syslog = lambda priority, line: print(line, file=sys.stderr)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == broken:
            raise EOFError("marshal data too short")

broken = sys.argv.pop(1)
sys.meta_path.insert(0, Finder())
from {module} import {attribute} as main
main()
"""


@pytest.mark.parametrize("module", ["efm_lb.errors", "efm_lb.reconcile.service", "efm_lb.libpq"])
@pytest.mark.parametrize(
    ("words", "is_monitor"), [(["--custom-monitor"], True), (["--custom-monitor=1"], True), ([], False)]
)
def test_a_module_that_cannot_be_read_is_a_line(words: list[str], is_monitor: bool, module: str) -> None:
    (command,) = entry_points(group="console_scripts", name="efm-lb")
    script = BROKEN.format(module=command.module, attribute=command.attr)
    argv = [sys.executable, "-I", "-c", script, module, "reconcile", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    (line,) = done.stdout.splitlines()
    assert line.startswith("efm-lb: ")
    assert "marshal data too short" in line
    assert done.stderr == (f"{line}\n" if is_monitor else "")
    assert done.returncode == 0 if is_monitor else done.returncode in (70, 75)
