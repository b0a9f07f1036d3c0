"""An EFM call: what the command line of a script hook says, read without an argument parser's start-up cost."""

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from efm_lb.command_line import VALUED, valued
from efm_lb.errors import CallError
from efm_lb.events import Origin
from efm_lb.truth import Node, Role

__all__ = ["Arguments", "Call", "Kind", "parse", "shown", "without_options"]


class Kind(Enum):
    """The three script hooks."""

    ATTACH = "attach"
    DETACH = "detach"
    PROMOTE = "promote"


# EFM up to 3.10 passes m for the primary, from 4.0 on p; 3.2 passes nothing.
_TYPES = {
    "p": Role.PRIMARY,
    "m": Role.PRIMARY,
    "primary": Role.PRIMARY,
    "master": Role.PRIMARY,
    "s": Role.STANDBY,
    "standby": Role.STANDBY,
    "": None,
}
_LONGEST_FOLLOW_UP = 3600
_LONGEST_NAME = 253
"""Of a host, in characters (RFC 1035)."""


class Arguments(NamedTuple):
    """A hook's command line.

    :param role: what EFM's TYPE says about the node, None when it says nothing
    :param strange: a TYPE that says nothing to us, empty when there is none
    :param follow_up: seconds to wait before a deferred call is judged again; None for a call of EFM's
    :param call: the deferred call
    """

    kind: Kind
    host: str
    role: Role | None = None
    cluster: str = "efm"
    env_file: str | None = None
    json: bool = False
    dry_run: bool = False
    follow_up: float | None = None
    call: str | None = None
    strange: str = ""


class Call(NamedTuple):
    """What EFM says has happened to a node: a hint, to be judged by the truth.

    :param name: identifies it in journals
    """

    kind: Kind
    node: Node
    role: Role | None = None
    origin: Origin = Origin.HOOK
    name: str = ""

    def __str__(self) -> str:
        words = [self.kind.value, self.node.name]
        if self.role and self.kind is not Kind.PROMOTE:
            words.append(self.role.value)
        return " ".join(words)


def without_options(argv: Sequence[str]) -> str:
    """The words of a command line, right or wrong, for a message about it."""
    words, before = [], ""
    for word in argv:
        if not word.startswith("-") and before not in VALUED:
            words.append(shown(word))
        before = word
    return " ".join(words)


def parse(argv: Sequence[str]) -> Arguments:
    """Read ``attach HOST [TYPE]``, ``detach HOST [TYPE]`` or ``promote HOST`` and the options.

    :param argv: the command line without the program's name; ``argv[0]`` is one of `efm_lb.command_line.HOOKS`
    :raises CallError: the message says what is wrong and what was expected
    """
    kind = Kind(argv[0])
    rest, options = valued(argv[1:], VALUED)
    words: list[str] = []
    flags: set[str] = set()
    for word in rest:
        if word in ("--json", "--dry-run"):
            flags.add(word)
        elif word.startswith("-"):
            raise CallError(f"no such option: {shown(word)} (see efm-lb {kind.value} --help)")
        else:
            words.append(word)
    host, letter = _operands(kind, words)
    return Arguments(
        kind,
        host,
        _TYPES.get(letter.lower()),
        cluster=options.get("--cluster", "efm"),
        env_file=options.get("--env-file"),
        json="--json" in flags,
        dry_run="--dry-run" in flags,
        follow_up=_seconds(options.get("--follow-up")),
        call=options.get("--call"),
        strange="" if letter.lower() in _TYPES else letter,
    )


def _operands(kind: Kind, words: Sequence[str]) -> tuple[str, str]:
    """HOST and TYPE. A TYPE that nobody knows is no error: the databases say what the node is."""
    usage = "HOST" if kind is Kind.PROMOTE else "HOST [TYPE]"
    for number, word in enumerate(words):
        if word.startswith("%") and not (number == 1 and word == "%t"):  # which EFM 3.2 does not know
            raise CallError(
                f"EFM did not replace {shown(word)}: it knows %h and %t for the load balancer scripts"
                " and %p for script.post.promotion; check the line in efm.properties"
            )
    if not words or not words[0].strip():
        raise CallError(f"no HOST given: expected efm-lb {kind.value} {usage}")
    if len(words) > len(usage.split()):
        raise CallError(f"too many words ({without_options(words)}): expected efm-lb {kind.value} {usage}")
    host = words[0].strip()
    if len(host) > _LONGEST_NAME:
        raise CallError(f"HOST has {len(host)} characters, a name has {_LONGEST_NAME} at most: {shown(host)}")
    return host, shown(words[1].strip()) if len(words) > 1 else ""


def shown(word: str) -> str:
    """A word of the command line, cut to what can be read."""
    return word if len(word) <= _LONGEST_NAME else f"{word[:_LONGEST_NAME]}..."


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    if not text.replace(".", "", 1).isdecimal() or float(text) > _LONGEST_FOLLOW_UP:
        raise CallError(f"--follow-up needs seconds, at most {_LONGEST_FOLLOW_UP}, not {shown(text)!r}")
    return float(text)
