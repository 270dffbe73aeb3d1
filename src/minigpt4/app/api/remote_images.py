"""Images of requests. Nothing that a client says is ever a path of this machine."""

import asyncio
import base64
import binascii
import ipaddress
import socket
import ssl
from collections.abc import Callable, Collection, Mapping
from urllib.parse import SplitResult, urljoin, urlsplit

import h11

from minigpt4.errors import UserError

REDIRECTS = 3
SECONDS = 10.0
#: How PNG, JPEG, GIF and WebP files begin.
_IN_BASE64 = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")


def read_sent_image(url: str, uploads: Mapping[str, bytes], hosts: Collection[str], max_bytes: int) -> bytes:
    """The file of a data URL, a `cid:` in `uploads`, or an address on `hosts`. Raises UserError for the client."""
    scheme = url[:8].partition(":")[0].lower()
    if scheme == "data" or url.startswith(_IN_BASE64):  # some clients leave the head of the URL out
        head, comma, data = url.rpartition(",")
        if scheme == "data" and not (comma and head.lower().endswith(";base64")):
            raise UserError("the data URL is not of the form data:image/png;base64,...")
        try:
            data = "".join(data.split()).rstrip("=")  # in lines, as `base64` writes them, or without padding
            return base64.b64decode(data + "=" * (-len(data) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise UserError("the data URL is not valid base64") from None
    if scheme == "cid":
        if url[4:] not in uploads:
            raise UserError("no file of this name came with the request; send it as a field of a multipart request")
        return uploads[url[4:]]
    if scheme in ("http", "https"):
        if not hosts:
            raise UserError("this server fetches no images; send the image itself as a data URL")
        return fetch(url, hosts, max_bytes)
    raise UserError("an image must be a data URL (data:image/png;base64,...)")


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the open internet: global unicast, and no other address in disguise."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip not in _UNICAST:
            return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _SPECIAL)


_UNICAST = ipaddress.ip_network("2000::/3")
#: Protocol assignments (Teredo, ORCHID), documentation, and 6to4 (its relays, and what stands for any IPv4 address).
_SPECIAL = [*map(ipaddress.ip_network, ("192.88.99.0/24", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))]


def fetch(url: str, hosts: Collection[str], max_bytes: int, allowed: Callable[[str], bool] = is_public) -> bytes:
    """What lies at an address whose host is one of `hosts` and whose IPs are `allowed`. Raises UserError."""
    try:
        return asyncio.run(asyncio.wait_for(_fetch(url, hosts, max_bytes, allowed), SECONDS))
    except (TimeoutError, asyncio.TimeoutError):
        raise UserError(f"the image could not be fetched within {SECONDS:g} s") from None


async def _fetch(url: str, hosts: Collection[str], max_bytes: int, allowed: Callable[[str], bool]) -> bytes:
    for _ in range(REDIRECTS + 1):
        try:
            parts = urlsplit(url)
            port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        except (KeyError, ValueError):
            raise UserError("images are fetched from well-formed http and https addresses only") from None
        host = (parts.hostname or "").rstrip(".")
        if host not in hosts:
            raise UserError(f"this server fetches no images from {host!r}")
        try:
            found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except (OSError, UnicodeError):
            raise UserError(f"the image could not be fetched: there is no host {host!r}") from None
        if not all(map(allowed, found)):
            raise UserError(f"this server fetches no images from {host!r}: its address is not a public one")
        try:  # at the address that was looked at: a name server could give another one in between
            status, location, data = await _get(parts, host, found[0], port, max_bytes)
            url = urljoin(url, location)
        except (OSError, h11.ProtocolError, ValueError) as error:
            raise UserError(f"the image could not be fetched from {host} ({type(error).__name__})") from None
        if status in (301, 302, 303, 307, 308) and location:
            continue
        if status != 200:
            raise UserError(f"the image could not be fetched: {host} answered with status {status}")
        if len(data) > max_bytes:
            raise UserError(f"the image at {host} has more than the {max_bytes:,} bytes allowed")
        return data
    raise UserError(f"the image could not be fetched: more than {REDIRECTS} redirects")


async def _get(parts: SplitResult, host: str, address: str, port: int, max_bytes: int) -> tuple[int, str, bytes]:
    """(status, where it redirects to, the body or more than `max_bytes` of it)."""
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    reader, writer = await asyncio.open_connection(address, port, ssl=tls, server_hostname=host if tls else None)
    try:
        http, status, location, data = h11.Connection(h11.CLIENT), 0, "", bytearray()
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        named = parts.netloc.rpartition("@")[2]
        headers = {"Host": named, "Accept": "image/*", "User-Agent": "minigpt4", "Connection": "close"}
        asked = h11.Request(method="GET", target=target, headers=list(headers.items()))
        writer.write((http.send(asked) or b"") + (http.send(h11.EndOfMessage()) or b""))
        while len(data) <= max_bytes and not isinstance(event := http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                http.receive_data(await reader.read(1 << 16))
            elif isinstance(event, h11.Response):
                status, location = event.status_code, dict(event.headers).get(b"location", b"").decode("latin-1")
            elif isinstance(event, h11.Data):
                data += event.data
        return status, location, bytes(data)
    finally:
        writer.transport.abort()
