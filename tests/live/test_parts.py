"""The parts of live streams that need no peer: names, times, the choice of frames, sinks' files."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vdeblur import live
from vdeblur.errors import InputError, UsageError
from vdeblur.frames import Frame, PlaneLayout
from vdeblur.live.addresses import (
    Scene,
    duration_seconds,
    resolve,
    sink_kind,
    size_bytes,
    source_kind,
    unknown_host,
)
from vdeblur.live.counters import JsonLines, Recent, host_port
from vdeblur.live.frame_line import FrameLine, LineEvent, QueuedFrame, write_back
from vdeblur.live.scheduler import Scheduler
from vdeblur.live.sources.connection import _Relief
from vdeblur.live.sources.demo_scene import draw, read_code, write_code
from vdeblur.live.sources.devices import parse_listing
from vdeblur.live.sources.receiver import Receiver, RetryOptions
from vdeblur.live.sources.source import Refused, SourceOptions
from vdeblur.live.sources.timing import Backlog, Backoff, Clock, Held, Rate, Timeline
from vdeblur.live.systemd import unit
from vdeblur.system.masking import masked

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "address",
    [
        f"rtsp://admin:{SECRET}@10.0.0.5/stream",
        f"rtsp://admin:{SECRET}@host@10.0.0.5:554/stream",
        f"rtsp://admin:pass/{SECRET}@10.0.0.5/stream",
        f"http://10.0.0.5/video?user=a&password={SECRET}",
        f"https://10.0.0.5/v.m3u8?token={SECRET}&x=1",
        f"srt://10.0.0.5:9000?mode=caller&passphrase={SECRET}",
        f"rtmp://a.example/live2/{SECRET}",
        f"cannot open rtsp://u:{SECRET}@h/x and rtsp://v:{SECRET}@h/y: refused",
    ],
)
def test_passwords_are_masked(address: str) -> None:
    assert SECRET not in masked(address)
    assert "***" in masked(address)
    assert masked("rtsp://10.0.0.5:554/stream") == "rtsp://10.0.0.5:554/stream"


def test_passwords_are_masked_outside_of_addresses_too() -> None:
    address = f"rtsp://admin:{SECRET}%21@10.0.0.5/stream"
    said = f"Server returned 401 for user admin with {SECRET}! ({SECRET}%21)"
    assert masked(said, of=address) == "Server returned 401 for user admin with *** (***)"
    key = f"rtmp://a.example/live2/{SECRET}"
    assert SECRET not in masked(f"stream {SECRET} is taken", of=key)


def test_a_host_that_is_not_known_is_no_part_of_a_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lookup(host: str, _: None) -> None:
        raise OSError("not known")

    monkeypatch.setattr("socket.getaddrinfo", lookup)
    assert unknown_host("rtsp://a.example:554/x") == "a.example"
    assert unknown_host("rtsp://u:pa@s3cr3t/x@a.example/x") == "a.example"
    assert unknown_host("rtsp://u:p[w@a.example/x") == "a.example"
    assert unknown_host("rtsp://[fe80/x") == ""
    assert unknown_host("/dev/video0") == ""


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {
        "rtsp://h/x": "network",
        "udp://239.0.0.1:1234": "network",
        "/dev/video0": "v4l2",
        "screen": "screen",
        "test:1280x720@30": "test",
        "srt://h:1": "ffmpeg",
        "avfoundation:0": "ffmpeg",
        "ride.mp4": "file",
    }
    assert {address: source_kind(address) for address in kinds} == kinds
    sinks = {
        "a.mkv": "file",
        "hls/": "hls",
        str(tmp_path): "hls",
        "x/live.m3u8": "hls",
        "-": "pipe",
        "rtmp://h/a/b": "push",
        "srt://h:1": "ffmpeg",
        "virtual": "virtual",
    }
    assert {address: sink_kind(address) for address in sinks} == sinks
    for wrong in ("gopher://h", "a.png"):
        with pytest.raises(UsageError, match=r"rtmp"):
            sink_kind(wrong)
    with pytest.raises(UsageError, match="no source is known"):
        source_kind("gopher://h")
    monkeypatch.setenv("CAM", "rtsp://u:p@h/x")
    assert resolve("env:CAM") == "rtsp://u:p@h/x"
    with pytest.raises(UsageError, match="NOT_SET is not set"):
        resolve("env:NOT_SET")
    assert Scene.of("test:320x180@30") == Scene(320, 180, 30)
    with pytest.raises(UsageError, match="no test scene"):
        Scene.of("test:10x10")


def test_values() -> None:
    assert [duration_seconds(t) for t in ("300ms", "5s", "2", "10m", "1h")] == [
        0.3,
        5,
        2,
        600,
        3600,
    ]
    assert [size_bytes(t) for t in ("500M", "2G", "1024")] == [500_000_000, 2_000_000_000, 1024]
    for wrong in ("", "5 parsecs", "-1s", "0"):
        with pytest.raises(ValueError, match="not a length of time"):
            duration_seconds(wrong)
    assert host_port("9464") == ("127.0.0.1", 9464)
    assert host_port("[::1]:80") == ("::1", 80)
    with pytest.raises(UsageError):
        host_port("here")


def test_the_code_in_the_picture() -> None:
    luma = draw(Scene(160, 90, 25), 7)[0]
    write_code(luma, 513, 0x89ABCDEF)
    assert read_code(luma) == (513, 0x89ABCDEF)
    noisy = np.clip(
        luma.astype(int) + np.random.default_rng(1).integers(-40, 40, luma.shape), 0, 255
    )
    assert read_code(noisy.astype(np.uint8)) == (513, 0x89ABCDEF)
    assert read_code(np.full((90, 160), 128, np.uint8)) is None
    assert not np.array_equal(draw(Scene(160, 90, 25), 7)[0], draw(Scene(160, 90, 25), 8)[0])


# -- times -----------------------------------------------------------------------------------------


def test_a_line_of_time_keeps_intervals_and_bridges_jumps() -> None:
    line, placed = Timeline(), []
    source = Fraction(1000)
    now = 50.0
    for step in [0, *[0.04] * 5, 8_000, *[0.04] * 3, -90_000, *[0.04] * 3]:
        source += Fraction(step).limit_denominator(100)
        now += 0.04
        placed.append(line.place("picture", source, now))
    steps = [float(b - a) for a, b in pairwise(placed)]
    assert placed[0] == 0
    assert all(0.03 < step < 0.05 for step in steps), steps
    assert line.jumps == 2
    exact = [b - a for a, b in pairwise(placed[:6])]
    assert set(exact) == {Fraction(1, 25)}


def test_what_arrives_at_once_beyond_a_jump_does_not_fall_upon_the_last() -> None:
    line = Timeline()
    placed = [
        line.place("picture", at, 50.0)
        for at in (*(Fraction(n, 25) for n in range(4)), *(900 + Fraction(n, 25) for n in range(3)))
    ]
    assert placed == [Fraction(n, 25) for n in range(7)]
    assert line.jumps == 1


def test_sound_and_picture_jump_together() -> None:
    line = Timeline()
    for n in range(10):
        line.place("picture", Fraction(n, 25), n / 25)
        line.place("sound", Fraction(n, 25) + Fraction(1, 100), n / 25 + 0.001)
    # The sound's clock jumps first; the picture's next packet still bears the old time.
    new_sound = line.place("sound", Fraction(5000), 0.40)
    old_picture = line.place("picture", Fraction(10, 25), 0.40)
    new_picture = line.place("picture", Fraction(5000) + Fraction(1, 25), 0.44)
    assert old_picture == Fraction(10, 25)
    assert new_picture - new_sound == Fraction(1, 25)
    assert line.jumps == 1


def test_a_stall_is_no_jump_and_a_reconnect_leaves_the_outage_out() -> None:
    line = Timeline()
    line.place("picture", Fraction(7), 10.0)
    assert line.place("picture", Fraction(7) + Fraction(1, 25), 14.0) == Fraction(1, 25)
    assert line.place("picture", Fraction(9), 14.1) == 2
    assert line.jumps == 0
    line.begin()
    assert float(line.place("picture", Fraction(0), 24.1)) == pytest.approx(12.0)
    assert line.jumps == 0


def test_the_clock_counts_from_the_quickest_arrival() -> None:
    clock = Clock()
    assert clock.captured(0.0, 100.2) == pytest.approx(100.2)
    assert clock.captured(0.04, 100.14) == pytest.approx(100.14)
    assert clock.captured(0.08, 100.50) == pytest.approx(100.18)  # 320 ms late already
    for n in range(2000):  # the source's clock runs slow by 1 %: what was quick is forgotten
        late = 100.14 + n * 0.0404 - clock.captured(0.04 + n * 0.04, 100.14 + n * 0.0404)
    assert late < 0.35


def held(seconds: float, arrived: float) -> Held:
    return Held(None, Fraction(seconds).limit_denominator(1000), arrived, 0.0, 0.0)


def test_how_old_a_connections_first_pictures_are_shows_before_they_go_on() -> None:
    # What was read ahead comes at once, 2 ms apart; then comes what had to be waited for.
    backlog = Backlog(0.3)
    ends = [backlog.add(held(n / 25, 10 + n * 0.002)) for n in range(30)]
    assert not any(ends)
    assert backlog.add(held(30 / 25, 10.1))
    assert [round(float(h.seconds) * 25) for h in backlog.held] == list(range(23, 31))
    assert backlog.left_out == 23
    clock = Clock()
    for one in backlog.held:
        clock.captured(float(one.seconds), one.arrived)
    oldest = backlog.held[0]
    age = oldest.arrived - clock.captured(float(oldest.seconds), oldest.arrived)
    assert 0.2 < age <= 0.3
    # A camera that sends one by one is not held up, and one that is slow even less.
    assert [Backlog(0.3).add(held(0, 5.0))] == [False]
    backlog = Backlog(0.3)
    assert [backlog.add(held(n, 5.0 + n)) for n in range(2)] == [False, True]
    # However long a latency is allowed, pictures in memory are not: they may be of 4K.
    backlog = Backlog(60)
    assert not any(backlog.add(held(n / 25, 10 + n / 1000)) for n in range(400))
    assert len(backlog.held) == Backlog.MOST
    # What never comes to its end does so after three seconds.
    backlog = Backlog(0.3)
    assert [backlog.add(held(n / 25, 5.0 + n / 100)) for n in range(350)].index(True) == 301


def test_the_rate_that_pictures_really_have() -> None:
    rate = Rate(1 / 50)  # of fields, as libav may state it
    assert rate.begin([0.08]) == 0  # a picture was skipped: one step says nothing
    assert rate.begin([0.04, 0.08, 0.04, 0.04, 0.04]) == pytest.approx(25)
    assert not any(rate.of(n * 0.04) for n in range(60))
    told = [found for n in range(60) if (found := rate.of(2.4 + n * 0.1))]
    assert told == [pytest.approx(10)]


class Taker:
    """Keeps the names of what happened."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def format(self, *_: object) -> None: ...
    def frame(self, *_: object) -> None: ...
    def sound(self, *_: object) -> None: ...

    def event(self, name: str, **facts: Any) -> None:
        self.events.append(name)


def test_a_call_that_does_not_come_back_is_left_to_itself() -> None:
    back, opened = threading.Event(), []

    def opener(address: str, options: SourceOptions, stop: threading.Event) -> Any:
        opened.append(stop)
        if len(opened) == 1:
            back.wait(20)  # as a name server that does not answer
        raise InputError("broken")

    taker = Taker()
    retry = RetryOptions(tries=1, first=0.01)
    receiver = Receiver("rtsp://h/x", taker, retry=retry, opener=opener)
    receiver.patience = 0.2
    receiver.start()
    receiver.check()
    assert len(opened) == 1
    time.sleep(0.3)
    receiver.check()
    assert receiver.ended.wait(5)
    assert opened[0].is_set()
    assert len(opened) == 3  # the second one tried twice
    assert "given up" in str(receiver.error)
    said = list(taker.events)
    back.set()  # the first one comes back, and has nothing to say any more
    time.sleep(0.1)
    assert taker.events == said == ["retry", "failed"]


def test_calls_that_never_come_back_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    back = threading.Event()

    def opener(address: str, options: SourceOptions, stop: threading.Event) -> Any:
        back.wait(20)
        raise InputError("broken")

    monkeypatch.setattr(Receiver, "MOST_LEFT", 2)
    taker = Taker()
    receiver = Receiver("rtsp://user:secret@h/x", taker, opener=opener)
    receiver.patience = 0.0
    receiver.start()
    for _ in range(5):
        receiver.check()
    assert receiver.ended.is_set()
    assert "from 3 connections" in str(receiver.error)
    assert "secret" not in str(receiver.error)
    assert taker.events == ["failed"]
    back.set()
    assert receiver.join(5)


def test_a_wait_between_tries_is_no_call_that_does_not_come_back() -> None:
    opened = []

    def opener(address: str, options: SourceOptions, stop: threading.Event) -> Any:
        opened.append(stop)
        raise InputError("broken")

    receiver = Receiver("rtsp://h/x", Taker(), retry=RetryOptions(first=20), opener=opener)
    receiver.patience = 0.1
    receiver.start()
    time.sleep(0.3)
    receiver.check()
    assert not opened[0].is_set()
    assert len(opened) == 1
    receiver.stop()
    assert receiver.join(5)


def test_refused_later_is_tried_again_slowly() -> None:
    class Source:
        name, kind, finite = "cam", "network", False

        def __init__(self, *_: object) -> None:
            raise Refused("cam refuses")

    waits: list[float] = []

    class Listening(Taker):
        def event(self, name: str, **facts: Any) -> None:
            super().event(name)
            if name == "retry":
                waits.append(facts["seconds"])
                receiver.stop()

    receiver = Receiver("rtsp://h/x", Listening(), opener=Source)  # type: ignore[arg-type]
    receiver._announcer.connected_once = True
    receiver.start()
    assert receiver.join(5)
    assert 15 <= waits[0] <= 30


def test_decoding_less_begins_at_once_and_ends_at_a_keyframe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Context:
        skip_frame = "DEFAULT"

    now, context = [100.0], Context()
    monkeypatch.setattr("vdeblur.live.sources.connection.time.monotonic", lambda: now[0])
    relief = _Relief(context, 0.3)

    def second(share: float, late: float, *, keyframe: bool = False) -> str:
        for _ in range(25):
            relief.before(keyframe)
            now[0] += 0.04
            relief.after(0.04 * share, late)
        return context.skip_frame

    # Late, but not by decoding: the network stalled.
    assert [second(0.1, 1.0) for _ in range(4)][-1] == "DEFAULT"
    assert [second(1.0, 1.0) for _ in range(3)][-1] == "NONREF"
    assert [second(1.0, 1.0) for _ in range(3)][-1] == "NONKEY"
    assert [second(0.1, 0.0) for _ in range(6)][-1] == "NONKEY"
    assert second(0.1, 0.0, keyframe=True) == "NONREF"
    assert [second(0.1, 0.0) for _ in range(4)][-1] == "DEFAULT"


def test_backoff_is_capped_shaken_and_never_busy() -> None:
    backoff = Backoff(0.5, 30)
    waits = [backoff.next() for _ in range(50)]
    assert all(0.25 <= wait <= 30 for wait in waits)
    assert 15 <= min(waits[20:]) < max(waits[20:])
    backoff.reset()
    assert backoff.next() <= 0.5
    assert backoff.next(slow=True) >= 15


# -- which frames ----------------------------------------------------------------------------------

LAYOUT = PlaneLayout(16, 16)


class Network:
    """Adds one to the first plane, after a while."""

    def __init__(self, seconds: float, levels: Sequence[str] = ("whole",)) -> None:
        self.seconds, self.levels = seconds, levels
        self.batches: list[int] = []
        self.failing = False

    def restore(self, frames: Sequence[Frame], level: int) -> list[bool]:
        if self.failing:
            raise RuntimeError("no memory")
        self.batches.append(len(frames))
        time.sleep(self.seconds / 4**level)
        for frame in frames:
            frame.planes[0][...] += 1
        return [False] * len(frames)


def picture(number: int, now: float) -> QueuedFrame:
    planes = tuple(np.zeros(shape, np.uint8) for shape in LAYOUT.shapes)
    return QueuedFrame(Frame(planes, LAYOUT, number, Fraction(1, 25)), now, now)


class Run:
    """Lines fed at a rate for a while, through a network; who left, when, and how old."""

    def __init__(
        self, network: Network, *, limit: float, lines: int = 1, frames: int = 60, **more: Any
    ) -> None:
        self.lines = [FrameLine(limit, capacity=24) for _ in range(lines)]
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.left: list[list[tuple[int, float, str, int]]] = [[] for _ in self.lines]
        self.scheduler = Scheduler(
            network,
            self.lines,
            on_event=lambda name, **facts: self.events.append((name, facts)),
            **more,
        )
        threads = [
            threading.Thread(target=self._take, args=(line, left))
            for line, left in zip(self.lines, self.left, strict=True)
        ]
        self.scheduler.start()
        for thread in threads:
            thread.start()
        began = time.monotonic()
        for number in range(frames):
            time.sleep(max(0.0, began + number * 0.02 - time.monotonic()))
            for line in self.lines:
                line.put(picture(number, time.monotonic()))
        for line in self.lines:
            line.close()
        for thread in threads:
            thread.join()
        self.scheduler.stop()
        assert self.scheduler.join(5)

    def _take(self, line: FrameLine, left: list[tuple[int, float, str, int]]) -> None:
        while (item := line.next(5.0)) is not None:
            assert isinstance(item, QueuedFrame)
            write_back(item)
            age = time.monotonic() - item.captured
            left.append((item.frame.pts, age, item.state, int(item.frame.planes[0][0, 0])))


def test_a_quick_network_restores_all_in_order() -> None:
    run = Run(Network(0.002), limit=0.4)
    left = run.left[0]
    assert [pts for pts, *_ in left] == sorted(pts for pts, *_ in left)
    assert len(left) + run.lines[0].dropped == 60
    assert run.lines[0].restored > 40
    assert all((state == "done") == (value == 1) for _, _, state, value in left)


def test_a_slow_network_leaves_frames_untouched_and_on_time() -> None:
    run = Run(Network(0.09), limit=0.4)
    line, left = run.lines[0], run.left[0]
    assert [pts for pts, *_ in left] == sorted(pts for pts, *_ in left)
    assert line.restored >= 4
    assert line.passed > line.restored
    late = [age for _, age, *_ in left if age > 0.42]
    assert len(late) <= 3, late  # the machine's own stalls
    assert line.restored + line.passed + line.dropped == 60


class Compiled(Network):
    """Its second and third calls compile and record, for ten times as long as a frame may take."""

    def restore(self, frames: Sequence[Frame], level: int) -> list[bool]:
        self.seconds = 0.25 if len(self.batches) in (1, 2) else 0.002
        return super().restore(frames, level)


def test_calls_that_compile_do_not_stand_for_those_to_come() -> None:
    # A machine that stalls for a call makes the next one wait for a second.
    assert any(Run(Compiled(0.0), limit=0.15).lines[0].restored > 15 for _ in range(3))


def test_a_hopeless_network_holds_nothing_up() -> None:
    run = Run(Network(0.5), limit=0.1)
    line, left = run.lines[0], run.left[0]
    assert line.restored == 0
    assert line.passed >= 50
    ages = sorted(age for _, age, *_ in left)
    assert ages[len(ages) // 2] < 0.05
    assert all(value == 0 for *_, value in left)


def test_a_network_that_fails_lets_the_picture_go_on() -> None:
    network = Network(0.001)
    network.failing = True
    run = Run(network, limit=0.3, frames=30)
    assert [name for name, _ in run.events] == ["network_failed"]
    assert run.lines[0].passed >= 28


def test_a_smaller_network_is_taken_when_allowed_and_told_of() -> None:
    for _ in range(3):
        network = Network(0.3, ("whole", "half"))
        run = Run(network, limit=0.15, frames=120, degrade=True, window=0.5)
        if run.lines[0].restored:  # unless the machine stalls
            break
    assert run.scheduler.level == 1
    assert [facts["level"] for name, facts in run.events if name == "level"] == ["half"]
    assert run.lines[0].restored > 0
    kept = Run(Network(0.3, ("whole", "half")), limit=0.15, frames=60, window=0.3)
    assert kept.scheduler.level == 0


def test_cameras_share_batches_when_asked_to() -> None:
    network = Network(0.03)
    run = Run(network, limit=0.5, lines=3, together=True)
    assert max(network.batches) == 3
    apart = Network(0.01)
    run = Run(apart, limit=0.5, lines=3)
    assert max(apart.batches) == 1
    restored = [line.restored for line in run.lines]
    assert min(restored) > 0, restored  # in turn, so that none is left out


def test_a_full_line_drops_the_oldest_and_keeps_what_stands_between() -> None:
    line = FrameLine(0.2, capacity=4)
    line.put(LineEvent())
    now = time.monotonic()
    for number in range(10):
        line.put(picture(number, now))
    assert (line.depth, line.dropped, line.offered) == (4, 6, 10)
    line.close()
    items = []
    while (item := line.next(0.1)) is not None:
        items.append("event" if isinstance(item, LineEvent) else item.frame.pts)
    assert items == ["event", 6, 7, 8, 9]


def test_what_is_late_is_dropped_unless_it_is_all_there_is() -> None:
    line = FrameLine(0.1, capacity=16)
    old = time.monotonic() - 1
    for number in range(3):
        line.put(picture(number, old))
    item = line.next(0.1)
    assert isinstance(item, QueuedFrame)
    assert (item.frame.pts, line.dropped) == (2, 2)


# -- watching, service, devices --------------------------------------------------------------------


def test_recent_times_are_bounded() -> None:
    recent = Recent(seconds=60, most=100)
    assert recent.quantiles(0.5) == [None]
    for n in range(1000):
        recent.add(n / 1000)
    assert recent.quantiles(0.0, 0.5, 0.95) == [0.9, 0.95, 0.995]
    assert len(recent._values) == 100


def test_json_lines(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        JsonLines(file).line("event", {"event": "outage", "reason": "gone"})
    line = json.loads((tmp_path / "log").read_text())
    assert (line["type"], line["event"], line["reason"]) == ("event", "outage", "gone")
    assert abs(line["time"] - time.time()) < 60


def test_a_systemd_unit_hides_passwords() -> None:
    text = unit(["rtsp://u:s3cr3t@h/x", "-o", "cam_%Y.mkv", "--service", "--max-latency", "300ms"])
    assert "s3cr3t" not in text
    assert "env:VDEBLUR_CAMERA_1 -o cam_%%Y.mkv --max-latency 300ms" in text
    assert "EnvironmentFile=" in text
    assert "Restart=always" in text
    assert "--service" not in text
    assert "EnvironmentFile" not in unit(["test", "-o", "a.mkv"])


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    file = tmp_path / "vdeblur-camera.service"
    file.write_text(unit(["rtsp://u:s3cr3t@h/x", "-o", "cam %H $x.mkv", "--max-latency", "300ms"]))
    words = ["systemd-analyze", "verify", "--man=no", str(file)]
    said = subprocess.run(words, capture_output=True, text=True, timeout=30)
    about = [line for line in said.stderr.splitlines() if file.name in line]
    assert not about, about


def test_listings_of_other_systems() -> None:
    mac = "[AVFoundation @ 0x1] AVFoundation video devices:\n[AVFoundation @ 0x1] [0] FaceTime\n"
    mac += "[AVFoundation @ 0x1] AVFoundation audio devices:\n[AVFoundation @ 0x1] [0] Mic\n"
    assert [d.address for d in parse_listing("avfoundation", mac)] == ["avfoundation:0"]
    windows = '[dshow @ 1] "USB Camera" (video)\n[dshow @ 1] "Microphone" (audio)\n'
    assert [d.address for d in parse_listing("dshow", windows)] == ["dshow:video=USB Camera"]


def test_public_names() -> None:
    for name in live.__all__:
        assert getattr(live, name).__module__.startswith("vdeblur.live."), name
    assert set(live.__all__) <= set(dir(live))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = live.Nothing
