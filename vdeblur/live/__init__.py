"""Live pictures: cameras and streams, restored within a time limit, for weeks.

A `Session` connects the parts below, with a thread and a bounded queue between each of them.
Sources may come and go, sinks may fail, and the network may be too slow: the newest frame wins.

    session         all cameras of a process, sharing one network
    camera          one source with its line, encoder, sinks and counters
    frame_line      frames between receiving and encoding; each leaves on time
    scheduler       which frames go through the network, which pass untouched
    restorer        the network, with cheaper ways to run it
    stream          `deblur_stream`, a session to iterate over
    sources/        addresses → frames: network, device, screen, file, generated scene
    sinks/          packets → files, HLS folders, servers, pipes; pictures → virtual cameras
    encoding        pictures → packets, once for all sinks; sound → AAC
    sound_queue     sound that waits for its picture
    viewers         all takers of the outgoing pictures, such as `stream` and `preview`
    preview         a page with the picture before and after: `preview_pairs` holds the pictures,
                    `preview_server` serves them
    counters        counts and times; JSON lines, Prometheus
    snapshot        counts and times of a camera at one moment
    addresses       kinds of addresses, and values that are written as text
    subprocesses    other programs, and an installed ffmpeg
    systemd         a unit for a command line
    options         `SessionOptions`
    protocols       interfaces to networks, motion guides, viewers and event handlers

Only `restorer` and `stream` know torch and networks; the rest is given a `Restorer`.

The public names, loaded on first use:

    deblur_stream, Stream, LiveFrame            restore a live source from Python
    Session, SessionOptions                     the same with any network, and without iterating
    SourceOptions, RetryOptions, SinkOptions, LiveEncoding      parts of SessionOptions
    LiveDeblurrer                               `Deblurrer`s as a Restorer
    Restorer, Guide, Viewer                     interfaces that a session is given
    Preview                                     a Viewer that serves a page
    Device, devices                             cameras and screens of this machine
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdeblur import lazy

if TYPE_CHECKING:
    from vdeblur.live.encoding import LiveEncoding
    from vdeblur.live.options import SessionOptions
    from vdeblur.live.preview import Preview
    from vdeblur.live.protocols import Guide, Restorer, Viewer
    from vdeblur.live.restorer import LiveDeblurrer
    from vdeblur.live.session import Session
    from vdeblur.live.sinks.sink import SinkOptions
    from vdeblur.live.sources.devices import Device, devices
    from vdeblur.live.sources.receiver import RetryOptions
    from vdeblur.live.sources.source import SourceOptions
    from vdeblur.live.stream import LiveFrame, Stream, deblur_stream

__all__ = [
    "Device",
    "Guide",
    "LiveDeblurrer",
    "LiveEncoding",
    "LiveFrame",
    "Preview",
    "Restorer",
    "RetryOptions",
    "Session",
    "SessionOptions",
    "SinkOptions",
    "SourceOptions",
    "Stream",
    "Viewer",
    "deblur_stream",
    "devices",
]

# Lazily, so that the parts without torch can be imported without it.
_HOMES = {
    "encoding": ("LiveEncoding",),
    "options": ("SessionOptions",),
    "preview": ("Preview",),
    "protocols": ("Guide", "Restorer", "Viewer"),
    "restorer": ("LiveDeblurrer",),
    "session": ("Session",),
    "sinks.sink": ("SinkOptions",),
    "sources.devices": ("Device", "devices"),
    "sources.receiver": ("RetryOptions",),
    "sources.source": ("SourceOptions",),
    "stream": ("LiveFrame", "Stream", "deblur_stream"),
}

__getattr__, __dir__ = lazy.loader(__name__, _HOMES)
