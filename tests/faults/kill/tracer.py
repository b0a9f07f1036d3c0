"""Runs a program under ptrace, notes each step that somebody else could see, and kills the program at one of them, or
makes some of them slow.

A step is a system call that changes a file, takes a lock, sends a message or starts a process. strace can
kill at the Nth call too, but it counts for each thread by itself, and the hook has one for each balancer. Here a step
has a name, such as ``send the console: PAUSE``, and is counted by name over all threads, so that it is the same one in
each run.

Run as ``python -I tracer.py LOG [--kill NAME NTH WHEN] [--of=WORD] [--forked] [--called TEXT=NAME]...
[--slow NAME SECONDS]... -- PROGRAM...``.

LOG gets one JSON object per step. WHEN is ``before`` or ``after``. Each step whose name begins with the NAME of a
``--slow`` is done by the kernel at once, and the thread hears of it that many SECONDS later, while the others go on.

With ``--of`` the steps are those of a process whose command line has WORD in it, and that the program starts; with
``--forked`` as well of the first one that goes on with the same program. The program itself is left alone. Other
processes that it starts are not touched, and go on when it is killed.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import struct
import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

_TRACEME, _SYSCALL, _CONT, _SETOPTIONS, _EVENT_MESSAGE, _SYSCALL_INFO = 0, 24, 7, 0x4200, 0x4201, 0x420E
_SYSGOOD, _FORK, _VFORK, _CLONE, _EXEC = 1, 2, 4, 8, 16
_FORKED, _EXECUTED = 1, 4
_ENTRY, _EXIT = 1, 2
_CLONE_THREAD = 0x10000
_WALL = 0x40000000

_NUMBERS: Mapping[str, Mapping[str, int]] = {
    "x86_64": {
        "write": 1, "open": 2, "pwrite64": 18, "writev": 20, "connect": 42, "sendto": 44, "sendmsg": 46, "clone": 56,
        "fork": 57, "vfork": 58, "flock": 73, "fsync": 74, "fdatasync": 75, "truncate": 76, "ftruncate": 77,
        "rename": 82, "mkdir": 83, "rmdir": 84, "creat": 85, "link": 86, "unlink": 87,
        "symlink": 88, "chmod": 90, "fchmod": 91, "chown": 92, "fchown": 93, "fsetxattr": 190, "fremovexattr": 199,
        "exit_group": 231, "openat": 257, "mkdirat": 258, "fchownat": 260, "unlinkat": 263, "renameat": 264,
        "linkat": 265, "symlinkat": 266, "fchmodat": 268, "sendmmsg": 307, "renameat2": 316, "clone3": 435,
    },
    "aarch64": {
        "fsetxattr": 7, "fremovexattr": 16, "flock": 32, "mkdirat": 34, "unlinkat": 35, "symlinkat": 36, "linkat": 37,
        "renameat": 38, "truncate": 45, "ftruncate": 46, "fchmod": 52, "fchmodat": 53, "fchownat": 54, "fchown": 55,
        "openat": 56, "write": 64, "writev": 66, "pwrite64": 68, "fsync": 82, "fdatasync": 83,
        "exit_group": 94, "connect": 203, "sendto": 206, "sendmsg": 211, "clone": 220,
        "sendmmsg": 269, "renameat2": 276, "clone3": 435,
    },
}  # fmt: skip
_OPEN = ("open", "openat", "creat")
_SEND = ("write", "writev", "pwrite64", "sendto", "sendmsg", "sendmmsg")
_ON_DESCRIPTOR = ("flock", "fsync", "fdatasync", "ftruncate", "fchmod", "fchown", "fsetxattr", "fremovexattr")
_START = ("clone", "clone3", "fork", "vfork")
_PATH_SECOND = ("openat", "mkdirat", "fchownat", "unlinkat", "renameat", "linkat", "fchmodat", "renameat2")
_THREAD_AND_PROCESS = re.compile(r"\.\d+(-\d+)?(?=\.|$)")
"""In a temporary file's name."""


class _Call(NamedTuple):
    """A system call that a thread is in."""

    name: str
    arguments: tuple[int, ...]


class _Steps:
    """What the steps of one process are called, and how often each was taken.

    :param called: what stands for addresses and directories that differ from run to run
    """

    def __init__(self, called: Mapping[str, str]) -> None:
        self._called = called
        self._peers: dict[int, str] = {}
        self.taken: Counter[str] = Counter()

    def name(self, pid: int, call: _Call) -> tuple[str, str]:
        """The step's name and its argument in words; both empty for what nobody can see."""
        name, arguments = call
        if name in _OPEN:
            return self._open(pid, call)
        if name in _START:
            return ("", "") if self._makes_thread(pid, call) else ("start a process", name)
        if name == "exit_group":
            return "end", name
        if name == "connect":
            peer = self._peers[arguments[0]] = self._word(_address(_memory(pid, arguments[1], arguments[2])))
            return f"connect {peer}", name
        if name in (*_SEND, *_ON_DESCRIPTOR):
            return self._on_descriptor(pid, call)
        return f"{name} {self._word(_text(pid, arguments[name in _PATH_SECOND]))}", name

    def _open(self, pid: int, call: _Call) -> tuple[str, str]:
        name, arguments = call
        path = _text(pid, arguments[name == "openat"])
        flags = os.O_WRONLY | os.O_CREAT if name == "creat" else arguments[1 + (name == "openat")]
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        return (f"open {self._word(path)}", name) if writes and not path.startswith(("/dev/", "/proc/")) else ("", "")

    def _on_descriptor(self, pid: int, call: _Call) -> tuple[str, str]:
        name, arguments = call
        try:
            target = os.readlink(f"/proc/{pid}/fd/{arguments[0]}")
        except OSError:
            return "", ""
        if target.startswith(("/dev/", "/proc/", "anon_inode:")):
            return "", ""
        if target.startswith("socket:"):
            verb = "send" if name in _SEND else name
            target = self._peers.get(arguments[0], "?")
        else:
            verb = "write" if name in _SEND else name
            target = "a pipe" if target.startswith("pipe:") else self._word(target)
        if name not in ("write", "pwrite64", "sendto"):
            return f"{verb} {target}", f"{name}({arguments[0]})"
        content = _memory(pid, arguments[1], min(arguments[2], 200))
        what = f": {_kind(content)}" if verb == "send" else ""
        return f"{verb} {target}{what}", f"{name}({arguments[0]}) {content[:120]!r}"

    def _makes_thread(self, pid: int, call: _Call) -> bool:
        if call.name in ("fork", "vfork"):
            return False
        flags = call.arguments[0]
        if call.name == "clone3":
            (flags,) = struct.unpack("Q", _memory(pid, flags, 8))
        return bool(flags & _CLONE_THREAD)

    def _word(self, text: str) -> str:
        for each, name in self._called.items():
            text = text.replace(each, name)
        return _THREAD_AND_PROCESS.sub(".PID", text)


class _Tracer:
    def __init__(
        self,
        log: int,
        kill: tuple[str, int, str] | None,
        of: str,
        forked: bool,
        called: Mapping[str, str],
        slow: Mapping[str, float],
    ) -> None:
        self._log = log
        self._kill = kill
        self._slow = slow
        self._held: dict[int, float] = {}
        self._of = of
        self._forked = forked
        self._names = _NUMBERS[os.uname().machine]
        self._by_number = {number: name for name, number in self._names.items()}
        self._steps = _Steps(called)
        self._calls: dict[int, tuple[_Call, str, int] | None] = {}
        self._new: set[int] = set()
        self._root = self._target = 0

    def run(self, argv: list[str]) -> int:
        """Run a program to its end, and to the end of the process that the steps are of; its wait status."""
        self._root = os.fork()
        if not self._root:
            _ptrace(_TRACEME, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
            os.execv(argv[0], argv)
        is_another = bool(self._of) or self._forked
        self._target = 0 if is_another else self._root
        os.waitpid(self._root, 0)
        _ptrace(_SETOPTIONS, self._root, _SYSGOOD | _CLONE | _EXEC | ((_FORK | _VFORK) if is_another else 0))
        _ptrace(_SYSCALL, self._root)
        status = 0
        ended = {0}
        while self._root not in ended or self._target not in ended:
            tid, how = self._wait()
            if os.WIFEXITED(how) or os.WIFSIGNALED(how):
                ended.add(tid)
                if tid == self._root:
                    status = how
                continue
            self._on_stop(tid, how)
        return status

    def _wait(self) -> tuple[int, int]:
        """The next thread that stops or ends. Those that are held back go on when it is time."""
        while True:
            tid, how = os.waitpid(-1, _WALL | (os.WNOHANG if self._held else 0))
            now = time.monotonic()
            for held in [held for held, until in self._held.items() if until <= now or held == tid]:
                del self._held[held]
                if held != tid:
                    _ptrace(_SYSCALL, held)
            if tid:
                return tid, how
            time.sleep(0.002)

    def _on_stop(self, tid: int, how: int) -> None:
        number, event = os.WSTOPSIG(how), how >> 16
        deliver = 0
        if number == signal.SIGTRAP | 0x80:
            self._on_syscall(tid)
        elif event:
            if event == _EXECUTED and self._of and self._of in _command_line(tid):
                self._target = tid
            if event == _FORKED and self._forked and not self._target:
                self._target = _event_message(tid)
        elif number == signal.SIGSTOP and tid not in self._calls:
            self._calls[tid] = None  # how a new thread or process begins
        else:
            deliver = number
        self._calls.setdefault(tid, None)
        if tid not in self._held:
            _ptrace(_SYSCALL, tid, deliver)

    def _on_syscall(self, tid: int) -> None:
        if not self._target or _process(tid) != self._target:
            return
        operation, number, arguments = _syscall(tid)
        if operation == _ENTRY:
            name = self._by_number.get(number)
            if not name:
                self._calls[tid] = None
                return
            call = _Call(name, arguments)
            step, words = self._steps.name(tid, call)
            if not step:
                return
            self._steps.taken[step] += 1
            nth = self._steps.taken[step]
            self._calls[tid] = call, step, nth
            self._say(step, nth, words)
            self._strike(step, nth, "before")
        elif operation == _EXIT and (taken := self._calls.get(tid)):
            self._calls[tid] = None
            self._strike(taken[1], taken[2], "after")
            for name, seconds in self._slow.items():
                if taken[1].startswith(name):
                    self._held[tid] = time.monotonic() + seconds

    def _say(self, step: str, nth: int, words: str) -> None:
        os.write(self._log, json.dumps({"step": step, "nth": nth, "words": words}).encode() + b"\n")

    def _strike(self, step: str, nth: int, when: str) -> None:
        if self._kill == (step, nth, when):
            # The thread stands still before the kernel begins with the call, and dies there.
            os.kill(self._target, signal.SIGKILL)
            os.write(self._log, b'{"killed": true}\n')


def _kind(message: bytes) -> str:
    """What sort of message it is, whatever nodes it names: a statement's beginning, a request's letter, or verbs."""
    if message[:1] == b"Q":
        words = message[5:].partition(b"\0")[0].split()
        return b" ".join(words[: 1 + (words[0] == b"SHOW")]).decode("ascii", "replace")
    if message[1:3] == b"\0\0":
        return message[:1].decode("ascii", "replace") if message[0] else "login"
    return "+".join(
        sorted({command.split()[0].decode("ascii", "replace") for command in message.split(b";") if command})
    )


def _ptrace(request: int, pid: int, data: int = 0) -> None:
    # A thread that was killed meanwhile is no more.
    _LIBC.ptrace(ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_void_p(0), ctypes.c_void_p(data))


def _event_message(tid: int) -> int:
    """The new process, when a fork is what has happened."""
    message = ctypes.c_ulong()
    _LIBC.ptrace(ctypes.c_long(_EVENT_MESSAGE), ctypes.c_long(tid), ctypes.c_void_p(0), ctypes.byref(message))
    return message.value


def _syscall(tid: int) -> tuple[int, int, tuple[int, ...]]:
    buffer = ctypes.create_string_buffer(88)
    size = _LIBC.ptrace(ctypes.c_long(_SYSCALL_INFO), ctypes.c_long(tid), ctypes.c_void_p(88), ctypes.byref(buffer))
    if size < 32:
        return 0, 0, ()
    operation = buffer.raw[0]
    if operation != _ENTRY:
        return operation, 0, ()
    number, *arguments = struct.unpack_from("7Q", buffer.raw, 24)
    return operation, number, tuple(arguments)


def _memory(pid: int, address: int, size: int) -> bytes:
    try:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(size)
    except (OSError, OverflowError, ValueError):
        return b""


def _text(pid: int, address: int) -> str:
    # A page may end behind the text.
    first = _memory(pid, address, 4096 - address % 4096)
    found = first if b"\0" in first else first + _memory(pid, address + len(first), 4096)
    return os.fsdecode(found.partition(b"\0")[0])


def _address(raw: bytes) -> str:
    family = int.from_bytes(raw[:2], sys.byteorder)
    if family == 2:
        return ".".join(map(str, raw[4:8])) + f":{int.from_bytes(raw[2:4], 'big')}"
    return os.fsdecode(raw[2:].partition(b"\0")[0]) if family == 1 else f"family {family}"


def _process(tid: int) -> int:
    try:
        with open(f"/proc/{tid}/status", encoding="utf-8", errors="replace") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("Tgid:"))
    except (OSError, StopIteration):
        return 0


def _command_line(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.restype = ctypes.c_long


def main(words: list[str]) -> int:
    log, *options = words[: words.index("--")]
    kill: tuple[str, int, str] | None = None
    of = ""
    forked = False
    called: dict[str, str] = {}
    slow: dict[str, float] = {}
    while options:
        option = options.pop(0)
        if option == "--kill":
            kill = options.pop(0), int(options.pop(0)), options.pop(0)
        elif option.startswith("--of="):
            of = option.removeprefix("--of=")
        elif option == "--forked":
            forked = True
        elif option == "--slow":
            name = options.pop(0)
            slow[name] = float(options.pop(0))
        else:
            text, _, name = options.pop(0).partition("=")
            called[text] = name
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    status = _Tracer(descriptor, kill, of, forked, called, slow).run(words[words.index("--") + 1 :])
    return os.waitstatus_to_exitcode(status) % 256


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
