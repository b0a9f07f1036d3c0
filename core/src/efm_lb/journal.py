"""The record of calls and outcomes: one JSON object per line, appended in one write."""

from __future__ import annotations

import json
import os
import time
from typing import Any

__all__ = ["Journal"]

LIMIT = 4 * 1024 * 1024
"""Bytes after which the file is set aside as ``<name>.1``, replacing the one before."""


class Journal:
    """Appends records; a failure to write is remembered, never raised, for the balancers come first.

    :param path: the file, made with mode 0600
    :param call: identifies the call in all of its records
    """

    def __init__(self, path: str, call: str) -> None:
        self._path = path
        self._call = call
        self.failure = ""

    def record(self, what: str, **fields: Any) -> None:
        """Append one record.

        :param what: ``call``, ``decision`` or ``outcome``
        :param fields: JSON values; never a secret
        """
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        line = json.dumps({"at": stamp, "call": self._call, "record": what, **fields}) + "\n"
        try:
            self._append(line.encode())
        except OSError as error:
            self.failure = f"{self._path}: {error.strerror}"

    def _append(self, line: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, 0o600)
        try:
            if os.fstat(descriptor).st_size > LIMIT:
                os.replace(self._path, self._path + ".1")
                os.close(descriptor)
                descriptor = os.open(self._path, flags, 0o600)
            if os.write(descriptor, line) < len(line):
                raise OSError(28, "No space left on device")
        finally:
            os.close(descriptor)
