"""Containers of outputs: names, abilities, tags and the options of their muxers."""

from __future__ import annotations

import contextlib
import functools
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import av
from av.format import ContainerFormat
from av.format import Flags as FormatFlags

from vdeblur.errors import OutputError
from vdeblur.media.image_sequences import is_image, is_pattern
from vdeblur.media.losses import Losses
from vdeblur.media.metadata import loops
from vdeblur.media.mp4 import boxes
from vdeblur.media.picture_formats import PNG, format_of_name
from vdeblur.media.stale_tags import kept_file_tags, kept_stream_tags
from vdeblur.system.streams import is_stream

if TYPE_CHECKING:
    from vdeblur.media.reader import VideoReader

# Tags that FFmpeg's mov muxer stores as iTunes or user-data atoms; others need mdta keys
# (movflags use_metadata_tags).
_MP4_TAGS = {
    "timecode",
    "title",
    "artist",
    "album_artist",
    "album",
    "date",
    "comment",
    "genre",
    "copyright",
    "lyrics",
    "description",
    "synopsis",
    "show",
    "episode_id",
    "network",
    "track",
    "disc",
    "composer",
    "grouping",
    "creation_time",
    "location",
    "keywords",
    "year",
    "hd_video",
    "media_type",
    "gapless_playback",
    "compilation",
    "encoded_by",
    "tmpo",
}

# Muxers by suffix, where the suffix alone would find another one.
_FORMATS = {
    ".m4v": "mp4",
    ".mkv": "matroska",
    ".ts": "mpegts",
    ".mts": "mpegts",
    ".m2ts": "mpegts",
    ".mpg": "vob",
    ".mpeg": "vob",
    ".vob": "vob",
    ".y4m": "yuv4mpegpipe",
    ".wmv": "asf",
    ".264": "h264",
    ".265": "hevc",
}

_SOUND_OR_TEXT = "has no room for pictures"
_DIGESTS = "writes digests or times of frames, and no film"
_NETWORK = "sends to a network address, and makes no file"
# Muxers that take frames and write no film, which neither flags nor default codecs tell.
_NO_FILMS = {
    **dict.fromkeys(("crc", "framecrc", "framehash", "framemd5", "hash", "md5"), _DIGESTS),
    **dict.fromkeys(("streamhash", "uncodedframecrc", "mkvtimestamp_v2"), _DIGESTS),
    **dict.fromkeys(("aiff", "flac", "mp3"), _SOUND_OR_TEXT),  # covers only
    **dict.fromkeys(("rtp", "rtp_mpegts", "rtsp", "sap", "whip"), _NETWORK),
    "null": "writes nothing",
}
# Muxers of other devices' MP4, and of pictures, whose formats `picture_formats` knows.
_NEVER = ("ipod", "psp", "ismv", "image2", "image2pipe")

# Muxers of the formats that are piped, by demuxer.
_PIPE_FORMATS = {
    "yuv4mpegpipe": "yuv4mpegpipe",
    "nut": "nut",
    "mpegts": "mpegts",
    "matroska,webm": "matroska",
}

_ISO = ("mp4", "mov", "3gp", "3g2", "ipod", "f4v")
# These muxers take any coding, and label those they do not know as data: what players find.
_LABELED = {
    "mpegts": "mpeg1video mpeg2video mpeg4 h264 hevc vvc cavs avs2 avs3 dirac vc1 mp1 mp2 mp3 aac "
    "aac_latm ac3 eac3 dts truehd opus s302m pcm_bluray dvb_subtitle dvb_teletext arib_caption "
    "hdmv_pgs_subtitle",
    "vob": "mpeg1video mpeg2video mpeg4 h264 hevc mp1 mp2 mp3 ac3 dts truehd pcm_s16be pcm_dvd "
    "dvd_subtitle",
    # Its muxer refuses MPEG-4 only when all is set up.
    "flv": "flv1 flashsv flashsv2 vp6f vp6a vp9 av1 h264 hevc mp3 aac ac3 eac3 opus flac speex "
    "nellymoser adpcm_swf pcm_u8 pcm_s16le pcm_s16be pcm_mulaw pcm_alaw text",
}
_LOOKAHEAD = 100  # pictures that an encoder may hold back
# Without times or without a file of its own: `verify` has nothing to compare.
_UNVERIFIABLE = ("yuv4mpegpipe", "h264", "hevc", "mpeg1video", "ivf", "gif")


def format_name(
    destination: str | Path,
    source_format: str,
    asked: str | None = None,
    *,
    source: Path | None = None,
) -> str:
    """Return libav's name of the muxer for an output.

    Args:
        destination: A path, whose suffix decides, or "-", which has the source's own pipe format.
        source_format: libav's name of the source's demuxer.
        asked: A muxer's name that goes before both; None for none.
        source: The source's file; cameras name MP4 files .insv, .LRV or .360, which no muxer knows.

    Raises:
        OutputError: There is no such muxer, or none for the suffix, or it writes no video file.
    """
    if asked is not None:
        name = asked
    elif str(destination) == "-":
        name = _PIPE_FORMATS.get(source_format, "matroska")
    elif (form := format_of_name(destination)) is not None:
        if form.encoder is None:
            raise OutputError(
                f"{destination}: pictures in the format {form.name} are not written; name one such "
                "as .png, .tif or .jpg"
            )
        animated = form is PNG and source_format == "apng" and not is_pattern(destination)
        name = "apng" if animated else "image2"
    else:
        suffix = Path(destination).suffix.lower()
        if not suffix:
            raise OutputError(
                f"{destination} has no extension to choose a container by: add one such as .mkv, "
                "say the format (matroska, mp4), or end the name of a folder with /"
            )
        name = _FORMATS.get(suffix) or _muxer_of(suffix)
        if not name and source is not None and suffix == source.suffix.lower():
            name = _iso_muxer(source)
    try:
        ContainerFormat(name, "w")
    except ValueError as error:
        raise OutputError(
            f"no container is known for {asked or destination}: use .mp4, .mov, .mkv, .webm or .ts"
        ) from error
    what = str(destination) if asked is None else f"`format={asked}`"
    wrong = _wrong_with(name)
    if name == "image2" and not is_image(destination):
        wrong = "names pictures by a number, as in frames/%05d.png"
    if wrong is not None:
        raise OutputError(f"{what} {wrong}: use .mp4, .mov, .mkv, .webm or .ts")
    if name in _ISO and (str(destination) == "-" or is_stream(Path(destination))):
        where = "standard output" if str(destination) == "-" else str(destination)
        advice = "`format=matroska`" if asked or where != str(destination) else "a name in .mkv"
        raise OutputError(
            f"{where} cannot take {name}, whose index is written last: pipe Matroska or MPEG-TS, "
            f"such as {advice}, or write to a file"
        )
    return name


@functools.cache
def _wrong_with(name: str) -> str | None:
    """Say why a muxer of libav writes no film into a file of its own; None if it does."""
    form = ContainerFormat(name, "w")
    if name in _NO_FILMS:
        return _NO_FILMS[name]
    if form.flags & cast(int, FormatFlags.no_file.value | FormatFlags.no_streams.value):
        return None if name == "image2" else "is no single file of a film"
    with io.BytesIO() as nowhere, av.open(nowhere, "w", format=name) as scratch:
        return None if scratch.default_video_codec != "none" else _SOUND_OR_TEXT


def _muxer_of(suffix: str) -> str:
    """The first of libav's muxers, by name, with this suffix; "" if there is none."""
    for candidate in sorted(av.format.formats_available):
        with contextlib.suppress(ValueError):
            form = ContainerFormat(candidate, "w")
            if suffix[1:] in form.extensions and candidate not in _NEVER:
                return candidate
    return ""


def _iso_muxer(source: Path) -> str:
    """The muxer that makes a file like this one, if it is an MP4 or MOV by its content; else ""."""
    if not boxes.is_iso(source):
        return ""
    return "mov" if boxes.brand(source) == b"qt  " else "mp4"


@dataclass(frozen=True)
class Container:
    """The container of an output.

    Attributes:
        name: libav's name of the muxer.
        suffix: Of the output's file, in lower case.
        is_image: The output is a picture or a sequence of pictures.
        is_sequence: It is a sequence.
        global_header: Parameter sets belong into the header.
        negative_times: Times before zero can be stored.
        equal_times: Packets may share a decoding time.
    """

    name: str
    suffix: str
    is_image: bool
    is_sequence: bool
    global_header: bool
    negative_times: bool
    equal_times: bool

    @classmethod
    def of(
        cls,
        destination: str | Path,
        source_format: str,
        asked: str | None = None,
        *,
        source: Path | None = None,
        is_sequence: bool | None = None,
    ) -> Self:
        """Choose the container of an output.

        Args:
            destination: As of `format_name`, whose errors are raised.
            source_format: As of `format_name`.
            asked: As of `format_name`.
            source: As of `format_name`.
            is_sequence: Pictures are numbered; None is as the name says.
        """
        name = format_name(destination, source_format, asked, source=source)
        flags = ContainerFormat(name, "w").flags

        def has(flag: str) -> bool:
            return bool(flags & cast(int, getattr(FormatFlags, flag).value))

        return cls(
            name,
            Path(destination).suffix.lower(),
            name == "image2",
            name == "image2" and (is_pattern(destination) if is_sequence is None else is_sequence),
            global_header=has("global_header"),
            negative_times=has("ts_negative"),
            equal_times=has("ts_nonstrict"),
        )

    @property
    def iso(self) -> bool:
        """True for MP4, MOV and their kin."""
        return self.name in _ISO

    @property
    def has_timecode(self) -> bool:
        """True if the muxer keeps a timecode: as a track, or in Matroska as a tag."""
        return self.iso or self.name == "matroska"

    @property
    def has_rotation(self) -> bool:
        """True if players are told how to turn pictures; those of a picture are, by EXIF."""
        return self.iso or self.is_image or self.name in ("matroska", "webm")

    @property
    def keeps_empty_streams(self) -> bool:
        """True if the container states a stream without packets."""
        return self.name in ("matroska", "webm", "nut", "avi", "asf")

    @property
    def verifiable(self) -> bool:
        """True if the container states times and streams."""
        return self.name not in _UNVERIFIABLE

    def labels(self, codec: str) -> bool:
        """True unless players would find plain data where this coding is written."""
        return codec in _LABELED.get(self.name, codec).split()

    def is_written_by(self, demuxer: str) -> bool:
        """Tell whether this is the kind of file that libav's demuxer `demuxer` reads."""
        names = set(demuxer.split(","))
        if "mov" in names:
            names |= {"mov", "mp4", "ipod", "3gp", "3g2"}
        return self.name in names | ({"vob"} if "mpeg" in names else set())


def muxer_options(container: Container, reader: VideoReader, losses: Losses) -> dict[str, str]:
    """Return the options of the muxer for an output of what `reader` reads.

    Args:
        container: The output's.
        reader: The source, of whose file the layout is kept.
        losses: Told of tags that have no room.
    """
    demuxer = reader.container.format.name
    # How long one stream waits for another. Encoders look ahead: with less, sound is written before
    # the first picture of its time, which FLV then refuses. Without a limit, memory grows.
    wait = min(max(2.0, _LOOKAHEAD / (reader.info.fps or 25)), 120.0)
    options = {"max_interleave_delta": str(round(wait * 1e6))}
    if container.iso:
        options |= _iso_options(reader, losses)
    elif container.name in ("matroska", "webm") and "matroska" in demuxer:
        # Opus begins before zero by its pre-skip, which Matroska states apart: no shift.
        options["avoid_negative_ts"] = "disabled"
    elif container.name == "mpegts":
        options |= {"mpegts_copyts": "1", "max_delay": "0"}
        if "mpegts" in demuxer:
            options["avoid_negative_ts"] = "disabled"  # before a wrap of 33 bits, times are
        if container.suffix in (".mts", ".m2ts"):
            options["mpegts_m2ts_mode"] = "1"
    elif container.name == "avi":
        options["avoid_negative_ts"] = "make_zero"  # it begins at 0, whatever is written
    elif container.name == "yuv4mpegpipe":
        options["strict"] = "-1"  # depths above 8 bits
    if demuxer in ("gif", "apng") and reader.path is not None and not container.is_image:
        options |= _loop_options(container, loops.plays_of(reader.path), losses)
    return options


def _loop_options(container: Container, plays: int | None, losses: Losses) -> dict[str, str]:
    """Return the options that make an animation play as often as its source, 0 for endlessly."""
    if plays is None:
        return {}
    if container.name == "gif":
        return {"loop": str({0: 0, 1: -1}.get(plays, min(plays - 1, 65535)))}
    if container.name == "apng":
        return {"plays": str(min(plays, 65535))}
    if plays != 1:
        often = f"{plays} times" if plays else "endlessly"
        losses.lose(f"loop count: the source plays {often}, and {container.name} has none")
    return {}


def _iso_options(reader: VideoReader, losses: Losses) -> dict[str, str]:
    source = reader.container
    flags = []
    if reader.path is not None and reader.iso and boxes.moov_first(reader.path):
        flags.append("faststart")
    custom = {
        key
        for key in kept_file_tags(source.metadata)
        if key.lower().split("-")[0] not in _MP4_TAGS and key != "firmware"
    }
    if custom and "cover" not in reader.roles.values():
        flags.append("use_metadata_tags")
    elif custom:
        losses.lose(
            f"tags {', '.join(sorted(custom))}: MP4 has room for a cover or for these", "metadata"
        )
    options = {"movflags": "+" + "+".join(flags)} if flags else {}
    # Edit lists count in the movie timescale: a common multiple keeps offsets exact.
    scale = 1
    for stream in source.streams:
        if stream.type in ("video", "audio") and stream.time_base:
            wider = math.lcm(scale, stream.time_base.denominator)
            scale = wider if wider < 2**31 else scale
    options["movie_timescale"] = str(max(scale, 1000))
    # Spherical and stereo boxes are written only then; and what the source's MP4 holds (TrueHD) may
    # be experimental to FFmpeg.
    own = "mov" in source.format.name.split(",")
    options["strict"] = "experimental" if own else "unofficial"
    return options


def copy_tags(
    stream: Any, source: Any, container: Container, demuxer: str, *, unchanged: bool
) -> None:
    """Give an output stream the tags, the disposition and, in MPEG-TS, the PID of its source.

    Args:
        stream: The output's.
        source: The source's.
        container: The output's.
        demuxer: libav's name of the source's format.
        unchanged: The output's stream has all packets of the source's, byte for byte.
    """
    stream.metadata.update(kept_stream_tags(source.metadata, unchanged=unchanged))
    if container.iso and "name" in source.metadata:
        stream.metadata.setdefault("title", source.metadata["name"])  # read as one, written as
    stream.disposition = source.disposition
    if container.name == "mpegts" and "mpegts" in demuxer:
        stream.id = source.id
