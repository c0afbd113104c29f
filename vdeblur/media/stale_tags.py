"""Tags that state facts of one coding, such as its size: untrue of another one."""

from __future__ import annotations

import re

# Written by encoders and muxers of the stream that was. mkvmerge: BPS to NUMBER_OF_BYTES; x264 and
# HandBrake: ENCODER_OPTIONS, "encoding settings"; QuickTime: vendor_id; Adobe: bit rates.
_OF_CODING = {
    "bps",
    "number_of_frames",
    "number_of_bytes",
    "encoder",
    "encoder_options",
    "encoder_settings",
    "encoding_settings",
    "encoded_library",
    "encoded_library_name",
    "encoded_library_settings",
    "encoded_library_version",
    "writing_library",
    "codec_settings",
    "vendor_id",
    "vendor",
    "bitrate",
    "bit_rate",
    "avg_bitrate",
    "average_bitrate",
    "max_bitrate",
    "maximum_bitrate",
    "nominal_bitrate",
    "stream_size",
    "profile",
    "level",
    "format_profile",
    "duration",
    "rotate",
}
# The same of a whole file: FLV's onMetaData, and ASF's properties of a coding.
_OF_FILE = {
    "major_brand",
    "minor_version",
    "compatible_brands",
    "encoder",
    "filesize",
    "datasize",
    "videosize",
    "audiosize",
    "videodatarate",
    "totaldatarate",
    "totalframes",
    "lasttimestamp",
    "lastkeyframetimestamp",
    "lastkeyframelocation",
    "wmfsdkversion",
    "wmfsdkneeded",
    "isvbr",
    "bitrate",
    "optimalbitrate",
    "vbr peak",
    "buffer average",
}
# That a muxer writes itself, or that says how its file was.
_OF_MUXER = {"duration", "rotate"}
_LANGUAGE = re.compile(r"-[a-z]{3}$")  # that FFmpeg's matroska demuxer adds: BPS-eng


def _plain(key: str) -> str:
    return _LANGUAGE.sub("", key.lower()).replace(" ", "_")


def is_of_coding(key: str) -> bool:
    """Tell whether a tag of a stream states a fact of its coding."""
    key = _plain(key)
    return key in _OF_CODING or key.startswith("_statistics_")


def kept_stream_tags(metadata: dict[str, str], *, unchanged: bool) -> dict[str, str]:
    """Return the tags of a source's stream that its output gets.

    Args:
        metadata: Of the source's stream.
        unchanged: The output has all of its packets, byte for byte.
    """
    if unchanged:
        return {k: v for k, v in metadata.items() if _plain(k) not in _OF_MUXER}
    return {k: v for k, v in metadata.items() if not is_of_coding(k)}


def kept_file_tags(metadata: dict[str, str]) -> dict[str, str]:
    """Return the tags of a source's container that its output gets."""
    return {k: v for k, v in metadata.items() if not is_of_file(k)}


def is_of_file(key: str) -> bool:
    """Tell whether a tag of a container states a fact of the file that was."""
    return key.lower() in _OF_FILE or key.lower().startswith("_statistics_")
