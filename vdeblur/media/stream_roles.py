"""What becomes of each stream of a source, and how reports name it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from av.stream import Discard, Disposition

from vdeblur.errors import InputError
from vdeblur.media.damage import Damage
from vdeblur.media.mp4 import boxes
from vdeblur.media.mp4.tracks import Track, read_tracks

#: "video": its frames are restored. "copy": its packets are copied. "cover": a picture attached to
#: the file. "graft": its MP4 track is copied after muxing. "regenerated": the muxer writes it anew
#: from tags or chapters. "dropped": nothing can carry it.
Role = Literal["video", "copy", "cover", "graft", "regenerated", "dropped"]


def role_of(stream: Any, track: Track | None, *, on_disk: bool) -> Role:
    """Decide what becomes of a stream.

    Args:
        stream: The libav stream.
        track: Its track in an MP4 or MOV, if known.
        on_disk: False for a pipe or an image sequence, of which no tracks are known.
    """
    if track is not None and track.is_chapter_track:
        return "regenerated"  # QuickTime chapter text: the muxer writes it from the chapters
    if not on_disk and stream.name == "bin_data" and stream.discard == Discard.all:
        # libav discards a QuickTime chapter text, whose chapters it has read.
        return "regenerated"
    if stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails):
        return "cover"
    if stream.type == "video":
        return "video" if stream.codec_context is not None else "dropped"
    if track is not None and track.fourcc == "tmcd":
        return "regenerated"  # the muxer writes an equal track from the `timecode` tag
    if stream.type == "data" and stream.name is None:
        return "graft" if track is not None and track.sample_count else "dropped"
    return "copy"


@dataclass
class SourceStreams:
    """The streams of a source.

    Attributes:
        roles: What becomes of each, by its index.
        tracks: The MP4 tracks, by the index of their stream.
        iso: The source is an MP4 or MOV file whose boxes can be read.
    """

    roles: dict[int, Role] = field(default_factory=dict)
    tracks: dict[int, Track] = field(default_factory=dict)
    iso: bool = False

    @property
    def videos(self) -> list[int]:
        """Indices of the streams whose frames are restored."""
        return [index for index, role in self.roles.items() if role == "video"]


def streams_of(container: Any, path: Path | None, name: str, damage: Damage) -> SourceStreams:
    """Look at all streams of a container.

    Args:
        container: The libav input container.
        path: Its file on disk; None for a pipe or an image sequence.
        name: What messages call the source.
        damage: Told of boxes that cannot be read.

    Raises:
        InputError: No stream is a video that can be decoded.
    """
    found = SourceStreams(iso=bool(path and boxes.is_iso(path)))
    tracks: dict[int, Track] = {}
    if found.iso and path is not None:
        try:
            # Covers are streams without a track: places do not agree, track numbers do.
            tracks = {t.track_id: t for t in read_tracks(path)}
        except InputError as error:
            # libav forgives more; what it reads is restored without the boxes.
            found.iso = False
            damage.note(f"{error}; the maker's boxes cannot be kept")
    unknown = []
    for stream in container.streams:
        track = tracks.get(stream.id)
        role = role_of(stream, track, on_disk=path is not None)
        found.roles[stream.index] = role
        if track is not None:
            found.tracks[stream.index] = track
        if role == "dropped" and stream.type == "video":
            unknown.append(f"stream {stream.index}")
    if not found.videos:
        if unknown:
            raise InputError(
                f"{name} has video of an unknown codec ({', '.join(unknown)}): "
                "convert it with ffmpeg first"
            )
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "no streams"
        raise InputError(f"{name} has no video ({kinds} only): give a file with video")
    return found


def label_of(stream: Any, track: Track | None = None) -> str:
    """Name a stream for a report, such as "audio aac (eng)"."""
    if stream.type == "data" and track is not None:
        return f"data {track.fourcc}"
    if stream.codec_context is None and stream.type == "subtitle":
        return "subtitle of an unknown kind"  # PyAV asks the missing context for anything more
    name = stream.codec_context.name if stream.codec_context is not None else stream.name
    if stream.type == "attachment":
        return f"attachment {stream.metadata.get('filename', stream.index)}"
    handler = stream.metadata.get("handler_name", "").strip()
    what = name if name and name != "bin_data" else handler or "unknown"
    return f"{stream.type} {what}" + (f" ({stream.language})" if stream.language else "")
