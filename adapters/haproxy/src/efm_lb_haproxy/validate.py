"""``haproxy -c`` on files that are not in their place yet, within a bounded time.

By posix_spawn: importing subprocess costs a quarter of a whole hook run.
"""

from __future__ import annotations

import contextlib
import os
from _signal import SIGKILL  # type: ignore[import-not-found]
from _thread import get_ident
from collections.abc import Mapping
from select import select
from time import monotonic

from efm_lb import PermanentError, TemporaryError
from efm_lb_haproxy.accepted import forms, is_accepted, remember
from efm_lb_haproxy.runtime import Runtime

__all__ = ["NONE", "learn", "locate", "validate"]

NONE = "none"
_DIRECTORIES = ("/usr/sbin", "/usr/local/sbin", "/opt/haproxy/sbin")
_LONGEST = 5.0
"""Seconds; measured with 2.6: 0.09 for a small file."""
_LEARNING = 1.0
_MAX_OUTPUT = 65536
_QUICK = os.path.join(os.path.dirname(__file__), "quick.cfg")
"""Read before the others; a haproxy that does not understand it is asked again without."""


def locate(program: str) -> str:
    """The program to validate with, empty when there is none on this host.

    :param program: the setting PROGRAM; empty to look for one
    """
    if program:
        return "" if program == NONE else program
    for directory in (*os.environ.get("PATH", os.defpath).split(":"), *_DIRECTORIES):
        path = os.path.join(directory, "haproxy")
        if directory and os.access(path, os.X_OK):
            return path
    return ""


def validate(
    program: str, runtime: Runtime | None, files: Mapping[str, bytes], contents: Mapping[str, bytes], deadline: float
) -> str:
    """Have haproxy read the configuration with ``contents`` in the place of some files.

    The new contents lie next to the files that they are for, so that relative paths lead to the same places. The
    environment is that of the running HAProxy, if it tells: its files may use variables.

    :param runtime: None when HAProxy does not answer
    :param files: the content of all, in order
    :param contents: of those that change, as it shall be; where none does, haproxy is asked in any case
    :return: a note for the outcome: empty, or that nothing was validated
    :raises TemporaryError: it refused, took too long, or the new contents could not be laid down
    :raises PermanentError: PROGRAM cannot be started
    """
    path = locate(program)
    if not path:
        return "" if program == NONE else " (not validated: there is no haproxy program on this host)"
    if contents and is_accepted(path, {**files, **contents}):
        return ""
    refusal = _refusal(path, files, contents, _environment(runtime, deadline), deadline)
    if refusal:
        raise TemporaryError(f"haproxy -c refuses the configuration, so nothing was written: {refusal}")
    return ""


def learn(program: str, runtime: Runtime | None, files: Mapping[str, bytes], deadline: float) -> None:
    """Have haproxy read the `forms` of these files, so that `validate` need not ask it when somebody waits.

    For a second at most, and half of the time that there is. What is wrong is for `validate` to find. Parameters as
    there.
    """
    path = locate(program)
    if not path or is_accepted(path, files) or not (wanted := forms(files)):
        return
    now = monotonic()
    limit = min(now + _LEARNING, (now + deadline) / 2)
    with contextlib.suppress(TemporaryError, PermanentError, OSError):
        environment = _environment(runtime, limit)
        if not any(_refusal(path, files, contents, environment, limit) for contents in wanted):
            remember(path, files)


def _refusal(
    program: str,
    files: Mapping[str, bytes],
    contents: Mapping[str, bytes],
    environment: Mapping[str, str],
    deadline: float,
) -> str:
    """haproxy's first complaint, empty when it accepts; raises as `validate`."""
    candidates: dict[str, str] = {}
    try:
        for original, content in contents.items():
            try:
                candidates[original] = _lay(original, content)
            except OSError as error:
                raise TemporaryError(
                    f"cannot write next to {original} to validate it: {error.strerror} (as uid {os.geteuid()})"
                ) from None
        names = [word for original in files for word in ("-f", candidates.get(original, original))]
        if not _run([program, "-c", "-f", _QUICK, *names], environment, deadline)[0]:
            return ""
        code, output = _run([program, "-c", *names], environment, deadline)
        for original, candidate in candidates.items():
            output = output.replace(candidate, original)
        return _first(output, code) if code else ""
    finally:
        for candidate in candidates.values():
            with contextlib.suppress(OSError):
                os.unlink(candidate)


def _lay(original: str, content: bytes) -> str:
    directory, name = os.path.split(os.path.realpath(original))
    # The ending is that of `replace_file`, which removes what a killed process has left.
    path = os.path.join(directory, f".{name}.{os.getpid()}-{get_ident()}.check.efm-lb")
    with contextlib.suppress(FileNotFoundError):  # left by a process of the same number that was killed
        os.unlink(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        while content:
            content = content[os.write(descriptor, content) :]
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(descriptor)
    return path


def _run(argv: list[str], environment: Mapping[str, str], deadline: float) -> tuple[int, str]:
    """The exit code and the error output of a program."""
    limit = min(deadline, monotonic() + _LONGEST)
    reader, writer = os.pipe()
    try:
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            actions = [(os.POSIX_SPAWN_DUP2, nothing, 0), (os.POSIX_SPAWN_DUP2, nothing, 1)]
            actions.append((os.POSIX_SPAWN_DUP2, writer, 2))
            try:
                child = os.posix_spawn(argv[0], argv, environment, file_actions=actions)
            except OSError as error:
                raise PermanentError(f"PROGRAM: cannot start {argv[0]}: {error.strerror}") from None
        finally:
            os.close(nothing)
            os.close(writer)
        output = b""
        while (left := limit - monotonic()) > 0:
            if select([reader], [], [], left)[0]:
                piece = os.read(reader, _MAX_OUTPUT)
                if not piece:
                    break
                output = (output + piece)[-_MAX_OUTPUT:]
        else:
            os.kill(child, SIGKILL)
            os.waitpid(child, 0)
            raise TemporaryError(f"{argv[0]} -c did not end in time, so nothing was written")
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), output.decode("utf-8", "replace")
    finally:
        os.close(reader)


def _environment(runtime: Runtime | None, deadline: float) -> dict[str, str]:
    """The environment of the running HAProxy, else our own."""
    try:
        told = runtime.ask("show env", deadline) if runtime else ""
    except (TemporaryError, PermanentError):
        told = ""
    found = dict(line.split("=", 1) for line in told.splitlines() if "=" in line)
    return found or dict(os.environ)


def _first(output: str, code: int) -> str:
    """The first complaint, without what haproxy puts before it."""
    for line in output.splitlines():
        if line.startswith("[ALERT]"):
            return line.partition(" : ")[2].strip()[:300]
    return f"exit code {code}"
