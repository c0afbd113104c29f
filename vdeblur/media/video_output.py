"""One restored stream on its way out: its encoder, its clock and its packets.

Knows encoders and the output container; knows neither the reader nor files.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import Any, cast

import av
import av.container
import av.error
from av.codec.context import Flags as CodecFlags
from av.video.format import VideoFormat
from av.video.reformatter import ColorRange

from vdeblur.errors import EncoderError
from vdeblur.frames import Frame, PlaneLayout
from vdeblur.media.containers import Container, copy_tags
from vdeblur.media.encoder_checks import check_crf, check_preset, needs_hardware
from vdeblur.media.encoders import (
    CARRIED_DATA,
    FRAME_COUNTING,
    PICTURE_CODERS,
    PICTURE_DATA,
    Choice,
    EncodeOptions,
    candidates,
    choose_settings,
    gray_jpeg,
    odd_size_problem,
    opens,
    picture_data,
    side_data_bytes,
    software_encoder,
    takes_format,
)
from vdeblur.media.libav_errors import text_of
from vdeblur.media.losses import Losses
from vdeblur.media.palettes import FULL_COLORS, with_palette
from vdeblur.media.picture_formats import format_of_name
from vdeblur.media.pixel_formats import CONVERTING, color_arguments, default_matrix, software_format
from vdeblur.media.stream_facts import rate_of

_log = logging.getLogger(__name__)

_FRAME_CODERS = ("libx265", "libsvtav1", "libvpx", "libvpx-vp9")  # they code no fields
_COUNTING_MUXERS = ("yuv4mpegpipe", "image2")
_FIELDS = 2  # AVFieldOrder from AV_FIELD_TT on: some pictures are fields
_BOTTOM_FIRST = {3: "bb", 5: "bt"}  # AVFieldOrder → the encoder's option


@dataclass(frozen=True)
class VideoSource:
    """What an output stream is configured from.

    Attributes:
        stream: The libav stream of the source.
        demuxer: libav's name of the source's format.
        first: The first frame, in the format in which frames arrive.
        layout: Of its planes.
        lossless: It is a picture that is coded without loss.
        variable: Frames of an MP4 that becomes an MP4 last differently long.
        display_matrix: How players turn the pictures, nine numbers of FFmpeg's
            AV_PKT_DATA_DISPLAYMATRIX; None if they are upright.
    """

    stream: Any
    demuxer: str
    first: av.VideoFrame
    layout: PlaneLayout
    variable: bool
    display_matrix: Sequence[int] | None = None
    lossless: bool = False

    @property
    def is_image(self) -> bool:
        """Whether the source is a picture or a sequence of pictures."""
        return self.demuxer == "image2" or self.demuxer.endswith("_pipe")

    @property
    def codec(self) -> str:
        """libav's canonical name of the codec."""
        return str(self.stream.codec_context.codec.canonical_name)

    @property
    def rate(self) -> Fraction:
        """Frames a second."""
        coding = self.stream.codec_context
        if self.codec in ("mpeg1video", "mpeg2video") and coding.framerate:
            # The encoder takes the rates of a table only: with repeated fields, the average of the
            # times is none of them.
            return Fraction(coding.framerate)
        return rate_of(self.stream) or Fraction(25)

    @property
    def time_base(self) -> Fraction:
        """Seconds a tick."""
        return Fraction(self.stream.time_base or Fraction(1, 90000))


@dataclass
class VideoOutput:
    """One restored stream of an output.

    Attributes:
        stream: The libav stream of the output.
        choice: Its encoder.
        time_base: Of its frames and packets, in seconds.
        counting: 1/rate for encoders that time packets by their number, else None.
        reorders: Packets may come in another order than frames.
        variable: The duration of a frame is the time until the next one.
        conversion: Arguments of `VideoFrame.reformat` where the kind of color changes.
        frames: Frames encoded so far.
        codec: libav's canonical name of the source's codec.
        losses: Told of what pictures carry and the encoder does not write.
        coarse: The container has one time a packet, in coarser ticks than the source's.
    """

    stream: Any
    choice: Choice
    time_base: Fraction
    counting: Fraction | None
    reorders: bool
    variable: bool
    conversion: dict[str, int]
    frames: int = 0
    codec: str = ""  # of the source
    losses: Losses = field(default_factory=Losses)
    coarse: bool = False
    # pts and duration by what the encoder was given as pts, until its packet comes
    _times: dict[int, tuple[int, int]] = field(default_factory=dict)
    _begin: int = 0  # pts of the first frame
    _shown: dict[int, int] = field(default_factory=dict)  # pts by number, where packets reorder
    _last: int | None = None  # decoding time of the last packet, in coarser ticks
    _waiting: Frame | None = None

    def encode(self, frame: Frame) -> list[av.Packet[Any]]:
        """Encode a frame and return the packets that are complete."""
        if not self.variable:
            return self._encode(frame)
        # Where frames are reordered, MP4's durations are those between decoding times, and belong
        # to other pictures: the next frame tells.
        earlier, self._waiting = self._waiting, frame
        if earlier is None:
            return []
        earlier.duration = earlier.source_frame.duration = frame.pts - earlier.pts
        return self._encode(earlier)

    def flush(self) -> list[av.Packet[Any]]:
        """Return all packets that are left."""
        packets = [] if self._waiting is None else self._encode(self._waiting)
        self._waiting = None
        return packets + self._timed(self.stream.encode(None))

    def _state_lost_data(self, picture: av.VideoFrame) -> None:
        """State once what pictures carry and the encoder does not write."""
        carried = CARRIED_DATA.get(self.choice.encoder, frozenset())
        for kind in picture_data(picture, self.codec):
            name, check = PICTURE_DATA[kind]
            text = f"{name}: {self.choice.encoder} does not write it"
            if kind not in carried and text not in self.losses.lost:
                self.losses.lose(text, check)

    def _encode(self, frame: Frame) -> list[av.Packet[Any]]:
        picture: av.VideoFrame = frame.source_frame
        self._state_lost_data(picture)
        target = _full_format(self.choice)
        if picture.format.name != target or self.conversion:
            duration = picture.duration
            picture = picture.reformat(format=target, threads=CONVERTING, **self.conversion)
            picture.duration = duration
        if target != self.choice.pix_fmt:
            duration, pts = picture.duration, picture.pts
            picture = with_palette(picture)
            picture.duration, picture.pts = duration, pts
        # The source's picture types would force its I pictures on this encoder.
        picture.pict_type = 0
        picture.time_base = self.time_base
        if self.counting is not None:
            picture.pts = self.frames
            picture.duration = 1
            picture.time_base = self.counting
            if self.frames == 0:
                self._begin = frame.pts
            if self.reorders:
                self._shown[self.frames] = frame.pts
        self._times[cast(int, picture.pts)] = (frame.pts, frame.duration)
        self.frames += 1
        if (self.choice.encoder, self.choice.pix_fmt) == ("mjpeg", "gray"):
            packet = av.Packet(gray_jpeg(picture, self.choice))
            packet.stream, packet.is_keyframe = self.stream, True
            packet.pts = packet.dts = picture.pts
            packet.time_base = picture.time_base
            return self._timed([packet])
        return self._timed(self.stream.encode(picture))

    def _timed(self, packets: list[av.Packet[Any]]) -> list[av.Packet[Any]]:
        """The packets with the times of their frames."""
        for packet in packets:
            number = packet.dts if packet.dts is not None else packet.pts
            pts, duration = self._times.pop(cast(int, packet.pts), (packet.pts, 0))
            if duration:
                packet.duration = duration  # some encoders make their own of the rate
            if self.counting is not None and number is not None:
                packet.pts = pts
                # Only in AVI do these encoders reorder: a packet is then decoded when the picture
                # of its number is shown.
                early = self._begin + round(number * self.counting / self.time_base)
                packet.dts = self._shown.pop(number, early) if self.reorders else packet.pts
                packet.time_base = self.time_base
            if self.coarse:
                self._settle(packet)
        return packets

    def _settle(self, packet: av.Packet[Any]) -> None:
        """Round a packet's times to coarser ticks, of which no two packets share one."""
        ticks = self.stream.time_base
        pts, dts = (
            round(cast(int, t) * packet.time_base / ticks)
            for t in (packet.pts, packet.pts if packet.dts is None else packet.dts)
        )
        if self._last is not None:
            dts = max(dts, self._last + 1)
        self._last = dts
        packet.pts, packet.dts, packet.time_base = max(pts, dts), dts, ticks


def add_video(
    output: av.container.OutputContainer,
    container: Container,
    source: VideoSource,
    encode: EncodeOptions,
    losses: Losses,
) -> VideoOutput:
    """Add a stream to an output that is encoded as its source is, as far as possible.

    Args:
        output: The libav output container.
        container: Its kind.
        source: The stream to restore.
        encode: What the caller asks of the encoder.
        losses: Told of what cannot be kept.

    Raises:
        EncoderError: The encoder is missing, refuses the settings, or does not fit the container.
    """
    first, codec = source.first, source.codec
    side = side_data_bytes(first, codec)
    names = _encoder_names(output, container, source, encode)
    if encode.pix_fmt is not None:
        names = names[:1]  # the codec's own encoder takes it, or says what it takes
        losses.known.add("pixel format")
    plays = encode
    if source.is_image and container.name not in ("image2", "mjpeg") and encode.encoder == "auto":
        # Pictures become a film that players play: not PNG or JPEG in a video container.
        names = [name for name in names if name not in PICTURE_CODERS] or names
        if first.format.is_rgb and container.name not in ("apng", "gif"):
            deep = first.format.components[0].bits > 8
            small = "yuv420p10le" if deep else "yuv420p"
            plays = replace(encode, pix_fmt=encode.pix_fmt or small)
    settings = partial(
        choose_settings,
        source_pix_fmt=first.format.name,
        profile=source.stream.codec_context.profile,
        side_data=side,
        source_codec=codec,
        lossless=source.lossless,
        suffix=container.suffix,
    )
    takes = [name for name in names if plays is encode or takes_format(name, plays.pix_fmt)]
    choices = [settings(name, options=plays) for name in takes]
    if plays is not encode:
        # An odd size that no encoder here takes in 4:2:0.
        choices += [settings(name, options=encode) for name in names]
    if codec in ("vp9", "av1"):
        # These encoders lack depths and chroma that their codecs have: one that keeps every bit
        # and every sample goes before the codec's own.
        choices.sort(key=lambda c: bool(c.notes))
    stream, choice = _pick(output, container, source, choices, encode)
    kept_pictures = container.name == "yuv4mpegpipe" or container.is_image or source.is_image
    if choice.codec != codec and encode.encoder == "auto" and not kept_pictures:
        losses.lose(
            f"the {codec} coding: written as {choice.codec} by {choice.encoder}",
            "codec parameters",
            "pixel format",
            "chroma location",
            "matrix coefficients",  # VP8 has one only
        )
    if first.format.is_rgb and not VideoFormat(choice.pix_fmt).is_rgb:
        losses.known.add("colour range")
    for note in choice.notes:
        losses.lose(note, "pixel format")
    if container.name == "image2":
        _note_colors(source, choice, losses)
    return _configure(stream, container, source, choice, side, losses)


def _note_colors(source: VideoSource, choice: Choice, losses: Losses) -> None:
    """Say what becomes of a picture's kind of color."""
    before, after = source.first.format, VideoFormat(choice.pix_fmt)
    if len(before.components) > 2 >= len(after.components):
        losses.known.add("picture colours")
    if software_format(source.stream) == "pal8":
        losses.lose(f"the palette: written in full colors ({choice.pix_fmt})", "pixel format")
    elif before.is_rgb != after.is_rgb or len(before.components) != len(after.components):
        losses.known.add("pixel format")
        losses.known.add("matrix coefficients")
        if choice.codec == source.codec:
            losses.lose(f"{source.codec} in {before.name}: written in {choice.pix_fmt}")
    if (source.layout.kind != "rgb") != (not after.is_rgb) or choice.encoder == "libwebp":
        losses.known.add("colour range")


def _encoder_names(
    output: av.container.OutputContainer,
    container: Container,
    source: VideoSource,
    encode: EncodeOptions,
) -> list[str]:
    """Encoders to try, best first."""
    asked = encode.encoder
    if container.name == "yuv4mpegpipe":
        candidates(source.codec, source.first.format.name, asked, "rawvideo")  # asked exists
        return ["rawvideo"]
    names = candidates(source.codec, source.first.format.name, asked, output.default_video_codec)
    if container.name in ("ogg", "ogv") and asked == "auto":
        return ["libvpx"]  # the only coding of video that libav both encodes and puts in Ogg
    if container.name == "image2":
        return [_picture_coder(container, source, asked)]
    return names


def _picture_coder(container: Container, source: VideoSource, asked: str) -> str:
    """The encoder of the format that the output's name says."""
    form = format_of_name("picture" + container.suffix)
    name = form.encoder if form is not None and form.encoder is not None else "mjpeg"
    if name == "ppm" and container.suffix == ".pnm" and len(source.layout.shapes) == 1:
        name = "pgm"
    if asked not in ("auto", name):
        raise EncoderError(
            f"{container.suffix} pictures are not made by encoder {asked}: leave `encoder` out, or "
            "name the output after the format that you want"
        )
    return name


def _pick(
    output: av.container.OutputContainer,
    container: Container,
    source: VideoSource,
    choices: Sequence[Choice],
    encode: EncodeOptions,
) -> tuple[Any, Choice]:
    """Add a stream by the first encoder that takes the pictures and fits the container."""
    first = source.first
    size = first.width, first.height
    refusals, problems = [], []
    for choice in choices:
        name = choice.encoder
        check_preset(name, encode.preset)
        check_crf(name, encode.crf)
        odd = odd_size_problem(choice, *size)
        if odd is not None:
            problems.append(odd)
        elif len(choices) > 1 and not opens(choice, *size, source.rate):
            profile = source.stream.codec_context.profile
            plain = choose_settings(name, first.format.name, EncodeOptions(), profile=profile)
            if encode != EncodeOptions() and opens(plain, *size, source.rate):
                raise EncoderError(
                    f"encoder {name} does not accept these settings: "
                    "check `crf`, `bitrate`, `preset` and `pix_fmt`"
                )
            _log.info("encoder %s does not open with %s", name, choice)
        elif not container.labels(choice.codec):
            _log.info("players find no video of %s in %s", choice.codec, container.name)
        elif (stream := _new_stream(output, source, choice)) is not None:
            _log.info("encoder for %s in %s: %s", source.codec, container.name, choice)
            return stream, choice
        else:
            _log.info("%s cannot hold what encoder %s makes", container.name, name)
        refusals.append(name)
    if problems:
        raise EncoderError(problems[0])
    refusals = list(dict.fromkeys(refusals))
    raise EncoderError(
        f"{container.name} cannot hold video by {' or '.join(refusals)}: "
        "choose another extension such as .mkv, or another `encoder`"
    )


def _new_stream(
    output: av.container.OutputContainer, source: VideoSource, choice: Choice
) -> Any | None:
    """Add a stream, made from the source's where the coding stays; None if it does not fit."""
    context = source.stream.codec_context
    try:
        native = av.codec.Codec(context.codec.name, "w").name == choice.encoder
    except ValueError:
        native = False
    same = choice.pix_fmt == software_format(source.stream) and context.pix_fmt is not None
    try:
        if native and same and choice.codec == source.codec:
            # An encoder context made from the source's parameters is the only way to keep coded
            # side data (HDR, spherical) and the chroma location in PyAV.
            stream: Any = output.add_stream_from_template(source.stream, opaque=False)
            stream.codec_context.extradata = None
            stream.codec_context.bit_rate = 0
            stream.codec_context.flags = 0
            return stream
        return output.add_stream(choice.encoder, rate=source.rate)
    except (ValueError, av.error.FFmpegError):
        return None


def _configure(
    stream: Any,
    container: Container,
    source: VideoSource,
    choice: Choice,
    side: dict[str, bytes],
    losses: Losses,
) -> VideoOutput:
    """Set up the encoder of a new stream and open it."""
    context = stream.codec_context
    coding = source.stream.codec_context
    counting = None
    if choice.encoder in FRAME_COUNTING or container.name in _COUNTING_MUXERS:
        counting = 1 / source.rate.limit_denominator(65535)
    context.width, context.height = source.first.width, source.first.height
    context.pix_fmt = choice.pix_fmt
    if (choice.encoder, choice.pix_fmt) == ("mjpeg", "gray"):
        context.pix_fmt = "yuvj420p"  # of the stream only: `gray_jpeg` codes the pictures
    context.framerate = source.rate
    ticks = stream.time_base = _ticks(container, source)
    context.time_base = counting or source.time_base
    aspect = source.stream.sample_aspect_ratio
    if aspect:
        context.sample_aspect_ratio = aspect
        if container.name == "yuv4mpegpipe" and aspect != 1:
            losses.lose(f"sample aspect ratio {aspect}: not in y4m")
    conversion = _conversion(container, source, choice)
    _set_colors(context, source.first, choice, conversion)
    context.thread_count = 0
    context.thread_type = "AUTO"
    flags = int(CodecFlags.frame_duration)
    if container.global_header:
        flags |= int(CodecFlags.global_header)
    options = dict(choice.options)
    order = int(coding.field_order)
    if source.first.interlaced_frame or order >= _FIELDS:
        if choice.encoder in _FRAME_CODERS:
            losses.lose(f"interlaced coding: {choice.encoder} codes frames only", "field order")
        options.setdefault("field_order", _BOTTOM_FIRST.get(order, "tt"))
        if choice.encoder not in PICTURE_CODERS:
            flags |= int(CodecFlags.interlaced_dct) | int(CodecFlags.interlaced_me)
    context.flags = flags
    if choice.bit_rate is not None:
        context.bit_rate = choice.bit_rate
    # AVI has no presentation times: a reordering source must be reordered again.
    delay = int(coding.reorder_depth) if container.name == "avi" else 2
    reorders = _reorders(container, source, delay, counts=counting is not None)
    _set_reordering(options, choice.encoder, delay, reorders)
    carried = CARRIED_DATA.get(choice.encoder, frozenset())
    if "A53_CC" in carried:
        options["a53cc"] = "1"
    if "SEI_UNREGISTERED" in carried:
        options["udu_sei"] = "1"
    context.options = options
    if container.iso and choice.codec == "hevc":
        context.codec_tag = "hvc1"
    elif container.name == "mov" and choice.codec == source.codec and "mov" in source.demuxer:
        # Another format's tag, such as the stream type of MPEG-TS, is none that MOV readers know.
        with contextlib.suppress(ValueError):
            context.codec_tag = coding.codec_tag
    if source.display_matrix is not None:
        stream.set_display_matrix(source.display_matrix)
    copy_tags(stream, source.stream, container, source.demuxer, unchanged=False)
    try:
        context.open(strict=False)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise _refusal(choice, (context.width, context.height), source.rate, error) from error
    return VideoOutput(
        stream, choice, source.time_base, counting, reorders, source.variable, conversion,
        codec=source.codec, losses=losses, coarse=ticks > source.time_base,
    )  # fmt: skip


def _refusal(
    choice: Choice, size: tuple[int, int], rate: Fraction, error: BaseException
) -> EncoderError:
    """Say why an encoder does not open: its device is missing, or the settings are not its own."""
    name, codec, why = choice.encoder, choice.codec, text_of(error)
    plain = choose_settings(name, "yuv420p", EncodeOptions())
    if needs_hardware(name) and not opens(plain, *size, rate):
        return EncoderError(
            f"encoder {name} needs a device that encodes {codec}, and none opens here ({why}): "
            f"choose `encoder` {software_encoder(codec)}, which runs on the CPU, or leave "
            "`encoder` out"
        )
    return EncoderError(
        f"encoder {name} does not accept these settings ({why}): "
        "check `crf`, `bitrate`, `preset` and `pix_fmt`, or leave `encoder` out"
    )


def _ticks(container: Container, source: VideoSource) -> Fraction:
    """The time base of an output's stream.

    AVI's muxer counts in 1/600 s where the source's ticks are finer than 1 ms: a whole number of
    ticks a frame, where it can be, is exact, and holds more frames a second.
    """
    base = source.time_base
    if container.name != "avi" or base >= Fraction(1, 1000):
        return base
    rate = source.rate.limit_denominator(1001)
    return 1 / (rate * max(1, 1000 // rate))


def _set_colors(
    context: Any, first: av.VideoFrame, choice: Choice, conversion: dict[str, int]
) -> None:
    context.color_range = int(first.color_range)
    context.color_primaries = int(first.color_primaries)
    context.color_trc = int(first.color_trc)
    context.colorspace = int(first.colorspace)
    if conversion:
        context.colorspace = conversion.get("dst_colorspace", 0)
        context.color_range = conversion["dst_color_range"]
    if choice.encoder == "mjpeg":
        # JPEG is full range; the encoder refuses anything else.
        context.color_range = int(ColorRange.JPEG)


def _conversion(container: Container, source: VideoSource, choice: Choice) -> dict[str, int]:
    """How to convert pictures whose kind of color the encoder does not take, else nothing."""
    before, after = source.first.format, VideoFormat(_full_format(choice))
    layout = source.layout
    # JFIF and the YCC of JPEG 2000 and TIFF have full range, WebP has not; all are BT.601.
    picture = container.name == "image2"
    full = picture and choice.encoder != "libwebp"
    if layout.kind == "rgb":
        if not before.is_rgb or after.is_rgb:
            return {}
        if len(after.components) < 3:  # gray
            return color_arguments("dst", "bt601", full_range=True)
        size = source.first.width, source.first.height
        return color_arguments(
            "dst", "bt601" if picture else default_matrix(*size), full_range=full
        )
    own = color_arguments("src", layout.matrix, full_range=layout.full_range)
    if after.is_rgb and not before.is_rgb:
        return own | {"dst_color_range": int(ColorRange.JPEG)}
    if picture and len(after.components) < 3:
        return own | color_arguments("dst", "bt601", full_range=True)
    if picture and (layout.kind == "gray" or (layout.matrix, layout.full_range) != ("bt601", full)):
        return own | color_arguments("dst", "bt601", full_range=full)
    return {}


def _full_format(choice: Choice) -> str:
    """The pixel format that libav's converter makes for an encoder."""
    return FULL_COLORS if VideoFormat(choice.pix_fmt).has_palette else choice.pix_fmt


def _reorders(container: Container, source: VideoSource, delay: int, *, counts: bool) -> bool:
    """Whether the encoder may code pictures ahead of others, by up to `delay` of them."""
    if delay <= 0 or source.variable:
        # MP4 keeps durations between decoding times: reordered, they would be another frame's.
        return False
    if container.name in ("avi", "asf"):
        return container.name == "avi"  # ASF has one time a packet, and no decoding times
    # Packets that are timed by their number cannot be; and nothing may come before time zero.
    begin = (source.first.pts or 0) * source.time_base
    return not counts and (container.negative_times or begin * source.rate >= 5)


def _set_reordering(options: dict[str, str], encoder: str, delay: int, reorders: bool) -> None:
    if not reorders:
        if encoder == "libx265":
            options["x265-params"] = options.get("x265-params", "") + ":bframes=0"
        elif encoder != "rawvideo" and encoder not in PICTURE_CODERS:
            options["bf"] = "0"
    elif encoder == "mpeg4":
        options["bf"] = "2"
    elif delay == 1 and encoder == "libx264":
        options["b-pyramid"] = "none"
