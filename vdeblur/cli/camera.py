"""vdeblur camera: restore live pictures within a time limit, for weeks."""

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
    add_exposure_option,
    add_network_options,
    add_strength_option,
    deblurrer_of,
)
from vdeblur.cli.output import say, told
from vdeblur.cli.stopping import answered
from vdeblur.cli.values import bitrate, file_size, live_duration, picture_size, rate
from vdeblur.errors import UsageError
from vdeblur.system.allocator import keep_pages

#: Share of the time of a live picture below which the network would be fast enough.
_BUSY = 0.6

if TYPE_CHECKING:
    from vdeblur.cli.options import Commands
    from vdeblur.live.counters import Snapshot
    from vdeblur.live.options import SessionOptions
    from vdeblur.live.session import Session

_WORDS = """\
SOURCE  rtsp:// rtsps:// rtmp:// http(s):// (MJPEG, HLS) udp:// tcp:// srt://, /dev/video0,
        screen, test (a generated scene; test:1280x720@30), a file (played at its own pace),
        env:NAME (the address in the environment variable NAME), or list
SINK    FILE.mkv, FILE.mp4, FILE.ts; FOLDER/ (HLS); rtsp:// rtmp:// udp:// srt://;
        - (standard output); virtual or /dev/videoN (a virtual camera)"""


def add(commands: Commands) -> None:
    """Register the subcommand."""
    command = commands.add_parser(
        "camera",
        help="restore live pictures: cameras, streams, the screen",
        description="Restore live pictures within a time limit, from one or several SOURCEs to "
        "SINKs. The command reconnects by itself and ends with Ctrl-C, which completes its files. "
        "`vdeblur camera list` lists the devices of this machine.",
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
        help="output; repeatable. With several SOURCEs, {camera} in it is the number of each",
    )
    add_network_options(command)
    add_exposure_option(command)
    add_strength_option(command)
    _add_time_options(command)
    _add_source_options(command)
    _add_sink_options(command)
    _add_status_options(command)
    command.set_defaults(run=_run)


def _add_time_options(command: argparse.ArgumentParser) -> None:
    live = command.add_argument_group("time")
    live.add_argument(
        "--max-latency",
        type=live_duration,
        default=0.3,
        metavar="TIME",
        help="limit from capture to the end of encoding (default 300ms): frames that the network "
        "cannot restore in time pass untouched, and frames that are later are dropped",
    )
    live.add_argument(
        "--degrade",
        nargs="?",
        const="half,quarter",
        metavar="STEPS",
        help="rather than restore fewer than half of the frames, fall back to half, third or "
        "quarter (the size that the network sees) or to another network (default half,quarter)",
    )
    live.add_argument(
        "--batch-across",
        action="store_true",
        help="put frames of several cameras through the network together",
    )
    live.add_argument("--duration", type=live_duration, metavar="TIME", help="stop after this time")


def _add_source_options(command: argparse.ArgumentParser) -> None:
    source = command.add_argument_group("sources")
    source.add_argument("--rtsp-transport", choices=("tcp", "udp"), default="tcp")
    source.add_argument(
        "--timeout",
        type=live_duration,
        default=5.0,
        metavar="TIME",
        help="silence after which to reconnect (default 5s)",
    )
    source.add_argument("--retry", type=int, metavar="N", help="give up after N failures in a row")
    source.add_argument(
        "--size", type=picture_size, metavar="WxH", help="size to request of a device or the screen"
    )
    source.add_argument(
        "--rate", type=rate, metavar="FPS", help="rate to request of a device or the screen"
    )
    source.add_argument(
        "--input-format", metavar="NAME", help="format of a v4l2 device, such as mjpeg"
    )
    source.add_argument(
        "--realtime", action="store_true", help="play a file at its own pace (always on)"
    )
    source.add_argument("--loop", action="store_true", help="restart a file at its end")
    source.add_argument("--no-audio", action="store_true", help="drop the sound")


def _add_sink_options(command: argparse.ArgumentParser) -> None:
    sink = command.add_argument_group("sinks")
    sink.add_argument(
        "--encoder", default="libx264", metavar="NAME", help="libav encoder (default libx264)"
    )
    sink.add_argument("--crf", type=float, metavar="N", help="constant quality (default 21)")
    sink.add_argument(
        "--bitrate", type=bitrate, metavar="RATE", help="maximum bits per second, such as 4M"
    )
    sink.add_argument("--preset", metavar="NAME", help="preset of the encoder (default veryfast)")
    sink.add_argument(
        "--keyframes",
        type=live_duration,
        default=2.0,
        metavar="TIME",
        help="interval between keyframes (default 2s)",
    )
    sink.add_argument(
        "--rotate", type=live_duration, metavar="TIME", help="begin a new file every 10m, 1h …"
    )
    sink.add_argument("--rotate-size", type=file_size, metavar="SIZE", help="… or every 500M, 2G …")
    sink.add_argument(
        "--keep", type=int, metavar="N", help="keep only the newest N files of this run"
    )
    sink.add_argument(
        "--pipe-format",
        default="matroska",
        choices=("matroska", "mpegts", "nut"),
        help="container of standard output",
    )


def _add_status_options(command: argparse.ArgumentParser) -> None:
    watch = command.add_argument_group("status")
    watch.add_argument(
        "--preview",
        nargs="?",
        const="127.0.0.1:8090",
        metavar="[HOST:]PORT",
        help="serve a page with the picture before and after (default 127.0.0.1:8090), to "
        "whoever has its address, which holds a token",
    )
    watch.add_argument("--json", action="store_true", help="print JSON lines on standard output")
    watch.add_argument("--metrics", metavar="HOST:PORT", help="for Prometheus: 127.0.0.1:9464")
    watch.add_argument(
        "--every",
        type=live_duration,
        default=None,
        metavar="TIME",
        help="interval between status lines",
    )
    watch.add_argument("--service", action="store_true", help="print a systemd unit and exit")
    watch.add_argument("--quiet", action="store_true", help="print only errors")


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


def _options(args: argparse.Namespace) -> SessionOptions:
    from vdeblur.live.encoding import LiveEncoding
    from vdeblur.live.options import SessionOptions
    from vdeblur.live.sinks.sink import SinkOptions
    from vdeblur.live.sources.receiver import RetryOptions
    from vdeblur.live.sources.source import SourceOptions

    return SessionOptions(
        max_latency=args.max_latency,
        degrade=bool(args.degrade),
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


def _live(args: argparse.Namespace) -> int:
    from vdeblur.live.counters import Prometheus
    from vdeblur.live.protocols import Viewer
    from vdeblur.live.restorer import LiveDeblurrer, degrade_steps
    from vdeblur.live.session import Session

    keep_pages()
    steps = degrade_steps(args.degrade) if args.degrade else []
    options = _options(args)
    with contextlib.ExitStack() as stack:
        speaker = stack.enter_context(Speaker(args))
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
        speaker.device = str(getattr(restorer.deblurrer, "device", "")).partition(":")[0]
        session = Session(
            *(args.sources, args.output, restorer),
            options=options,
            guide=restorer.guide,
            viewers=viewers,
            on_event=speaker.event,
        )
        if args.metrics:
            prometheus = Prometheus(args.metrics, session.snapshot)
            stack.callback(prometheus.close)
            speaker.say(f"metrics: {prometheus.url}")
        if preview is not None:
            preview.snapshot = session.snapshot
            speaker.say(f"preview: {preview.url}", mask=False)  # with its token
            if preview.reach:
                speaker.say(f"  note: {preview.reach}")
        return _until_stopped(args, session, speaker)


def _until_stopped(args: argparse.Namespace, session: Session, speaker: Speaker) -> int:
    from vdeblur.live.addresses import resolve, sink_kind

    every = args.every or (1.0 if args.json else 10.0)
    left = args.duration
    missing: list[str] = []
    try:
        with session:
            try:
                while True:
                    step = every if left is None else min(every, left)
                    ended = session.wait(step)
                    if not ended:
                        speaker.status(session.snapshot())
                        left = None if left is None else left - step
                    if ended or (left is not None and left <= 0):
                        return speaker.silent(session.snapshot())
            finally:
                missing = [s["sink"] for c in session.snapshot() for s in _gone(c)]
    except KeyboardInterrupt:
        if not session.complete:
            speaker.say(
                "stopped at once: what is called NAME.part was not finished, but can be played"
            )
        elif not any(status["received"] for status in session.snapshot()):
            speaker.say("stopped; no picture had come")
        else:
            files = any(sink_kind(resolve(sink)) in ("file", "hls") for sink in args.output)
            whole = files and not missing
            speaker.say("stopped; the files are complete" if whole else "stopped")
        return answered(130)
    finally:
        speaker.end(session.snapshot(), missing)
        if not session.complete:
            stuck = [t.name for t in threading.enumerate() if t.name.startswith("sink ")]
            if stuck:
                speaker.say(f"left behind, since it did not end: {', '.join(stuck)}")


class Speaker:
    """Writes the messages to the user on a thread of its own.

    A terminal that is held (Ctrl-S), or a reader that has stopped, must not delay the picture.
    Messages that cannot be written in time are dropped.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        from vdeblur.live.counters import JsonLines

        self._lines = JsonLines(_Unbuffered()) if args.json else None
        self._quiet, self._several = args.quiet, len(args.sources) > 1
        self._degrade = bool(args.degrade)
        #: The device of the network, for hints.
        self.device = ""
        self._reasons: dict[
            object, str
        ] = {}  # the last one of each camera, not repeated for each retry
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
            with contextlib.suppress(OSError, ValueError):  # nobody reads it; the cameras continue
                write()

    def _put(self, write: Callable[[], None]) -> None:
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(write)

    def _json(self, kind: str, facts: dict[str, Any]) -> None:
        if (lines := self._lines) is not None:
            self._put(lambda: lines.line(kind, told(facts)))

    def say(self, text: str, *, mask: bool = True, always: bool = False) -> None:
        """Write a line for people, unless --quiet; see `vdeblur.cli.output.say`."""
        if always or not self._quiet:
            self._put(lambda: say(text, mask=mask))

    def event(self, name: str, **facts: Any) -> None:
        """Write an event; may be called on any thread."""
        self._json("event", {"event": name, **facts})
        camera = facts.get("camera")
        if name == "retry" and facts["reason"] == self._reasons.get(camera):
            self.say(_whose(facts, self._several) + f"the same (again in {facts['seconds']} s)")
            return
        if name in ("outage", "retry"):
            self._reasons[camera] = facts["reason"]
        elif name == "connected":
            self._reasons.pop(camera, None)
        if name == "few_restored":
            # What is not done is said even if --quiet, as with files.
            counts = f"only {facts['restored']} of {facts['frames']} frames were restored in the "
            counts += f"last {facts['seconds']:.0f} s, {facts['passed']} passed"
            counts += f", {facts['dropped']} dropped" if facts["dropped"] else ""
            text = _whose(facts, self._several) + counts + self._hint(facts)
            self.say(text, always=True)
        elif text := _said(name, facts, self._several):
            self.say(text)

    def _hint(self, facts: dict[str, Any]) -> str:
        """Return why few frames are restored, and what to change."""
        ways = ["a smaller picture of the camera (--size for devices)"]
        if facts["dropped"] > facts["passed"]:
            return f": the encoder is too slow: try --preset ultrafast, or {ways[0]}"
        if facts["level_name"].startswith("mimo-unet-guided-large"):
            ways.insert(0, "--model mimo-unet-guided")
        if not self._degrade:
            ways.insert(0, "--degrade")
        if self.device == "cpu":
            ways.append("a GPU")
        if facts["network_ms"] > 0.8 * facts.get("limit_ms", float("inf")):
            ways.append(f"--max-latency {2 * facts['network_ms']:.0f}ms")
        where = " on this CPU" if self.device == "cpu" else ""
        took = f"{facts['network_ms']:.0f} ms per frame" if facts["network_ms"] else "too long"
        reason = f": {facts['level_name']} takes {took}{where}"
        busy = facts["network_ms"] / 1000 * facts.get("frames", 0) / facts.get("seconds", 1)
        if 0 < busy < _BUSY:
            reason += ", which would be in time: the machine is busy with something else"
        return f"{reason}: try {', '.join([*ways[:-2], ' or '.join(ways[-2:])])}"

    def status(self, cameras: list[Snapshot]) -> None:
        """Write the state of all cameras."""
        for status in cameras:
            self._json("status", status)
            if self._lines is None:
                self.say(_status(status, self._several))

    def silent(self, cameras: list[Snapshot]) -> int:
        """Say which cameras gave no picture in all the time; return the exit code."""
        silent = [status for status in cameras if not status["received"]]
        for status in silent:
            why = f": {status['reason']}" if status["reason"] else f" from {status['source']}"
            self.say(f"no picture came{why}; nothing was written of it", always=True)
        return 1 if silent else 0

    def end(self, cameras: list[Snapshot], missing: list[str]) -> None:
        """Write the totals of the run, and the sinks that were not connected at its end."""
        for status in cameras:
            self._json("end", status)
            share = status["restored_share"]
            few = share is not None and share < 0.5 and status["received"] >= 100
            if (self._lines is None or few) and status["received"]:
                text = _sum(status, self._several) + (self._hint(status) if few else "")
                self.say(text, always=few)
        if missing and any(status["received"] for status in cameras):
            self.say(f"not connected at the end: {', '.join(missing)}")


class _Unbuffered:
    """Standard output without Python's buffer.

    A writer that hangs would hold the lock of the buffer at the end of the program.
    """

    def write(self, text: str) -> None:
        """Write the whole text."""
        rest = text.encode()
        while rest:
            rest = rest[os.write(1, rest) :]

    def flush(self) -> None:
        """Do nothing: no text waits."""


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
        parts.append(f"exposure {_exposure(status) or 'too short to blur'}")
    if status["level"]:
        parts.append(status["level_name"])
    if status["state"] == "live" and (gone := _gone(status)):
        parts.append("not connected: " + ", ".join(sink["sink"] for sink in gone))
    return _whose(status, several) + "; ".join(parts)


def _sum(status: Snapshot, several: bool) -> str:
    """Return the totals of a run as one line."""
    parts = [
        f"{status['received']} frames came: {status['restored']} restored{_percent(status)}, "
        f"{status['passed']} passed, {status['dropped']} dropped"
    ]
    if status["outages"]:
        parts.append(f"{status['outages']} outages, {status['outage_seconds']:.0f} s in all")
    if (latency := status["latency_ms"]["p95"]) is not None:
        parts.append(f"latency p95 {latency:.0f} ms in the last minute")
    if status["exposure_ms"] is not None:
        time = _exposure(status)
        shut = f"for about {time} in the end" if time else "too shortly to blur what moves"
        parts.append(f"the shutter was open {shut}")
    return (_whose(status, several) or "in all: ") + "; ".join(parts)


def _percent(status: Snapshot) -> str:
    share = status["restored_share"]
    return f" ({100 * share:.2g} %)" if share is not None and share < 0.5 else ""


def _exposure(status: Snapshot) -> str:
    """Return how long the shutter is open; empty where the pictures show no blur."""
    seconds = status["exposure_ms"] / 1000
    if not seconds:
        return ""
    return f"1/{1 / seconds:.0f} s" if 0 < seconds < 0.5 else f"{seconds:.2g} s"


def _said(name: str, facts: dict[str, Any], several: bool) -> str:
    """Return an event as a line for people; empty for events that the status lines cover."""
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
        "sink_drops": "{sink}: it takes less than comes, {dropped} packets were dropped so far: "
        "set a lower --bitrate, or check the connection",
        "restored_again": "{restored} of {frames} frames were restored in the last {seconds:.0f} s",
        "level": "the network is now {level} ({share:.0%} of the frames were restored)",
        "motion_failed": "motion is not looked at any more: {reason}",
        "network_failed": "the network failed, frames pass untouched: {reason}",
        "decoding": "decoding {frames} frames",
        "ended": "the source ended",
    }
    if several:  # with a single camera, the command ends with this error
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
