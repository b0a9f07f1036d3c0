"""The first moments of a hook run, before there is a report: signals, and standard streams that the caller closed."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from itertools import count

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


def test_a_signal_at_any_import_ends_it_with_a_line_and_no_traceback() -> None:
    (command,) = entry_points(group="console_scripts", name="efm-lb")
    script = SIGNALLED.format(module=command.module, attribute=command.attr)
    for nth in count(1):
        argv = [sys.executable, "-I", "-c", script, str(nth), "attach", "db1", "p", "--env-file=/nonexistent"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
        assert done.stderr == "", nth
        if done.returncode != 75:
            break
        assert done.stdout.splitlines()[0].startswith("efm-lb"), nth
        assert "terminated by a signal before it" in done.stdout, nth
        assert len(done.stdout.splitlines()) == 1, nth
    assert done.returncode == 78, "no signal was sent: all imports were over"
    assert nth > 20


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
