"""The command ``efm-lb``: a hook run goes straight to the hot path, everything else to typer."""

from __future__ import annotations

import gc
import os
import sys

import efm_lb_main
from efm_lb.command_line import APPLY, HOOKS, RECONCILE, is_monitor
from efm_lb.errors import EX_OK, printable, unforeseen

__all__ = ["main"]

SWITCH = 0.0005
"""Seconds between thread switches: a tenth of the default, so that an import keeps no answer waiting."""


def main() -> None:
    """Run the command line in ``sys.argv`` and end the process with its exit code."""
    try:
        _run()
    except Exception as error:  # a module of ours cannot be read, say
        code, why = unforeseen(error)
        line = f"efm-lb: {printable(why)}"
        try:
            os.write(1, f"{line}\n".encode("utf-8", "backslashreplace"))
            if is_monitor(sys.argv):
                from efm_lb.system_log import complain

                complain([line])
        finally:
            os._exit(EX_OK if is_monitor(sys.argv) else code)


def _run() -> None:
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if stream is None:  # closed by the caller: no file and no connection may get its number, and what is printed
            os.open(os.devnull, os.O_RDWR)
    argv = sys.argv[1:]
    if argv and argv[0] in HOOKS and "--help" not in argv and "-h" not in argv:
        gc.disable()  # the process ends in a moment: looking for garbage would only cost time
        from efm_lb.head_start import begin

        sys.setswitchinterval(SWITCH)
        begun = begin(argv, os.environ)
        from efm_lb.hook import main as hook

        # A hung adapter's thread must not keep the process alive, nor anything be torn down at leisure.
        os._exit(hook(argv, begun))
    if argv and argv[0] == APPLY and "--help" not in argv and "-h" not in argv:
        gc.disable()
        from efm_lb.remote.apply import main as apply

        os._exit(apply(argv[1:]))
    if argv and argv[0] == RECONCILE and "--help" not in argv and "-h" not in argv:
        from efm_lb.reconcile.service import main as reconcile

        os._exit(reconcile(argv[1:]))
    if is_monitor(argv) and "--help" not in argv and "-h" not in argv:
        from efm_lb.reconcile.service import refuse

        os._exit(refuse(argv))
    from efm_lb.commands.app import run

    efm_lb_main.as_usual()
    run()


if __name__ == "__main__":
    main()
