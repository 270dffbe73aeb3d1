"""Listening on an address: the socket, the names that it may be called by, its URL."""

from __future__ import annotations

import socket

from minigpt4.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on the address; port 0 takes a free one. Raises UserError if it cannot be had."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UserError(f"{host}:{port}: cannot be listened on ({error.strerror}); give another --port") from None


def names(host: str) -> list[str] | None:
    """What a request's Host header may say, None for anything.

    A page from elsewhere could otherwise reach a server on loopback by a name of its own that it points here.
    """
    return [*LOOPBACK, "[::1]"] if host in LOOPBACK else None


def url(host: str, listening: socket.socket) -> str:
    """The address for people, with the port that was taken."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/"
