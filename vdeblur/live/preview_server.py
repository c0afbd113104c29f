"""The preview's server: page, counts, JPEG pictures and WebRTC, in one thread with an event loop.

Imports aiohttp, so `preview` imports it only when it is needed; aiortc is imported with the first
WebRTC call. Every request is checked before anything else: see `_allowed`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

import av
from aiohttp import web
from aiohttp.typedefs import Handler

from vdeblur.live.encoding import copy_of
from vdeblur.live.preview_pairs import NewestPairs
from vdeblur.system.optional import optional

_BOUNDARY = "vdeblur"
#: Seconds that a client may send nothing, or take nothing, before it is disconnected.
_PATIENCE = 10.0
#: Bytes of a WebRTC offer at most.
_MAX_OFFER = 1 << 18

# Silent unless the program configures logging: messages of aiohttp may contain addresses, and
# viewers that leave in the middle of a picture are no errors.
_logger = logging.getLogger(__name__)
_logger.addHandler(logging.NullHandler())


class PreviewServer:
    """Serves viewers from a thread with an event loop.

    Args:
        listener: A listening socket; closed with the server.
        pairs: The pictures.
        hosts: If not empty, the host names that a request may be addressed to. A page elsewhere
            may point a name of its own at this machine (DNS rebinding); its Host header shows it.
        token: If not empty, every request must carry it as the query parameter `token`.
        stats: Returns the counts of all cameras.
        webrtc: Whether WebRTC is offered.
    """

    def __init__(
        self,
        listener: socket.socket,
        pairs: NewestPairs,
        *,
        hosts: frozenset[str],
        token: str,
        stats: Callable[[], list[dict[str, Any]]],
        webrtc: bool,
    ) -> None:
        self._listener, self._pairs, self._stats = listener, pairs, stats
        self._hosts, self._token, self._webrtc = hosts, token, webrtc
        self._page = resources.files("vdeblur.live").joinpath("preview.html").read_bytes()
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
            lambda: self._watched(handlers()), sock=self._listener
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

    def _watched(self, connection: web.RequestHandler) -> asyncio.Protocol:
        """Disconnect a client that connects and sends no request; aiohttp would wait for ever."""

        def disconnect() -> None:
            del self._unheard[id(connection)]
            if connection.transport is not None:
                connection.transport.abort()

        assert self._loop is not None
        self._unheard[id(connection)] = self._loop.call_later(_PATIENCE, disconnect)
        return connection

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        timer = self._unheard.pop(id(request.protocol), None)
        if timer is not None:
            timer.cancel()
        response: web.StreamResponse
        if not self._allowed(request):
            response = web.Response(
                status=403, text="not without the token of the printed address\n"
            )
        else:
            try:
                response = await handler(request)
            except (web.HTTPNotFound, web.HTTPMethodNotAllowed):
                response = web.Response(status=404, text="there is no such page\n")
        # Sent here, since aiohttp would wait for ever for a client that does not read.
        async with _patience(request):
            await response.prepare(request)
            await response.write_eof()
        return response

    def _allowed(self, request: web.Request) -> bool:
        if self._token:
            given = request.query.get("token", "")
            return hmac.compare_digest(given.encode(errors="replace"), self._token.encode())
        try:
            host = urlsplit(f"//{request.headers.get('Host', '')}").hostname
        except ValueError:
            return False
        return host in self._hosts

    # -- pages -----------------------------------------------------------------------------------

    async def _get_page(self, request: web.Request) -> web.Response:
        return web.Response(body=self._page, content_type="text/html", charset="utf-8")

    async def _get_stats(self, request: web.Request) -> web.Response:
        facts = {"webrtc": self._webrtc, "cameras": await self._work(self._stats)}
        return web.json_response(facts)

    async def _get_stream(self, request: web.Request) -> web.StreamResponse:
        """Send JPEG after JPEG, the newest each time: a slow viewer sees fewer, not later ones."""
        camera = request.query.get("camera", "1")
        if not camera.isdigit() or not await self._is_camera(int(camera)):
            return web.Response(status=404, text="there is no such camera\n")
        response = web.StreamResponse(
            headers={"Content-Type": f"multipart/x-mixed-replace; boundary={_BOUNDARY}"}
        )
        response.force_close()
        await response.prepare(request)
        newest, number = self._pairs.of(int(camera)), 0
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
        if not self._webrtc or (request.content_length or 0) > _MAX_OFFER:
            raise web.HTTPNotFound
        try:
            async with asyncio.timeout(_PATIENCE):
                offer = json.loads(await request.read())
            camera = int(offer.get("camera", 1))
            if not await self._is_camera(camera):
                raise ValueError(f"there is no camera {camera}")
            if self._calls is None:
                self._calls = _Calls(self._pairs, self._closing)
            async with asyncio.timeout(15):
                answer = await self._calls.answer(offer, camera)
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
    response.headers["Cache-Control"] = "no-store"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Server"] = "vdeblur"


class _Calls:
    """WebRTC connections."""

    MOST = 16

    def __init__(self, pairs: NewestPairs, closing: threading.Event) -> None:
        self._rtc = optional("aiortc", extra="live", purpose="WebRTC in the preview")
        self._pairs, self._closing = pairs, closing
        self._connections: set[Any] = set()

    async def answer(self, offer: dict[str, Any], camera: int) -> dict[str, str]:
        """Return the answer to a browser's offer."""
        rtc = self._rtc
        if len(self._connections) >= self.MOST:
            raise RuntimeError("too many viewers")
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

        try:
            await connection.setRemoteDescription(
                rtc.RTCSessionDescription(str(offer["sdp"]), str(offer["type"]))
            )
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
