"""An RTSP server for tests: a numbered live picture (H.264) and a tone (A-law), by gst-rtsp-server.

Run by the system's Python, which has GObject's bindings; it needs no other package. The code in the
picture is that of vdeblur.live.sources.demo_scene.

    rtsp_server.py PORT [--fps N] [--size WxH] [--user NAME:PASSWORD] [--sound]
"""

# mypy: ignore-errors

import argparse
import threading
import time

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402


def bits(value: int, count: int) -> list:
    return [value >> i & 1 for i in reversed(range(count))]


def picture(number: int, width: int, height: int) -> bytes:
    number, at = number & 0xFFFF, int(time.monotonic() * 1000) & 0xFFFFFFFF
    check = (number * 31 + at * 7 + (at >> 16) * 13 + 0x5A5) & 0xFFF
    code = bits(number, 16) + bits(at, 32) + bits(check, 12)
    rows = []
    filler = bytes([90]) * (width - 160)
    for row in range(3):
        cells = code[row * 20 : row * 20 + 20]
        rows.append((b"".join(bytes([235 if bit else 16]) * 8 for bit in cells) + filler) * 8)
    left = number * 4 % (width - 20)
    line = bytes([90]) * left + bytes([200]) * 20 + bytes([90]) * (width - 20 - left)
    rows.append(line * (height - 24))
    chroma = (width // 2) * (height // 2)
    return b"".join(rows) + bytes([128]) * (2 * chroma)


def timed(data: bytes, at: int):
    """A buffer with a time, in nanoseconds."""
    buffer = Gst.Buffer.new_wrapped(data)
    buffer.pts = at
    return buffer


class Factory(GstRtspServer.RTSPMediaFactory):
    def __init__(self, options):
        super().__init__()
        self.options = options
        self.set_shared(True)

    def do_create_element(self, url):
        o = self.options
        text = (
            "( appsrc name=source is-live=true format=time block=true "
            f"caps=video/x-raw,format=I420,width={o.width},height={o.height},framerate={o.fps}/1 "
            "! queue max-size-buffers=2 leaky=downstream ! x264enc tune=zerolatency "
            f"speed-preset=ultrafast key-int-max={o.fps} bitrate=800 ! rtph264pay name=pay0 pt=96 "
            "config-interval=1 "
        )
        if o.sound:
            text += (
                # Its own test source can be sought, and PLAY then fails where the picture's cannot.
                "appsrc name=sound is-live=true format=time "
                "caps=audio/x-raw,format=S16LE,rate=8000,channels=1,layout=interleaved ! queue "
                "! alawenc ! rtppcmapay name=pay1 "
            )
        return Gst.parse_launch(text + ")")

    def do_configure(self, media):
        source = media.get_element().get_by_name("source")
        sound = media.get_element().get_by_name("sound")
        stop = threading.Event()
        media.connect("unprepared", lambda *_: stop.set())

        def paint() -> None:
            while source.get_clock() is None:
                if stop.wait(0.005):
                    return
            start = source.get_clock().get_time() - source.get_base_time()
            begin, number = time.monotonic(), 0
            while not stop.wait(max(0.0, begin + number / self.options.fps - time.monotonic())):
                # By the number, not by the moment at which a thread wakes up: on a busy machine
                # picture and sound would be stamped apart.
                at = start + number * Gst.SECOND // self.options.fps
                data = picture(number, self.options.width, self.options.height)
                if source.emit("push-buffer", timed(data, at)) != Gst.FlowReturn.OK:
                    return
                if sound is not None:
                    # A tone of 1 kHz beside each picture that begins a second, else silence.
                    loud = number % self.options.fps == 0
                    hum = bytes(2) * 4 + bytes([0, 32 if loud else 0]) * 4
                    hum *= 1000 // self.options.fps
                    sound.emit("push-buffer", timed(hum, at))
                number = max(number + 1, int((time.monotonic() - begin) * self.options.fps))

        threading.Thread(target=paint, daemon=True).start()
        GstRtspServer.RTSPMediaFactory.do_configure(self, media)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port")
    parser.add_argument("--fps", type=int, default=25)
    parser.add_argument("--size", default="160x96")
    parser.add_argument("--user")
    parser.add_argument("--sound", action="store_true")
    options = parser.parse_args()
    options.width, options.height = map(int, options.size.split("x"))
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(options.port)
    factory = Factory(options)
    if options.user:
        name, password = options.user.split(":")
        auth = GstRtspServer.RTSPAuth()
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", "user")
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(name, password), token)
        server.set_auth(auth)
        permissions = GstRtspServer.RTSPPermissions()
        permissions.add_permission_for_role("user", "media.factory.access", True)
        permissions.add_permission_for_role("user", "media.factory.construct", True)
        factory.set_permissions(permissions)
    server.get_mount_points().add_factory("/live", factory)
    server.attach(None)
    print("ready", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
