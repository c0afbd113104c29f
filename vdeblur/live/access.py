"""Which HTTP requests are answered: those meant for this program, not what a page elsewhere sends.

Any page that is open in a browser can send requests to a port of this machine, without reading the
answer (Fetch Standard, mode `no-cors`), or point a name of its own at it (DNS rebinding). Browsers
state both in headers that a page cannot set. Knows no HTTP library.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping

#: Hosts at which only programs of this machine can connect.
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

#: Headers of every answer: no page elsewhere may read, embed or frame it, and nothing keeps it.
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "vdeblur",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Access:
    """Decides about the requests to one listening address.

    Args:
        host: The host that is listened at. On loopback, requests must name this machine and the
            port. Elsewhere they must name `host` itself, an IP address or this machine's name,
            with any port, since containers and routers map ports.
        port: The port that is listened at.
        any_name: Whether requests to other hosts than loopback may carry any name.
    """

    def __init__(self, host: str, port: int, *, any_name: bool = False) -> None:
        self.local = host in LOOPBACK
        self._port, self._any_name = port, any_name and not self.local
        own = socket.gethostname().lower()
        self._names = LOOPBACK | (
            frozenset() if self.local else {host.lower(), own, own.partition(".")[0] + ".local"}
        )

    def refusal(self, headers: Mapping[str, str], *, page: bool = False) -> str:
        """Return why a request is refused, as a sentence; empty if it is not.

        Args:
            headers: Its headers; names in any case must be found.
            page: Whether it is for a page that may also be opened by a link elsewhere.
        """
        address = headers.get("Host", "").lower()
        if not self._is_own(address):
            return "this is not the address that vdeblur printed"
        origin = headers.get("Origin")
        if origin is not None and origin.lower() != f"http://{address}":
            return "pages of other origins are not answered"
        site = headers.get("Sec-Fetch-Site", "none").lower()
        opened = page and headers.get("Sec-Fetch-Mode") == "navigate" and origin is None
        opened = opened and headers.get("Sec-Fetch-Dest") == "document"
        if site not in ("none", "same-origin") and not opened:
            return "pages of other origins are not answered"
        return ""

    def _is_own(self, address: str) -> bool:
        """Return whether a Host header names what is listened at."""
        if address.startswith("["):
            host, _, port = address[1:].partition("]")
            port = port.removeprefix(":")
        else:
            host, _, port = address.partition(":")
        if port and not (port.isascii() and port.isdigit() and len(port) <= 5):
            return False
        if self.local and int(port or 80) != self._port:
            return False
        return host in self._names or (not self.local and (_is_ip(host) or self._any_name))


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
