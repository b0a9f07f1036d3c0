"""Runs efm-lb on a host whose clock is wrong: ``python -I clock.py FILE WORDS...``.

FILE holds the seconds by which the clock is ahead. It is read whenever the time is asked for, so the clock can jump in
the middle of a run, and a process that efm-lb starts itself, by the same command line, has the same clock. Only the
time of day jumps: the kernel's monotonic clock never does.
"""

from __future__ import annotations

import sys
import time

_now, _now_ns = time.time, time.time_ns
_FILE = sys.argv[1]


def _ahead() -> float:
    with open(_FILE) as file:
        return float(file.read() or 0)


def main() -> None:
    time.time = lambda: _now() + _ahead()
    time.time_ns = lambda: _now_ns() + int(_ahead() * 1_000_000_000)
    del sys.argv[1]
    from efm_lb.__main__ import main

    main()


if __name__ == "__main__":
    main()
