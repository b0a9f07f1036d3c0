"""A model of what pgpool 4.3 does with PCP requests in streaming replication mode (failover() in its pgpool_main.c).

It is as slow as the real one: a request is answered at once and carried out later, one after the other, 1 s apart;
while it looks for a primary nothing else is carried out.
"""

from efm_lb_pgpool.node_info import PRIMARY, STANDBY, Backend

DOWN, WAITING = 3, 1


class PgpoolModel:
    """A pgpool in front of databases whose states the test changes.

    :ivar databases: per node P (out of recovery), s (standby), x (refuses) or - (silent)
    :ivar attached: per node
    :ivar primary: the node id that it sends writes to, or None
    :ivar searching: seconds that it has looked for a primary, None when it does not
    """

    def __init__(self, databases, search_timeout=3):
        self.databases = list(databases)
        self.attached = [True] * len(self.databases)
        self.primary = None
        self.searching = 0.0
        self.search_timeout = search_timeout
        self._queue = []
        self._asleep = 0.0
        self.work(0.1)
        self._asleep = 0.0

    def __repr__(self):
        attached = "".join("+" if attached else "." for attached in self.attached)
        state = f"{''.join(self.databases)} {attached} primary={self.primary} searching={self.searching}"
        return f"<{state} timeout={self.search_timeout} queue={self._queue}>"

    def backends(self, nodes):
        return tuple(
            Backend(i, node.host, node.port, WAITING if attached else DOWN, PRIMARY if i == self.primary else STANDBY)
            for i, (node, attached) in enumerate(zip(nodes, self.attached, strict=True))
        )

    def request(self, verb, node_id):
        """Queue a request. False when the PCP process refuses it right away."""
        if (verb == "detach" and not self.attached[node_id]) or (verb == "promote" and node_id == self.primary):
            return False
        self._queue.append((verb, node_id))
        return True

    def work(self, seconds):
        """Let the main process work."""
        if self.searching is not None:
            self._search(seconds)
            return
        self._asleep = max(0.0, self._asleep - seconds)
        if self._queue and not self._asleep:
            self._execute(*self._queue.pop(0))
            self._asleep = 1.0

    @property
    def idle(self):
        return self.searching is None and not self._queue

    def _execute(self, verb, node_id):
        if verb == "promote":
            if self.attached[node_id]:
                self.attached = [i == node_id for i in range(len(self.attached))]
                self.primary = node_id
            return
        if self.attached[node_id] == (verb == "attach"):
            return
        self.attached[node_id] = verb == "attach"
        if verb == "attach" or self.primary in (None, node_id):
            self.searching = 0.0
            self._search(0.0)

    def _search(self, seconds):
        asked = [state for state, attached in zip(self.databases, self.attached, strict=True) if attached]
        if "-" in asked:
            return  # it waits for the silent one, without end
        found = [i for i, state in enumerate(self.databases) if state == "P" and self.attached[i]]
        self.searching += seconds
        if found:
            self.primary = found[-1] if "s" in asked else found[0]
            self.searching = None
        elif not asked or (self.search_timeout and self.searching >= self.search_timeout):
            self.primary = None
            self.searching = None
