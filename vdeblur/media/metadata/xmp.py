"""XMP packets: what in them points at bytes outside the picture. Knows bytes only."""

from __future__ import annotations

import re

#: Where a JPEG's APP1 and a GIF's application block name XMP.
JPEG_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"
EXTENDED_PREFIX = b"http://ns.adobe.com/xmp/extension/\0"

# Namespaces that describe films, gain maps and depth maps behind the picture: motion photos and
# Ultra HDR (developer.android.com/media/platform/motion-photo-format, …/hdr-image-format).
_POINTING = re.compile(
    rb"http://ns\.google\.com/photos/1\.0/container/(?:item/)?"
    rb"|http://ns\.adobe\.com/hdr-gain-map/1\.0/"
    rb"|http://ns\.google\.com/photos/dd/1\.0/\w+/"
)
_CAMERA = b"http://ns.google.com/photos/1.0/camera/"
_CAMERA_NAMES = re.compile(rb"(?:MicroVideo|MotionPhoto)\w*")

# Each of these reads a packet once, whatever stands in it.
_DECLARATION = re.compile(rb"xmlns:([\w.-]+)\s*=\s*(?:\"([^\"<>]*)\"|'([^'<>]*)')")
_ATTRIBUTE = re.compile(rb"\s([\w.-]+):([\w.-]+)\s*=\s*(?:\"[^\"]*\"|'[^']*')")
_TAG = re.compile(rb"<(/?)([\w.-]+):([\w.-]+)(?:\s[^<>]*)?/?>\s*")


def without_pointers(packet: bytes) -> bytes:
    """Return a packet without the properties that describe what stood behind the picture."""
    pointing: set[bytes] = set()
    cameras: set[bytes] = set()
    for prefix, *values in _DECLARATION.findall(packet):
        namespace = b"".join(values)
        if _POINTING.fullmatch(namespace):
            pointing.add(prefix)
        elif namespace == _CAMERA:
            cameras.add(prefix)

    def points(found: re.Match[bytes], prefix: int) -> bool:
        name = found[prefix + 1]
        return found[prefix] in pointing or (
            found[prefix] in cameras and bool(_CAMERA_NAMES.fullmatch(name))
        )

    if not pointing | cameras:
        return packet
    packet = _ATTRIBUTE.sub(lambda found: b"" if points(found, 1) else found[0], packet)
    kept: list[bytes] = []
    at = begin = depth = 0
    open_tag = None
    for tag in _TAG.finditer(packet):
        name, closes = (tag[2], tag[3]), bool(tag[1])
        empty = tag[0].rstrip().endswith(b"/>")
        if open_tag is None:
            if closes or not points(tag, 2):
                continue
            kept.append(packet[at : tag.start()])
            at = tag.end()
            if not empty:
                open_tag, depth, begin = name, 1, tag.start()
        elif name == open_tag and not empty:
            depth += -1 if closes else 1
            if not depth:
                open_tag, at = None, tag.end()
    kept.append(packet[begin if open_tag else at :])
    return b"".join(kept)
