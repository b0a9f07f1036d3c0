"""A worker's pid may be another process' on this host, as that of a HAProxy in a container."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from efm_lb_haproxy.reloads import is_reloading, master_of, replaced


def test_processes_of_another_program_are_no_workers():
    first = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)", "-sf", "-S", "/x"])
    time.sleep(0.05)
    second = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    try:
        for pid in (first.pid, second.pid):
            with open(f"/proc/{pid}/comm") as name, open(f"/proc/{os.getpid()}/comm") as own:
                assert name.read() == own.read(), "they look like workers of this process"
            assert master_of(pid) == (0, [])
            assert replaced(pid) == ()
            assert not is_reloading(pid)
    finally:
        for process in (first, second):
            process.kill()
            process.wait()


def test_a_process_that_is_not_there():
    assert replaced(2**22 + 1) == ()
    assert master_of(1) == (0, [])
