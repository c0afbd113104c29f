"""Open an address, and follow only redirections that a download may follow."""

from __future__ import annotations

import http.client
import io
import ipaddress
import queue
import socket
import threading
import urllib.error
import urllib.request
from email.message import Message
from typing import IO, Any
from urllib.parse import unquote, urljoin, urlsplit

from vdeblur.errors import ModelError
from vdeblur.system.masking import masked_download

# How IPv6 writes addresses of IPv4: compatible (RFC 4291), NAT64 (RFC 6052 and 8215).
_WITH_IPV4 = tuple(map(ipaddress.IPv6Network, ("::/96", "64:ff9b::/96", "64:ff9b:1::/48")))

#: Seconds for all of an opening: some servers send a byte now and then.
OPENING_SECONDS = 120.0


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections to http and https, not from https to http, and not inwards.

    An address on the internet could otherwise have this machine read from itself, from its own
    network, or from a cloud's page of secrets (169.254.169.254), which the server cannot reach.

    Args:
        url: the address that the user gave.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self._shown = masked_download(url)
        self.depth = _depth(urlsplit(url).hostname or "")

    def http_error_302(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message
    ) -> Any:
        """Check a redirection, and follow it."""
        to = urljoin(req.full_url, headers.get("Location", headers.get("URI", "")))
        before, after = urlsplit(req.full_url), urlsplit(to)
        shown = "".join(c for c in masked_download(to) if c.isprintable())[:200]
        if after.scheme not in ("http", "https") or not after.hostname:
            raise self._refusal(f"redirects to {shown!r}, which is not on the web", fp)
        if before.scheme == "https" and after.scheme == "http":
            raise self._refusal(f"redirects to {shown}, without encryption", fp)
        if _depth(after.hostname) > self.depth:
            raise self._refusal(f"redirects to {shown}, inside this machine or its network", fp)
        # The library would read all that the server sends beside, however much it is.
        fp.close()
        response = super().http_error_302(req, io.BytesIO(), code, msg, headers)  # type: ignore[arg-type]
        return response

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Return the next request, which has the password only if it goes to the same server."""
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        password = req.unredirected_hdrs.get("Authorization")
        if following is not None and password and _origin(req.full_url) == _origin(newurl):
            following.add_unredirected_header("Authorization", password)
        return following

    def connected(self, address: str) -> None:
        """Refuse an address that is connected to, if it is further inside than the user's.

        A name may have had another address when it was checked.
        """
        if _depth(address) > self.depth:
            raise self._error(f"leads to {address}, inside this machine or its network")

    def _refusal(self, what: str, response: IO[bytes]) -> ModelError:
        response.close()
        return self._error(what)

    def _error(self, what: str) -> ModelError:
        return ModelError(f"{self._shown} {what}: fetch that address itself if you trust it")


class _Connections(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens connections, and has `Redirects` check where those lead that use no proxy."""

    def __init__(self, redirects: Redirects) -> None:
        super().__init__()
        self._redirects = redirects

    def do_open(self, http_class: Any, req: urllib.request.Request, **more: Any) -> Any:
        """See `urllib.request.AbstractHTTPHandler`."""
        check = self._redirects.connected

        def connect(*place: Any, **options: Any) -> socket.socket:
            connection = socket.create_connection(*place, **options)
            try:
                check(str(connection.getpeername()[0]))
            except BaseException:
                connection.close()
                raise
            return connection

        def connected(*host: Any, **options: Any) -> Any:
            made = http_class(*host, **options)
            made._create_connection = connect  # noqa: SLF001
            return made

        proxied = req.has_proxy() or getattr(req, "_tunnel_host", None)
        return super().do_open(http_class if proxied else connected, req, **more)


def opened(
    request: urllib.request.Request, redirects: Redirects, *, seconds: float
) -> http.client.HTTPResponse:
    """Return the response to a request, by way of the proxies of the environment.

    Raises:
        urllib.error.URLError: there is none in time, or the server answers with an error.
        ModelError: it redirects where it must not.
    """
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    given_up = threading.Event()

    def close_late() -> None:
        while given_up.is_set() and not answers.empty():
            if hasattr(late := answers.get(), "close"):
                late.close()

    def ask() -> None:
        try:
            opener = urllib.request.build_opener(redirects, _Connections(redirects))
            answers.put(opener.open(request, timeout=seconds))
        except BaseException as error:  # raised below
            answers.put(error)
        close_late()

    # The library limits the time for each piece of the headers, not for all of them.
    threading.Thread(target=ask, name="opening an address", daemon=True).start()
    try:
        answer = answers.get(timeout=OPENING_SECONDS)
    except BaseException as error:  # Ctrl-C, or nothing in time
        given_up.set()
        close_late()
        if isinstance(error, queue.Empty):
            raise urllib.error.URLError(TimeoutError()) from None
        raise
    if isinstance(answer, BaseException):
        raise answer
    return answer  # type: ignore[no-any-return]


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, port


def _depth(host: str) -> int:
    """Return how far inside a host is: the internet, this network, this machine, this link."""
    host = unquote(host)  # as the library connects to it
    try:
        found = {ipaddress.ip_address(host.partition("%")[0])}
    except ValueError:
        try:
            found = {
                ipaddress.ip_address(str(entry[4][0]).partition("%")[0])
                for entry in socket.getaddrinfo(host, None)
            }
        except (OSError, UnicodeError):  # a proxy may know it
            return 0
    return max(map(_depth_of, found), default=0)


def _depth_of(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> int:
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if any(address in network for network in _WITH_IPV4) and int(address) > 1:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        address = inner or address
    if address.is_link_local:
        return 3
    if address.is_loopback or address.is_unspecified:
        return 2
    return 0 if address.is_global else 1
