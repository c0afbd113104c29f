"""Formats whose metadata is not carried: what there is of it, in words. Knows bytes only."""

from __future__ import annotations

import struct

_HEIF = {b"Exif": "EXIF data", b"application/rdf+xml": "XMP", b"colrprof": "ICC profile"}
_GIF_APPLICATIONS = {b"XMP DataXMP": "XMP", b"ICCRGBG1012": "ICC profile"}
_UUIDS = {
    b"JpgTiffExif->JP2": "EXIF data",
    bytes.fromhex("be7acfcb97a942e89c71999491e3afac"): "XMP",
    bytes.fromhex("33c7a4d2b81d4723a0baf1a3e097ad38"): "IPTC",
}


def names_of(data: bytes) -> list[str]:
    """Name the metadata of a JPEG 2000, HEIF, AVIF, DPX or GIF file.

    Args:
        data: The file.
    """
    if data[4:8] == b"ftyp":
        start = int.from_bytes(data[:4], "big")
        meta = data[start : start + int.from_bytes(data[start : start + 4], "big")]
        return [name for sign, name in _HEIF.items() if sign in meta]
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return _of_gif(data)
    if data[4:8] == b"jP  ":
        return _of_jpeg_2000(data)
    if data[:4] in (b"SDPX", b"XPDS"):
        # The film and television headers (SMPTE ST 268-1, 4.5 and 4.6); unset fields are ones. Some
        # programs leave both out.
        begin = int.from_bytes(data[4:8], "big" if data[:1] == b"S" else "little")
        film = data[1664 : min(begin, 2048)].replace(b"\xff", b"").replace(b"\0", b"")
        return ["film and television information (timecode)"] if film else []
    return []


def _of_jpeg_2000(data: bytes) -> list[str]:
    found, at = [], 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"uuid":
            found.append(_UUIDS.get(data[at + 8 : at + 24], "a UUID box"))
        elif kind == b"xml ":
            found.append("XML")
        elif kind == b"jp2h":
            header = data[at : at + size]
            profile = header.find(b"colr\2")
            found += ["ICC profile"] if profile > 0 else []
            found += ["resolution"] if b"res " in header else []
        if size < 8:
            break
        at += size
    return list(dict.fromkeys(found))


def _of_gif(data: bytes) -> list[str]:
    """Look at the extensions (GIF89a, section 23)."""
    found: list[str] = []
    at = 13 + _table(data[10:11])
    while at + 10 <= len(data):
        if data[at] == 0x2C:  # a picture
            at += 11 + _table(data[at + 9 : at + 10])
        elif data[at] == 0x21:
            label, name = data[at + 1], data[at + 3 : at + 14]
            if label == 0xFE:
                found.append("comments")
            elif label == 0xFF:
                found += [_GIF_APPLICATIONS[name]] if name in _GIF_APPLICATIONS else []
            elif label == 1:
                found.append("plain text")
            at += 2
        else:
            break
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
    return list(dict.fromkeys(found))


def _table(flags: bytes) -> int:
    """Return the bytes of the color table that flags announce."""
    return 3 * 2 ** (flags[0] % 8 + 1) if flags and flags[0] & 0x80 else 0
