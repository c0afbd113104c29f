"""Metadata of a picture file → the file of the restored picture, in its format or another.

What belongs to the picture is kept: EXIF data with its orientation, ICC profile, XMP, IPTC,
comments, resolution, and what stands behind the picture (films of motion photos, gain maps). What
belongs to the old coding is not: color models, palettes, significant bits, frames of an animation.
Knows bytes only, and raises nothing for them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from vdeblur.media.metadata import bmp, exif, jpeg, others, png, tiff, webp, xmp

_CREDENTIALS = "content credentials (C2PA): they vouch for the pixels of the source"
_BEHIND = "what stands behind the picture, such as the film of a motion photo or a gain map"
_EXIF, _ICC, _MPF = b"Exif\0\0", b"ICC_PROFILE\0", b"MPF\0"
_PHOTOSHOP, _ADOBE = b"Photoshop 3.0\0", b"Adobe"
_XMP_KEYWORD = "XML:com.adobe.xmp"

# Chunks that describe the coding of the source, and are not its picture's.
_PNG_CODING = frozenset(
    [b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"sBIT", b"hIST", b"acTL", b"fcTL", b"fdAT"]
)
# The meaning of colors: it describes the samples, which keep their code values.
_PNG_COLOR = (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"mDCV", b"cLLI", b"mDCv", b"cLLi")
_PNG_KEPT = frozenset(_PNG_COLOR) | {b"tIME", b"sPLT", b"oFFs", b"sTER", b"pCAL", b"gIFg", b"gIFx"}
_BACKGROUND, _CONTENT_CREDENTIALS = b"bKGD", b"caBX"

#: Colors of a pixel → the color space that an ICC profile for them states (ICC.1, 7.2.8).
_SPACES = {1: b"GRAY", 3: b"RGB ", 4: b"CMYK"}


@dataclass
class PictureMetadata:
    """Metadata in the form that all formats share; empty where there is none.

    Attributes:
        exif: A TIFF file.
        icc: An ICC profile.
        xmp: An XMP packet.
        iptc: Photoshop's image resources, among them the IPTC record.
        comments: Texts without a name, UTF-8 or Latin-1.
        density: Pixels across and down a meter.
        other: Names of what only its own format can hold.
    """

    exif: bytes = b""
    icc: bytes = b""
    xmp: bytes = b""
    iptc: bytes = b""
    comments: list[bytes] = field(default_factory=list)
    density: tuple[int, int] | None = None
    other: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """What there is, in words."""
        kinds = {
            "EXIF data": self.exif,
            "ICC profile": self.icc,
            "XMP": self.xmp,
            "IPTC": self.iptc,
            "comments": self.comments,
        }
        return [name for name, value in kinds.items() if value] + list(dict.fromkeys(self.other))


def carry(source: bytes, output: bytes) -> tuple[bytes, list[str]]:
    """Put the metadata of a picture file into another.

    Args:
        source: The file of the picture that was restored.
        output: The file of the restored picture, as its encoder wrote it.

    Returns:
        The output with the metadata, and what is lost, a line each.
    """
    for is_kind, carried in _SAME:
        if is_kind(source) and is_kind(output):
            return carried(source, output)
    metadata = read(source)
    for is_kind, embed in _EMBEDDING:
        if is_kind(output):
            data, lost = embed(metadata, output)
            return data, _sentences(metadata.other, lost)
    return output, _sentences(metadata.names, [])


def inspect(data: bytes) -> tuple[int, bool]:
    """Return the EXIF orientation of a picture file, and whether the file is cut off."""
    end: int | None = len(data)
    if _is_jpeg(data):
        picture = jpeg.Jpeg.parse(data)
        end, blocks = picture.end, (one.data for one in picture.segments)
        found = next((block[len(_EXIF) :] for block in blocks if block.startswith(_EXIF)), b"")
    elif _is_png(data):
        chunks, end = png.parse(data)
        found = next((_exif_of(c) for c in chunks if c.kind == b"eXIf"), b"")
    elif webp.is_webp(data):
        parts, end = webp.parse(data)
        found = dict(parts).get(b"EXIF", b"").removeprefix(_EXIF)
    else:
        found = data  # a TIFF file is EXIF data
    return exif.orientation_of(found), end is None


def read(data: bytes) -> PictureMetadata:
    """Return the metadata of a picture file; none for formats that are not known here."""
    if _is_jpeg(data):
        return _read_jpeg(data)
    if _is_png(data):
        return _read_png(data)
    if webp.is_webp(data):
        return _read_webp(data)
    if tiff.is_tiff(data):
        return _read_tiff(data)
    if bmp.is_bmp(data):
        return PictureMetadata(icc=bmp.profile_of(data), density=bmp.density_of(data))
    return PictureMetadata(other=others.names_of(data))


def embed(metadata: PictureMetadata, output: bytes) -> tuple[bytes, list[str]]:
    """Put metadata into a picture file.

    Returns:
        The file, and what is lost, a line each.
    """
    for is_kind, into in _EMBEDDING:
        if is_kind(output):
            data, lost = into(metadata, output)
            return data, _sentences([], lost)
    return output, _sentences(metadata.names, [])


def _sentences(others: list[str], lost: list[str]) -> list[str]:
    whole = [_BEHIND, _CREDENTIALS]
    names = [name for name in dict.fromkeys(others + lost) if name not in whole]
    lines = [f"{', '.join(names)}: not in this format of pictures"] if names else []
    return lines + [name for name in whole if name in others]


def _is_jpeg(data: bytes) -> bool:
    return data.startswith(jpeg.SIGNATURE)


def _is_png(data: bytes) -> bool:
    return data.startswith(png.SIGNATURE)


# -- JPEG ------------------------------------------------------------------------------------------


def _carry_jpeg(source: bytes, output: bytes) -> tuple[bytes, list[str]]:
    old, new = jpeg.Jpeg.parse(source), jpeg.Jpeg.parse(output)
    lost: list[str] = []
    kept: list[jpeg.Segment] = []
    profile, credentials = _icc_of_jpeg(old), _credentials(old)
    if old.left_out:
        lost.append(_beyond(old))
    for one in old.segments:
        if not one.is_metadata or _codes(one):
            continue
        if _is_jumbf(one) and one.data[2:4] in credentials:
            lost.append(_CREDENTIALS)
        elif one.data.startswith(_ICC) and not _fits(profile, new.components):
            lost.append(f"ICC profile: it is for {_space(profile)} pictures")
        else:
            kept.append(one)
    # The color model of the output is told by its own encoder.
    coding = [one for one in new.segments if not one.is_metadata or one.data.startswith(_ADOBE)]
    parts = [jpeg.SIGNATURE, *jpeg.parts_of(kept), *jpeg.parts_of(coding)]
    end = len(output) if new.end is None else new.end
    parts.append(output[new.scan : end])
    multi = next((one for one in kept if one.data.startswith(_MPF)), None)
    if multi is not None and old.end is not None:
        parts = [_moved_pictures(b"".join(parts), multi, old.end, len(source))]
    behind = b"" if old.end is None else memoryview(source)[old.end :]
    return b"".join([*parts, behind]), list(dict.fromkeys(lost))


def _beyond(picture: jpeg.Jpeg) -> str:
    return f"{picture.left_out} segments behind the first {jpeg.MOST_SEGMENTS}"


def _codes(one: jpeg.Segment) -> bool:
    """Whether a segment describes the coding of its file: Adobe, SPIFF, Ducky, JPEG XT."""
    return (
        (one.marker == jpeg.APP0 + 14 and one.data.startswith(_ADOBE))
        or (one.marker == jpeg.APP0 + 8 and one.data.startswith(b"SPIFF\0"))
        or (one.marker == jpeg.APP0 + 12 and one.data.startswith(b"Ducky"))
        or (one.marker == jpeg.APP0 + 11 and one.data[:2] == b"JP" and not _is_jumbf(one))
    )


def _is_jumbf(one: jpeg.Segment) -> bool:
    """Whether a segment holds a part of a JUMBF box (ISO/IEC 19566-5, annex D)."""
    return one.marker == jpeg.APP0 + 11 and one.data[12:16] == b"jumb"


def _credentials(picture: jpeg.Jpeg) -> set[bytes]:
    """Return the numbers of the JUMBF boxes that are content credentials."""
    return {one.data[2:4] for one in picture.segments if _is_jumbf(one) and b"c2pa" in one.data}


def _moved_pictures(data: bytes, multi: jpeg.Segment, old_end: int, old_size: int) -> bytes:
    """Correct the sizes and places of the pictures behind the first (CIPA DC-007, 5.2.3.3)."""
    new_end = len(data)
    at = data.find(jpeg.segment(multi.marker, multi.data))
    body = bytearray(multi.data)
    tiff_old, tiff_new = multi.at + len(_MPF), at + 4 + len(_MPF)
    for place, size, offset, order in _pictures_of(multi.data):
        if not offset:
            struct.pack_into(order + "I", body, place, new_end)
        elif old_end <= tiff_old + offset and tiff_old + offset + size <= old_size:
            moved = tiff_old + offset - old_end + new_end - tiff_new
            struct.pack_into(order + "I", body, place + 4, moved)
    return data[: at + 4] + bytes(body) + data[at + 4 + len(body) :]


def _pictures_of(data: bytes) -> Iterator[tuple[int, int, int, str]]:
    """Yield (place of its size field, size, offset, byte order) of pictures in an MPF segment."""
    base = len(_MPF)
    order = {b"II": "<", b"MM": ">"}.get(data[base : base + 2])
    if order is None or len(data) < base + 8:
        return
    (at,) = struct.unpack_from(order + "I", data, base + 4)
    at += base
    if at + 2 > len(data):
        return
    (count,) = struct.unpack_from(order + "H", data, at)
    for entry in range(at + 2, min(at + 2 + 12 * count, len(data) - 11), 12):
        tag, _, length, where = struct.unpack_from(order + "HHII", data, entry)
        if tag == 0xB002:
            stop = min(base + where + length, len(data) - 15)
            for place in range(base + where, stop, 16):
                size, offset = struct.unpack_from(order + "II", data, place + 4)
                yield place + 4, size, offset, order


def _icc_of_jpeg(picture: jpeg.Jpeg) -> bytes:
    start = len(_ICC)
    parts = sorted(
        (one.data[start], one.data[start + 2 :])
        for one in picture.segments
        if one.marker == jpeg.APP0 + 2 and one.data.startswith(_ICC) and len(one.data) > start + 2
    )
    return b"".join(part for _, part in parts)


def _space(profile: bytes) -> str:
    return profile[16:20].decode("latin-1").strip()


def _fits(profile: bytes, components: int) -> bool:
    """Whether a profile may stand beside pictures of so many colors; unknown spaces may."""
    space = profile[16:20]
    return space not in _SPACES.values() or _SPACES.get(components, space) == space


def _read_jpeg(data: bytes) -> PictureMetadata:
    picture = jpeg.Jpeg.parse(data)
    found, credentials = PictureMetadata(icc=_icc_of_jpeg(picture)), _credentials(picture)
    for one in picture.segments:
        if not one.is_metadata or _codes(one) or one.data.startswith((_ICC, _MPF)):
            continue
        if one.data.startswith(_EXIF):
            found.exif = found.exif or one.data[len(_EXIF) :]
        elif one.data.startswith(xmp.JPEG_PREFIX):
            found.xmp = one.data[len(xmp.JPEG_PREFIX) :]
        elif one.data.startswith(xmp.EXTENDED_PREFIX):
            found.other.append("extended XMP")
        elif one.data.startswith(_PHOTOSHOP):
            found.iptc += one.data[len(_PHOTOSHOP) :]
        elif one.marker == jpeg.COM:
            found.comments.append(one.data)
        elif one.data.startswith(b"JFIF\0") and len(one.data) >= 12:
            unit, across, down = struct.unpack_from(">BHH", one.data, 7)
            scale = {1: 1 / 0.0254, 2: 100}.get(unit)
            if scale:
                found.density = round(across * scale), round(down * scale)
        elif _is_jumbf(one) and one.data[2:4] in credentials:
            found.other.append(_CREDENTIALS)
        elif not one.data.startswith((b"JFIF\0", b"JFXX\0")):
            found.other.append(f"APP{one.marker - jpeg.APP0} data")
    if picture.left_out:
        found.other.append(_beyond(picture))
    if picture.end is not None and picture.end < len(data):
        found.other.append(_BEHIND)
        found.xmp = xmp.without_pointers(found.xmp)
    return found


def _into_jpeg(metadata: PictureMetadata, output: bytes) -> tuple[bytes, list[str]]:
    picture = jpeg.Jpeg.parse(output)
    lost: list[str] = []
    parts: list[bytes] = []

    def add(name: str, marker: int, *blocks: bytes) -> None:
        if all(len(block) <= jpeg.LONGEST for block in blocks):
            parts.extend(jpeg.segment(marker, block) for block in blocks)
        else:
            lost.append(f"{name} of more than {jpeg.LONGEST} bytes")

    if metadata.exif:
        add("EXIF data", jpeg.APP0 + 1, _EXIF + metadata.exif)
    if metadata.xmp:
        add("XMP", jpeg.APP0 + 1, xmp.JPEG_PREFIX + metadata.xmp)
    if metadata.icc:
        blocks = jpeg.icc_segments(metadata.icc)
        if blocks and _fits(metadata.icc, picture.components):
            add("ICC profile", jpeg.APP0 + 2, *blocks)
        else:
            lost.append("ICC profile")
    if metadata.iptc:
        add("IPTC", jpeg.APP0 + 13, _PHOTOSHOP + metadata.iptc)
    for comment in metadata.comments:
        add("a comment", jpeg.COM, comment)
    head, rest = [], []
    for one in picture.segments:
        if one.data.startswith(b"JFIF\0") and metadata.density:
            across, down = (min(round(n * 0.0254), 65535) for n in metadata.density)
            changed = one.data[:7] + struct.pack(">BHH", 1, across, down) + one.data[12:]
            head.append(jpeg.segment(one.marker, changed))
        elif one.data.startswith((_ICC, _EXIF)) or one.marker == jpeg.COM:
            pass  # libav's coder writes the source's, too, and its own name
        elif one.marker == jpeg.APP0:
            head.append(jpeg.segment(one.marker, one.data))
        else:
            rest.append(jpeg.segment(one.marker, one.data))
    data = jpeg.SIGNATURE + b"".join(head + parts + rest) + output[picture.scan :]
    return data, lost


# -- PNG -------------------------------------------------------------------------------------------


def _carry_png(source: bytes, output: bytes) -> tuple[bytes, list[str]]:
    (old, end), (new, new_end) = png.parse(source), png.parse(output)
    lost, kept = [], []
    same_form = old[:1] and new[:1] and old[0].data[8:10] == new[0].data[8:10]
    for chunk in old:
        if chunk.kind in _PNG_CODING:
            continue
        # The fourth letter tells whether a chunk may stay though the picture changed.
        if chunk.kind == _CONTENT_CREDENTIALS:
            lost.append(_CREDENTIALS)
        elif chunk.kind == _BACKGROUND and not same_form:
            lost.append("background color (bKGD): it is for another color type")
        elif chunk.kind in _PNG_KEPT or chunk.kind == _BACKGROUND or chunk.kind[3:4].islower():
            kept.append(chunk)
        elif chunk.kind != b"iDOT":  # where IDAT chunks lie, for Apple's decoders
            lost.append(f"PNG chunk {chunk.kind.decode('latin-1')}: it depends on the coding")
    ours = [c for c in new if c.kind in _PNG_CODING - {b"sBIT"}]
    ours += [] if new_end else [png.Chunk(b"IEND", b"")]
    return _png_of(ours, kept, b"" if end is None else memoryview(source)[end:]), lost


def _exif_of(chunk: png.Chunk) -> bytes:
    return bytes(chunk.data).removeprefix(_EXIF)


def _png_of(
    ours: list[png.Chunk], kept: list[png.Chunk], behind: bytes | memoryview = b""
) -> bytes:
    """Return a PNG: IHDR first, chunks that explain colors before PLTE, all others before IDAT."""
    early = [c for c in kept if c.kind in _PNG_COLOR]
    late = [c for c in kept if c.kind not in _PNG_COLOR]
    place = next((n for n, c in enumerate(ours) if c.kind == b"IDAT"), len(ours))
    return png.join([*ours[:1], *early, *ours[1:place], *late, *ours[place:]], behind)


def _read_png(data: bytes) -> PictureMetadata:
    chunks, end = png.parse(data)
    found = PictureMetadata()
    room = png.LONGEST_TEXT
    for chunk in chunks:
        keyword = png.keyword_of(chunk)
        if keyword in (_XMP_KEYWORD, "Comment", "Description"):
            text = png.text_of(chunk, room)
            room -= len(text or b"")
            if text is None:
                found.other.append(f"text {keyword}")
            elif keyword == _XMP_KEYWORD:
                found.xmp = text
            else:
                found.comments.append(text)
        elif keyword is not None:
            found.other.append(f"text {keyword}")
        elif chunk.kind == b"eXIf":
            found.exif = _exif_of(chunk)
        elif chunk.kind == b"iCCP":
            found.icc = png.inflate(png.named(chunk)[1][1:]) or b""
            if not found.icc:
                found.other.append("a damaged ICC profile")
        elif chunk.kind == b"pHYs" and len(chunk.data) == 9:
            across, down, unit = struct.unpack(">IIB", chunk.data)
            found.density = (across, down) if unit == 1 else None
        elif chunk.kind == b"cICP" and chunk.data[:2] not in (b"\1\x0d", b"\2\2"):
            found.other.append("color description (cICP)")
        elif chunk.kind == b"gAMA" and chunk.data != struct.pack(">I", 45455):
            found.other.append("gamma (gAMA)")
        elif chunk.kind == _CONTENT_CREDENTIALS:
            found.other.append(_CREDENTIALS)
    if end is not None and end < len(data):
        found.other.append(_BEHIND)
        found.xmp = xmp.without_pointers(found.xmp)
    return found


def _into_png(metadata: PictureMetadata, output: bytes) -> tuple[bytes, list[str]]:
    chunks, _ = png.parse(output)
    # libav's coder writes the source's EXIF data, too, and with tags of its own.
    chunks = [c for c in chunks if c.kind != b"eXIf"]
    lost, kept = [], []
    if metadata.exif:
        kept.append(png.Chunk(b"eXIf", metadata.exif))
    if metadata.icc:
        kind = chunks[0].data[9] if chunks and len(chunks[0].data) > 9 else 2
        if _fits(metadata.icc, 1 if kind in (0, 4) else 3):
            kept.append(png.Chunk(b"iCCP", b"ICC\0\0" + zlib.compress(metadata.icc)))
            chunks = [c for c in chunks if c.kind not in _PNG_COLOR]
        else:
            lost.append("ICC profile")
    if metadata.xmp:
        kept.append(png.text_chunk(_XMP_KEYWORD, metadata.xmp))
    kept += [png.text_chunk("Comment", _utf8(comment)) for comment in metadata.comments]
    if metadata.iptc:
        # As ImageMagick writes it, and exiftool reads it.
        text = f"\n8bim\n{len(metadata.iptc):8}\n{metadata.iptc.hex()}\n"
        kept.append(
            png.Chunk(b"zTXt", b"Raw profile type 8bim\0\0" + zlib.compress(text.encode("ascii")))
        )
    if metadata.density:
        chunks = [c for c in chunks if c.kind != b"pHYs"]
        kept.append(png.Chunk(b"pHYs", struct.pack(">IIB", *metadata.density, 1)))
    return _png_of(chunks, kept), lost


def _utf8(text: bytes) -> bytes:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        text = text.decode("latin-1").encode("utf-8")
    return text.rstrip(b"\0")


# -- WebP ------------------------------------------------------------------------------------------

_WEBP_KINDS = {b"ICCP": "ICC profile", b"EXIF": "EXIF data", b"XMP ": "XMP"}
_WEBP_CODING = frozenset([b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"])


def _carry_webp(source: bytes, output: bytes) -> tuple[bytes, list[str]]:
    (old, end), (new, _) = webp.parse(source), webp.parse(output)
    kept = [(k, d) for k, d in old if k not in _WEBP_CODING and k != b"C2PA"]
    ours = [(k, d) for k, d in new if k in _WEBP_CODING]
    lost = [_CREDENTIALS] if any(k == b"C2PA" for k, _ in old) else []
    return webp.join(ours + kept) + (b"" if end is None else source[end:]), lost


def _read_webp(data: bytes) -> PictureMetadata:
    chunks, end = webp.parse(data)
    parts = dict(chunks)
    found = PictureMetadata(
        exif=parts.get(b"EXIF", b"").removeprefix(_EXIF),
        icc=parts.get(b"ICCP", b""),
        xmp=parts.get(b"XMP ", b""),
    )
    if b"C2PA" in parts:
        found.other.append(_CREDENTIALS)
    if end is not None and end < len(data):
        found.other.append(_BEHIND)
        found.xmp = xmp.without_pointers(found.xmp)
    return found


def _into_webp(metadata: PictureMetadata, output: bytes) -> tuple[bytes, list[str]]:
    chunks, _ = webp.parse(output)
    lost = [name for name in metadata.names if name in ("IPTC", "comments")]
    values = {b"ICCP": metadata.icc, b"EXIF": metadata.exif, b"XMP ": metadata.xmp}
    if not _fits(metadata.icc, 3):
        values[b"ICCP"] = b""
        lost.append("ICC profile")
    chunks = [(k, d) for k, d in chunks if k not in values]
    return webp.join([*chunks, *((k, d) for k, d in values.items() if d)]), lost


# -- TIFF ------------------------------------------------------------------------------------------


def _carry_tiff(source: bytes, output: bytes) -> tuple[bytes, list[str]]:
    tags, lost = tiff.parse(source), []
    profile = tiff.bytes_of(tags, tiff.ICC)
    if profile and not _fits(profile, tiff.components(output)):
        tags.pop(tiff.ICC)
        lost.append(f"ICC profile: it is for {_space(profile)} pictures")
    return tiff.with_tags(output, tags), lost


def _read_tiff(data: bytes) -> PictureMetadata:
    tags = tiff.parse(data)
    found = PictureMetadata(
        exif=tiff.exif_of(tags),
        icc=tiff.bytes_of(tags, tiff.ICC),
        xmp=tiff.bytes_of(tags, tiff.XMP),
        iptc=tiff.bytes_of(tags, tiff.PHOTOSHOP),
        density=tiff.density_of(tags),
    )
    if tiff.IPTC in tags and not found.iptc:
        found.other.append("IPTC")
    return found


def _into_tiff(metadata: PictureMetadata, output: bytes) -> tuple[bytes, list[str]]:
    tags = tiff.parse(metadata.exif)
    if metadata.density:
        tags = tiff.density_tags(metadata.density) | tags
    lost = ["comments"] if metadata.comments else []
    parts = {tiff.XMP: (1, metadata.xmp), tiff.PHOTOSHOP: (7, metadata.iptc)}
    if _fits(metadata.icc, tiff.components(output)):
        parts[tiff.ICC] = (7, metadata.icc)
    elif metadata.icc:
        lost.append("ICC profile")
    tags |= {tag: tiff.Value(kind, data) for tag, (kind, data) in parts.items() if data}
    return tiff.with_tags(output, tags), lost


# -- BMP -------------------------------------------------------------------------------------------


def _carry_bmp(source: bytes, output: bytes) -> tuple[bytes, list[str]]:
    profile, density = bmp.profile_of(source), bmp.density_of(source)
    return bmp.with_facts(output, density=density, profile=profile, source=source), []


def _into_bmp(metadata: PictureMetadata, output: bytes) -> tuple[bytes, list[str]]:
    fits = _fits(metadata.icc, 3)
    lost = [name for name in metadata.names if name != "ICC profile" or not fits]
    profile = metadata.icc if fits else b""
    return bmp.with_facts(output, density=metadata.density, profile=profile), lost


_Carry = Callable[[bytes, bytes], tuple[bytes, list[str]]]
_Embed = Callable[[PictureMetadata, bytes], tuple[bytes, list[str]]]
_IsKind = Callable[[bytes], bool]
_SAME: tuple[tuple[_IsKind, _Carry], ...] = (
    (_is_jpeg, _carry_jpeg),
    (_is_png, _carry_png),
    (webp.is_webp, _carry_webp),
    (tiff.is_tiff, _carry_tiff),
    (bmp.is_bmp, _carry_bmp),
)
_EMBEDDING: tuple[tuple[_IsKind, _Embed], ...] = (
    (_is_jpeg, _into_jpeg),
    (_is_png, _into_png),
    (webp.is_webp, _into_webp),
    (tiff.is_tiff, _into_tiff),
    (bmp.is_bmp, _into_bmp),
)
