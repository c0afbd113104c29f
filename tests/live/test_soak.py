"""A minute of RTSP in, RTMP out, with the default network at 320×180; and with the server killed.

Twenty minutes are `python -m tests.trials.soak_camera`. VDEBLUR_SOAK_SECONDS sets another length.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers import peers
from tests.trials.soak_camera import judge, report, soak

SECONDS = float(os.environ.get("VDEBLUR_SOAK_SECONDS") or 60)
pytestmark = pytest.mark.skipif(
    bool(peers.no_rtsp_server() or peers.no_nginx()),
    reason=peers.no_rtsp_server() or peers.no_nginx(),
)


def test_a_minute_of_rtsp_to_rtmp(tmp_path: Path) -> None:
    result = soak(tmp_path, seconds=SECONDS, limit=0.5)
    told = "\n".join(report(result))
    amiss = [line for line in judge(result, kills=0) if "gaps" not in line]  # a busy machine's
    assert not amiss, told
    last = result.statuses[-1]
    assert last["restored"] > 0.2 * last["received"], told
    assert last["restored"] + last["passed"] > 0.9 * last["received"], told
    assert result.latency_ms(0.95) < 2000, told
    assert result.numbers == sorted(result.numbers)


def test_a_server_killed_at_random_costs_the_outage_alone(tmp_path: Path) -> None:
    result = soak(tmp_path, seconds=max(20.0, SECONDS / 3), model="identity", kills=3)
    told = "\n".join([*report(result), *map(str, result.events)])
    last = result.statuses[-1]
    assert result.statuses[-2]["state"] == "live", told  # the last one is that of the end
    assert last["reconnects"] == len(result.kills) == 3, told
    away = sum(back - gone for gone, back in result.kills)
    # A read notices the end of its connection at once; then come a back-off and a keyframe.
    assert last["outage_seconds"] < away + 3 * 6, told
    assert sum(e["event"] == "outage" for e in result.events) == 3
