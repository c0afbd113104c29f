"""Counts and times of a running session, as JSON lines and for Prometheus.

Memory is bounded: of times, only the last minute is kept. Knows no libav.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol, cast

from vdeblur.errors import UsageError
from vdeblur.live.access import HEADERS, Access
from vdeblur.system.masking import masked


class Recent:
    """The values of the last `seconds`, at most `most` of them. Thread-safe."""

    def __init__(self, seconds: float = 60.0, most: int = 8192) -> None:
        self._seconds = seconds
        self._values: deque[tuple[float, float]] = deque(maxlen=most)
        self._lock = threading.Lock()

    def add(self, value: float) -> None:
        """Add a value, timed now."""
        now = time.monotonic()
        with self._lock:
            self._values.append((now, value))
            while self._values and now - self._values[0][0] > self._seconds:
                self._values.popleft()

    def quantiles(self, *shares: float) -> list[float | None]:
        """Return the quantiles at `shares` (0 to 1); None while there are no values."""
        now = time.monotonic()
        with self._lock:
            values = sorted(v for at, v in self._values if now - at <= self._seconds)
        if not values:
            return [None for _ in shares]
        last = len(values) - 1
        return [values[min(last, int(share * len(values)))] for share in shares]

    def rate(self, seconds: float = 5.0) -> float:
        """Return the values per second, over the last few seconds."""
        now = time.monotonic()
        with self._lock:
            count = sum(1 for at, _ in self._values if now - at <= seconds)
        return count / seconds


#: Steps that are timed: decoding; from arrival to encoding, and the parts of that, motion and
#: network; encoding.
STAGES = ("decode", "wait", "motion", "network", "encode")


@dataclass
class CameraCounters:
    """What one camera has done so far.

    Attributes:
        source: The source's address, masked.
        state: connecting, live, outage, ended or failed.
        size: Of the pictures, as WIDTHxHEIGHT.
        codec: libav's name.
        fps: Frames per second of the source.
        reason: Of the last outage or failed try.
        received, encoded: Frames.
        corrupt: Damaged packets and frames.
        jumps: Jumps of the source's times.
        reconnects: Connections after the first.
        outages, outage_seconds: Finished and current ones; seconds of the finished ones.
        latency: Seconds from capture to the end of encoding.
        stages: Seconds in each of `STAGES`.
        down_since: Monotonic time at which the current outage began; None without.
    """

    source: str
    state: str = "connecting"
    size: str = ""
    codec: str = ""
    fps: float = 0.0
    reason: str = ""
    received: int = 0
    encoded: int = 0
    corrupt: int = 0
    jumps: int = 0
    reconnects: int = 0
    outages: int = 0
    outage_seconds: float = 0.0
    latency: Recent = field(default_factory=Recent)
    stages: dict[str, Recent] = field(default_factory=lambda: {name: Recent() for name in STAGES})
    down_since: float | None = None

    def begin_outage(self, reason: str) -> None:
        """Count an outage that begins now."""
        self.outages += 1
        self.down_since = time.monotonic()
        self.reason = reason

    def end_outage(self) -> float | None:
        """Count a reconnection; return the seconds of the outage, None if there was none."""
        if self.down_since is None:
            return None
        seconds = time.monotonic() - self.down_since
        self.outage_seconds += seconds
        self.down_since = None
        self.reconnects += 1
        return seconds


Snapshot = dict[str, Any]


def quantiles_ms(recent: Recent) -> dict[str, float | None]:
    """Return p50, p95 and p99 in milliseconds."""
    found = recent.quantiles(0.5, 0.95, 0.99)
    return {
        name: None if value is None else round(value * 1000, 1)
        for name, value in zip(("p50", "p95", "p99"), found, strict=True)
    }


class Output(Protocol):
    """A text stream."""

    def write(self, text: str, /) -> object:
        """Write text."""

    def flush(self) -> None:
        """Flush what was written."""


class JsonLines:
    """Writes one line of JSON per event and per status. Thread-safe."""

    def __init__(self, output: Output) -> None:
        self._output, self._lock = output, threading.Lock()

    def line(self, kind: str, details: dict[str, Any]) -> None:
        """Write a line of type `kind` with the present time and the details."""
        content = {"type": kind, "time": round(time.time(), 3), **details}
        text = json.dumps(content, default=str)
        with self._lock:
            self._output.write(text + "\n")
            self._output.flush()


def host_port(text: str, default_host: str = "127.0.0.1") -> tuple[str, int]:
    """Parse `127.0.0.1:9464`, `[::1]:9464` or `9464`; UsageError for anything else."""
    host, colon, port = text.rpartition(":")
    host = host.strip("[]") if colon else default_host
    if not port.isdigit() or not 0 <= int(port) <= 65535 or not host:
        raise UsageError(f"{text!r} is no address: write [HOST:]PORT, such as 127.0.0.1:9464")
    return host, int(port)


class Prometheus:
    """Serves metrics for Prometheus at `url`, from a snapshot per request.

    Without a token, since they hold counts and no picture; pages in a browser get nothing.

    Args:
        address: `PORT` or `HOST:PORT`; port 0 is any free one.
        snapshot: Returns the counts and times of all cameras.

    Raises:
        UsageError: If prometheus_client is not installed, or the port cannot be listened at.
    """

    def __init__(self, address: str, snapshot: Callable[[], Sequence[Snapshot]]) -> None:
        from vdeblur.system.optional import optional

        client = optional("prometheus_client", extra="live", purpose="`metrics`")
        core = optional("prometheus_client.core", extra="live", purpose="`metrics`")
        registry = client.CollectorRegistry()
        registry.register(_Collector(core, snapshot))
        host, port = host_port(address)
        server = _MetricsServer6 if ":" in host else _MetricsServer
        try:
            self._server = server((host, port), _MetricsHandler)
        except OSError as error:
            raise UsageError(
                f"`metrics={address}` cannot be had ({error.strerror}): name another port"
            ) from error
        self.port = int(self._server.server_port)
        self._server.access = Access(host, self.port, any_name=True)
        self._server.metrics = lambda: client.generate_latest(registry)
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/metrics"
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2)


class _MetricsServer(ThreadingHTTPServer):
    """Answers each connection on a thread; no more than 16 at once."""

    daemon_threads, block_on_close = True, False
    access: Access
    metrics: Callable[[], bytes]

    def __init__(self, *arguments: Any) -> None:
        self._places = threading.BoundedSemaphore(16)
        super().__init__(*arguments)

    def server_bind(self) -> None:
        """Bind; does not ask the name service for the name of the address, which may take long."""
        if sys.platform != "win32":  # where it would let another program take the port
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer on a thread, or disconnect."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and free the place."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that leaves is no error."""


class _MetricsServer6(_MetricsServer):
    address_family = socket.AF_INET6


class _MetricsHandler(BaseHTTPRequestHandler):
    timeout = 10  # seconds without a byte
    server: _MetricsServer
    server_version, sys_version = "vdeblur", ""

    def do_GET(self) -> None:
        """Send the metrics, unless a browser's page asks."""
        status, text = 200, b""
        if reason := self.server.access.refusal(cast(Mapping[str, str], self.headers)):
            status, text = 403, f"{reason}\n".encode()
        elif self.path.partition("?")[0] not in ("/", "/metrics"):
            status, text = 404, b"there is no such page\n"
        else:
            text = self.server.metrics()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.send_header("Content-Length", str(len(text)))
        for name, value in HEADERS.items():
            if name != "Server":
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


_COUNTERS = {
    "received": ("frames_received", "Frames decoded"),
    "encoded": ("frames_encoded", "Frames encoded"),
    "restored": ("frames_restored", "Frames restored by the network"),
    "passed": ("frames_passed", "Frames that passed untouched"),
    "dropped": ("frames_dropped", "Frames dropped"),
    "late": ("results_late", "Results of the network that came too late"),
    "corrupt": ("corrupt", "Damaged packets and frames"),
    "jumps": ("timestamp_jumps", "Jumps of the source's times"),
    "reconnects": ("reconnects", "Connections after the first"),
    "outage_seconds": ("outage_seconds", "Seconds without a source"),
}
_GAUGES = {
    "up": ("up", "1 while the source gives pictures"),
    "line": ("line_depth", "Frames between receiving and encoding"),
    "sound_waiting": ("sound_depth", "Packets of sound that wait for their picture"),
    "level": ("degrade_level", "0: the network asked for; more: smaller"),
    "fps": ("frames_per_second", "Frames a second of the source"),
}


_SHARES = {"p50": "0.5", "p95": "0.95", "p99": "0.99"}


class _Collector:
    def __init__(self, core: Any, snapshot: Callable[[], Sequence[Snapshot]]) -> None:
        self._core, self._snapshot = core, snapshot

    def collect(self) -> Iterable[Any]:
        core, cameras = self._core, self._snapshot()
        for key, (name, text) in _COUNTERS.items():
            family = core.CounterMetricFamily(f"vdeblur_{name}", text, labels=("camera",))
            for c in cameras:
                family.add_metric((str(c["camera"]),), float(c[key]))
            yield family
        for key, (name, text) in _GAUGES.items():
            gauge = core.GaugeMetricFamily(f"vdeblur_{name}", text, labels=("camera",))
            for c in cameras:
                gauge.add_metric((str(c["camera"]),), float(c[key]))
            yield gauge
        exposure = core.GaugeMetricFamily(
            "vdeblur_exposure_seconds", "How long the shutter is open", labels=("camera",)
        )
        for c in cameras:
            if c["exposure_ms"] is not None:
                exposure.add_metric((str(c["camera"]),), c["exposure_ms"] / 1000)
        yield exposure
        latency = core.GaugeMetricFamily(
            "vdeblur_latency_seconds",
            "From capture to the end of encoding, over the last minute",
            labels=("camera", "quantile"),
        )
        stages = core.GaugeMetricFamily(
            "vdeblur_stage_seconds",
            "Time in a stage over the last minute",
            labels=("camera", "stage", "quantile"),
        )
        for c in cameras:
            for name, value in c["latency_ms"].items():
                if value is not None:
                    latency.add_metric((str(c["camera"]), _SHARES[name]), value / 1000)
            for stage, found in c["stage_ms"].items():
                for name, value in found.items():
                    if value is not None:
                        stages.add_metric((str(c["camera"]), stage, _SHARES[name]), value / 1000)
        yield latency
        yield stages
        depth = core.GaugeMetricFamily(
            "vdeblur_sink_depth", "Packets that wait for a sink", labels=("camera", "sink")
        )
        connected = core.GaugeMetricFamily(
            "vdeblur_sink_up", "1 while the sink takes packets", labels=("camera", "sink")
        )
        dropped = core.CounterMetricFamily(
            "vdeblur_sink_packets_dropped", "Packets a sink did not get", labels=("camera", "sink")
        )
        for c in cameras:
            for sink in c["sinks"]:
                labels = (str(c["camera"]), masked(sink["sink"]))
                depth.add_metric(labels, sink["depth"])
                connected.add_metric(labels, float(sink["connected"]))
                dropped.add_metric(labels, sink["dropped"])
        yield depth
        yield connected
        yield dropped
