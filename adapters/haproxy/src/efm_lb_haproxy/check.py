"""Find what will go wrong on the day: rights, servers, health checks, and files that a reload would go by."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from time import monotonic

from efm_lb import Finding, Node, PermanentError, Severity, TemporaryError, Truth
from efm_lb_haproxy.config import Line, lines, server_lines
from efm_lb_haproxy.persist import Files, may_move, read, same_address
from efm_lb_haproxy.reloads import master_of, replaced
from efm_lb_haproxy.replaced import missing_way, socket_of
from efm_lb_haproxy.runtime import Runtime
from efm_lb_haproxy.servers import Server, node_of
from efm_lb_haproxy.settings import Setup
from efm_lb_haproxy.state_file import state_files
from efm_lb_haproxy.validate import NONE, learn, locate, validate
from efm_lb_haproxy.wishes import Place, Wish

__all__ = [
    "check",
    "http_checked",
    "of_agreement",
    "of_configuration",
    "of_nodes",
    "of_socket",
    "of_timeline",
    "of_writers",
]

Proxies = Mapping[str, tuple[Server, ...]]


def check(truth: Truth, setup: Setup, deadline: float) -> list[Finding]:
    """All findings about one balancer.

    :param deadline: by ``time.monotonic()``
    :raises TemporaryError: HAProxy does not answer
    :raises PermanentError: it is no HAProxy, or may not be connected to
    """
    runtime = Runtime(setup.endpoint, setup.connect_timeout, setup.tls)
    look = runtime.look(setup.proxies, deadline)
    findings = [Finding(Severity.OK, str(setup.endpoint), f"answers: HAProxy {look.version}, worker {look.pid}")]
    findings += of_socket(setup, runtime.ask("show cli level", deadline).strip())
    findings += of_proxies(setup, look.proxies)
    findings += of_nodes(truth, setup, look.proxies)
    findings += of_writers(truth, setup, look.proxies)
    findings += of_readers(setup, look.proxies)
    for name in look.proxies:
        if http_checked(runtime.ask(f"show stat {name} 4 -1", deadline)):
            findings.append(_fights(name))
    findings += _of_files(truth, setup, runtime, look.proxies, deadline)
    return findings + _of_replaced(setup, look.pid, deadline)


def _of_replaced(setup: Setup, worker: int, deadline: float) -> list[Finding]:
    """Whether a promote can end the sessions of workers that a reload has replaced."""
    if setup.endpoint.port is not None or not master_of(worker)[0]:
        return []
    master = socket_of(worker)
    why = missing_way(master, worker, min(deadline, monotonic() + setup.connect_timeout))
    if not why:
        return [Finding(Severity.OK, master, "leads to workers that a reload has replaced")]
    findings = [
        Finding(
            Severity.OK if _is_bounded(setup) else Severity.WARNING,
            master or "-S",
            "after a reload, the sessions of the worker that was replaced stay on the old primary, and a promote cannot"
            f" end them: {why}",
            f"start haproxy with -S /run/haproxy-master.sock,uid,{os.geteuid()},mode,600; or bound them by"
            " `hard-stop-after` in `global`",
        )
    ]
    for pid in replaced(worker):
        detail = f"worker {pid}, which a reload has replaced, may have sessions on an old primary"
        findings.append(Finding(Severity.WARNING, str(setup.endpoint), detail, f"kill {pid}, which ends them"))
    return findings


def _is_bounded(setup: Setup) -> bool:
    """Whether a worker that a reload has replaced is ended after some time."""
    try:
        files = read(setup.config)
    except (TemporaryError, PermanentError):
        return False
    found = [line for content in files.values() for line in lines(content)]
    return any(line.section == "global" and line.keyword == b"hard-stop-after" for line in found)


def of_socket(setup: Setup, level: str) -> Iterator[Finding]:
    """Judge the socket. Pure."""
    where = str(setup.endpoint)
    if level == "admin":
        yield Finding(Severity.OK, where, "is at level admin")
    else:
        remedy = "add `level admin` to its `stats socket` line"
        yield Finding(Severity.ERROR, where, f"is at level {level or 'user'}, which allows no change", remedy)
    if setup.endpoint.port is not None and not setup.tls:
        yield Finding(
            Severity.WARNING,
            where,
            "whoever reaches it may change everything, and nothing is encrypted; `ssl` on a `stats socket` line is"
            " accepted by 2.6 and has no effect",
            "put a `listen` with client certificates in front of the Unix socket, and set CAFILE and CERTFILE",
        )


def of_proxies(setup: Setup, proxies: Proxies) -> Iterator[Finding]:
    """Judge WRITE and READ. Pure."""
    for name in setup.proxies:
        if name not in proxies:
            yield Finding(
                Severity.ERROR, name, "HAProxy has no such listen or backend", f"correct {setup.variable_of(name)}"
            )
        for server in proxies.get(name, ()):
            if server.admin & (2 | 16):
                yield Finding(
                    Severity.ERROR,
                    server.path,
                    "takes its maintenance from a server that it tracks, so it cannot be set by itself",
                    "remove `track` from its server line",
                )


def of_nodes(truth: Truth, setup: Setup, proxies: Proxies) -> Iterator[Finding]:
    """Judge which nodes HAProxy knows, and what else it has. Pure."""
    for node in truth.nodes:
        found = [server for servers in proxies.values() for server in servers if server.is_node(node)]
        if found:
            told = ", ".join(f"{server.path} {server.state}" for server in found)
            yield Finding(Severity.OK, node.address, f"is {told}")
        else:
            yield Finding(
                Severity.ERROR,
                node.address,
                f"HAProxy has no server at this address for node {node.name}",
                "add it to WRITE and READ, or give the node the name that haproxy.cfg uses: name=host:port",
            )
        for name in setup.write:
            if found and name in proxies and not any(server.proxy == name for server in found):
                yield Finding(
                    Severity.ERROR, name, f"has no server {node.address}: once it is the primary, nothing is written"
                )
    for name in setup.write:
        for server in proxies.get(name, ()):
            if node_of(server, truth.nodes) is None:
                yield Finding(
                    Severity.WARNING,
                    server.path,
                    f"{server} is no node of EFM_LB_NODES: each promotion puts it into maintenance",
                    f"remove it from {name}",
                )


def of_writers(truth: Truth, setup: Setup, proxies: Proxies) -> Iterator[Finding]:
    """Judge who gets the writes. Pure."""
    for name in setup.write:
        if name not in proxies:
            continue
        for server in proxies[name]:
            if not server.weight:
                yield Finding(
                    Severity.ERROR if server.ready else Severity.WARNING,
                    server.path,
                    "has weight 0: no new connection goes there, until a promotion gives it a weight",
                    f"set server {server.path} weight 100%; and no `weight 0` on its server line",
                )
        ready = [server for server in proxies[name] if server.ready]
        writers = {node_of(server, truth.nodes) or server.path for server in ready}
        told = " and ".join(map(str, ready))
        remedy = f"run efm-lb promote {truth.primary.name}" if truth.primary else ""
        if len(writers) > 1:
            yield Finding(Severity.ERROR, name, f"more than one server is ready for writes: {told}", remedy)
        elif not writers:
            yield Finding(Severity.ERROR, name, "no server is ready for writes", remedy)
        elif truth.primary and writers != {truth.primary}:
            yield Finding(
                Severity.ERROR, name, f"writes go to {told}, but the primary is {truth.primary.address}", remedy
            )
        else:
            yield Finding(Severity.OK, name, f"writes go to {told}")


def of_readers(setup: Setup, proxies: Proxies) -> Iterator[Finding]:
    """Judge whether reads are served. Pure."""
    for name in setup.read:
        if name in proxies and not any(server.ready for server in proxies[name]):
            yield Finding(Severity.WARNING, name, "no server is ready for reads")


def http_checked(statistics: str) -> bool:
    """Whether a server of a proxy is checked by HTTP, from the answer to ``show stat <proxy> 4 -1``. Pure."""
    header, _, rest = statistics.partition("\n")
    names = header.split(",")
    if "check_code" not in names:
        return False
    column = names.index("check_code")
    return any(line.split(",")[column : column + 1] not in ([], [""]) for line in rest.splitlines())


def _fights(proxy: str) -> Finding:
    return Finding(
        Severity.WARNING,
        proxy,
        "its health check is HTTP: when it asks for the role (/primary, /replica), it undoes what EFM says, and between"
        " two of its checks two servers may be ready",
        "check with `option pgsql-check user ...` or a plain connect; the role is the hook's business",
    )


def _of_files(truth: Truth, setup: Setup, runtime: Runtime, proxies: Proxies, deadline: float) -> list[Finding]:
    if not setup.config:
        return [
            Finding(
                Severity.WARNING,
                "CONFIG",
                "is not set: any reload (logrotate, a renewed certificate) undoes what the hook did",
                f"set {setup.variables}CONFIG on the host of HAProxy",
            )
        ]
    try:
        files = read(setup.config)
    except (TemporaryError, PermanentError) as error:
        return [Finding(Severity.ERROR, "CONFIG", str(error))]
    findings = list(_of_rights(files))
    findings += _of_validity(setup, runtime, files, deadline)
    findings += of_configuration(setup, files)
    findings += of_timeline(truth, setup, files)
    findings += of_agreement(setup, files, proxies)
    findings += _of_state_files(files)
    return findings


def _of_rights(files: Files) -> Iterator[Finding]:
    for path in files:
        target = os.path.realpath(path)
        denied = [place for place in (target, os.path.dirname(target)) if not os.access(place, os.W_OK)]
        if denied:
            remedy = f"give uid {os.geteuid()} the right to write the file and its directory"
            yield Finding(Severity.ERROR, path, f"{' and '.join(denied)} cannot be written: nothing is kept", remedy)
        elif os.geteuid() not in (0, os.stat(target).st_uid):
            remedy = f"make uid {os.geteuid()} its owner"
            yield Finding(Severity.ERROR, path, "belongs to somebody else, and its owner could not be kept", remedy)
        else:
            yield Finding(Severity.OK, path, "is writable")
        if not files[path].endswith(b"\n"):
            yield Finding(Severity.ERROR, path, "has no newline at its end, which haproxy takes for a truncated file")


def _of_validity(setup: Setup, runtime: Runtime, files: Files, deadline: float) -> Iterator[Finding]:
    try:
        note = validate(setup.program, runtime, files, {}, deadline)
    except (TemporaryError, PermanentError) as error:
        remedy = "correct it; when only this user cannot read what it names, set PROGRAM=none"
        yield Finding(Severity.ERROR, "CONFIG", str(error), remedy)
        return
    if note or setup.program == NONE:
        yield Finding(Severity.WARNING, "CONFIG", "changes are not validated: no haproxy program is used")
    else:
        learn(setup.program, runtime, files, deadline)
        yield Finding(Severity.OK, "CONFIG", f"{locate(setup.program)} -c accepts it")


def of_configuration(setup: Setup, files: Files) -> Iterator[Finding]:
    """Judge what the files say. Pure."""
    for path, content in files.items():
        for line in lines(content):
            ours = line.section in ("listen", "backend") and line.name in setup.proxies
            yield from _of_line(f"{path}:{line.number}", line, ours)
        for server in server_lines(content):
            where = f"{path}:{server.number}"
            if server.proxy in setup.proxies and server.template:
                yield Finding(
                    Severity.ERROR,
                    where,
                    "server-template stands for several servers, so nothing can be kept for one of them",
                    "write one `server` line for each node",
                )
            elif server.proxy in setup.proxies and server.inherits:
                yield Finding(
                    Severity.ERROR,
                    where,
                    "is disabled by a default-server line, which a change of the server line cannot undo",
                    "put `disabled` on the server lines themselves",
                )
    yield from _of_marked_down(setup, files)
    yield from _of_retries(setup, files)


def of_timeline(truth: Truth, setup: Setup, files: Files) -> Iterator[Finding]:
    """Whether the next promote would be refused because of what the files remember. Pure."""
    primary = truth.primary
    if primary is None:
        return
    timeline = truth.state(primary).timeline
    wanted = tuple(Wish(name, {primary: Place.READY}, Place.OUT, timeline) for name in setup.write)
    try:
        may_move(wanted, files)
    except PermanentError as error:
        yield Finding(Severity.ERROR, "CONFIG", str(error))


def _of_line(where: str, line: Line, ours: bool) -> Iterator[Finding]:
    values = line.values
    if values[:2] == (b"stats", b"socket") and b"ssl" in values:
        yield Finding(
            Severity.ERROR,
            where,
            "`ssl` on a `stats socket` line is accepted by 2.6 and not enforced: it answers in plain text",
            "put a `listen` with client certificates in front of a Unix socket",
        )
    if (ours or line.section == "defaults") and values[:2] == (b"option", b"httpchk"):
        yield _fights(where)
    if ours and values[0] == b"stick" and values[1:2] in ((b"on",), (b"match",)):
        yield Finding(
            Severity.WARNING,
            where,
            "a drained server still gets the clients that stick to it",
            "remove it; a standby that is detached while it is up is drained",
        )


def _of_marked_down(setup: Setup, files: Files) -> Iterator[Finding]:
    """A server that a health check finds down keeps its sessions, unless it is told otherwise."""
    by_default = {"listen": False, "backend": False}
    for path, content in files.items():
        inherited = here = False
        for line in lines(content):
            has = b"on-marked-down" in line.values and b"shutdown-sessions" in line.values
            if line.values[0].decode("utf-8", "replace") == line.section:
                here = inherited
            if line.keyword == b"default-server" and has:
                here = True
                inherited = inherited or line.section == "defaults"
            if line.keyword != b"server" or line.section not in by_default or line.name not in setup.write:
                continue
            if not has and not here:
                yield Finding(
                    Severity.WARNING,
                    f"{path}:{line.number}",
                    "its sessions stay when a health check finds it down, until the hook shuts them down",
                    "add `on-marked-down shutdown-sessions`",
                )


def _of_retries(setup: Setup, files: Files) -> Iterator[Finding]:
    """Measured with 2.6: a connection that is tried again on a dead server is not ended by `shutdown sessions server`,
    and is never sent to the new one, unless each try may go elsewhere.
    """
    own = (True, False)
    inherited = here = own
    found: dict[str, tuple[str, bool]] = {}
    for path, content in files.items():
        for line in lines(content):
            values = line.values
            tries, elsewhere = here
            if values[0].decode("utf-8", "replace") == line.section:
                tries, elsewhere = own if line.section == "defaults" else inherited
            elif values[0] == b"retries":
                tries = values[1:2] != (b"0",)
            elif values[:2] == (b"option", b"redispatch"):
                elsewhere = values[2:3] == (b"1",)
            elif values[:3] == (b"no", b"option", b"redispatch"):
                elsewhere = False
            here = tries, elsewhere
            if line.section == "defaults":
                inherited = here
            elif line.section in ("listen", "backend") and line.name in setup.write:
                where = found[line.name][0] if line.name in found else f"{path}:{line.number}"
                found[line.name] = where, tries and not elsewhere
    for where, held in found.values():
        if held:
            yield Finding(
                Severity.WARNING,
                where,
                "a client that connects while the primary is gone is held for seconds (`retries`), also when a new"
                " one is ready, and then cut",
                "add `retries 0`, or `option redispatch 1` for clients that do not try again",
            )


def of_agreement(setup: Setup, files: Files, proxies: Proxies) -> Iterator[Finding]:
    """Compare what runs with what a reload would bring. Pure."""
    found = [(path, line) for path, content in files.items() for line in server_lines(content)]
    for name in proxies:
        if not any(line.proxy == name for _, line in found):
            yield Finding(Severity.ERROR, name, f"CONFIG ({', '.join(setup.config)}) has no servers of this proxy")
            continue
        for server in proxies[name]:
            own = [(path, line) for path, line in found if (line.proxy, line.name) == (name, server.name)]
            templates = any(line.proxy == name and line.template for _, line in found)
            if not own and not templates:
                yield Finding(
                    Severity.WARNING, server.path, "is in no file: it was added at run time, and a reload removes it"
                )
            for path, line in own:
                where = f"{path}:{line.number}"
                if not same_address(line, server):
                    told = Node(line.host, line.host, line.port or 0).address
                    yield Finding(Severity.WARNING, where, f"says {told}, but {server} runs")
                elif line.disabled != server.out:
                    after = "maint" if line.disabled else "ready"
                    yield Finding(
                        Severity.WARNING,
                        where,
                        f"{server} is {server.state} now, and {after} after a reload",
                        "the next promote or attach of that node keeps what is right",
                    )


def _of_state_files(files: Files) -> Iterator[Finding]:
    for file in state_files(files):
        if not file.path:
            yield Finding(
                Severity.ERROR,
                file.where,
                "haproxy loads a server state file, which overrides what the hook keeps; where it is cannot be told",
                "give server-state-file or server-state-base an absolute path",
            )
        elif os.path.exists(file.path) and not (
            os.access(file.path, os.W_OK) and os.access(os.path.dirname(file.path), os.W_OK)
        ):
            yield Finding(
                Severity.ERROR,
                file.path,
                f"overrides what the hook keeps ({file.where}), and cannot be written anew",
                f"give uid {os.geteuid()} the right to write it and its directory, or do not load it",
            )
        else:
            yield Finding(Severity.OK, file.path, "is written anew whenever it would undo a change")
