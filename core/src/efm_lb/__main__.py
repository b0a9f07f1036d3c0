"""The command ``efm-lb``: a hook run goes straight to the hot path, everything else to typer."""

from __future__ import annotations

import gc
import os
import sys

from efm_lb import signals
from efm_lb.calls import HOOKS


def main() -> None:
    """Run the command line in ``sys.argv`` and end the process with its exit code."""
    argv = sys.argv[1:]
    if argv and argv[0] in HOOKS and "--help" not in argv and "-h" not in argv:
        signals.raise_terminated()
        gc.disable()  # looking for garbage is a tenth of the start-up's work, and the process ends in a moment
        from efm_lb.hook import main as hook

        # A hung adapter's thread must not keep the process alive, nor anything be torn down at leisure.
        os._exit(hook(argv))
    from efm_lb.commands.app import app

    app()


if __name__ == "__main__":
    main()
