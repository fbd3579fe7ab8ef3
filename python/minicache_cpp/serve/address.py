"""The address that a server listens on: whether it is free, and whether the server answers there."""

from __future__ import annotations

import contextlib
import http.client
import socket
from collections.abc import Sequence

from ..errors import MiniCacheError

# addresses that stand for every one of the machine, and what to connect to instead
ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}
SECONDS = 5.0  # a server that is still loading its model answers at once that it is not ready


def free_port(host: str, port: int) -> int:
    """The port, or one that is free where it is 0. Raises MiniCacheError where nothing can listen there."""
    if host.endswith(".sock") or "," in host:
        raise MiniCacheError(f"--host {host}: it must be one address or one name of this machine")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as listener:
            # a port that a server has left a moment ago counts as free, as for llama-server
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1)
            return int(listener.getsockname()[1])
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MiniCacheError(
            f"--host {host} --port {port}: no server can listen there: {reason}; "
            "give another --port, or 0 for any that is free"
        ) from None


def url(host: str, port: int) -> str:
    """The address as clients take it."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def answers(host: str, port: int, prefix: str = "") -> bool:
    """Whether GET /health says that the model is loaded; `prefix` stands before the path."""
    # not urllib, which would ask the proxy of the environment
    connection = http.client.HTTPConnection(ANY.get(host, host), port, timeout=SECONDS)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", f"{prefix}/health")
        return connection.getresponse().status == http.client.OK
    return False


def prefix_of(passed_on: Sequence[str]) -> str:
    """The prefix of all paths that llama-server is asked for."""
    at = max((i for i, word in enumerate(passed_on) if word == "--api-prefix"), default=len(passed_on))
    return passed_on[at + 1] if at + 1 < len(passed_on) else ""
