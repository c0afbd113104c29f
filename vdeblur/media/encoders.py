"""Choose the encoder, pixel format and settings for an output.

The rule is the source's own codec family at visually transparent quality. Settings are AVOptions.
Knows libav's encoders; knows no files and no streams.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, cast

import av
import av.error
from av.codec.codec import UnknownCodecError
from av.codec.context import CodecContext
from av.video.codeccontext import VideoCodecContext
from av.video.format import VideoFormat

from vdeblur.errors import EncoderError
from vdeblur.media.encoder_checks import (
    X26X,
    check_bitrate,
    check_crf,
    check_encoder,
    check_pixel_format,
    check_preset,
)
from vdeblur.media.picture_formats import PICTURE_CODECS, WRITTEN_FORMATS

# libav names some encoders differently from the codec they write.
_ENCODERS = {
    "h264": "libx264",
    "hevc": "libx265",
    "av1": "libsvtav1",
    "vp8": "libvpx",
    "vp9": "libvpx-vp9",
    "prores": "prores_ks",
    "flv1": "flv",
    "webp": "libwebp",
}

#: Encoders of pictures.
PICTURE_CODERS = frozenset(form.encoder for form in WRITTEN_FORMATS)
_STILLS = PICTURE_CODECS | {"apng", "jpegxl", "gif"}

_NVENC = {"h264": "h264_nvenc", "hevc": "hevc_nvenc", "av1": "av1_nvenc"}

#: MPEG-1/2/4 and related codecs count time in frames: a packet's number is its time.
FRAME_COUNTING = frozenset(
    [
        "mpeg1video",
        "mpeg2video",
        "mpeg4",
        "msmpeg4v2",
        "msmpeg4",
        "wmv1",
        "wmv2",
        "h263",
        "h263p",
        "flv",
        "dvvideo",
        "gif",
        "apng",
    ]
)


@dataclass(frozen=True)
class EncodeOptions:
    """Requested encoder settings; None leaves the choice to the program.

    Attributes:
        encoder: A libav encoder name, "auto" or "nvenc".
        crf: Constant quality, on the encoder's own scale.
        bitrate: Bits per second.
        preset: The encoder's name of a preset.
        pix_fmt: FFmpeg's name of a pixel format.

    Raises:
        UsageError: The encoder is not of video, or no encoder has these settings.
        EncoderError: The encoder is not in this build of libav, or has no such preset.
    """

    encoder: str = "auto"
    crf: float | None = None
    bitrate: int | None = None
    preset: str | None = None
    pix_fmt: str | None = None

    def __post_init__(self) -> None:
        if self.encoder not in ("auto", "nvenc"):
            check_encoder(self.encoder)
        named = _ENCODERS.get(self.encoder, self.encoder)
        check_crf(named, self.crf)
        check_preset(named, self.preset)
        check_bitrate(self.bitrate)
        check_pixel_format(self.pix_fmt)


@dataclass
class Choice:
    """An encoder, its pixel format and its AVOptions.

    Attributes:
        encoder: libav's encoder name.
        codec: libav's canonical name of the codec it writes.
        pix_fmt: Pixel format.
        options: AVOptions.
        bit_rate: Bits per second; None for constant quality.
        notes: Remarks for the user.
    """

    encoder: str
    codec: str
    pix_fmt: str
    options: dict[str, str] = field(default_factory=dict)
    bit_rate: int | None = None
    notes: list[str] = field(default_factory=list)


def candidates(source_codec: str, source_pix_fmt: str, asked: str, default: str) -> list[str]:
    """Return encoder names to try, best first.

    Args:
        source_codec: libav's canonical name.
        source_pix_fmt: Pixel format of the source.
        asked: `EncodeOptions.encoder`.
        default: The container's default encoder or codec.

    Raises:
        EncoderError: The requested encoder is not in this build of libav.
    """
    if asked == "nvenc":
        asked = _NVENC.get(source_codec, "hevc_nvenc")
    if asked != "auto":
        check_encoder(asked)
        return [software_encoder(asked)]  # also the name of a coding, such as h264
    family = software_encoder(source_codec)
    if family == "libx264" and VideoFormat(source_pix_fmt).is_rgb:
        family = "libx264rgb"
    modern = ["libx264", "libx265", "libsvtav1"]
    if source_codec in ("vp8", "vp9", "av1"):
        modern.reverse()
    names = [family, *modern, "libvpx-vp9", "libvpx", _ENCODERS.get(default, default)]
    if source_codec in ("huffyuv", "ffvhuff", "utvideo", "magicyuv", "rawvideo", "v210"):
        names.insert(1, "ffv1")  # lossless sources stay lossless
    return list(dict.fromkeys(name for name in names if _exists(name)))


def choose_settings(
    name: str,
    source_pix_fmt: str,
    options: EncodeOptions,
    *,
    profile: str | None = None,
    side_data: Mapping[str, bytes] | None = None,
    source_codec: str = "",
    lossless: bool = False,
    suffix: str = "",
) -> Choice:
    """Return the pixel format and AVOptions for encoder `name`.

    Args:
        name: libav's encoder name.
        source_pix_fmt: Pixel format of the frames.
        options: Requested settings.
        profile: The source's profile, for ProRes and DNx.
        side_data: Side data of the first frame, for HDR.
        source_codec: libav's canonical name of the source's codec, for pictures.
        lossless: The source is a picture that is coded without loss.
        suffix: Of the output's name, for pictures.

    Raises:
        EncoderError: The encoder does not take the requested pixel format.
        UsageError: The requested pixel format does not exist.
    """
    notes: list[str] = []
    pix_fmt = _pixel_format(name, source_pix_fmt, options.pix_fmt, source_codec, lossless=lossless)
    before, after = VideoFormat(source_pix_fmt), VideoFormat(pix_fmt)
    if options.pix_fmt is None and after.has_palette and not before.has_palette:
        notes.append(f"more than 256 colors a picture: {name} has none")
    elif options.pix_fmt is None and (
        after.components[0].bits < before.components[0].bits
        or after.chroma_width(64) < before.chroma_width(64)
        or after.chroma_height(64) < before.chroma_height(64)
        or len(after.components) < len(before.components)
        or any(c.is_alpha for c in before.components) > any(c.is_alpha for c in after.components)
    ):
        notes.append(f"{name} has no {source_pix_fmt}: written as {pix_fmt}")
    settings = _quality(name, options, profile, pix_fmt)
    if name == "libwebp" and lossless and options.crf is None:
        settings = {"lossless": "1", "quality": "75"}  # the quality is effort here
    elif name == "jpeg2000" and suffix != ".jp2":
        settings["format"] = "j2k"  # a bare codestream
    settings.update(_hdr(name, side_data or {}, settings))
    choice = Choice(name, _codec(name), pix_fmt, settings, options.bitrate, notes)
    if options.bitrate is None:
        if name == "mjpeg" or name in FRAME_COUNTING:
            # The quantizer sets the quality; the rate must only be too high to interfere.
            choice.bit_rate = 50_000_000
        elif name == "libvpx":
            choice.bit_rate = 60_000_000
    return choice


def gray_jpeg(picture: av.VideoFrame, choice: Choice) -> bytes:
    """Return a picture in 8-bit gray as a JPEG of one component, which libav does not make.

    Args:
        picture: In the format gray.
        choice: Of encoder mjpeg, whose quantizer scale becomes a quality.
    """
    import cv2

    quality = round(100 - 2 * float(choice.options.get("qmax", 2)))
    _, data = cv2.imencode(".jpg", picture.to_ndarray(), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return data.tobytes()


def opens(choice: Choice, width: int, height: int, rate: Fraction) -> bool:
    """Return whether the encoder opens for pictures of this size; H.263 and DV take few sizes."""
    try:
        context = cast(VideoCodecContext, CodecContext.create(choice.encoder, "w"))
        context.width, context.height, context.pix_fmt = width, height, choice.pix_fmt
        context.time_base, context.framerate = 1 / rate, rate
        context.options = dict(choice.options)
        if choice.encoder == "mjpeg":
            context.color_range = 2
        if choice.bit_rate is not None:
            context.bit_rate = choice.bit_rate
        context.open(strict=False)
    except (av.error.FFmpegError, OSError, ValueError):
        return False
    return True


def software_encoder(codec: str) -> str:
    """Return the encoder of a codec (libav's canonical name) that runs on the CPU."""
    return _ENCODERS.get(codec, codec)


def takes_format(encoder: str, pix_fmt: str | None) -> bool:
    """Return whether an encoder lists a pixel format, or lists none."""
    formats = [f.name for f in av.codec.Codec(encoder, "w").video_formats or [] if f]
    return not formats or pix_fmt in formats


def odd_size_problem(choice: Choice, width: int, height: int) -> str | None:
    """Return why an encoder takes no pictures of an odd size, which it would print itself."""
    pixel = VideoFormat(choice.pix_fmt)
    across, down = 64 // (pixel.chroma_width(64) or 64), 64 // (pixel.chroma_height(64) or 64)
    if choice.encoder not in X26X or (width % across == 0 and height % down == 0):
        return None
    return (
        f"{choice.encoder} takes pictures of even width and height only in {choice.pix_fmt}, and "
        f"these are {width}x{height}: choose `encoder` libsvtav1 or libvpx-vp9, or `pix_fmt` "
        "yuv444p"
    )


def _exists(name: str) -> bool:
    try:
        return bool(av.codec.Codec(name, "w").is_encoder)
    except (UnknownCodecError, ValueError):
        return False


def _codec(encoder: str) -> str:
    return str(av.codec.Codec(encoder, "w").canonical_name)


def _pixel_format(
    encoder: str, source: str, asked: str | None, source_codec: str, *, lossless: bool
) -> str:
    formats = [f.name for f in av.codec.Codec(encoder, "w").video_formats or [] if f]
    if asked is not None:
        check_pixel_format(asked)
        if formats and asked not in formats:
            raise EncoderError(
                f"{encoder} does not take pixel format {asked}: choose from {', '.join(formats)}"
            )
        return asked
    if encoder == "gif":
        return "pal8"
    if encoder in PICTURE_CODERS:
        if encoder == "mjpeg" and not _traits(source)[2]:
            return "gray"  # see `gray_jpeg`
        if encoder == "libwebp":
            formats = ["bgra"] if lossless else ["yuv420p", "yuva420p"]
        elif encoder == "jpeg2000":
            formats = [f for f in formats if not f.startswith("ya")]  # OpenJPEG's readers refuse it
        own = source_codec == _codec(encoder) == "jpeg2000"
        return _picture_format(formats, source, yuv=encoder in ("mjpeg", "libwebp") or own)
    if not formats or source in formats:
        return source
    if source.startswith("yuvj") and source.replace("yuvj", "yuv") in formats:
        return source.replace("yuvj", "yuv")  # the range remains as a tag
    alpha = any(c.is_alpha for c in VideoFormat(source).components)
    best = av.codec.find_best_pix_fmt_of_list(formats, source, alpha)
    return str(best[0].name) if best[0] else formats[0]


def _picture_format(formats: Sequence[str], source: str, *, yuv: bool) -> str:
    """The format of a picture's coder that keeps most of `source`, and is no larger than it must.

    Y'CbCr is left out unless `yuv`: few programs read it in formats of RGB.
    """
    if source in formats and (yuv or _traits(source)[3] or not _traits(source)[2]):
        return source
    alpha, bits, color, rgb, across, down = _traits(source)

    def loss(name: str) -> tuple[object, ...]:
        b = _traits(name)
        return (
            color and not b[2],
            alpha and not b[0],
            max(0, bits - b[1]),
            max(0, b[4] - across) + max(0, b[5] - down),
            rgb != b[3] and color,
            b[2] and not color,
            b[0] and not alpha,
            b[1] - bits,
            across + down - b[4] - b[5],
        )

    usable = [f for f in formats if _is_plain(f) and (yuv or _traits(f)[3] or not _traits(f)[2])]
    return min(usable or formats, key=loss)


def _is_plain(name: str) -> bool:
    """Whether a format has at least 8 bits a component, without a palette."""
    pixel = VideoFormat(name)
    return not pixel.has_palette and all(c.bits >= 8 for c in pixel.components)


def _traits(name: str) -> tuple[bool, int, bool, bool, int, int]:
    """(alpha, bits, has color, RGB, columns and rows of a chroma sample)."""
    pixel = VideoFormat(name)
    return (
        any(c.is_alpha for c in pixel.components),
        max(c.bits for c in pixel.components),
        pixel.has_palette or len(pixel.components) > 2,
        pixel.is_rgb or pixel.has_palette,
        64 // (pixel.chroma_width(64) or 64),
        64 // (pixel.chroma_height(64) or 64),
    )


def _quality(
    name: str, options: EncodeOptions, profile: str | None, pix_fmt: str
) -> dict[str, str]:
    crf, preset = options.crf, options.preset
    wanted: dict[str, str] = {}

    def level(default: float) -> str:
        return f"{default if crf is None else crf:g}"

    if name in ("libx264", "libx264rgb"):
        wanted = {"preset": preset or "medium", "crf": level(16)}
    elif name == "libx265":
        wanted = {"preset": preset or "medium", "crf": level(17), "x265-params": "log-level=none"}
    elif name == "libsvtav1":
        os.environ.setdefault("SVT_LOG", "1")  # errors only; it prints its settings otherwise
        wanted = {"preset": preset or "8", "crf": level(18)}
    elif name == "libvpx-vp9":
        wanted = {"deadline": "good", "cpu-used": preset or "4", "row-mt": "1", "crf": level(18)}
        wanted["b"] = "0"
    elif name == "libvpx":
        wanted = {"deadline": "good", "cpu-used": preset or "4", "crf": level(6), "qmin": "0"}
    elif name.endswith("_nvenc"):
        wanted = {"preset": preset or "p5", "rc": "vbr", "cq": level(19), "b": "0"}
    elif name == "prores_ks":
        # The profile follows the source's: proxy … 4444xq.
        number = _prores_profile(profile, pix_fmt)
        wanted = {"profile": str(number), "vendor": "apl0", "quant_mat": "auto"}
    elif name == "dnxhd":
        wanted = _dnx_profile(profile, pix_fmt)
    elif name == "ffv1":
        wanted = {"level": "3", "slicecrc": "1"}
    elif name == "cfhd":
        wanted = {"quality": "film3+"}
    elif name == "libwebp":
        wanted = {"quality": level(95)}
    elif name == "tiff":
        wanted = {"compression_algo": "deflate"}
    elif name == "jpeg2000":
        wanted = {"pred": "dwt53"}  # without loss
    elif name == "sgi":
        wanted = {"rle": "0"}  # Pillow does not read libav's
    elif name == "mjpeg" or name in FRAME_COUNTING - {"dvvideo", "gif", "apng"}:
        wanted = {"qmin": level(2), "qmax": level(2)}
        if name == "mjpeg":
            wanted["huffman"] = "optimal"
    if options.bitrate is not None:
        for key in ("crf", "cq", "qmin", "qmax", "b"):
            wanted.pop(key, None)
    return wanted


def _prores_profile(profile: str | None, pix_fmt: str) -> int:
    names = {"proxy": 0, "lt": 1, "standard": 2, "high quality": 3, "hq": 3, "4444": 4, "xq": 5}
    text = (profile or "").lower()
    found = [number for key, number in names.items() if key in text]
    number = max(found) if found else 3
    return max(number, 4) if "444" in pix_fmt else min(number, 3)


def _dnx_profile(profile: str | None, pix_fmt: str) -> dict[str, str]:
    text = (profile or "").lower().replace(" ", "_")
    if "444" in pix_fmt or pix_fmt.startswith("gbrp"):
        return {"profile": "dnxhr_444"}
    if pix_fmt.endswith("10le"):
        return {"profile": "dnxhr_hqx"}
    for name in ("dnxhr_lb", "dnxhr_sq"):
        if name in text:
            return {"profile": name}
    return {"profile": "dnxhr_hq"}


def _hdr(name: str, side_data: Mapping[str, bytes], settings: Mapping[str, str]) -> dict[str, str]:
    """Return mastering display and light level (SMPTE ST 2086) as the encoder's own option."""
    mastering = side_data.get("MASTERING_DISPLAY_METADATA")
    light = side_data.get("CONTENT_LIGHT_LEVEL")
    if not mastering and not light:
        return {}
    parts: dict[str, str] = {}
    if mastering and len(mastering) >= 88:
        # AVMasteringDisplayMetadata: display_primaries[3][2], white_point[2], min, max luminance
        # as AVRational pairs, then has_primaries, has_luminance.
        v = struct.unpack("<20i2i", mastering[:88])
        ratio = [v[i] / v[i + 1] if v[i + 1] else 0.0 for i in range(0, 20, 2)]
        if v[20] and v[21]:
            red, green, blue, white = ratio[0:2], ratio[2:4], ratio[4:6], ratio[6:8]
            low, high = ratio[8], ratio[9]
            if name == "libsvtav1":
                triple = "G({:.5f},{:.5f})B({:.5f},{:.5f})R({:.5f},{:.5f})WP({:.5f},{:.5f})"
                parts["mastering-display"] = triple.format(*green, *blue, *red, *white) + (
                    f"L({high:.4f},{low:.4f})"
                )
            else:
                scaled = [round(x * 50000) for x in (*green, *blue, *red, *white)]
                triple = "G({},{})B({},{})R({},{})WP({},{})"
                parts["master-display"] = triple.format(*scaled) + (
                    f"L({round(high * 10000)},{round(low * 10000)})"
                )
    levels = struct.unpack("<2I", light[:8]) if light and len(light) >= 8 else None
    if name == "libx265":
        params = [settings.get("x265-params", ""), "hdr10=1", "repeat-headers=1"]
        if "master-display" in parts:
            params.append(f"master-display={parts['master-display']}")
        if levels:
            params.append(f"max-cll={levels[0]},{levels[1]}")
        return {"x265-params": ":".join(p for p in params if p)}
    if name == "libx264":
        params = []
        if "master-display" in parts:
            params.append(f"mastering-display={parts['master-display']}")
        if levels:
            params.append(f"cll={levels[0]},{levels[1]}")
        return {"x264-params": ":".join(params)}
    if name == "libsvtav1":
        params = [f"{k}={v}" for k, v in parts.items()]
        if levels:
            params.append(f"content-light={levels[0]},{levels[1]}")
        return {"svtav1-params": ":".join(params)}
    return {}


#: What encoders write of a frame's side data beside its pictures, by libav's names of the kinds.
CARRIED_DATA: dict[str, frozenset[str]] = {
    "libx264": frozenset({"A53_CC", "SEI_UNREGISTERED"}),
    "libx264rgb": frozenset({"A53_CC", "SEI_UNREGISTERED"}),
    # x265 puts its own UUID before user data, where no reader finds them.
    "libx265": frozenset({"A53_CC"}),
    "h264_nvenc": frozenset({"A53_CC", "SEI_UNREGISTERED"}),
    "hevc_nvenc": frozenset({"A53_CC", "SEI_UNREGISTERED"}),
    "mpeg2video": frozenset({"A53_CC"}),
}

# What x264 and x265 say of themselves in the pictures they code, by its UUID.
_BANNERS = (
    bytes.fromhex("dc45e9bde6d948b7962cd820d923eeef"),
    bytes.fromhex("2ca2de09b51747dbbb55a4fe7fc2fc4e"),
)


def picture_data(frame: Any, codec: str) -> dict[str, list[bytes]]:
    """Return what a decoded frame carries beside its picture that an encoder may drop.

    User data of cameras and drones (SEI of H.264 and HEVC), captions, time codes, the active format
    and dynamic HDR; not what encoders say of themselves, and not the time code 00:00:00:00, which
    cameras without a clock write into every picture.

    Args:
        frame: A decoded frame.
        codec: libav's canonical name of its codec.

    Returns:
        Payloads by libav's name of the kind. Empty where `side_data_bytes` is.
    """
    found: dict[str, list[bytes]] = {}
    if codec in _STILLS:
        return found
    try:
        for item in frame.side_data:
            if item.type.name in PICTURE_DATA:
                data = bytes(item)
                if item.type.name == "S12M_TIMECODE":
                    data = _time_codes(data)
                if data and data[:16] not in _BANNERS:
                    found.setdefault(item.type.name, []).append(data)
    except ValueError:
        return {}
    return found


def _time_codes(data: bytes) -> bytes:
    """Return the time codes (SMPTE 12M, 4 bytes each) of AV_FRAME_DATA_S12M_TIMECODE.

    Its first word is their number; libav leaves the words after them as they were in memory.
    """
    (count,) = struct.unpack("=I", data[:4])
    codes = data[4 : 4 + 4 * min(count, 3)]
    return codes if any(codes) else b""


#: Kinds of `picture_data`: what reports call them, and the check of `verify` that compares them.
PICTURE_DATA: dict[str, tuple[str, str]] = {
    "SEI_UNREGISTERED": ("user data (SEI, unregistered)", "user data"),
    "S12M_TIMECODE": ("time codes of the pictures (SMPTE 12M)", "user data"),
    "AFD": ("the active format description", "user data"),
    "A53_CC": ("closed captions (A53)", "closed captions"),
    "DYNAMIC_HDR_PLUS": ("dynamic metadata of HDR10+", "dynamic HDR"),
    "DYNAMIC_HDR_VIVID": ("dynamic metadata of HDR Vivid", "dynamic HDR"),
    "DOVI_RPU_BUFFER": ("dynamic metadata of Dolby Vision", "dynamic HDR"),
}


def side_data_bytes(frame: Any, codec: str) -> dict[str, bytes]:
    """Return the raw side data of a frame decoded by `codec` (libav's canonical name).

    Empty for still pictures: PyAV 18.1 frees the name of an ICC profile, which the frame still
    owns, and the process aborts. Also empty if PyAV has no name for some kind: it then lists none.

    Returns:
        Bytes by libav's name of the kind.
    """
    if codec in _STILLS:
        return {}
    try:
        return {cast(str, item.type.name): bytes(item) for item in frame.side_data}
    except ValueError:
        return {}
