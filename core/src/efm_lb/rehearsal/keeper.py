"""Watches over a stage from a process of its own: when the rehearsal dies, its servers die with it.

Reads its standard input: ``+PID`` a process was started, ``-PID`` it has ended,
``keep`` leave everything alone. At the end of the input without ``keep`` the
rehearsal was killed, so the remaining processes are ended and the directory is removed.
"""

from __future__ import annotations

import shutil
import signal
import sys

from efm_lb.rehearsal.processes import end_hooks, end_tree, started_at


def main() -> None:
    directory = sys.argv[1]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    running: dict[int, str | None] = {}
    for line in sys.stdin:
        word = line.strip()
        if word == "keep":
            return
        pid = int(word[1:])
        if word.startswith("+"):
            running[pid] = started_at(pid)
        else:
            running.pop(pid, None)
    for pid, start in running.items():
        # A pid may have been given to somebody else since.
        if start and started_at(pid) == start:
            end_tree(pid)
    end_hooks(directory)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
