"""Settings name files with secrets in them and never hold one; this is how one is recognised."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

__all__ = ["MASK", "REMEDY", "holds_secret", "is_secret", "masked"]

MASK = "********"
REMEDY = "secrets come from files only: put it into a file and name the file (…PASSFILE)"
_NAME = re.compile(
    r"(?:PASSWORD|PASSWD|PASSPHRASE|SECRET|(?:^|_)(?:PASS|PWD|PW|TOKEN|API_?KEY|PRIVATE_?KEY))$", re.IGNORECASE
)
_ALIKE = 0.85
"""PASSWORT and PASWORD are that alike, PASSPORT and PASSFILE are not."""
# A libpq connection string or URL with a password in it.
_VALUE = re.compile(r"(?:^|[\s;&?])(?:ssl)?password\s*=|^[a-z][a-z0-9+.-]*://[^/@\s]*:[^/@\s]+@", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether a variable of this name would hold a secret, also when the word for it is misspelt."""
    word = name.rpartition("_")[2].upper()
    return _NAME.search(name) is not None or SequenceMatcher(None, word, "PASSWORD").ratio() > _ALIKE


def holds_secret(value: str) -> bool:
    """Whether a value has a password in it."""
    return _VALUE.search(value) is not None


def masked(name: str, value: str) -> str:
    """The value as it may be printed."""
    return MASK if is_secret(name) or holds_secret(value) else value
