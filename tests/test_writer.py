"""What must survive: each kind of recording goes through the program, and `verify` finds nothing."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from av.stream import Disposition

from tests.media import HDR, INTERLACED, MKV, MP4, PLAIN, PTS, SCRIPT, Audio, Media, failed, make
from vdeblur import EncodeOptions, boxes, deblur_video
from vdeblur.verify import format_checks, verify

CFR = tuple(n * 3000 for n in range(24))
TWO = (Audio(title=""), Audio("fra", "", int(Disposition.comment), frequency=220))
WHOLE = replace(MP4, audio=TWO, subtitles=())
ONE = TWO[:1]
LATE = tuple(p + 27_000 for p in PTS)
WRAP = 2**33 - 40_000  # the 90 kHz clock of MPEG-TS has 33 bits: it starts anew in mid-clip
BARE = replace(MKV, subtitles=(), chapters=(), cover=None, fonts=(), audio=())
TS = replace(PLAIN, suffix=".ts", rotation=None, metadata={}, audio=(Audio(disposition=0),))
B_FRAMES = {"preset": "veryfast", "bf": "3", "b-adapt": "0"}
X265 = {"preset": "ultrafast", "x265-params": "log-level=none"}
HLG = replace(HDR, colour=(1, 9, 18, 9), options=X265)
MPEG2 = replace(
    PLAIN, suffix=".ts", rotation=None, codec="mpeg2video", options={"b": "2000000"}, pts=CFR,
    last_duration=3000, metadata={}, colour=(1, 1, 1, 1), audio=(Audio(disposition=0, codec="mp2"),),
)  # fmt: skip

SURVIVES: dict[str, Media] = {
    "everything in mp4, variable rate": WHOLE,
    "everything in mkv": MKV,
    "constant rate": replace(PLAIN, pts=CFR, last_duration=3000, audio=ONE),
    "29.97": replace(PLAIN, pts=tuple(n * 3003 for n in range(24)), audio=ONE),
    "picture late": replace(WHOLE, pts=LATE),
    "picture late in mkv": replace(MKV, pts=tuple(p + 27_000 for p in MKV.pts)),
    "sound late": replace(WHOLE, audio=(replace(TWO[0], shift=0.3), replace(TWO[1], shift=0.1))),
    "sound late in mkv": replace(MKV, audio=(Audio(title="", shift=0.3),)),
    "all late": replace(WHOLE, pts=LATE, audio=(Audio(title="", shift=0.3),)),
    "negative times": replace(PLAIN, pts=tuple(p - 9000 for p in PTS), audio=(Audio(title="", shift=-0.1),)),
    "edit list": replace(PLAIN, pts=tuple(p - 10_500 for p in PTS), audio=ONE),
    "b-frames": replace(WHOLE, options=B_FRAMES),
    "b-frames in mkv": replace(MKV, options=B_FRAMES),
    "one frame": replace(PLAIN, pts=(0,), audio=ONE),
    "mpeg-ts": TS,
    "mpeg-ts with b-frames": replace(TS, options=B_FRAMES, pts=LATE),
    "mpeg-ts across the wrap": replace(
        TS,
        pts=tuple(p + WRAP for p in CFR),
        audio=(Audio(disposition=0, shift=WRAP / 90_000),),
        muxing={"mpegts_copyts": "1"},
    ),
    "titles of tracks": replace(PLAIN, audio=MP4.audio),
    "mov_text subtitles": replace(PLAIN, subtitles=("first", "second")),
    "ass subtitles": replace(MKV, subtitles=(), script=SCRIPT),
    "unicode": replace(
        WHOLE,
        metadata={"title": "Fahrt über 東京 🚲", "artist": "Ана", "comment": "a=b; c\\d\n2"},
        chapters=((0, 400, "Überholen"), (400, 800, "峠")),
    ),
    "custom tags": replace(
        WHOLE,
        cover=None,
        metadata={"title": "Ride", "com.maker.serial": "C0123", "com.maker.mode": "ü"},
        muxing={"movflags": "+faststart+use_metadata_tags"},
    ),
    "custom tags in mkv": replace(MKV, metadata={"title": "Ride", "SERIAL": "C0123", "MODE": "ü"}),
    "rotated": replace(PLAIN, rotation=-90),
    "upside down": replace(PLAIN, rotation=180),
    "wide pixels": replace(PLAIN, aspect=Fraction(64, 45)),
    "fields, top first": INTERLACED,
    "fields, bottom first": replace(INTERLACED, interlaced="bff"),
    "fields in mkv": replace(BARE, interlaced="tff", options={"preset": "ultrafast", "bf": "0"}),
    "mpeg-2 fields, top first": replace(MPEG2, interlaced="tff"),
    "mpeg-2 fields, bottom first": replace(MPEG2, interlaced="bff"),
    "full range": replace(PLAIN, colour=(2, 1, 1, 1)),
    "601": replace(PLAIN, colour=(1, 6, 6, 6)),
    "pal": replace(PLAIN, colour=(1, 5, 6, 5)),
    "hdr10": HDR,
    "hdr10 in mkv": replace(HDR, suffix=".mkv", rotation=None),
    "hlg": HLG,
    "hlg in mkv": replace(HLG, suffix=".mkv", rotation=None),
    "hevc 8 bits": replace(HLG, pix_fmt="yuv420p", colour=(1, 1, 1, 1)),
    "10 bits 4:2:2": replace(PLAIN, pix_fmt="yuv422p10le"),
    "4:4:4": replace(PLAIN, pix_fmt="yuv444p"),
    "gray": replace(PLAIN, pix_fmt="gray"),
    "odd size": replace(PLAIN, pix_fmt="yuv444p", size=(61, 47)),
    "odd size 4:2:0": replace(BARE, codec="ffv1", options={}, size=(61, 47)),
    "alpha": replace(BARE, codec="ffv1", options={}, pix_fmt="yuva420p"),
    "captions": replace(PLAIN, captions=True),
    "moov last": replace(WHOLE, faststart=False),
    "moov first": replace(PLAIN, faststart=True),
    "timecode in mov": replace(PLAIN, suffix=".mov", timecode="01:02:03:04"),
    "timecode, drop frame": replace(
        PLAIN, pts=tuple(n * 3003 for n in range(24)), timecode="01:02:03;04"
    ),
    "pcm in mov": replace(PLAIN, suffix=".mov", audio=(Audio(title="", codec="pcm_s16le"),)),
    "two pictures": replace(PLAIN, second_video=True, audio=ONE),
    "two pictures in mkv": replace(BARE, second_video=True, audio=ONE),
    "sound longer than picture": replace(PLAIN, pts=PTS[:5], audio=ONE),
    "no sound": PLAIN,
}  # fmt: skip


@pytest.mark.parametrize("name", SURVIVES)
def test_survives(tmp_path: Path, name: str) -> None:
    media = SURVIVES[name]
    source = make(tmp_path / f"source{media.suffix}", media)
    output = tmp_path / f"output{media.suffix}"
    report = deblur_video(
        source, output, model="identity", encode=EncodeOptions(preset="ultrafast")
    )
    checks = verify(source, output)
    assert not failed(checks), format_checks(checks)
    # Those before an edit list begins are hidden from every reader.
    shown = sum(pts >= 0 for pts in media.pts)
    assert report.frames == shown * (1 + media.second_video)
    assert report.lost == []
    assert report.damage == []
    assert report.differences == []
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "maker.mp4") == [
        output.name,
        source.name,
    ]
