"""A process that reads NUT from standard input and sends it to a server.

libav connects, writes headers and closes connections while it holds Python's global lock (PyAV
18.1): a server that does not answer would stop the whole program. Here it only stops this process,
which can be killed. Standard input: one line of JSON with the address (so that no password is on
the command line), then NUT. Standard output: `connected` once the server has taken the header.
Standard error: why it ended, in one line. Knows libav only.

    python -m vdeblur.live.sinks.push
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from typing import Any, cast

import av
import av.error
from av.bitstream import BitStreamFilterContext

from vdeblur.live.addresses import scheme_of, unknown_host
from vdeblur.system.masking import masked

_FORMATS = {
    "rtsp": "rtsp",
    "rtsps": "rtsp",
    "rtmp": "flv",
    "rtmps": "flv",
    "udp": "mpegts",
    "tcp": "mpegts",
}


def push(address: str, options: dict[str, str]) -> None:
    """Send standard input to an address until it ends; `options` go to the muxer."""
    scheme = scheme_of(address)
    form = _FORMATS[scheme]
    # Sound comes later than its picture, by the delay of its encoder: libav would hold pictures
    # back until it comes, and the last ones before an outage until the outage is over.
    chosen = {"flush_packets": "1", "max_interleave_delta": "1"} | options
    if form == "rtsp":
        chosen |= {"rtsp_transport": "tcp", "pkt_size": "1316"} | options
    elif form == "flv":
        chosen |= {"flvflags": "no_duration_filesize"}
    elif form == "mpegts":
        chosen |= {"muxdelay": "0", "muxpreload": "0", "pat_period": "0.5"}
        if scheme == "udp" and "pkt_size" not in address:
            # Seven packets of MPEG-TS fit into an Ethernet frame; libav would send more.
            address += ("&" if "?" in address else "?") + "pkt_size=1316"
    quickly = {"analyzeduration": "0", "probesize": "32", "fpsprobesize": "0"}
    with av.open("pipe:0", format="nut", options=quickly) as source:
        output = cast(Any, av.open(address, "w", format=form, container_options=chosen))
        streams: dict[int, Any] = {}
        filters: dict[int, BitStreamFilterContext] = {}
        for stream in source.streams:
            streams[stream.index] = output.add_stream_from_template(stream, opaque=True)
            if form == "mpegts" and stream.type == "video":
                # Players that tune in later need the parameter sets before each keyframe.
                filters[stream.index] = BitStreamFilterContext("dump_extra=freq=keyframe", stream)
        output.start_encoding()
        _report("connected")
        for packet in source.demux():
            if not packet.size:
                continue
            index, ticks = packet.stream.index, packet.time_base
            for ready in filters[index].filter(packet) if index in filters else [packet]:
                if index in filters:
                    ready.time_base = ticks
                ready.stream = streams[index]
                output.mux(ready)
        output.close()


def _report(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(1, text.encode() + b"\n")


def main() -> int:
    """Run the process; return 0 at the end of the input, 1 with a line on standard error."""
    # Ctrl-C is for the parent, which ends the input, so that the connection is closed properly.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return 1
        line += byte
    order = json.loads(line)
    try:
        push(order["address"], order.get("options", {}))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        text = str(getattr(error, "strerror", None) or error)
        if text == "Input/output error" and (host := unknown_host(order["address"])):
            text = f"no computer called {host} is known: check it"
        print(masked(text), file=sys.stderr, flush=True)
        # Not a return: closing, libav may wait for the server once more.
        os._exit(1)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
