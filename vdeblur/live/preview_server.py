"""The preview's server: page, counts, JPEG pictures and WebRTC, in one thread with an event loop.

Imports aiohttp, so `preview` imports it only when it is needed; aiortc is imported with the first
WebRTC call. Every request is checked before anything else: see `_refusal`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import logging
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from importlib import resources
from typing import Any

import av
from aiohttp import web
from aiohttp.typedefs import Handler

from vdeblur.live.access import HEADERS, Access
from vdeblur.live.encoding import copy_of
from vdeblur.live.preview_pairs import NewestPairs
from vdeblur.system.optional import optional

_BOUNDARY = "vdeblur"
#: Seconds that a client may send nothing, or take nothing, before it is disconnected.
_PATIENCE = 10.0
#: Seconds that a WebRTC viewer has from its offer to its connection.
_CONNECTING = 20.0
#: Bytes of a WebRTC offer at most; browsers send about 6,000.
_MAX_OFFER = 1 << 16
#: Connections, and viewers of JPEG pictures, at once.
_MOST_CONNECTIONS, _MOST_STREAMS = 128, 32

# Silent unless the program configures logging: messages of aiohttp may contain addresses, and
# viewers that leave in the middle of a picture are no errors.
_logger = logging.getLogger(__name__)
_logger.addHandler(logging.NullHandler())


class PreviewServer:
    """Serves viewers from a thread with an event loop.

    Args:
        listener: A listening socket; closed with the server.
        pairs: The pictures.
        access: Decides which requests are answered.
        token: Every request but that for the page itself, which holds no picture, must carry it:
            as `Authorization: Bearer TOKEN`, or as the query parameter `token`.
        stats: Returns the counts of all cameras.
        webrtc: Whether WebRTC is offered.
    """

    def __init__(
        self,
        listener: socket.socket,
        pairs: NewestPairs,
        *,
        access: Access,
        token: str,
        stats: Callable[[], list[dict[str, Any]]],
        webrtc: bool,
    ) -> None:
        self._listener, self._pairs, self._stats = listener, pairs, stats
        self._access, self._token, self._webrtc = access, token, webrtc
        self._page = resources.files("vdeblur.live").joinpath("preview.html").read_bytes()
        self._policy = _content_policy(self._page.decode())
        self._streams = 0
        self._calls: _Calls | None = None
        self._closing = threading.Event()
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._unheard: dict[int, asyncio.TimerHandle] = {}
        # For what takes milliseconds of a core, which would hold up all other viewers.
        self._workers = ThreadPoolExecutor(4, "preview")
        self._thread = threading.Thread(target=self._run, name="preview", daemon=True)

    def start(self) -> None:
        """Start to answer; returns once it does."""
        self._thread.start()
        self._started.wait()

    def close(self) -> None:
        """Disconnect all viewers, and end; one that reads nothing delays it by a second."""
        self._closing.set()
        self._pairs.clear()
        if self._loop is not None and self._end is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._end.set)
        if self._thread.ident is not None:
            self._thread.join(10)
        self._listener.close()
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(middlewares=[self._guarded], client_max_size=_MAX_OFFER)
        app.router.add_get("/", self._get_page, allow_head=False)
        app.router.add_get("/stats", self._get_stats, allow_head=False)
        app.router.add_get("/stream.mjpeg", self._get_stream, allow_head=False)
        app.router.add_post("/offer", self._post_offer)
        app.on_response_prepare.append(_add_headers)
        runner = web.AppRunner(
            app,
            access_log=None,  # the addresses may contain the token
            logger=_logger,
            keepalive_timeout=_PATIENCE,
            lingering_time=1.0,  # for the rest of a request that was refused
            shutdown_timeout=0.5,
            handler_cancellation=True,
        )
        await runner.setup()
        handlers = runner.server
        assert handlers is not None
        server = await self._loop.create_server(
            lambda: self._watched(handlers(), len(handlers.connections)), sock=self._listener
        )
        self._started.set()
        await self._end.wait()
        server.close()
        transports = [connection.transport for connection in handlers.connections]
        for timer in self._unheard.values():
            timer.cancel()
        if self._calls is not None:
            await self._calls.close()
        await runner.cleanup()
        for transport in transports:
            if transport is not None:
                transport.abort()  # closed by now, unless it waits for a viewer to read
        await asyncio.sleep(0)

    # -- access ----------------------------------------------------------------------------------

    def _watched(self, connection: web.RequestHandler, others: int) -> asyncio.Protocol:
        """Disconnect a client that connects and sends no request; aiohttp would wait for ever.

        At once where there are too `others` already.
        """

        def disconnect() -> None:
            del self._unheard[id(connection)]
            if connection.transport is not None:
                connection.transport.abort()

        assert self._loop is not None
        patience = _PATIENCE if others < _MOST_CONNECTIONS else 0.0
        self._unheard[id(connection)] = self._loop.call_later(patience, disconnect)
        return connection

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        timer = self._unheard.pop(id(request.protocol), None)
        if timer is not None:
            timer.cancel()
        response: web.StreamResponse
        if reason := self._refusal(request):
            response = web.Response(status=403, text=f"{reason}\n")
        else:
            try:
                response = await handler(request)
            except web.HTTPNotFound:
                response = web.Response(status=404, text="there is no such page\n")
            except web.HTTPMethodNotAllowed as error:
                allowed = {"Allow": ", ".join(sorted(error.allowed_methods))}
                text = "this page has no such method\n"
                response = web.Response(status=405, headers=allowed, text=text)
        # Sent here, since aiohttp would wait for ever for a client that does not read.
        async with _patience(request):
            await response.prepare(request)
            await response.write_eof()
        return response

    def _refusal(self, request: web.Request) -> str:
        """Return why a request is refused; empty if it is not."""
        page = request.path == "/" and request.method == "GET"
        if reason := self._access.refusal(request.headers, page=page):
            return reason
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer":
            given = request.query.get("token", "")
        same = hmac.compare_digest(given.encode(errors="replace"), self._token.encode())
        return "" if page or same else "not without the token of the printed address"

    # -- pages -----------------------------------------------------------------------------------

    async def _get_page(self, request: web.Request) -> web.Response:
        response = web.Response(body=self._page, content_type="text/html", charset="utf-8")
        response.headers["Content-Security-Policy"] = self._policy
        return response

    async def _get_stats(self, request: web.Request) -> web.Response:
        facts = {"webrtc": self._webrtc, "cameras": await self._work(self._stats)}
        return web.json_response(facts)

    async def _get_stream(self, request: web.Request) -> web.StreamResponse:
        camera = request.query.get("camera", "1")
        if not re.fullmatch("[0-9]{1,4}", camera) or not await self._is_camera(int(camera)):
            return web.Response(status=404, text="there is no such camera\n")
        if self._streams >= _MOST_STREAMS:
            return web.Response(status=503, text="too many viewers\n")
        self._streams += 1
        try:
            return await self._send_pictures(request, int(camera))
        finally:
            self._streams -= 1

    async def _send_pictures(self, request: web.Request, camera: int) -> web.StreamResponse:
        """Send JPEG after JPEG, the newest each time: a slow viewer sees fewer, not later ones."""
        response = web.StreamResponse(
            headers={"Content-Type": f"multipart/x-mixed-replace; boundary={_BOUNDARY}"}
        )
        response.force_close()
        await response.prepare(request)
        newest, number = self._pairs.of(camera), 0
        with self._pairs.looking():
            while not self._closing.is_set():
                number, pair = await newest.after(number)
                if pair is None:
                    continue
                jpeg = await self._work(newest.jpeg, number, pair)
                head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\n"
                head += f"Content-Length: {len(jpeg)}\r\n\r\n"
                # Waits until the viewer has taken most of what was sent before.
                async with _patience(request):
                    await response.write(head.encode() + jpeg + b"\r\n")
                if request.transport is None or request.transport.is_closing():
                    break
        return response

    async def _post_offer(self, request: web.Request) -> web.Response:
        """Answer the WebRTC offer of a browser."""
        if not self._webrtc:
            raise web.HTTPNotFound
        # A page elsewhere can send only the types of forms without being asked for its origin.
        if request.content_type != "application/json":
            return web.Response(status=415, text="an offer is application/json\n")
        try:
            async with asyncio.timeout(_PATIENCE):
                offer = json.loads(await request.read())
            camera, sdp = offer.get("camera", 1), offer["sdp"]
            if offer["type"] != "offer" or type(camera) is not int or not isinstance(sdp, str):
                raise ValueError("it is no offer")
            if not await self._is_camera(camera):
                raise ValueError(f"there is no camera {camera}")
            sdp = _offered(sdp, viewer=request.remote or "")
            if self._calls is None:
                self._calls = _Calls(self._pairs, self._closing)
            async with asyncio.timeout(15):
                answer = await self._calls.answer(sdp, camera)
        except web.HTTPRequestEntityTooLarge:
            return web.Response(status=413, text="an offer is smaller\n")
        except _TooMany:
            return web.Response(status=503, text="too many viewers\n")
        except Exception as error:  # of the browser's making: it falls back to JPEG
            return web.Response(status=400, text=f"{type(error).__name__}\n")
        return web.json_response(answer)

    async def _is_camera(self, number: int) -> bool:
        return 1 <= number <= max(1, len(await self._work(self._stats)))

    async def _work(self, do: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._workers, do, *arguments)


@contextlib.asynccontextmanager
async def _patience(request: web.Request) -> AsyncIterator[None]:
    """Send to a client; disconnect it if it takes nothing for too long. It may have left."""
    try:
        async with asyncio.timeout(_PATIENCE):
            yield
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
    except OSError:
        pass


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)
    response.headers.setdefault("Content-Security-Policy", _NOTHING)


# For answers other than the page: should one ever be shown as a page, it may do nothing.
_NOTHING = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


def _content_policy(page: str) -> str:
    """Return the page's Content-Security-Policy: its own script and style, and nothing else."""
    sources = []
    for tag in ("script", "style"):
        found = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(f.encode()).digest()).decode() for f in found]
        sources.append(f"; {tag}-src " + " ".join(f"'sha256-{digest}'" for digest in digests))
    return _NOTHING + "".join(sources) + "; connect-src 'self'; img-src blob:; media-src blob:"


def _offered(sdp: str, *, viewer: str) -> str:
    """Return the offer of one video, without addresses other than that of the viewer itself.

    ICE sends packets to every address (candidate) of an offer, so an offer could have this machine
    probe others. Addresses that are left out are not needed: a viewer sends first, and is answered.

    Raises:
        ValueError: It offers anything else.
    """
    lines = sdp.splitlines()
    media = [line for line in lines if line.startswith("m=")]
    if len(media) != 1 or not media[0].startswith("m=video ") or len(lines) > 1000:
        raise ValueError("an offer has one video")
    kept, addresses = [], 0
    for line in lines:
        if line.startswith("a=candidate:"):
            words = line.split()
            addresses += 1
            if len(words) < 8 or words[4] != viewer or addresses > 32:
                continue
        elif line.startswith("a=end-of-candidates"):
            continue  # its own will be seen when it sends
        kept.append(line)
    return "\r\n".join(kept) + "\r\n"


class _TooMany(Exception):
    """All places are taken."""


class _Calls:
    """WebRTC connections."""

    MOST = 16

    def __init__(self, pairs: NewestPairs, closing: threading.Event) -> None:
        self._rtc = optional("aiortc", extra="live", purpose="WebRTC in the preview")
        self._pairs, self._closing = pairs, closing
        self._connections: set[Any] = set()
        self._timers: set[asyncio.Task[None]] = set()

    async def answer(self, sdp: str, camera: int) -> dict[str, str]:
        """Return the answer to a browser's offer; `_TooMany` if all places are taken."""
        rtc = self._rtc
        if len(self._connections) >= self.MOST:
            raise _TooMany
        # No STUN server: viewers are on this machine or its network, and nobody else is asked.
        connection = rtc.RTCPeerConnection(rtc.RTCConfiguration(iceServers=[]))
        self._connections.add(connection)
        track = _track(rtc, self._pairs, camera, self._closing)

        async def close() -> None:
            track.stop()
            await connection.close()
            self._connections.discard(connection)

        @connection.on("connectionstatechange")  # type: ignore[untyped-decorator, unused-ignore]
        async def changed() -> None:
            if connection.connectionState in ("failed", "closed", "disconnected"):
                await close()

        async def expire() -> None:
            await asyncio.sleep(_CONNECTING)
            if connection.connectionState != "connected":
                await close()

        timer = asyncio.create_task(expire())
        self._timers.add(timer)
        timer.add_done_callback(self._timers.discard)
        try:
            await connection.setRemoteDescription(rtc.RTCSessionDescription(sdp, "offer"))
            connection.addTrack(track)
            await connection.setLocalDescription(await connection.createAnswer())
        except BaseException:
            await close()
            raise
        return {
            "sdp": connection.localDescription.sdp,
            "type": connection.localDescription.type,
        }

    async def close(self) -> None:
        """Close all connections, within five seconds."""
        for timer in list(self._timers):
            timer.cancel()
        closing = [connection.close() for connection in list(self._connections)]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.gather(*closing, return_exceptions=True)


def _track(rtc: Any, pairs: NewestPairs, camera: int, closing: threading.Event) -> Any:
    """Return a video track of a camera's newest pairs."""
    newest = pairs.of(camera)

    class PairTrack(rtc.VideoStreamTrack):  # type: ignore[misc]
        kind = "video"

        def __init__(self) -> None:
            super().__init__()
            self._number = 0
            self._began = time.monotonic()
            self._looking = contextlib.ExitStack()
            self._looking.enter_context(pairs.looking())

        async def recv(self) -> av.VideoFrame:
            pair = None
            while pair is None:
                if closing.is_set() or self.readyState != "live":
                    raise rtc.mediastreams.MediaStreamError
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        self._number, pair = await newest.after(self._number)
            frame = copy_of(pair)  # the encoder's own: JPEG viewers read the same pair
            frame.pts = int((time.monotonic() - self._began) * 90_000)
            frame.time_base = Fraction(1, 90_000)
            return frame

        def stop(self) -> None:
            super().stop()
            self._looking.close()  # again does nothing

    return PairTrack()
