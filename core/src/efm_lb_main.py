"""Where the command ``efm-lb`` begins: first of all, a signal is to end it with a line instead of a traceback.

It is outside of the package, whose import takes longer than all that Python does before it.
"""

# Both are built into Python and loaded already.
from _signal import SIGINT, SIGTERM, signal  # type: ignore[import-not-found]
from posix import _exit, write
from sys import argv

__all__ = ["as_usual", "main"]


def _end(number: int, frame: object) -> None:
    try:
        write(1, b"efm-lb: terminated by a signal before it had begun\n")
    finally:
        _exit(_code())


def _code() -> int:
    """EX_TEMPFAIL, as for every hook run that is terminated; but EFM's monitor must not promote anybody for that."""
    return 0 if _is_monitor() else 75


def _is_monitor() -> bool:
    return any(word.partition("=")[0] == "--custom-monitor" for word in argv)


_usual = [(number, signal(number, _end)) for number in (SIGTERM, SIGINT)]


def as_usual() -> None:
    """From now on they do what they do to other Python programs."""
    for number, handler in _usual:
        signal(number, handler)


def main() -> None:
    """Run the command line in ``sys.argv`` and end the process with its exit code."""
    try:
        from efm_lb.__main__ import main
    except Exception as error:  # too few file descriptors, say
        line = f"efm-lb: cannot begin: {error}"
        try:
            write(1, f"{line}\n".encode("utf-8", "backslashreplace"))
            if _is_monitor():
                from efm_lb.system_log import complain

                complain([line])
        finally:
            _exit(_code())
    main()
