"""Serving on an address: the socket, its URL, and which requests come from our own page."""

import re
import socket
from collections.abc import Collection, Mapping

from minigpt4.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]+)?")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on the address; port 0 picks a free one. Raises UserError if the port is taken."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UserError(f"{host}:{port}: cannot be listened on ({error.strerror}); give another --port") from None


def allowed_hosts(host: str) -> list[str] | None:
    """Allowed Host headers of a server on `host` (None: any), against DNS rebinding on loopback."""
    return [*LOOPBACK, "[::1]"] if host in LOOPBACK else None


def known_host(headers: Mapping[str, str], hosts: Collection[str] | None) -> bool:
    """Whether the Host header (a key of `headers`) is well-formed and, at any port, one of `hosts` (None: any)."""
    match = _HOST.fullmatch((headers.get("host") or "").lower())
    return match is not None and (hosts is None or match[1] in hosts)


def same_site(headers: Mapping[str, str], hosts: Collection[str] | None) -> bool:
    """Whether a request comes from our page (by Sec-Fetch-Site, in older browsers Origin), or from no browser."""
    if not known_host(headers, hosts):
        return False
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site in ("same-origin", "none")
    if origin is not None:  # the scheme may be that of a proxy in front
        scheme, _, asked = origin.lower().partition("://")
        return scheme in ("http", "https") and asked == (headers.get("host") or "").lower()
    return True


def url(host: str, listening: socket.socket) -> str:
    """The URL of a listening socket."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/"
