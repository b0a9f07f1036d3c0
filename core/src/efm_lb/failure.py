"""What keeps a command from its work, as a document for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence

__all__ = ["as_document"]

SCHEMA = "efm-lb/failure/v1"


def as_document(exit_code: int, problems: Sequence[str]) -> str:
    """One line of JSON in place of what the command would have answered.

    :param exit_code: which says what kind of failure it is, see `efm_lb.errors`
    :param problems: in words
    """
    return json.dumps({"schema": SCHEMA, "exit_code": exit_code, "problems": list(problems)})
