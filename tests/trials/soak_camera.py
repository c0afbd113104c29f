"""A live run of any length, measured through the picture: RTSP in, RTMP or RTSP out, with faults.

    python -m tests.trials.soak_camera --minutes 20             the benchmark
    python -m tests.trials.soak_camera --minutes 5 --kills 10   the server killed at random
    python -m tests.trials.soak_camera --minutes 2 --slow 10    a network ten times too slow

Starts gst-rtsp-server, nginx and ffmpeg on loopback and `vdeblur camera` as a process of its own.
A line a second of what was seen goes to standard output (and to --log); the last lines judge it.
Exit code 0 when p95 latency is under the limit, memory flat within 5 %, and nothing else was amiss.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.helpers import peers

ROOT = Path(__file__).parents[2]


@dataclass
class Result:
    """What a run showed. Latencies in seconds, through the picture; memory in MiB."""

    seconds: float
    limit: float
    latency: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    statuses: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    kills: list[tuple[float, float]] = field(default_factory=list)  # killed, listening again

    def latency_ms(self, share: float) -> float:
        """Source picture → picture at the reader, all transport and coding included."""
        values = sorted(self.latency)
        return 1000 * values[int(share * (len(values) - 1))] if values else float("inf")

    def own_ms(self) -> float:
        """The highest p95 of the program's own count, from capture to the end of encoding."""
        found = [
            s["latency_ms"]["p95"] for s in self.statuses if s["latency_ms"]["p95"] is not None
        ]
        return float(max(found, default=float("inf")))

    def growth(self) -> float:
        """Memory of the last fifth over that after the first fifth."""
        fifth = max(1, len(self.memory) // 5)
        warm, last = self.memory[fifth : 2 * fifth] or self.memory, self.memory[-fifth:]
        return (sum(last) / len(last)) / (sum(warm) / len(warm)) - 1

    def gaps(self) -> list[float]:
        """Seconds without a picture at the reader, where longer than one."""
        return [b - a for a, b in pairwise(self.arrivals) if b - a > 1]


def soak(
    folder: Path,
    *,
    seconds: float,
    model: str = "mimo-unet-guided",
    size: str = "320x180",
    limit: float = 0.3,
    sink: str = "rtmp",
    kills: int = 0,
    slow: float = 0.0,
    log: Any = None,
) -> Result:
    """Run and measure. slow: the network sleeps until it has taken so many times its frame."""
    result = Result(seconds, limit)
    with ExitStack() as stack:
        rtsp, server = stack.enter_context(peers.rtsp_server("--size", size, "--sound"))
        rtmp, _, _ = stack.enter_context(peers.nginx(folder / "nginx"))
        out, read = f"{rtmp}/cam", f"{rtmp}/cam"
        if sink == "rtsp":
            port, back = peers.free_port(), f"udp://127.0.0.1:{peers.free_port()}"
            out = f"rtsp://127.0.0.1:{port}/live"
            listen = ("-fflags", "nobuffer", "-rtsp_flags", "listen", "-i", out)
            forward = ("-c", "copy", "-f", "mpegts", "-flush_packets", "1", f"{back}?pkt_size=1316")
            stack.enter_context(peers.ffmpeg(*listen, *forward))
            read = back
            time.sleep(1)
        words = [*("-o", out, "-o", str(folder / "out.mkv"), "--rotate", "1m", "--keep", "3")]
        words += ["--model", model, "--max-latency", f"{limit}s", "--timeout", "2s"]
        words += ["--device", "cpu", "--json", "--quiet"]
        environment = os.environ | {"VDEBLUR_SOAK_SLOW": str(slow)}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.trials.soak_camera", "--run-camera", rtsp, *words],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        stack.callback(_end, process)
        listener = threading.Thread(target=_listen, args=(process, result, log), daemon=True)
        listener.start()
        peers.until(lambda: result.statuses and result.statuses[-1]["encoded"] > 10, 90)
        reader = stack.enter_context(
            peers.Reader(read, fflags="nobuffer", analyzeduration="500000")
        )
        began = time.monotonic()
        # At random, but each with time to come back before the next.
        slot = 0.9 * seconds / max(kills, 1)
        moments = [slot * (n + random.uniform(0.1, 0.4)) for n in range(kills)]
        while time.monotonic() - began < seconds:
            assert process.poll() is None, "the program ended"
            if moments and time.monotonic() - began > moments[0]:
                moments.pop(0)
                server.kill()
                at = time.monotonic()
                time.sleep(random.uniform(0.2, 2.0))
                server.start()
                result.kills.append((at, time.monotonic()))
            result.memory.append(_memory(process.pid))
            time.sleep(0.5)
        # The first seconds are the reader's own: it looks for streams while pictures queue.
        skip = next((i for i, at in enumerate(reader.arrivals) if at > began + 3), 0)
        result.latency = reader.latencies[skip:]
        result.numbers, result.arrivals = reader.numbers[skip:], reader.arrivals[skip:]
        _end(process)
        listener.join(10)
    return result


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(2)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listen(process: subprocess.Popen[str], result: Result, log: Any) -> None:
    assert process.stdout is not None
    with process.stdout:
        for text in process.stdout:
            line = json.loads(text)
            (result.events if line["type"] == "event" else result.statuses).append(line)
            if log is not None:
                log.write(text)
                log.flush()


def _memory(pid: int) -> float:
    """Resident MiB of a process and of those it started."""
    total = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(entry.name) == pid or int(stat[1]) == pid:
                    total += int((entry / "statm").read_text().split()[1])
            except (OSError, IndexError):
                continue
    return total * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def judge(result: Result, *, kills: int) -> list[str]:
    """What is amiss, in words; nothing when all is well."""
    amiss = []
    last = result.statuses[-1]
    if result.own_ms() > 1000 * result.limit:
        amiss.append(f"latency p95 {result.own_ms():.0f} ms, over {1000 * result.limit:.0f}")
    if abs(result.growth()) > 0.05 and result.growth() > 0:
        amiss.append(f"memory grew by {result.growth():.1%}")
    if any(s["line"] > 64 or any(x["depth"] > 400 for x in s["sinks"]) for s in result.statuses):
        amiss.append("a queue went beyond its bound")
    if not result.numbers:
        amiss.append("no picture arrived")
    if kills and last["reconnects"] < len(result.kills):
        amiss.append(f"{last['reconnects']} reconnects after {len(result.kills)} kills")
    if not kills and result.gaps():
        amiss.append(f"{len(result.gaps())} gaps of over a second at the reader")
    return amiss


def report(result: Result) -> list[str]:
    """The figures, a line each."""
    last = result.statuses[-1]
    lines = [
        f"{result.seconds:.0f} s; frames received {last['received']}, restored {last['restored']}, "
        f"passed {last['passed']}, dropped {last['dropped']}, late results {last['late']}",
        f"latency, capture to encoded: worst p95 of any minute {result.own_ms():.0f} ms "
        f"(limit {1000 * result.limit:.0f} ms); network {last['network_ms']} ms a frame",
        f"latency through the picture, camera's encoder to the reader's decoder: "
        f"p50 {result.latency_ms(0.5):.0f}, p95 {result.latency_ms(0.95):.0f}, "
        f"p99 {result.latency_ms(0.99):.0f} ms over {len(result.latency)} pictures",
        f"memory {result.memory[0]:.0f} → {result.memory[-1]:.0f} MiB, "
        f"growth {result.growth():.1%}",
        f"longest line {max(s['line'] for s in result.statuses)}, longest queue of a sink "
        f"{max((x['depth'] for s in result.statuses for x in s['sinks']), default=0)}",
        f"gaps over a second at the reader: {[round(g, 1) for g in result.gaps()]}",
    ]
    if result.kills:
        lines.append(
            f"server killed {len(result.kills)} times, away "
            f"{sum(b - a for a, b in result.kills):.1f} s in all; reconnects {last['reconnects']}, "
            f"outages {last['outage_seconds']} s in all"
        )
    return lines


def _run_camera(words: list[str]) -> int:
    """`vdeblur camera`, with a network that can be made slow."""
    from vdeblur.cli.main import main
    from vdeblur.live.restorer import LiveDeblurrer

    slow = float(os.environ.get("VDEBLUR_SOAK_SLOW") or 0)
    if slow:
        restore = LiveDeblurrer.restore

        def slowly(self: LiveDeblurrer, frames: Any, level: int) -> list[bool]:
            replaced = restore(self, frames, level)
            time.sleep(slow / 25)
            return replaced

        LiveDeblurrer.restore = slowly  # type: ignore[method-assign]
    return main(["camera", *words])


def main() -> int:
    if sys.argv[1:2] == ["--run-camera"]:
        return _run_camera(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--model", default="mimo-unet-guided")
    parser.add_argument("--size", default="320x180")
    parser.add_argument("--limit", type=float, default=0.3, help="seconds")
    parser.add_argument("--sink", choices=("rtmp", "rtsp"), default="rtmp")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--slow", type=float, default=0, help="times a frame's 40 ms, added")
    parser.add_argument("--log", help="JSON lines of the run")
    args = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        log = stack.enter_context(Path(args.log).open("w")) if args.log else None
        result = soak(
            folder,
            seconds=60 * args.minutes,
            model=args.model,
            size=args.size,
            limit=args.limit,
            sink=args.sink,
            kills=args.kills,
            slow=args.slow,
            log=log,
        )
        amiss = judge(result, kills=args.kills)
        for line in [*report(result), *(f"AMISS: {text}" for text in amiss)]:
            print(line)
            if log is not None:
                log.write(json.dumps({"type": "report", "text": line}, ensure_ascii=False) + "\n")
    return 1 if amiss else 0


if __name__ == "__main__":
    raise SystemExit(main())
