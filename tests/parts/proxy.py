"""An HTTP proxy between a client and a real server that does what networks do: fail, cut, lose answers, stall.

It passes everything through unchanged until told otherwise, one upstream connection per request. It speaks HTTP/1.1 as the
S3 and Azure clients do (keep-alive, Content-Length, chunked, `Expect: 100-continue`) and knows nothing of what is stored.
"""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import Enum
from io import BufferedReader

import pytest

from tests.parts.wire import BLOCK, Head, copy_body, read_head, take

WAIT_DEADLINE_S = 60.0


class _Fault(Enum):
    FAIL = "fail"
    CUT = "cut"
    LOSE_ANSWER = "lose answer"
    CUT_ANSWER = "cut answer"
    STALL = "stall"


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came: the target is the path with its query."""

    method: str
    target: str

    def matches(self, method: str | None, path: str | None) -> bool:
        return (method is None or method == self.method) and (path is None or path in self.target)


@dataclass(slots=True)
class _Rule:
    fault: _Fault
    left: int
    method: str | None
    path: str | None
    status: int = 500
    after: int = 0


class FaultProxy:
    """`with FaultProxy(host, port) as proxy:`; clients use `proxy.url`. Faults wait in a queue for the requests they match.

    A fault takes the next `n` requests with that `method` (None: any) whose target contains `path` (None: any). The fault that
    was asked for first goes first.
    """

    def __init__(self, upstream_host: str, upstream_port: int) -> None:
        self._upstream = (upstream_host, upstream_port)
        self._lock = threading.Condition()
        self._rules: list[_Rule] = []
        self._requests: list[Request] = []
        self._accepted = 0
        self._bytes_up = 0
        self._bytes_down = 0
        self._held: list[threading.Event] = []
        self._closed = False
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._spawn(self._accept)

    # ---------------------------------------------------------------------------------------------------------- for tests

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fail_next(self, n: int = 1, status: int = 500, *, method: str | None = None, path: str | None = None) -> None:
        """Answer with `status` and an empty body; the server behind never sees the request."""
        self._add(_Rule(_Fault.FAIL, n, method, path, status=status))

    def cut_next(self, n: int = 1, *, after: int = 1024, method: str | None = None, path: str | None = None) -> None:
        """Take up to `after` bytes of the request's body, then reset the connection; the server behind never sees it."""
        self._add(_Rule(_Fault.CUT, n, method, path, after=after))

    def lose_answer_next(self, n: int = 1, *, method: str | None = None, path: str | None = None) -> None:
        """Let the server behind do the request, then reset the connection instead of passing the answer on."""
        self._add(_Rule(_Fault.LOSE_ANSWER, n, method, path))

    def cut_answer_next(self, n: int = 1, *, after: int = 1024, method: str | None = None, path: str | None = None) -> None:
        """Pass on the answer's head and `after` bytes of its body, then close the connection."""
        self._add(_Rule(_Fault.CUT_ANSWER, n, method, path, after=after))

    def stall_next(self, n: int = 1, *, method: str | None = None, path: str | None = None) -> None:
        """Hold the request without answering until `release()`, which lets it pass, or `close()`, which drops it."""
        self._add(_Rule(_Fault.STALL, n, method, path))

    def wait_until_stalled(self, n: int = 1) -> None:
        """Return once `n` requests are being held. Raises TimeoutError after a minute."""
        with self._lock:
            if not self._lock.wait_for(lambda: len(self._held) >= n, WAIT_DEADLINE_S):
                raise TimeoutError(f"{len(self._held)} requests are held, not {n}")

    def release(self) -> None:
        """Let every request pass that is being held now."""
        with self._lock:
            for held in self._held:
                held.set()
            self._held.clear()

    def count(self, method: str | None = None, path: str | None = None) -> int:
        """How many matching requests came so far, those with a fault included."""
        with self._lock:
            return sum(request.matches(method, path) for request in self._requests)

    def requests(self) -> list[Request]:
        """All requests so far, in the order they came."""
        with self._lock:
            return list(self._requests)

    @property
    def connections(self) -> int:
        """How many connections clients have opened so far."""
        with self._lock:
            return self._accepted

    @property
    def bytes_up(self) -> int:
        """Bytes of bodies, chunk framing included, that were passed to the server behind."""
        with self._lock:
            return self._bytes_up

    @property
    def bytes_down(self) -> int:
        """Bytes of bodies, chunk framing included, that were passed back to clients."""
        with self._lock:
            return self._bytes_down

    def close(self) -> None:
        """Stop listening, drop every connection, wait for the threads."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            connections = list(self._open)
        self.release()
        _shut(self._listener)
        for connection in connections:
            _shut(connection)
        for thread in self._threads:
            thread.join(WAIT_DEADLINE_S)
        self._listener.close()

    def __enter__(self) -> "FaultProxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -------------------------------------------------------------------------------------------------------- connections

    def _add(self, rule: _Rule) -> None:
        with self._lock:
            self._rules.append(rule)

    def _spawn(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name="fault-proxy", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._accepted += 1
            self._spawn(lambda connection=connection: self._serve(connection))  # type: ignore[misc]  # a bound default

    def _serve(self, connection: socket.socket) -> None:
        if not self._track(connection):
            return
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection.makefile("rb") as reader:
                while self._one_request(connection, reader):
                    pass
        except OSError:
            pass  # the client, or close(), ended the connection: that is every connection's end
        finally:
            self._untrack(connection)

    def _track(self, connection: socket.socket) -> bool:
        with self._lock:
            if not self._closed:
                self._open.add(connection)
                return True
        connection.close()
        return False

    def _untrack(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.discard(connection)
        connection.close()

    # ------------------------------------------------------------------------------------------------------- one exchange

    def _one_request(self, client: socket.socket, reader: BufferedReader) -> bool:
        """Serve one request; True when the connection stays open for another."""
        head = read_head(reader)
        if head is None:
            return False
        method, target = head.first.decode("latin-1").split(" ")[:2]
        rule = self._arrived(Request(method, target))
        fault = rule.fault if rule else None
        expects = head.get(b"expect") == b"100-continue"
        if rule and fault is _Fault.FAIL:
            if not expects:
                copy_body(head, reader, _drop)
            client.sendall(b"HTTP/1.1 %d Fault\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % rule.status)
            return False
        if fault is _Fault.STALL:
            self._hold()
        if expects:
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if rule and fault is _Fault.CUT:
            take(head, reader, rule.after)
            _reset(client)
            return False
        return self._pass_on(head, client, reader, rule)

    def _arrived(self, request: Request) -> _Rule | None:
        with self._lock:
            self._requests.append(request)
            for rule in self._rules:
                if rule.left > 0 and request.matches(rule.method, rule.path):
                    rule.left -= 1
                    return rule
        return None

    def _hold(self) -> None:
        held = threading.Event()
        with self._lock:
            if not self._closed:
                self._held.append(held)
                self._lock.notify_all()
        while not self._closed and not held.wait(WAIT_DEADLINE_S):
            pass
        if self._closed:
            raise ConnectionAbortedError("closed while a request was held")

    def _pass_on(self, head: Head, client: socket.socket, reader: BufferedReader, rule: _Rule | None) -> bool:
        upstream = socket.create_connection(self._upstream, timeout=WAIT_DEADLINE_S)
        upstream.settimeout(None)
        if not self._track(upstream):
            return False
        try:
            upstream.sendall(head.without(b"expect", b"connection").encode(b"Connection: close\r\n"))
            # A server that refuses early may close before it read the body: its answer is still there to be read.
            copy_body(head, reader, _until_refused(upstream, self._count_up))
            with upstream.makefile("rb") as answer:
                kept = self._answer(head, client, answer, rule)
        finally:
            self._untrack(upstream)
        return kept and head.get(b"connection") != b"close"

    def _answer(self, request: Head, client: socket.socket, answer: BufferedReader, rule: _Rule | None) -> bool:
        head = read_head(answer)
        while head is not None and head.status // 100 == 1:
            head = read_head(answer)
        if head is None or (rule and rule.fault is _Fault.LOSE_ANSWER):
            _reset(client)
            return False
        client.sendall(head.without(b"connection").encode())
        if request.first.startswith(b"HEAD ") or head.status in (204, 304):
            return True

        def send(data: bytes) -> None:
            client.sendall(data)
            self._count_down(len(data))

        if rule and rule.fault is _Fault.CUT_ANSWER:
            send(take(head, answer, rule.after))
            return False
        if head.is_framed:
            copy_body(head, answer, send)
            return True
        while data := answer.read1(BLOCK):
            send(data)
        return False

    def _count_up(self, count: int) -> None:
        with self._lock:
            self._bytes_up += count

    def _count_down(self, count: int) -> None:
        with self._lock:
            self._bytes_down += count


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _reset(connection: socket.socket) -> None:
    """Close so that the other side sees a reset at once, whatever it has sent that nobody read."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _drop(_: bytes) -> None:
    pass


def _until_refused(upstream: socket.socket, count: Callable[[int], None]) -> Callable[[bytes], None]:
    """Send to `upstream` until it stops taking data; from then on the client's bytes are only read."""
    refused = False

    def send(data: bytes) -> None:
        nonlocal refused
        if refused:
            return
        try:
            upstream.sendall(data)
        except OSError:
            refused = True
        else:
            count(len(data))

    return send


MakeProxy = Callable[[str, int], FaultProxy]


@pytest.fixture
def make_proxy() -> Iterator[MakeProxy]:
    """A factory, `make_proxy(host, port)`, of fault proxies that are closed when the test ends."""
    with ExitStack() as proxies:

        def make(upstream_host: str, upstream_port: int) -> FaultProxy:
            return proxies.enter_context(FaultProxy(upstream_host, upstream_port))

        yield make
