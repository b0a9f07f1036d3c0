"""The rehearsal: a real PostgreSQL cluster and a real pgpool on loopback, thrown away afterwards; EFM's part is played.

Nothing of it is used by the hook. It is what ``efm-lb rehearse``, the integration
tests and the benchmark have in common: servers that may be stopped, killed and
frozen (`cluster`, `pgpool`), clients that measure what an application sees
(`clients`), and the calls that EFM makes, in the order of the manual and in others (`efm`).
"""

from __future__ import annotations
