"""Counts and times of one camera now, for status lines, JSON, metrics and the preview."""

from __future__ import annotations

import time
from typing import Any

from vdeblur.live.camera import Camera
from vdeblur.live.counters import Snapshot, quantiles_ms
from vdeblur.live.frame_line import FrameLine
from vdeblur.live.scheduler import Scheduler
from vdeblur.live.sinks.sink import Sink


def snapshot_of(camera: Camera, scheduler: Scheduler) -> Snapshot:
    """Return the counts and times of a camera as JSON values; docs/camera.md names the main ones.

    Times ending in `_ms` are milliseconds; quantiles are over the last minute.
    """
    counters, line = camera.counters, camera.line
    down = time.monotonic() - counters.down_since if counters.down_since is not None else 0.0
    return {
        "camera": camera.number,
        "source": counters.source,
        "state": counters.state,
        "up": counters.state == "live",
        "size": counters.size,
        "codec": counters.codec,
        "fps": round(counters.fps, 3),
        "fps_out": round(counters.latency.rate(), 2),
        "received": counters.received,
        "encoded": counters.encoded,
        "restored": line.restored,
        "passed": line.passed,
        "restored_share": _share(line),
        "dropped": line.dropped,
        "late": line.late,
        "corrupt": counters.corrupt,
        "jumps": counters.jumps,
        "reconnects": counters.reconnects,
        "outages": counters.outages,
        "outage_seconds": round(counters.outage_seconds + down, 2),
        "reason": counters.reason if counters.state != "live" else "",
        "line": line.depth,
        "sound_waiting": len(camera.sound_queue),
        "sound_dropped": camera.sound_queue.dropped,
        "level": scheduler.level,
        "level_name": scheduler.restorer.levels[scheduler.level],
        "network_ms": round(scheduler.seconds_a_call() * 1000, 1),
        "exposure_ms": _exposure_ms(camera),
        "latency_ms": quantiles_ms(counters.latency),
        "stage_ms": {name: quantiles_ms(recent) for name, recent in counters.stages.items()},
        "sinks": [_sink(sink) for sink in camera.sinks],
    }


def _share(line: FrameLine) -> float | None:
    left = line.restored + line.passed + line.dropped
    return round(line.restored / left, 4) if left else None


def _exposure_ms(camera: Camera) -> float | None:
    seconds = camera.guide.exposure_seconds if camera.guide is not None else None
    return None if seconds is None else round(seconds * 1000, 2)


def _sink(sink: Sink) -> dict[str, Any]:
    return {
        "sink": sink.name,
        "connected": sink.connected,
        "written": sink.written,
        "dropped": sink.dropped,
        "bytes": sink.bytes,
        "failures": sink.failures,
        "depth": sink.depth,
    }
