"""`vdeblur compare`: what is shown where, what is kept, and the page in a real browser."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.helpers.browser import CHROMIUM, Page
from tests.helpers.clips import PLAIN, Audio, make, read_frames, scene, write_frames
from vdeblur.cli.main import main
from vdeblur.datasets.pictures import read_rgb, to_picture, write_png
from vdeblur.errors import InputError, OutputError, UsageError
from vdeblur.evaluation.comparison_page import compare_page
from vdeblur.evaluation.comparison_video import CompareOptions, Mode, compare_video
from vdeblur.media.encoders import EncodeOptions

LOSSLESS = EncodeOptions(encoder="ffv1")


def gray(path: Path, levels: list[int], size: tuple[int, int] = (96, 64), **more: Any) -> Path:
    """A lossless video of even gray, a level a frame."""
    frames = []
    for level in levels:
        pixels = np.full((size[1], size[0], 3), level, np.uint8)
        picture = av.VideoFrame.from_ndarray(pixels, "rgb24")
        wide = 2 if more.get("colour", (1,))[0] == 2 else 1  # full range, or limited
        frames.append(picture.reformat(format="yuv420p", dst_color_range=wide))
    return write_frames(path, frames, **more)


def lumas(path: Path) -> list[NDArray[Any]]:
    return [planes[0] for _, planes in read_frames(path)]


def shown(before: Path, after: Path, output: Path, **options: Any) -> list[NDArray[Any]]:
    compare_video(before, after, output, options=CompareOptions(**options), encode=LOSSLESS)
    return lumas(output)


def test_side_by_side_and_stacked_hold_both_to_the_last_bit(tmp_path: Path) -> None:
    ours = write_frames(tmp_path / "a.mkv", (scene(n) for n in range(5)))
    theirs = write_frames(tmp_path / "b.mkv", (scene(n + 9) for n in range(5)))
    modes: list[tuple[Mode, int]] = [("side", 1), ("stack", 0)]
    for mode, axis in modes:
        output = tmp_path / f"{mode}.mkv"
        options = CompareOptions(mode=mode, labels=None)
        assert compare_video(ours, theirs, output, options=options, encode=LOSSLESS) == []
        found = read_frames(output)
        assert [time for time, _ in found] == [time for time, _ in read_frames(ours)]
        for (_, both), (_, a), (_, b) in zip(
            found, read_frames(ours), read_frames(theirs), strict=True
        ):
            for plane, one, other in zip(both, a, b, strict=True):
                assert np.array_equal(plane, np.concatenate([one, other], axis=axis))


def test_split_and_wipe_show_each_on_its_side_of_the_line(tmp_path: Path) -> None:
    ours, theirs = gray(tmp_path / "a.mkv", [60] * 26), gray(tmp_path / "b.mkv", [200] * 26)
    dark, light = lumas(ours)[0][0, 0], lumas(theirs)[0][0, 0]
    (first, *_) = shown(ours, theirs, tmp_path / "s.mkv", mode="split", labels=None)
    assert first.shape == (64, 96)
    assert (first[:, :44] == dark).all()
    assert (first[:, 52:] == light).all()
    assert first[:, 46:50].max() > 230  # the line
    # A second to and fro: from the right to the left, and back.
    frames = shown(ours, theirs, tmp_path / "w.mkv", mode="wipe", period=1.0, labels=None)
    shares = [float((frame == dark).mean()) for frame in frames]
    assert shares[0] < 0.05
    assert shares[6] == pytest.approx(0.5, abs=0.1)
    assert shares[12] > 0.9
    assert shares[25] < 0.05


def test_labels_stand_in_their_own_picture(tmp_path: Path) -> None:
    ours, theirs = gray(tmp_path / "a.mkv", [128]), gray(tmp_path / "b.mkv", [128])
    (plain,) = shown(ours, theirs, tmp_path / "p.mkv", mode="side", labels=None)
    (named,) = shown(ours, theirs, tmp_path / "n.mkv", mode="side", labels=("A", "B"))
    changed = np.argwhere(plain != named)
    assert changed[:, 0].max() < 16
    columns = np.unique(changed[:, 1])
    assert columns.min() == 0
    assert 96 in columns
    assert not np.isin(np.arange(40, 96), columns).any()
    assert named.max() > 190  # white letters on black
    assert named.min() < 60


def test_without_pillow_labels_are_left_out_and_those_asked_for_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = gray(tmp_path / "a.mkv", [128])
    (plain,) = shown(ours, ours, tmp_path / "p.mkv", mode="side", labels=None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    words = ["compare", str(ours), str(ours), "-o"]
    output = tmp_path / "c.mkv"
    assert main([*words, str(output), "--encoder", "ffv1", "--quiet"]) == 0
    assert "labels are left out: they need Pillow, pip install" in capsys.readouterr().err
    assert np.array_equal(lumas(output)[0], plain)
    assert main([*words, str(tmp_path / "d.mkv"), "--labels", "A", "B"]) == 1
    assert "--labels needs the package PIL" in capsys.readouterr().err
    assert not (tmp_path / "d.mkv").exists()


def test_the_other_is_matched_in_time_size_and_colour(tmp_path: Path) -> None:
    levels = [40, 60, 80, 100, 120, 140]
    ours = gray(tmp_path / "a.mkv", levels)
    double = [level for level in levels for _ in range(2)]
    theirs = gray(tmp_path / "b.mkv", double, size=(48, 32), rate=50, colour=(2, 5, 6, 5))
    output = tmp_path / "c.mkv"
    notes = compare_video(
        ours, theirs, output, options=CompareOptions(labels=None), encode=LOSSLESS
    )
    for frame in lumas(output):
        assert frame.shape == (64, 192)
        assert int(frame[32, 140]) == pytest.approx(int(frame[32, 40]), abs=2)
    assert notes == [f"{theirs} is longer: its end is not shown"]
    late = gray(tmp_path / "d.mkv", levels[:3], rate=24)
    notes = compare_video(ours, late, tmp_path / "e.mkv", encode=LOSSLESS)
    assert len(notes) == 1
    assert "up to 0.117 s away" in notes[0]


def test_sound_and_subtitles_of_the_first_are_kept(tmp_path: Path) -> None:
    media = replace(PLAIN, rotation=None, audio=(Audio(),), subtitles=("first",))
    ours = make(tmp_path / "a.mp4", media)
    theirs = make(tmp_path / "b.mp4", PLAIN)
    assert main(["compare", str(ours), str(theirs), "-o", str(tmp_path / "c.mp4"), "--quiet"]) == 0

    def packets(path: Path) -> list[tuple[int | None, bytes]]:
        with av.open(str(path)) as container:
            sound = container.streams.audio[0]
            return [(packet.pts, bytes(packet)) for packet in container.demux(sound)]

    assert packets(tmp_path / "c.mp4") == packets(ours)
    with av.open(str(tmp_path / "c.mp4")) as container:
        assert len(container.streams.subtitles) == 1
        assert (container.streams.video[0].width, container.streams.video[0].height) == (128, 48)


def test_a_turned_video_is_shown_upright(tmp_path: Path) -> None:
    ours = make(tmp_path / "a.mp4", PLAIN)  # coded 64×48, shown 48×64
    compare_video(ours, ours, tmp_path / "c.mp4", options=CompareOptions(labels=None))
    with av.open(str(tmp_path / "c.mp4")) as container:
        frame = next(container.decode(video=0))
        assert (frame.width, frame.height, frame.rotation) == (96, 64, 0)
    with av.open(str(ours)) as container:
        source = next(container.decode(video=0))
        upright = np.rot90(source.to_ndarray(format="gray"), source.rotation // 90)
    both = frame.to_ndarray(format="gray").astype(float)
    assert np.abs(both[:, :48] - upright).mean() < 4
    assert np.abs(both[:, 48:] - upright).mean() < 4


def test_pictures_and_a_given_height(tmp_path: Path) -> None:
    for name, level in (("a", 50), ("b", 180)):
        write_png(tmp_path / f"{name}.png", np.full((40, 60, 3), level, np.uint8))
    names = [str(tmp_path / f"{name}.png") for name in "ab"]
    output = tmp_path / "c.png"
    assert main(["compare", *names, "-o", str(output), "--no-labels", "--height", "20"]) == 0
    both = to_picture(read_rgb(output))
    assert both.shape == (20, 60, 3)
    assert (both[:, :30] == 50).all()
    assert (both[:, 30:] == 180).all()


def test_what_cannot_be_compared_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = gray(tmp_path / "a.mkv", [60])
    output = tmp_path / "c.mkv"
    with pytest.raises(InputError, match="does not exist"):
        compare_video(ours, tmp_path / "no.mkv", output)
    with pytest.raises(UsageError, match="period is 0"):
        compare_video(ours, ours, output, options=CompareOptions(period=0))
    with pytest.raises(UsageError, match="height is 3"):
        compare_video(ours, ours, output, options=CompareOptions(height=3))
    with pytest.raises(InputError, match="two videos or two pictures"):
        write_png(tmp_path / "p.png", np.zeros((16, 16, 3), np.uint8))
        compare_page(ours, tmp_path / "p.png", tmp_path / "c.html")
    (tmp_path / "c.html").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match="exists already"):
        compare_page(ours, ours, tmp_path / "c.html")
    assert main(["compare", str(ours), str(ours), "-o", "x.html", "--mode", "wipe"]) == 2
    assert "--mode is for a video" in capsys.readouterr().err
    assert main(["compare", str(ours), str(ours), "-o", str(output), "--embed", "never"]) == 2
    assert "--embed is for a page" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mkv", "c.html", "p.png"]
    assert (tmp_path / "c.html").read_text(encoding="utf-8") == "mine"


# -- the page ------------------------------------------------------------------------------------


def facts(page: Path) -> dict[str, Any]:
    found = re.search(r'id="facts">(.*?)</script>', page.read_text(encoding="utf-8"), re.S)
    assert found is not None
    told: dict[str, Any] = json.loads(found[1])
    return told


def film(path: Path, levels: list[int], size: tuple[int, int] = (96, 64)) -> Path:
    return gray(path, levels, size, codec="libx264", rate=10, options={"g": "5"})


def test_a_page_holds_small_files_and_names_others(tmp_path: Path) -> None:
    ours = film(tmp_path / "a.mp4", [60] * 5)
    theirs = film(tmp_path / "été #1.mp4", [200] * 5)
    page = tmp_path / "c.html"
    assert compare_page(ours, theirs, page, labels=("</script>", "b")) == []
    told = facts(page)
    assert told["labels"] == ["</script>", "b"]
    assert all(link.startswith("data:video/mp4;base64,") for link in told["sources"])
    assert told["times"] == [0, 0.1, 0.2, 0.3, 0.4]
    assert (told["width"], told["height"], told["still"]) == (96, 64, False)
    assert "://" not in page.read_text(encoding="utf-8")
    (tmp_path / "pages").mkdir()
    compare_page(ours, theirs, tmp_path / "pages" / "c.html", embed="never")
    links = facts(tmp_path / "pages" / "c.html")["sources"]
    assert links == ["../a.mp4", "../%C3%A9t%C3%A9%20%231.mp4"]


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes")
def test_a_page_shows_hostile_names_as_text(tmp_path: Path) -> None:
    names = ("{{facts}}<b>.png", "a\u202egnp.exe.png")
    for name in names:
        Image.new("RGB", (32, 24)).save(tmp_path / name)
    page = tmp_path / "page.html"
    compare_page(tmp_path / names[0], tmp_path / names[1], page)
    text = page.read_text("utf-8")
    title = "{{facts}}&lt;b&gt;.png · a\\u202egnp.exe.png"
    assert f"<title>{title}</title>" in text
    assert text.count('"sources"') == 1
    assert "default-src 'none'" in text


def test_a_page_of_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    ours = film(tmp_path / "a.mp4", [60])
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(InputError, match="is a pipe"):
        compare_page(ours, tmp_path / "pipe.mp4", tmp_path / "c.html")
    with pytest.raises(InputError, match="is an address") as caught:
        compare_page("rtsp://user:secret@host/a.mp4", ours, tmp_path / "c.html")
    assert "secret" not in str(caught.value)


def test_what_browsers_do_not_play_is_made_into_what_they_play(tmp_path: Path) -> None:
    ours = gray(tmp_path / "a.mkv", [60] * 3, size=(97, 63))  # odd: 4:2:0 has even sizes only
    page = tmp_path / "c.html"
    notes = compare_page(ours, ours, page, embed="never")
    assert notes == [f"{ours} is shown as H.264 in 8 bits"] * 2
    assert facts(page)["sources"] == ["c_before.mp4", "c_after.mp4"]
    with av.open(str(tmp_path / "c_after.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert sum(1 for _ in container.decode(video=0)) == 3


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    ours = film(tmp_path / "a.mp4", [40 + 5 * n for n in range(30)])
    theirs = film(tmp_path / "b.mp4", [200 - 5 * n for n in range(30)])
    compare_page(ours, theirs, tmp_path / "c.html", labels=("old", "new"))
    # What the page shows is read off the pixels of the videos, and of the screen.
    level = """(element) => { const c = document.createElement("canvas"); c.width = c.height = 1;
        const d = c.getContext("2d"); d.drawImage(element, 0, 0, 1, 1);
        return d.getImageData(0, 0, 1, 1).data[0]; }"""
    with Page(tmp_path / "c.html", tmp_path / "profile") as page:
        page.wait("before.readyState >= 3 && after.readyState >= 3")
        box = page.value("(r => [r.left, r.top, r.width, r.height])(stage.getBoundingClientRect())")
        assert box[2] / box[3] == pytest.approx(1.5, abs=0.01)

        def drag(start: float, end: float) -> None:
            y = box[1] + box[3] / 3
            page.mouse("Pressed", box[0] + start * box[2], y, clickCount=1)
            page.mouse("Moved", box[0] + (start + end) / 2 * box[2], y)
            page.mouse("Moved", box[0] + end * box[2], y)
            page.mouse("Released", box[0] + end * box[2], y, clickCount=1)

        drag(0.5, 0.25)
        assert page.value("divider.getAttribute('aria-valuenow')") == "25"
        page.key("ArrowRight")
        assert page.value("divider.getAttribute('aria-valuenow')") == "26"
        page.screenshot(tmp_path / "shot.png")
        row = to_picture(read_rgb(tmp_path / "shot.png"))[int(box[1] + box[3] * 0.8), :, 0]
        for share, expected in ((0.1, 40), (0.2, 40), (0.3, 200), (0.9, 200)):
            assert int(row[int(box[0] + share * box[2])]) == pytest.approx(expected, abs=8)

        page.key(".", ".")
        page.key(".", ".")
        page.wait("!before.seeking && !after.seeking")
        assert page.value("[before.currentTime, after.currentTime]") == pytest.approx([0.25] * 2)
        assert page.value(f"({level})(before)") == pytest.approx(50, abs=4)
        assert page.value(f"({level})(after)") == pytest.approx(190, abs=4)
        page.key(",", ",")
        page.wait("!before.seeking && !after.seeking")
        assert page.value("after.currentTime") == pytest.approx(0.15)

        page.value("by('play').click()")
        page.wait("before.currentTime > 1")
        page.value("by('play').click()")
        page.wait("before.paused && after.paused && !after.seeking")
        assert page.value("before.currentTime - after.currentTime") == pytest.approx(0, abs=1e-3)
        page.value("before.currentTime = 2.9, after.currentTime = 0.4, play(), 0")
        page.wait("playing && before.currentTime < 1.5 && before.currentTime > 0.3")  # again
        assert abs(page.value("before.currentTime - after.currentTime")) < 0.1
        assert page.value("by('failure').hidden")

        page.mouse("Wheel", box[0] + 5, box[1] + 5, deltaX=0, deltaY=-400)
        page.wait("zoom > 2")
        page.key("0", "0")
        assert page.value("zoom") == 1


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_page_of_pictures_and_of_files_that_have_gone(tmp_path: Path) -> None:
    for name, value in (("a", 50), ("b", 180)):
        write_png(tmp_path / f"{name}.png", np.full((40, 60, 3), value, np.uint8))
    names = [str(tmp_path / f"{name}.png") for name in "ab"]
    output = str(tmp_path / "c.html")
    assert main(["compare", *names, "-o", output, "--embed", "never", "--quiet"]) == 0
    with Page(Path(output), tmp_path / "profile") as page:
        page.wait("before.complete && after.naturalWidth === 60")
        assert page.value("by('play').offsetParent === null")  # nothing to play
        (tmp_path / "b.png").unlink()
        page.call("Page.reload", ignoreCache=True)
        page.wait("document.readyState === 'complete' && !by('failure').hidden")
        assert "“after” cannot be shown" in page.value("by('failure').textContent")
