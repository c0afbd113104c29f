"""XMP packets: what in them points at bytes outside the picture. Knows bytes only."""

from __future__ import annotations

import re

#: Where a JPEG's APP1 and a GIF's application block name XMP.
JPEG_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"
EXTENDED_PREFIX = b"http://ns.adobe.com/xmp/extension/\0"

# Namespaces that describe films, gain maps and depth maps behind the picture: motion photos and
# Ultra HDR (developer.android.com/media/platform/motion-photo-format, …/hdr-image-format).
_POINTING = (
    rb"http://ns\.google\.com/photos/1\.0/container/(?:item/)?",
    rb"http://ns\.adobe\.com/hdr-gain-map/1\.0/",
    rb"http://ns\.google\.com/photos/dd/1\.0/\w+/",
)
_CAMERA = rb"http://ns\.google\.com/photos/1\.0/camera/"
_CAMERA_NAMES = rb"(?:MicroVideo|MotionPhoto)\w*"


def without_pointers(packet: bytes) -> bytes:
    """Return a packet without the properties that describe what stood behind the picture."""
    for namespace in _POINTING:
        packet = _without(packet, namespace, rb"[\w.-]+")
    return _without(packet, _CAMERA, _CAMERA_NAMES)


def _without(packet: bytes, namespace: bytes, names: bytes) -> bytes:
    """Remove properties of a namespace, as attributes and as elements."""
    for declared in set(
        re.findall(rb"xmlns:([\w.-]+)\s*=\s*[\"']" + namespace + rb"[\"']", packet)
    ):
        name = re.escape(declared) + rb":" + names
        packet = re.sub(rb"\s" + name + rb"\s*=\s*(?:\"[^\"]*\"|'[^']*')", b"", packet)
        packet = re.sub(
            rb"<(" + name + rb")(?:\s[^<>]*)?(?:/>|>(?:(?!<\1[\s>]).)*?</\1\s*>)\s*",
            b"",
            packet,
            flags=re.DOTALL,
        )
    return packet
