"""vdeblur camera: a live picture, restored within a time limit, for weeks."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from vdeblur.cli.options import (
    bitrate,
    deblurrer_of,
    exposure_option,
    keep_pages,
    network_options,
    rate,
    say,
)
from vdeblur.errors import UsageError

if TYPE_CHECKING:
    from vdeblur.cli.options import Commands
    from vdeblur.live.counters import Snapshot
    from vdeblur.live.session import Session

_WORDS = """\
SOURCE  rtsp:// rtsps:// rtmp:// http(s):// (MJPEG, HLS) udp:// tcp:// srt://, /dev/video0,
        screen, test (a generated scene; test:1280x720@30), a file (played at its own pace),
        env:NAME (the address that the environment variable holds), or list
SINK    FILE.mkv, FILE.mp4, FILE.ts; FOLDER/ (HLS); rtsp:// rtmp:// udp:// srt://;
        - (standard output); virtual or /dev/videoN (a virtual camera)"""


def add(commands: Commands) -> None:
    """Enter the command."""
    command = commands.add_parser(
        "camera",
        help="restore a live picture: cameras, streams, the screen",
        description="Restore a live picture within a time limit, from one or several SOURCEs to "
        "SINKs. It connects again by itself, and ends with Ctrl-C, which finishes its files. "
        "`vdeblur camera list` shows what this machine has.",
        epilog=_WORDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("sources", nargs="+", metavar="SOURCE")
    command.add_argument(
        "-o",
        "--output",
        action="append",
        default=[],
        metavar="SINK",
        help="where to; may be given several times. With several SOURCEs, {camera} in it is "
        "the number of each",
    )
    network_options(command)
    exposure_option(command)
    command.add_argument("--strength", type=float, default=1.0, help="of the correction (1)")
    live = command.add_argument_group("time")
    live.add_argument(
        "--max-latency",
        type=_duration,
        default=0.3,
        metavar="TIME",
        help="from capture to the end of encoding (default 300ms): what the network cannot "
        "restore in time passes untouched, and what is later is dropped",
    )
    live.add_argument(
        "--degrade",
        nargs="?",
        const="half,quarter",
        metavar="STEPS",
        help="before fewer than half of the frames are restored, go on with less: half, third, "
        "quarter (the size the network sees) or a network's name (default half,quarter)",
    )
    live.add_argument(
        "--batch-across",
        action="store_true",
        help="frames of several cameras go through the network together",
    )
    live.add_argument("--duration", type=_duration, metavar="TIME", help="stop after this time")
    source = command.add_argument_group("sources")
    source.add_argument("--rtsp-transport", choices=("tcp", "udp"), default="tcp")
    source.add_argument(
        "--timeout", type=_duration, default=5.0, metavar="TIME", help="of silence (default 5s)"
    )
    source.add_argument("--retry", type=int, metavar="N", help="give up after N failures in a row")
    source.add_argument("--size", type=_size, metavar="WxH", help="asked of a device or the screen")
    source.add_argument("--rate", type=rate, metavar="FPS", help="asked of a device or the screen")
    source.add_argument("--input-format", metavar="NAME", help="of a v4l2 device, such as mjpeg")
    source.add_argument(
        "--realtime", action="store_true", help="play a file at its own pace (as is always done)"
    )
    source.add_argument("--loop", action="store_true", help="begin a file again at its end")
    source.add_argument("--no-audio", action="store_true", help="leave the sound out")
    sink = command.add_argument_group("sinks")
    sink.add_argument("--encoder", default="libx264", help="libav's name (default libx264)")
    sink.add_argument("--crf", type=float, help="constant quality (default 21)")
    sink.add_argument("--bitrate", type=bitrate, help="bits a second at most, such as 4M")
    sink.add_argument("--preset", help="of the encoder (default veryfast)")
    sink.add_argument(
        "--keyframes", type=_duration, default=2.0, metavar="TIME", help="between them (2s)"
    )
    sink.add_argument("--rotate", type=_duration, metavar="TIME", help="a new file each 10m, 1h …")
    sink.add_argument("--rotate-size", type=_bytes, metavar="SIZE", help="… or each 500M, 2G …")
    sink.add_argument("--keep", type=int, metavar="N", help="keep this run's newest N files only")
    sink.add_argument(
        "--pipe-format", default="matroska", choices=("matroska", "mpegts", "nut"), help="of -"
    )
    watch = command.add_argument_group("watching it")
    watch.add_argument(
        "--preview",
        nargs="?",
        const="127.0.0.1:8090",
        metavar="[HOST:]PORT",
        help="a page with the picture before and after (default 127.0.0.1:8090); another HOST "
        "than this machine itself gets an address with a token",
    )
    watch.add_argument("--json", action="store_true", help="JSON lines on standard output")
    watch.add_argument("--metrics", metavar="HOST:PORT", help="for Prometheus: 127.0.0.1:9464")
    watch.add_argument(
        "--every", type=_duration, default=None, metavar="TIME", help="between status lines"
    )
    watch.add_argument("--service", action="store_true", help="print a systemd unit, and no more")
    watch.add_argument("--quiet", action="store_true", help="print errors only")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.sources == ["list"]:
        return _list(args)
    if not args.output and not args.preview:
        raise UsageError("there is no sink: give -o FILE.mkv, -o rtsp://…, -o FOLDER/ or --preview")
    if "-" in args.output and args.json:
        raise UsageError("-o - and --json both want standard output: give one")
    if args.retry is not None and args.retry < 0:
        raise UsageError(f"--retry is {args.retry}: 0 is none, and without it there is no end")
    if args.batch != "auto":
        raise UsageError(
            "--batch is not for live pictures, which go one by one: --batch-across takes one of "
            "each camera together"
        )
    if args.keep is not None and args.keep < 1:
        raise UsageError(f"--keep is {args.keep}: 1 file or more can be kept")
    if args.service:
        from vdeblur.live.systemd import unit

        words = sys.argv[1:]
        print(unit(words[words.index("camera") + 1 :] if "camera" in words else words))
        return 0
    return _live(args)


def _live(args: argparse.Namespace) -> int:
    from vdeblur.live.counters import Prometheus
    from vdeblur.live.encoding import LiveEncoding
    from vdeblur.live.options import SessionOptions
    from vdeblur.live.protocols import Viewer
    from vdeblur.live.restorer import LiveDeblurrer, degrade_steps
    from vdeblur.live.session import Session
    from vdeblur.live.sinks.sink import SinkOptions
    from vdeblur.live.sources.receiver import RetryOptions
    from vdeblur.live.sources.source import SourceOptions

    keep_pages()
    steps = degrade_steps(args.degrade) if args.degrade else []
    options = SessionOptions(
        max_latency=args.max_latency,
        degrade=bool(steps),
        together=args.batch_across,
        source=SourceOptions(
            timeout=args.timeout,
            transport=args.rtsp_transport,
            size=args.size,
            rate=args.rate,
            input_format=args.input_format,
            loop=args.loop,
            audio=not args.no_audio,
        ),
        retry=RetryOptions(tries=args.retry),
        sink=SinkOptions(
            rotate_seconds=args.rotate,
            rotate_bytes=args.rotate_size,
            keep=args.keep,
            timeout=args.timeout,
            pipe_format=args.pipe_format,
        ),
        encoding=LiveEncoding(
            encoder=args.encoder,
            crf=args.crf,
            bitrate=args.bitrate,
            preset=args.preset,
            keyframes=args.keyframes,
        ),
    )
    with contextlib.ExitStack() as stack:
        told = stack.enter_context(_Told(args))
        viewers: list[Viewer] = []
        preview = None
        if args.preview:
            from vdeblur.live.preview import Preview

            preview = stack.enter_context(Preview(args.preview))
            viewers.append(preview)
        restorer = LiveDeblurrer(
            deblurrer_of(args, strength=args.strength),
            steps,
            exposure=args.exposure,
            strength=args.strength,
            steady=args.steady is not False,
            precision=args.precision,
            backend=args.backend,
        )
        session = Session(
            *(args.sources, args.output, restorer),
            options=options,
            guide=restorer.guide,
            viewers=viewers,
            on_event=told.event,
        )
        if args.metrics:
            prometheus = Prometheus(args.metrics, session.snapshot)
            stack.callback(prometheus.close)
            told.say(f"metrics: {prometheus.url}")
        if preview is not None:
            preview.snapshot = session.snapshot
            told.say(f"preview: {preview.url}")
        return _until_stopped(args, session, told)


def _until_stopped(args: argparse.Namespace, session: Session, told: _Told) -> int:
    every = args.every or (1.0 if args.json else 10.0)
    left = args.duration
    missing: list[str] = []
    try:
        with session:
            try:
                while True:
                    step = every if left is None else min(every, left)
                    if session.wait(step):
                        return 0
                    told.status(session.snapshot())
                    if left is not None:
                        left -= step
                        if left <= 0:
                            return 0
            finally:
                missing = [s["sink"] for c in session.snapshot() for s in _gone(c)]
    except KeyboardInterrupt:
        if not session.complete:
            told.say(
                "stopped at once: what is called NAME.part was not finished, but can be played"
            )
        elif not any(status["received"] for status in session.snapshot()):
            told.say("stopped; no picture had come")
        else:
            told.say("stopped" if missing else "stopped; the files are complete")
        return 130
    finally:
        told.end(session.snapshot(), missing)
        if not session.complete:
            stuck = [t.name for t in threading.enumerate() if t.name.startswith("sink ")]
            if stuck:
                told.say(f"left behind, since it did not end: {', '.join(stuck)}")


class _Told:
    """What the user is told, written by a thread of its own: a terminal that is held (Ctrl-S), or a
    reader that has stopped, must not hold up the picture. What it cannot take is left out."""

    def __init__(self, args: argparse.Namespace) -> None:
        from vdeblur.live.counters import JsonLines

        self._lines = JsonLines(_Unbuffered()) if args.json else None
        self._quiet, self._several = args.quiet, len(args.sources) > 1
        self._reasons: dict[object, str] = {}  # told last, by camera: not told with each try
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue(1000)
        self._thread = threading.Thread(target=self._run, name="tell", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=1)
            self._thread.join(2)

    def _run(self) -> None:
        while (write := self._waiting.get()) is not None:
            with contextlib.suppress(OSError, ValueError):  # nobody reads it; the camera goes on
                write()

    def _put(self, write: Callable[[], None]) -> None:
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(write)

    def _json(self, kind: str, facts: dict[str, Any]) -> None:
        if (lines := self._lines) is not None:
            self._put(lambda: lines.line(kind, facts))

    def say(self, text: str) -> None:
        """A line for people."""
        if not self._quiet:
            self._put(lambda: say(text))

    def event(self, name: str, **facts: Any) -> None:
        """Something happened; from any thread."""
        self._json("event", {"event": name, **facts})
        camera = facts.get("camera")
        if name == "retry" and facts["reason"] == self._reasons.get(camera):
            self.say(_whose(facts, self._several) + f"the same (again in {facts['seconds']} s)")
            return
        if name in ("outage", "retry"):
            self._reasons[camera] = facts["reason"]
        elif name == "connected":
            self._reasons.pop(camera, None)
        if text := _said(name, facts, self._several):
            self.say(text)

    def status(self, cameras: list[Snapshot]) -> None:
        """How things stand."""
        for status in cameras:
            self._json("status", status)
            if self._lines is None:
                self.say(_status(status, self._several))

    def end(self, cameras: list[Snapshot], missing: list[str]) -> None:
        """What it came to. missing: sinks that took nothing at the end."""
        for status in cameras:
            self._json("end", status)
            if self._lines is None and status["received"]:
                self.say(_sum(status, self._several))
        if missing and any(status["received"] for status in cameras):
            self.say(f"not connected at the end: {', '.join(missing)}")


class _Unbuffered:
    """Standard output without Python's buffer, whose lock a writer that hangs would hold at the
    end of the program."""

    def write(self, text: str) -> None:
        """All of it."""
        rest = text.encode()
        while rest:
            rest = rest[os.write(1, rest) :]

    def flush(self) -> None:
        """Nothing waits."""


def _gone(status: Snapshot) -> list[dict[str, Any]]:
    return [sink for sink in status["sinks"] if not sink["connected"]]


def _status(status: Snapshot, several: bool) -> str:
    latency = status["latency_ms"]["p95"]
    parts = [
        status["state"] + (f" ({status['reason']})" if status["reason"] else ""),
        f"{status['fps_out']:.1f} frames/s",
        f"{status['restored']} restored, {status['passed']} passed, {status['dropped']} dropped",
        f"latency p95 {latency:.0f} ms" if latency is not None else "no picture yet",
    ]
    if status["exposure_ms"] is not None:
        parts.append(f"exposure {_exposure(status)}")
    if status["level"]:
        parts.append(status["level_name"])
    if status["state"] == "live" and (gone := _gone(status)):
        parts.append("not connected: " + ", ".join(sink["sink"] for sink in gone))
    return _whose(status, several) + "; ".join(parts)


def _sum(status: Snapshot, several: bool) -> str:
    """All of a run in a line."""
    parts = [
        f"{status['received']} frames came: {status['restored']} restored, "
        f"{status['passed']} passed, {status['dropped']} dropped"
    ]
    if status["outages"]:
        parts.append(f"{status['outages']} outages, {status['outage_seconds']:.0f} s in all")
    if (latency := status["latency_ms"]["p95"]) is not None:
        parts.append(f"latency p95 {latency:.0f} ms in the last minute")
    if status["exposure_ms"] is not None:
        parts.append(f"the shutter was open for about {_exposure(status)} in the end")
    return (_whose(status, several) or "in all: ") + "; ".join(parts)


def _exposure(status: Snapshot) -> str:
    seconds = status["exposure_ms"] / 1000
    return f"1/{1 / seconds:.0f} s" if 0 < seconds < 0.5 else f"{seconds:.2g} s"


def _said(name: str, facts: dict[str, Any], several: bool) -> str:
    """An event as a line for people; empty for those that the status lines tell."""
    texts = {
        "connected": "connected: {size} {codec}, {fps:g} frames/s",
        "outage": "outage: {reason}",
        "retry": "{reason} (again in {seconds} s)",
        "jump": "the source's times jumped; its picture goes on",
        "corrupt": "{count} damaged packets or frames so far",
        "segment": "writing {file}",
        "sink_gone": "{sink}: {reason} (again in {seconds} s)",
        "sink_back": "{sink}: back",
        "sink_ended": "{sink}: {reason}",
        "level": "the network is now {level} ({share:.0%} of the frames were restored)",
        "motion_failed": "motion is not looked at any more: {reason}",
        "network_failed": "the network failed, frames pass untouched: {reason}",
        "decoding": "decoding {frames} frames",
        "ended": "the source ended",
    }
    if several:  # of a single one it is what the command ends with
        texts["failed"] = "{reason}; it is given up"
    if name not in texts or facts.get("stopped"):
        return ""
    text = texts[name].format(**facts)
    if name == "connected" and "outage_seconds" in facts:
        text += f", after {facts['outage_seconds']} s without"
    return _whose(facts, several) + text


def _whose(facts: dict[str, Any], several: bool) -> str:
    return f"camera {facts['camera']}: " if several and "camera" in facts else ""


def _list(args: argparse.Namespace) -> int:
    from vdeblur.live.sources.devices import devices

    found = devices()
    for device in found:
        if args.json:
            print(json.dumps(vars(device)))
        else:
            print(f"{device.address:<24} {device.kind:<8} {device.name}")
    if not any(device.kind == "camera" for device in found) and not args.json:
        say("no camera is connected to this machine")
    return 0


def _duration(text: str) -> float:
    from vdeblur.live.addresses import duration_seconds

    try:
        return duration_seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _bytes(text: str) -> int:
    from vdeblur.live.addresses import size_bytes

    try:
        return size_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write 1280x720")
    return int(width), int(height)
