"""The command ``efm-lb``: a hook run goes straight to the hot path, everything else to typer."""

from __future__ import annotations

import gc
import os
import sys

from efm_lb import signals
from efm_lb.calls import APPLY, HOOKS
from efm_lb.errors import EX_TEMPFAIL


def main() -> None:
    """Run the command line in ``sys.argv`` and end the process with its exit code."""
    argv = sys.argv[1:]
    if argv and argv[0] in HOOKS and "--help" not in argv and "-h" not in argv:
        gc.disable()  # the process ends in a moment: looking for garbage would only cost time
        try:
            signals.raise_terminated()
            from efm_lb.hook import main as hook
        except signals.Terminated:
            os.write(1, b"efm-lb: terminated by a signal before it had begun\n")
            os._exit(EX_TEMPFAIL)
        # A hung adapter's thread must not keep the process alive, nor anything be torn down at leisure.
        os._exit(hook(argv))
    if argv and argv[0] == APPLY and "--help" not in argv and "-h" not in argv:
        gc.disable()
        signals.raise_terminated()
        from efm_lb.remote.apply import main as apply

        os._exit(apply(argv[1:]))
    from efm_lb.commands.app import run

    run()


if __name__ == "__main__":
    main()
