"""Truth and view compared without a call: ``efm-lb reconcile``, and what ``status`` and ``plan`` share with it.

One round: the databases' answers (`vigil`), the balancers' views, the events that would make them right
(`differences`), which of those are sent now (`restraint`, by what `others` have done), and the sending (`rounds`),
with a record of each in the journal (`attempts`). `service` repeats it.
"""
