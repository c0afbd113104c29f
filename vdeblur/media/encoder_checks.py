"""Check what a caller asks of an encoder: before any work, and before libav prints or clips it."""

from __future__ import annotations

import difflib

import av.codec
from av.codec.codec import UnknownCodecError
from av.video.format import VideoFormat

from vdeblur.errors import EncoderError, UsageError

#: Encoders whose presets have the names of x264.
X26X = frozenset({"libx264", "libx264rgb", "libx265"})
_X26X_PRESETS = (
    "ultrafast",
    "superfast",
    "veryfast",
    "faster",
    "fast",
    "medium",
    "slow",
    "slower",
    "veryslow",
    "placebo",
)
#: Presets that are numbers: the slowest and the fastest. libvpx calls them cpu-used.
_NUMBERED_PRESETS = {"libsvtav1": (-2, 13), "libvpx": (-16, 16), "libvpx-vp9": (-8, 8)}
#: Highest value of the quality scale, by encoder; some have no scale.
_WORST_CRF = {
    "libx264": 51,
    "libx264rgb": 51,
    "libx265": 51,
    "libvpx": 63,
    "libvpx-vp9": 63,
    "libsvtav1": 70,  # 63 before version 3
}
_FEWEST_BITS_PER_SECOND = 1000
_MOST_BITS_PER_SECOND = 100_000_000_000
# Names of codings that libav calls otherwise, or encodes by a library of its own name.
_USUAL = {
    "h265": ["libx265"],
    "hevc": ["libx265"],
    "x265": ["libx265"],
    "x264": ["libx264"],
    "avc": ["libx264"],
    "vp9": ["libvpx-vp9"],
    "vp8": ["libvpx"],
    "prores": ["prores_ks"],
}
#: Ends of the names of encoders that need hardware.
_HARDWARE = ("_nvenc", "_qsv", "_amf", "_vaapi", "_videotoolbox", "_v4l2m2m", "_vulkan", "_mf")


def check_encoder(name: str) -> None:
    """Check that an encoder exists, and that it is of video.

    Raises:
        UsageError: It is of sound or subtitles.
        EncoderError: It is not in this build of libav.
    """
    try:
        codec = av.codec.Codec(name, "w")
    except (UnknownCodecError, ValueError) as error:
        known = sorted(each for each in av.codec.codecs_available if _is_video(each))
        close = _USUAL.get(name.lower()) or difflib.get_close_matches(
            name.lower(), known, n=3, cutoff=0.7
        )
        meant = f" (did you mean {' or '.join(close)}?)" if close else ""
        raise EncoderError(
            f"encoder {name!r} is not in this build of libav{meant}: leave `encoder` out, or name "
            "one such as libx264, libx265, libsvtav1, ffv1"
        ) from error
    if codec.type != "video":
        kind = {"audio": "sound", "subtitle": "subtitles"}.get(codec.type, codec.type)
        raise UsageError(
            f"encoder {name} makes {kind}, not video: leave `encoder` out, since all other streams "
            "are kept as they are, or name one such as libx264, libx265, libsvtav1, ffv1"
        )


def check_bitrate(bitrate: int | None) -> None:
    """Raise UsageError for a bit rate that no encoder has."""
    if bitrate is not None and not _FEWEST_BITS_PER_SECOND <= bitrate <= _MOST_BITS_PER_SECOND:
        raise UsageError(
            f"bitrate is {bitrate}: choose bits per second, from {_FEWEST_BITS_PER_SECOND} to "
            f"{_MOST_BITS_PER_SECOND}"
        )


def check_pixel_format(name: str | None) -> None:
    """Raise UsageError for a pixel format that does not exist."""
    try:
        if name is not None:
            VideoFormat(name)
    except ValueError as error:
        raise UsageError(f"pixel format {name!r} is unknown: name one such as yuv420p") from error


def check_preset(encoder: str, preset: str | None) -> None:
    """Raise EncoderError for a preset, by name or number, that an encoder does not have.

    x264 would report it on standard error, past libav's log.
    """
    if preset is None:
        return
    if numbers := _NUMBERED_PRESETS.get(encoder):
        least, most = numbers
        if not (preset.lstrip("-").isdecimal() and least <= int(preset) <= most):
            raise EncoderError(
                f"{encoder} has no preset {preset!r}: choose a number from {least} (slowest) to "
                f"{most} (fastest)"
            )
    elif (
        encoder in X26X
        and preset not in _X26X_PRESETS
        and not (preset.isascii() and preset.isdecimal() and int(preset) < len(_X26X_PRESETS))
    ):
        raise EncoderError(
            f"{encoder} has no preset {preset!r}: choose one of {', '.join(_X26X_PRESETS)}"
        )


def check_crf(encoder: str, crf: float | None) -> None:
    """Raise UsageError for a quality off the encoder's scale, which the encoder would clip."""
    worst = 51 if encoder.endswith("_nvenc") else _WORST_CRF.get(encoder, 255)
    if crf is not None and not 0 <= crf <= worst:
        whose = "the scales of encoders" if encoder == "auto" else f"encoder {encoder}"
        raise UsageError(f"crf is {crf:g}: choose a number from 0 (best) to {worst} for {whose}")


def needs_hardware(encoder: str) -> bool:
    """Return whether an encoder needs a device, such as a GPU."""
    return encoder.endswith(_HARDWARE)


def _is_video(name: str) -> bool:
    try:
        return av.codec.Codec(name, "w").type == "video"
    except (UnknownCodecError, ValueError):
        return False
