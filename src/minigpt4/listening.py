"""Listening on an address: the socket, its URL, and which requests come from another website."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from minigpt4.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]+)?")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on the address; port 0 takes a free one. Raises UserError if it cannot be had."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UserError(f"{host}:{port}: cannot be listened on ({error.strerror}); give another --port") from None


@contextmanager
def without_proxies() -> Iterator[None]:
    """Takes the proxy variables out of the environment for a while: loopback needs none, and clients break on some."""
    taken = {name: os.environ.pop(name) for name in list(os.environ) if name.lower().endswith("_proxy")}
    try:
        yield
    finally:
        os.environ.update(taken)


def names(host: str) -> list[str] | None:
    """What a request's Host header may say, None for anything.

    A page from elsewhere could otherwise reach a server on loopback by a name of its own that it points here.
    """
    return [*LOOPBACK, "[::1]"] if host in LOOPBACK else None


def known_host(headers: Mapping[str, str], host_names: Collection[str] | None) -> bool:
    """Whether the Host header is well formed and, unless `host_names` is None, one of them. The port does not matter.

    `headers` has lower-case keys, or does not care, as those of Starlette and `http.server`.
    """
    match = _HOST.fullmatch((headers.get("host") or "").lower())
    return match is not None and (host_names is None or match[1] in host_names)


def same_site(headers: Mapping[str, str], host_names: Collection[str] | None) -> bool:
    """Whether a request that changes something comes from our own page, or from no browser at all.

    Browsers say where a request comes from in Sec-Fetch-Site, older ones only in Origin; a page cannot forge either.
    `headers` and `host_names` as in `known_host`, which must hold too.
    """
    if not known_host(headers, host_names):
        return False
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site in ("same-origin", "none")
    if origin is not None:  # the scheme may be that of a proxy in front
        scheme, _, asked = origin.lower().partition("://")
        return scheme in ("http", "https") and asked == (headers.get("host") or "").lower()
    return True


def url(host: str, listening: socket.socket) -> str:
    """The address for people, with the port that was taken."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/"
