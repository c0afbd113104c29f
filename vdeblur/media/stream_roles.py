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
from vdeblur.media.stream_facts import codec_of

#: "video": its frames are restored. "copy": its packets are copied. "cover": a picture attached to
#: the file. "graft": its MP4 track is copied after muxing. "regenerated": the muxer writes it anew
#: from tags or chapters. "dropped": nothing can carry it.
Role = Literal["video", "copy", "cover", "graft", "regenerated", "dropped"]

_MOST_LETTERS = 200  # of a name in a report


def role_of(stream: Any, track: Track | None, *, on_disk: bool) -> Role:
    """Decide what becomes of a stream.

    Args:
        stream: The libav stream.
        track: Its track in an MP4 or MOV, if known.
        on_disk: False for a pipe or an image sequence, of which no tracks are known.
    """
    if track is not None and track.is_chapter_track:
        return "regenerated"  # QuickTime chapter text: the muxer writes it from the chapters
    if not on_disk and codec_of(stream) == "bin_data" and stream.discard == Discard.all:
        # libav discards a QuickTime chapter text, whose chapters it has read.
        return "regenerated"
    if stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails):
        return "cover"
    if track is not None and track.fourcc == "tmcd":
        return "regenerated"  # the muxer writes an equal track from the `timecode` tag
    if stream.type != "attachment" and codec_of(stream) is None:
        return "graft" if track is not None and track.sample_count else "dropped"
    return "video" if stream.type == "video" else "copy"


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
    for stream in container.streams:
        track = tracks.get(stream.id)
        found.roles[stream.index] = role_of(stream, track, on_disk=path is not None)
        if track is not None:
            found.tracks[stream.index] = track
    if not found.videos:
        unknown = [
            f"stream {stream.index}"
            for stream in container.streams
            if stream.type == "video" and stream.codec_context is None
        ]
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
    if stream.type == "attachment":
        return f"attachment {stream.metadata.get('filename', str(stream.index))[:_MOST_LETTERS]}"
    if stream.type == "data" and track is not None:
        return f"data {track.fourcc}"
    context = stream.codec_context
    name = context.name if context is not None else codec_of(stream)
    name = name or (track.fourcc if track is not None else None)
    if name == "bin_data":
        name = stream.metadata.get("handler_name", "").strip()[:_MOST_LETTERS] or "unknown"
    what = f"{stream.type} {name}" if name else f"{stream.type} of an unknown kind"
    return what + (f" ({stream.language})" if stream.language else "")
