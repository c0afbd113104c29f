"""Show two videos or pictures under one slider, on a page that any browser opens from disk.

The page shows the files themselves, wherever browsers play them.
"""

from __future__ import annotations

import base64
import contextlib
import json
import mimetypes
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import av

from vdeblur.datasets.pictures import write_bytes
from vdeblur.errors import InputError
from vdeblur.evaluation.pages import filled
from vdeblur.frames import Frame
from vdeblur.media.encoders import EncodeOptions
from vdeblur.media.image_sequences import is_image
from vdeblur.media.input_formats import open_container
from vdeblur.media.joined_file import for_libav
from vdeblur.media.names import check_source
from vdeblur.media.pixel_formats import CONVERTING
from vdeblur.media.reader import VideoReader
from vdeblur.media.writer import VideoWriter
from vdeblur.system.files import check_target, replacing, spare_name

_EMBEDDED_BYTES = 48 << 20  # of both files: what a page holds itself
_LISTED_FRAMES = 50_000  # times of frames that a page knows; beyond, the mean rate
_WEB_SUFFIXES = {".mp4", ".m4v", ".mov", ".webm"}
_WEB_CODECS = {"h264": ("yuv420p", "yuvj420p"), "vp8": ("yuv420p",), "vp9": ("yuv420p",),
               "av1": ("yuv420p", "yuv420p10le")}  # fmt: skip


def compare_page(
    before: str | Path,
    after: str | Path,
    output: str | Path,
    *,
    labels: tuple[str, str] = ("before", "after"),
    title: str | None = None,
    embed: Literal["auto", "always", "never"] = "auto",
    overwrite: bool = False,
) -> list[str]:
    """Write a page that shows two videos, or two pictures, under one slider.

    The page needs no server and nothing from elsewhere. Files that browsers play are shown as they
    are; others are converted to H.264 or PNG.

    Args:
        before: A video or picture.
        after: Another one of the same kind.
        output: The page.
        labels: What the two are called.
        title: Of the page; None names the files.
        embed: Whether the page holds the files ("always"), or refers to them by relative paths
            ("never"); "auto" holds them up to 48 MB together.
        overwrite: Replace a page that exists.

    Returns:
        Notes for the user.

    Raises:
        InputError: A file cannot be read, or is of another kind.
        OutputError: The page exists or cannot be written.
    """
    for source in (before, after):
        check_source(source)
    page = Path(output)
    sources = [Path(before), Path(after)]
    check_target(page, overwrite=overwrite, sources=sources)
    described = [_describe(path) for path in sources]
    if described[0]["still"] != described[1]["still"]:
        raise InputError(f"{before} and {after}: give two videos or two pictures")
    notes = []
    with tempfile.TemporaryDirectory(prefix="vdeblur-") as folder:
        for number, (path, one) in enumerate(zip(sources, described, strict=True)):
            if not one["web"]:
                sources[number] = _for_the_web(path, Path(folder) / f"{number}", one["still"])
                notes.append(f"{path} is shown as {'PNG' if one['still'] else 'H.264 in 8 bits'}")
        size = sum(path.stat().st_size for path in sources)
        inside = embed == "always" or (embed == "auto" and size <= _EMBEDDED_BYTES)
        links, copies = [], list[str]()
        shown = {Path(path).resolve() for path in (before, after)}
        earlier = [n for n in _copies_of(page) if page.with_name(n).resolve() not in shown]
        for path, name in zip(sources, ("before", "after"), strict=True):
            if inside:
                data = base64.b64encode(path.read_bytes()).decode()
                links.append(f"data:{_mime(path)};base64,{data}")
                continue
            if path.parent == Path(folder):
                path = _keep(path, page.with_name(f"{page.stem}_{name}{path.suffix}"), earlier)
                copies.append(path.name)
            links.append(quote(os.path.relpath(path.resolve(), page.parent.resolve()), safe="/"))
    facts = {
        "still": described[0]["still"],
        "width": described[0]["width"],
        "height": described[0]["height"],
        "fps": described[0]["fps"],
        "times": described[0]["times"],
        "labels": list(labels),
        "sources": links,
        "copies": copies,
    }
    # "</" would end the script that the facts stand in.
    encoded = json.dumps(facts, ensure_ascii=False).replace("<", "\\u003c")
    heading = title or f"{Path(before).name} · {Path(after).name}"
    text = filled("comparison_page.html", heading, facts=encoded)
    with _removed_on_error(page.with_name(name) for name in set(copies) - set(earlier)):
        # Names that are not UTF-8 cannot be in a page.
        write_bytes(page, text.encode(errors="replace"), only_new=not overwrite)
    return notes


@contextlib.contextmanager
def _removed_on_error(files: Iterable[Path]) -> Iterator[None]:
    """Remove copies that were made for a page that cannot be written."""
    try:
        yield
    except BaseException:
        for file in files:
            with contextlib.suppress(OSError):
                file.unlink()
        raise


def _keep(copy: Path, wanted: Path, earlier: list[str]) -> Path:
    """Put a copy beside the page; of files that exist, only an earlier copy is replaced."""
    for number in count(1):
        name = wanted if number == 1 else spare_name(wanted, number)
        with contextlib.suppress(FileExistsError):
            with replacing(name, only_new=name.name not in earlier) as temporary:
                shutil.copyfile(copy, temporary)
            return name
    raise AssertionError


def _copies_of(page: Path) -> list[str]:
    """The copies that an earlier page has beside it."""
    if not page.is_file():
        return []
    with contextlib.suppress(OSError, ValueError):
        found = re.search(r'"copies": (\[.*?\])', page.read_text(encoding="utf-8"))
        names = [str(name) for name in json.loads(found[1])] if found else []
        return [name for name in names if Path(name).name == name]
    return []


def _describe(path: Path) -> dict[str, Any]:
    """Collect the page's facts of a file, and whether browsers show it as it is."""
    still = is_image(path) or path.suffix.lower() in (".webp", ".gif", ".bmp")
    with VideoReader(path) as reader:
        info = reader.info
        stream: Any = reader.container.streams[reader.video_streams[0]]
        frame = next(iter(reader), None) if still or path.suffix.lower() != ".webm" else None
        turned = bool(int(getattr(frame.source_frame, "rotation", 0)) % 180) if frame else False
        ratio = float(stream.sample_aspect_ratio or 1)
    size = (round(info.width * ratio), info.height)
    web = still and path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".gif")
    if not still:
        formats = _WEB_CODECS.get(info.codec, ())
        web = path.suffix.lower() in _WEB_SUFFIXES and info.pix_fmt in formats
    return {
        "still": still,
        "web": web,
        "width": size[1] if turned else size[0],
        "height": size[0] if turned else size[1],
        "fps": float(info.fps or 25),
        "times": [] if still else _times(path),
    }


def _times(path: Path) -> list[float]:
    """The start of each frame in seconds, as browsers count them: from the file's own start."""
    with open_container(for_libav(path)) as container:
        start = (container.start_time or 0) / av.time_base
        stream = container.streams.video[0]
        stamps = sorted(
            float(packet.pts * packet.time_base) - start
            for packet in container.demux(stream)
            if packet.pts is not None and packet.size
        )
    return [round(t, 5) for t in stamps] if len(stamps) <= _LISTED_FRAMES else []


def _for_the_web(path: Path, target: Path, still: bool) -> Path:
    target = target.with_suffix(".png" if still else ".mp4")
    encode = EncodeOptions() if still else EncodeOptions(encoder="libx264", pix_fmt="yuv420p")
    with VideoReader(path) as reader, VideoWriter(target, reader, encode=encode) as writer:
        for item in reader.items():
            odd = isinstance(item, Frame) and (item.layout.width % 2 or item.layout.height % 2)
            writer.write(_even(item) if isinstance(item, Frame) and odd and not still else item)
        writer.close()
        writer.finish()
    return target


def _even(frame: Frame) -> Frame:
    """Scale by less than a pixel, to the even size that H.264 in 4:2:0 needs."""
    width, height = (max(2, n // 2 * 2) for n in (frame.layout.width, frame.layout.height))
    picture = frame.source_frame.reformat(width, height, threads=CONVERTING)
    picture.duration = frame.duration
    return replace(frame, source_frame=picture)


def _mime(path: Path) -> str:
    # Chromium plays a QuickTime file that holds H.264 if it is not told that it is one.
    if path.suffix.lower() in (".mov", ".m4v"):
        return "video/mp4"
    return mimetypes.guess_type(path.name)[0] or "application/octet-stream"
