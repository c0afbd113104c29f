"""Formats of pictures: by their names, and by what stands in the files.

libav decodes some pictures as others (inks as colors, one page of several, one tile of a grid) and
says nothing: those are refused here. Knows bytes only.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vdeblur.errors import InputError


@dataclass(frozen=True)
class PictureFormat:
    """A format of pictures.

    Attributes:
        name: As messages name it.
        suffixes: Of its files, in lower case.
        encoder: libav's encoder; None if the format is not written.
        codec: libav's canonical name of the codec.
    """

    name: str
    suffixes: tuple[str, ...]
    encoder: str | None = None
    codec: str = ""


JPEG = PictureFormat("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), "mjpeg", "mjpeg")
PNG = PictureFormat("PNG", (".png",), "png", "png")
TIFF = PictureFormat("TIFF", (".tif", ".tiff"), "tiff", "tiff")
WEBP = PictureFormat("WebP", (".webp",), "libwebp", "webp")
JPEG_2000 = PictureFormat("JPEG 2000", (".jp2", ".j2k", ".j2c", ".jpc"), "jpeg2000", "jpeg2000")
BMP = PictureFormat("BMP", (".bmp", ".dib"), "bmp", "bmp")
PPM = PictureFormat("PPM", (".ppm", ".pnm"), "ppm", "ppm")
PGM = PictureFormat("PGM", (".pgm",), "pgm", "pgm")
PAM = PictureFormat("PAM", (".pam",), "pam", "pam")
TARGA = PictureFormat("TGA", (".tga",), "targa", "targa")
DPX = PictureFormat("DPX", (".dpx",), "dpx", "dpx")
QOI = PictureFormat("QOI", (".qoi",), "qoi", "qoi")
PCX = PictureFormat("PCX", (".pcx",), "pcx", "pcx")
SGI = PictureFormat("SGI", (".sgi",), "sgi", "sgi")
SUN = PictureFormat("Sun raster", (".ras", ".sun"), "sunrast", "sunrast")
JPEG_LS = PictureFormat("JPEG-LS", (".jls",), "jpegls", "jpegls")
AVIF = PictureFormat("AVIF", (".avif", ".avifs"))
HEIC = PictureFormat("HEIC", (".heic", ".heif", ".hif"))
PBM = PictureFormat("PBM", (".pbm",))
_ICO = PictureFormat("ICO", (".ico", ".cur"))
#: The formats that are written.
WRITTEN_FORMATS = (
    JPEG,
    PNG,
    TIFF,
    WEBP,
    JPEG_2000,
    BMP,
    PPM,
    PGM,
    PAM,
    TARGA,
    DPX,
    QOI,
    PCX,
    SGI,
    SUN,
    JPEG_LS,
)
# The signatures of formats that are not read, at their place in the file.
_UNREAD: dict[tuple[int, bytes], PictureFormat] = {
    (0, b"v/1\x01"): PictureFormat("OpenEXR", (".exr",)),
    (0, b"#?R"): PictureFormat("Radiance HDR", (".hdr",)),
    (0, b"PF\n"): PictureFormat("PFM", (".pfm",)),
    (0, b"Pf\n"): PictureFormat("PFM", ()),
    (0, b"PH\n"): PictureFormat("PHM", (".phm",)),
    (0, b"Ph\n"): PictureFormat("PHM", ()),
    (0, b"\xff\x0a"): PictureFormat("JPEG XL", (".jxl",)),
    (4, b"JXL \r\n\x87\n"): PictureFormat("JPEG XL", ()),
    (0, b"8BPS"): PictureFormat("Photoshop", (".psd", ".psb")),
    (0, b"DDS "): PictureFormat("DDS", (".dds",)),
    (0, b"SIMPLE  ="): PictureFormat("FITS", (".fits", ".fit")),
    (0, b"\0\0\1\0"): _ICO,
    (0, b"\0\0\2\0"): _ICO,
    (0, b"II\x55\0"): PictureFormat("Panasonic raw", (".rw2",)),
    (0, b"FUJIFILMCCD-RAW"): PictureFormat("Fujifilm raw", (".raf",)),
    (0, b"#define "): PictureFormat("XBM", (".xbm",)),
    (0, b"/* XPM"): PictureFormat("XPM", (".xpm",)),
}
_RAW = PictureFormat("raw", (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".pef"))
_OTHERS = (AVIF, HEIC, PBM, _RAW, *_UNREAD.values(), PictureFormat("X window dump", (".xwd",)))
_BY_SUFFIX = {s: form for form in (*_OTHERS, *WRITTEN_FORMATS) for s in form.suffixes}

#: Suffixes, in lower case, of the pictures that are read and written.
WRITTEN_SUFFIXES = frozenset(s for form in WRITTEN_FORMATS for s in form.suffixes)
#: Suffixes of all pictures that are known by their names.
PICTURE_SUFFIXES = frozenset(_BY_SUFFIX)
#: libav's canonical names of the codecs of pictures.
PICTURE_CODECS = frozenset(form.codec for form in WRITTEN_FORMATS)
#: libav's demuxers of single pictures that are read.
_DEMUXERS = {f"{form.codec}_pipe" for form in WRITTEN_FORMATS} | {
    "jpeg_pipe",
    "j2k_pipe",
    "pbm_pipe",
    "gif_pipe",
}
_STILL_BRANDS = {b"avif": AVIF, b"avis": AVIF} | dict.fromkeys(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), HEIC
)
_HEADER = 4096


def format_of_name(path: str | Path) -> PictureFormat | None:
    """Return the format that a name says, None if it is not that of a picture."""
    return _BY_SUFFIX.get(Path(path).suffix.lower())


def format_of_content(path: Path) -> PictureFormat | None:
    """Return the format of a file by what stands in it; None if it is not known as a picture.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEADER)
    return _format_of(head, path)


def is_readable_demuxer(name: str) -> bool:
    """Tell whether libav's demuxer is one of films, or of pictures that are restored."""
    return not name.endswith("_pipe") or name in _DEMUXERS


def check_picture(path: Path) -> None:
    """Refuse a picture that would come out as another one.

    Args:
        path: Any file; those that are no pictures pass.

    Raises:
        InputError: The picture's format, or its form of it, is not restored.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        form = _format_of(file.read(_HEADER), path)
        if form is None:
            return
        try:
            problem = _PROBLEMS[form](file) if form in _PROBLEMS else None
        except (struct.error, IndexError, ValueError):
            problem = None  # damaged: libav says so
    if form in _UNREAD.values():
        problem = f"is a picture in the format {form.name}, which is not restored"
    if problem is not None:
        raise InputError(f"{path} {problem}: convert it to PNG or 16-bit TIFF in RGB first")


def is_lossless(path: Path | None) -> bool | None:
    """Return whether a picture is coded without loss; None if the file does not say."""
    if path is None or path.suffix.lower() not in PICTURE_SUFFIXES:
        return None
    form = format_of_content(path)
    with path.open("rb") as file:
        if form is WEBP:
            return any(kind == b"VP8L" for kind, _, _ in webp_chunks(file))
        if form is JPEG_2000:
            head = file.read(1 << 20)
            at = head.find(b"\xff\x52")  # COD; the last byte is 1 for the reversible 5-3 filter
            return head[at + 13] == 1 if 0 <= at < len(head) - 13 else None
    if form is None or form is AVIF or form is HEIC:
        return None
    return form is not JPEG


def webp_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Yield (FourCC, offset of the data, size) of each chunk of a WebP file (RFC 9649)."""
    at = 12
    while True:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            return
        kind, size = struct.unpack("<4sI", head)
        yield kind, at + 8, size
        at += 8 + size + size % 2


def _format_of(head: bytes, path: Path) -> PictureFormat | None:
    for (place, signature), unread in _UNREAD.items():
        if head.startswith(signature, place):
            # Few bytes make these signatures, so that the name must agree.
            agrees = path.suffix.lower() in unread.suffixes or len(signature) > 4
            if signature[:1] not in b"\0\xff#" or agrees:
                return unread
    if head.startswith(b"\xff\xd8\xff"):
        return JPEG_LS if _jpeg_frame_is_ls(head) else JPEG
    if head[4:8] == b"ftyp":
        size = min(max(int.from_bytes(head[:4], "big"), 16), len(head))
        brands = [head[8:12], *(head[n : n + 4] for n in range(16, size, 4))]
        return _STILL_BRANDS.get(brands[0]) if b"avif" not in brands else AVIF
    for signature, form in _SIGNATURES.items():
        if head.startswith(signature):
            return form
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WEBP
    by_name = format_of_name(path)
    return by_name if by_name in (TARGA, PCX) else None  # these have no signature


_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": PNG,
    b"II*\0": TIFF,
    b"MM\0*": TIFF,
    b"II+\0": TIFF,
    b"MM\0+": TIFF,
    b"BM": BMP,
    b"P6": PPM,
    b"P3": PPM,
    b"P5": PGM,
    b"P2": PGM,
    b"P7": PAM,
    b"P4": PBM,
    b"P1": PBM,
    b"\0\0\0\x0cjP  \r\n\x87\n": JPEG_2000,
    b"\xff\x4f\xff\x51": JPEG_2000,
    b"SDPX": DPX,
    b"XPDS": DPX,
    b"qoif": QOI,
    b"\x01\xda": SGI,
    b"\x59\xa6\x6a\x95": SUN,
}


# -- what libav would read as another picture ------------------------------------------------------


def _jpeg_frame(file: BinaryIO) -> tuple[int, int, int] | None:
    """Marker, bits of a sample and number of components of the frame header (ITU-T T.81, B.2.2)."""
    at = 2
    while True:
        file.seek(at)
        head = file.read(10)
        if len(head) < 4 or head[0] != 0xFF:
            return None
        marker = head[1]
        if marker == 0xFF:  # fill
            at += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return marker, head[4], head[9]
        else:
            at += 2 + int(struct.unpack(">H", head[2:4])[0])


def _jpeg_frame_is_ls(head: bytes) -> bool:
    import io

    frame = _jpeg_frame(io.BytesIO(head))
    return frame is not None and frame[0] == 0xF7


def _jpeg_problem(file: BinaryIO) -> str | None:
    frame = _jpeg_frame(file)
    if frame is None:
        return None
    marker, bits, components = frame
    if components == 4:
        return "is a JPEG in CMYK, whose inks are not restored"
    if bits != 8:
        return f"is a JPEG of {bits} bits a sample, which is not restored"
    if marker not in (0xC0, 0xC1, 0xC2):
        kind = "arithmetic coding" if marker in (0xC9, 0xCA) else "lossless or hierarchical coding"
        return f"is a JPEG in {kind}, which is not restored"
    return None if components in (1, 3) else f"is a JPEG of {components} components"


def _jpeg_ls_problem(file: BinaryIO) -> str | None:
    """Whether libav decodes the order of the samples (ITU-T T.87, C.2.3)."""
    file.seek(2)
    while len(head := file.read(4)) == 4 and head[0] == 0xFF:
        size = int.from_bytes(head[2:], "big") - 2
        if head[1] == 0xDA:
            scan = file.read(size)
            return (
                "is a JPEG-LS of interleaved samples, which is not read" if scan[-2] == 2 else None
            )
        file.seek(size, 1)
    return None


_TIFF_CODINGS = {1, 2, 3, 4, 5, 8, 32773, 32946}
_TIFF_COLORS = {0: "gray", 1: "gray", 2: "RGB", 3: "a palette", 6: "YCbCr"}


def tiff_directory(file: BinaryIO, at: int, order: str) -> tuple[dict[int, list[int]], int]:
    """Read a directory of a TIFF (TIFF 6.0, section 2): integers by tag, and the next offset.

    Args:
        file: The TIFF.
        at: Offset of the directory.
        order: "<" or ">" of `struct`.

    Raises:
        struct.error: The file ends early.
    """
    file.seek(at)
    (count,) = struct.unpack(order + "H", file.read(2))
    entries = file.read(12 * count)
    (following,) = struct.unpack(order + "I", file.read(4))
    found: dict[int, list[int]] = {}
    for n in range(count):
        tag, kind, number = struct.unpack_from(order + "HHI", entries, 12 * n)
        code = {1: "B", 3: "H", 4: "I"}.get(kind)
        if code is None or number > 64:
            continue
        size = struct.calcsize(code) * number
        value = entries[12 * n + 8 : 12 * n + 12]
        if size > 4:
            file.seek(struct.unpack(order + "I", value)[0])
            value = file.read(size)
        found[tag] = list(struct.unpack(f"{order}{number}{code}", value[:size]))
    return found, int(following)


def _tiff_problem(file: BinaryIO) -> str | None:
    file.seek(0)
    head = file.read(8)
    order = "<" if head[:2] == b"II" else ">"
    version, first = struct.unpack(order + "HI", head[2:])
    if version == 43:
        return "is a BigTIFF, which is not read"
    tags, following = tiff_directory(file, first, order)

    def one(tag: int, default: int) -> int:
        return tags.get(tag, [default])[0]

    if 50706 in tags:
        return "is a raw photograph (DNG), which is not developed here"
    bits = set(tags.get(258, [1]))
    colors = one(262, 1)
    if colors == 5:
        return "is a TIFF in CMYK, whose inks are not restored"
    if colors not in _TIFF_COLORS:
        return "is a TIFF in other colors than RGB and gray, which are not restored"
    if set(tags.get(339, [1])) - {1}:
        return "is a TIFF of floating-point or signed numbers, which would be clipped"
    if len(bits) > 1 or bits - {1, 2, 4, 8, 16}:
        return f"is a TIFF of {', '.join(map(str, sorted(bits)))} bits a sample, which is not read"
    if one(259, 1) not in _TIFF_CODINGS:
        return f"is a TIFF in compression {one(259, 1)}, which is not read"
    if 322 in tags:
        return "is a TIFF in tiles, which is not read"
    pages = 1
    while following and pages < 1000:
        more, following = tiff_directory(file, following, order)
        pages += not more.get(254, [0])[0] & 1  # no reduced copy of another page
    return f"is a TIFF of {pages} pages, of which one would be kept" if pages > 1 else None


_NETPBM_HEAD = re.compile(rb"P[56](?:\s|#[^\n]*\n)+" + rb"(\d{1,9})(?:\s|#[^\n]*\n)+" * 3)
_PAM_HEAD = re.compile(rb"P7\n(?:[^\n]*\n){1,40}?ENDHDR\n")


def _netpbm_problem(file: BinaryIO) -> str | None:
    """Whether another picture follows the first, of the same kind (netpbm's manual)."""
    file.seek(0)
    head = file.read(_HEADER)
    if found := _NETPBM_HEAD.match(head):
        width, height, most = (int(found[n]) for n in (1, 2, 3))
        samples = 3 if head[:2] == b"P6" else 1
        end = found.start(3) + len(found[3]) + 1
    elif found := _PAM_HEAD.match(head):
        words = dict(line.split()[:2] for line in found[0].splitlines() if len(line.split()) > 1)
        names = (b"WIDTH", b"HEIGHT", b"MAXVAL", b"DEPTH")
        width, height, most, samples = (int(words.get(name, b"0")) for name in names)
        end = found.end()
    else:
        return None
    file.seek(end + width * height * samples * (2 if most > 255 else 1))
    if file.read(2) == head[:2]:
        return "holds several pictures, of which one would be kept"
    return None


def _jpeg_2000_problem(file: BinaryIO) -> str | None:
    file.seek(0)
    head = file.read(1 << 16)
    at = head.find(b"colr")
    if head[:4] == b"\0\0\0\x0c" and at > 0:
        method = head[at + 4]
        inks = method == 1 and head[at + 7 : at + 11] == b"\0\0\0\x0c"
        if inks or (method == 2 and head[at + 7 + 16 : at + 7 + 20] == b"CMYK"):
            return "is a JPEG 2000 in CMYK, whose inks are not restored"
    return None


def _webp_problem(file: BinaryIO) -> str | None:
    if any(kind in (b"ANIM", b"ANMF") for kind, _, _ in webp_chunks(file)):
        return "is an animated WebP, whose pictures are not read"
    return None


def _targa_problem(file: BinaryIO) -> str | None:
    file.seek(0)
    head = file.read(18)
    if head[2] in (3, 11) and head[16] == 16:
        return "is a TGA of gray with alpha, which is not read"
    if head[16] not in (8, 15, 16, 24, 32):
        return f"is a TGA of {head[16]} bits a pixel, which is not read"
    return None


def _heif_problem(file: BinaryIO) -> str | None:
    """What of a HEIF or AVIF is more than one coded picture (ISO/IEC 23008-12)."""
    file.seek(0)
    size, kind = struct.unpack(">I4s", file.read(8))
    if kind != b"ftyp":
        return None
    brands = file.read(size - 8)
    name = "AVIF" if b"avif" in brands or b"avis" in brands else "HEIC"
    if b"avis" in (brands[:4], brands[8:12]) or brands[:4] in (b"hevc", b"msf1"):
        return f"is an animated {name}, whose pictures are not read"
    file.seek(size)
    size, kind = struct.unpack(">I4s", file.read(8))
    meta = file.read(size - 8) if kind == b"meta" else b""
    for sign, what in (
        (b"grid", "in tiles"),
        (b"iovl", "of several layers"),
        (b":auxiliary:alpha", "with alpha"),
        (b"auxid:1", "with alpha"),
        (b"irot", "that is stored turned"),
        (b"imir", "that is stored mirrored"),
        (b"clap", "that is cropped"),
    ):
        if sign in meta:
            return f"is a picture {what} in the format {name}, which is not read"
    return None


_PROBLEMS = {
    JPEG: _jpeg_problem,
    JPEG_LS: _jpeg_ls_problem,
    TIFF: _tiff_problem,
    JPEG_2000: _jpeg_2000_problem,
    PPM: _netpbm_problem,
    PGM: _netpbm_problem,
    PAM: _netpbm_problem,
    WEBP: _webp_problem,
    TARGA: _targa_problem,
    AVIF: _heif_problem,
    HEIC: _heif_problem,
}
