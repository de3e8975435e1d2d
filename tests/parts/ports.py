"""Free TCP ports for test servers, such that two test processes on one machine never pick the same one.

A claimed port lies below the kernel's ephemeral range, so no outgoing connection can take it between the claim and the
server's start; and the claim is held, as an abstract unix socket, for as long as this process lives. It never opens the port.
"""

import os
import socket
from pathlib import Path

_LOWEST = 10_000
_claims: dict[int, socket.socket] = {}


def claim_port() -> int:
    """A port on which nothing listens now and which no other test process will claim. Raises RuntimeError when none is left."""
    ceiling = _first_ephemeral_port()
    span = ceiling - _LOWEST
    start = os.getpid() * 37 % span  # spreads processes; correctness does not depend on it
    for step in range(span):
        port = _LOWEST + (start + step) % span
        if _claim(port):
            return port
    raise RuntimeError(f"no free port between {_LOWEST} and {ceiling}")


def release_port(port: int) -> None:
    """Give a claimed port back. Unknown ports are ignored."""
    claim = _claims.pop(port, None)
    if claim is not None:
        claim.close()


def _claim(port: int) -> bool:
    if port in _claims:
        return False
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0backupd-tests-port-{port}")
        for address in ("127.0.0.1", ""):
            with socket.socket(socket.AF_INET) as probe:
                probe.bind((address, port))
    except OSError:
        claim.close()
        return False
    _claims[port] = claim
    return True


def _first_ephemeral_port() -> int:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    return first if first > _LOWEST + 2_000 else 60_000
