"""Which addresses a URL may lead to, whoever wrote it: a person, a listing, a redirect.

Link-local addresses are where clouds keep their metadata services, which hand credentials to whoever asks from this
machine. Names are resolved here and the connection goes to the very address that was looked at, so that a name which
resolves differently a moment later gains nothing.
"""

from __future__ import annotations

import base64
import http.client
import ipaddress
import socket
import ssl
import urllib.parse
from collections.abc import Mapping

from launcher.errors import AccessDenied

_METADATA = frozenset(
    map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"))
)  # AWS over IPv6, Alibaba, Azure's wire server, Oracle: the ones outside 169.254.0.0/16 and fe80::/10.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def connect(host: str, port: int, timeout: float | None) -> socket.socket:
    """A TCP connection to an address of `host` that may be used. Raises AccessDenied before any packet where one may not
    be, OSError where none answers."""
    failure: OSError = OSError(f"{host} has no address")
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for _, _, _, _, address in found:
        _check(str(address[0]), host)
    for family, kind, protocol, _, address in found:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(timeout)
            connection.connect(address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        except OSError as error:
            connection.close()
            failure = error
    raise failure


def check(host: str) -> None:
    """Raises AccessDenied where an address of `host` may not be used; a name without an address passes."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return
    for _, _, _, _, address in found:
        _check(str(address[0]), host)


def _check(text: str, host: str) -> None:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            address = ipaddress.ip_address(int(address) & 0xFFFFFFFF)
        else:
            address = address.ipv4_mapped or address.sixtofour or address
    if address in _METADATA or address.is_link_local or address.is_multicast or address.is_unspecified:
        raise AccessDenied(
            what=host,
            cause=f"{address} is a link-local or metadata address, which no checkpoint is read from",
            hint="Check the URL, and where its server redirects to.",
        )


class _Plain(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = connect(self.host, self.port, self.timeout)


class _Tls(http.client.HTTPSConnection):
    def __init__(self, netloc: str, *, timeout: float, context: ssl.SSLContext) -> None:
        super().__init__(netloc, timeout=timeout, context=context)
        self._tls = context

    def connect(self) -> None:
        self.sock = self._tls.wrap_socket(connect(self.host, self.port, self.timeout), server_hostname=self.host)


class _Forwarded(http.client.HTTPConnection):
    """To a proxy, which takes whole URLs for plain HTTP."""

    def __init__(self, proxy: str, netloc: str, headers: Mapping[str, str], timeout: float) -> None:
        super().__init__(proxy, timeout=timeout)
        self._origin, self._own = f"http://{netloc}", headers

    def putrequest(self, method: str, url: str, skip_host: bool = False, skip_accept_encoding: bool = False) -> None:
        super().putrequest(method, self._origin + url, skip_host, skip_accept_encoding)
        for name, value in self._own.items():
            self.putheader(name, value)


def proxy(scheme: str, netloc: str, environ: Mapping[str, str]) -> str:
    """The proxy's URL for a server, by the usual variables (https_proxy, all_proxy, no_proxy …); empty for none."""
    named = {
        name: environ.get(name) or environ.get(name.upper(), "")
        for name in (f"{scheme}_proxy", "all_proxy", "no_proxy")
    }
    host = urllib.parse.urlsplit(f"//{netloc}").hostname or ""
    spared = [entry.strip().lower().lstrip(".") for entry in named["no_proxy"].split(",") if entry.strip()]
    if any(entry in ("*", host, netloc) or host.endswith(f".{entry}") for entry in spared):
        return ""
    return named[f"{scheme}_proxy"] or named["all_proxy"]


def connection(
    scheme: str, netloc: str, *, timeout: float, tls: ssl.SSLContext | None, proxy: str = ""
) -> http.client.HTTPConnection:
    """A connection, not made yet, that goes to no address that `connect` refuses. `netloc`: host and port. `proxy`: the URL
    of one that leads there."""
    if scheme not in ("http", "https"):
        raise AccessDenied(
            what=f"{scheme}://{netloc}",
            cause="a server redirected from HTTP to another protocol",
            hint="Check the URL.",
        )
    if not proxy:
        secure = tls or ssl.create_default_context() if scheme == "https" else None
        return _Tls(netloc, timeout=timeout, context=secure) if secure else _Plain(netloc, timeout=timeout)
    server = urllib.parse.urlsplit(f"//{netloc}")
    check(server.hostname or "")
    credentials, _, at = urllib.parse.urlsplit(proxy if "://" in proxy else f"//{proxy}").netloc.rpartition("@")
    token = base64.b64encode(urllib.parse.unquote(credentials).encode()).decode()
    headers = {"Proxy-Authorization": f"Basic {token}"} if credentials else {}
    if scheme == "http":
        return _Forwarded(at, netloc, headers, timeout)
    through = http.client.HTTPSConnection(at, timeout=timeout, context=tls or ssl.create_default_context())
    through.set_tunnel(server.hostname or "", server.port or 443, headers)
    return through
