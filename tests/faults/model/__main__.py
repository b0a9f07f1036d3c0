"""``python -m faults.model SEED`` plays one sequence and shows every step; ``FIRST COUNT`` plays many, quickly."""

from __future__ import annotations

import json
import sys
from collections import Counter

from faults.model.hosts import installed
from faults.model.sequence import play, shortest

_MOST = 3
"""Failures that are cut down and told in full."""


def main(argv: list[str]) -> int:
    first = int(argv[0])
    with installed():
        if len(argv) == 1:
            one = play(str(first), traced=True)
            print("\n".join(one.trace))
            print(one.failure or f"right {one.right_after:.1f} s after the last fault")
            return bool(one.failure)
        failed = []
        counts: Counter[str] = Counter()
        slowest = 0.0
        for seed in range(first, first + int(argv[1])):
            played = play(str(seed))
            counts.update(played.counts)
            counts["sequences"] += 1
            slowest = max(slowest, played.right_after)
            if played.failure:
                failed.append((played.seed, played.failure, shortest(played) if len(failed) < _MOST else None))
    print(
        json.dumps(
            {
                "counts": counts,
                "slowest": slowest,
                "failed": [
                    {"seed": seed, "failure": failure, "trace": [*cut.trace, cut.failure] if cut else []}
                    for seed, failure, cut in failed
                ],
            }
        )
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
