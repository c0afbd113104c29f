"""A network that is too slow says so, once, and what to change."""

from __future__ import annotations

import argparse
from itertools import pairwise
from typing import Any

import pytest

from tests.helpers import peers
from tests.helpers.live import QUICK, Network, session
from vdeblur.cli import camera as command
from vdeblur.live.encoding import Chunk
from vdeblur.live.frame_line import FrameLine
from vdeblur.live.pace import Pace
from vdeblur.live.sinks.sink import Sink, SinkOptions


class Told:
    """A line whose counts and time are set, and what was said of it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.line = FrameLine(0.3, clock=lambda: self.now)
        self.pace = Pace(self.line)
        self.said: list[tuple[float, str, int]] = []

    def seconds(self, count: float, *, restored: float, passed: float = 0.0) -> None:
        """Let time pass, with frames per second of either kind."""
        for step in range(int(count * 10)):
            self.now += 0.1
            self.line.restored += int((step + 1) * restored / 10) - int(step * restored / 10)
            self.line.passed += int((step + 1) * passed / 10) - int(step * passed / 10)
            if event := self.pace.judge():
                self.said.append((round(self.now - 100), event[0], event[1]["restored"]))


def test_it_is_said_once_within_some_seconds() -> None:
    told = Told()
    told.seconds(600, restored=0, passed=25)
    ((when, name, restored),) = told.said
    assert (name, restored) == ("few_restored", 0)
    assert when <= 10


def test_a_network_that_warms_up_is_not_slow() -> None:
    told = Told()
    told.seconds(6, restored=0, passed=25)
    told.seconds(60, restored=24, passed=1)
    assert told.said == []


def test_recovery_is_said_and_there_is_no_flood() -> None:
    told = Told()
    told.seconds(20, restored=25)
    for _ in range(30):
        told.seconds(10, restored=1, passed=24)
        told.seconds(10, restored=25)
    names = [name for _, name, _ in told.said]
    assert names[:2] == ["few_restored", "restored_again"]
    assert len(names) <= 2 * (600 / 60 + 1)
    slow = [when for when, name, _ in told.said if name == "few_restored"]
    assert all(b - a >= 60 for a, b in pairwise(slow))


def test_an_outage_is_not_slow() -> None:
    told = Told()
    told.seconds(20, restored=25)
    told.seconds(60, restored=0)
    told.seconds(20, restored=25)
    assert told.said == []


def test_a_session_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "WINDOW", 1.0)
    monkeypatch.setattr(Pace, "BEGINNING", 1.0)
    network = Network(0.4)
    with session("test:160x90@25", network=network, options=QUICK) as (live, events):
        peers.until(lambda: events.of("few_restored"), 30)
        (facts,) = events.of("few_restored")
        assert facts["camera"] == 1
        assert facts["restored"] < facts["frames"] / 2
        network.seconds = 0.0
        peers.until(lambda: events.of("restored_again"), 60)
        assert events.of("restored_again")[0]["level_name"] == "whole"
        assert live.snapshot()[0]["restored_share"] > 0


SLOW: dict[str, Any] = {
    "camera": 1, "restored": 6, "passed": 119, "dropped": 0, "frames": 125, "seconds": 5.0,
    "limit_ms": 300, "network_ms": 416.0, "level_name": "mimo-unet-guided-large",
}  # fmt: skip


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize("json", [False, True])
def test_the_command_says_what_to_change(
    quiet: bool, json: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    args = argparse.Namespace(json=json, quiet=quiet, sources=["test"], degrade=None)
    with command.Speaker(args) as speaker:
        speaker.device = "cpu"
        speaker.event("few_restored", **SLOW)
        speaker.event("sink_drops", camera=1, sink="rtmp://h/***", dropped=99)
    said = capfd.readouterr()
    assert "only 6 of 125 frames were restored in the last 5 s, 119 passed" in said.err
    assert "mimo-unet-guided-large takes 416 ms per frame on this CPU: try --degrade, " in said.err
    assert "--model mimo-unet-guided, " in said.err
    assert "--max-latency 832ms" in said.err
    assert ("99 packets were dropped" in said.err) is not quiet
    assert ('"event": "few_restored"' in said.out) is json


def test_a_slow_sink_is_said_once() -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    sink = Sink("x.mkv", SinkOptions(), on_event=lambda name, **facts: events.append((name, facts)))
    sink.connected = True
    key = Chunk("video", b"x" * 1000, 0, 0, 1, True)
    for _ in range(20_000):  # its thread does not run
        sink.offer(key)
    ((name, facts),) = events
    assert name == "sink_drops"
    assert facts["dropped"] > 0
