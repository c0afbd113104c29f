"""Deblur a live stream with vdeblur's public API: an example to copy and adapt.

python pipelines/deblur_camera.py rtsp://camera/stream out.mkv [--model mimo-unet-guided]
"""

from __future__ import annotations

import argparse
import time

import vdeblur


def main() -> None:
    """Restore until Ctrl-C (or --seconds), and print the state every second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="rtsp://…, /dev/video0, screen, test …")
    parser.add_argument("sinks", nargs="*", help="FILE.mkv, FOLDER/, rtmp://… …")
    parser.add_argument("--model", default="mimo-unet-guided")
    parser.add_argument("--max-latency", type=float, default=0.3, help="seconds")
    parser.add_argument("--seconds", type=float, help="stop after so many")
    args = parser.parse_args()

    stream = vdeblur.deblur_stream(
        args.source,
        args.sinks,
        model=args.model,
        max_latency=args.max_latency,
        degrade=("half", "quarter"),
        on_event=lambda name, **facts: print(name, facts, flush=True),
    )
    began = said = time.monotonic()
    try:
        # The sinks do not need this loop: `stream.wait()` would do. frame.rgb() is an (H, W, 3)
        # array; a slow loop misses frames, but delays nothing.
        for frame in stream:
            now = time.monotonic()
            if args.seconds is not None and now - began > args.seconds:
                break
            if now - said > 1:
                said = now
                status = stream.stats()[0]
                print(
                    f"{frame.time_seconds:.1f} s: {status['restored']} restored, "
                    f"{status['passed']} passed, {status['dropped']} dropped, "
                    f"{1000 * frame.latency_seconds:.0f} ms",
                    flush=True,
                )
    except KeyboardInterrupt:
        pass
    finally:
        stream.stop()  # the files are complete after this


if __name__ == "__main__":
    main()
