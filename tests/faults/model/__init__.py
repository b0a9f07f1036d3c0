"""A simulated cluster, its balancers and EFM, in which efm-lb's own code runs on simulated time.

Only what the code talks to is simulated: the databases (`databases`), the balancers (`pgpool`, `haproxy`,
`pgbouncer`), the clock, the locks and the files (`simulation`, `hosts`). The hook from its arguments to its exit code,
the follow-up, reconcile with its restraint, the dispatcher and the adapters are efm-lb's own, unchanged. They are
interrupted wherever they ask or tell somebody something, so calls of three hosts meet between any two of their steps.

`efm` makes up what happens and what EFM calls about it; `right` says what must never be and what must be at the end;
`sequence` plays one sequence from a seed. ``python -m faults.model SEED`` plays one and shows it.
"""
