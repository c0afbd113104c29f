"""Pixel formats: planes of every format that libav decodes, and the meaning of colour tags.

Knows formats, frames in memory and the parameters of streams; opens no file.
"""

from __future__ import annotations

import os
from typing import Any, Literal, cast

import av
import av.error
import numpy as np
from av.video.format import VideoFormat
from av.video.reformatter import ColorRange, Colorspace

from vdeblur.frames import ChromaSiting, Matrix, Plane, PlaneLayout
from vdeblur.media.picture_formats import PICTURE_CODECS

# AVColorSpace (ITU-T H.273 MatrixCoefficients) of each matrix.
_COLORSPACES: dict[Matrix, int] = {
    "bt709": int(Colorspace.ITU709),
    "fcc": int(Colorspace.FCC),
    "bt601": int(Colorspace.ITU601),
    "smpte240m": int(Colorspace.SMPTE240M),
    "ycgco": 8,
    "bt2020": int(Colorspace.BT2020),
}
# 6 is BT.601 with 525 lines, 10 is BT.2020 with constant luminance.
_MATRICES: dict[int, Matrix] = {number: name for name, number in _COLORSPACES.items()} | {
    6: "bt601",
    10: "bt2020",
}
# Formats whose samples are not whole aligned integers, and a planar format of the same values.
_PLANAR = {
    "p010le": "yuv420p10le",
    "p010be": "yuv420p10le",
    "p012le": "yuv420p12le",
    "p012be": "yuv420p12le",
    "p016le": "yuv420p16le",
    "p210le": "yuv422p10le",
    "p212le": "yuv422p12le",
    "p216le": "yuv422p16le",
    "p410le": "yuv444p10le",
    "p412le": "yuv444p12le",
    "p416le": "yuv444p16le",
    "y210le": "yuv422p10le",
    "y212le": "yuv422p12le",
    "xv30le": "yuv444p10le",
    "xv36le": "yuv444p12le",
    "vuya": "yuva444p",
    "vuyx": "yuv444p",
    "ayuv64le": "yuva444p16le",
    "uyyvyy411": "yuv411p",
    "pal8": "rgba",
    "monow": "gray",
    "monob": "gray",
    "x2rgb10le": "gbrp10le",
    "x2bgr10le": "gbrp10le",
    "grayf32le": "gray16le",
    "gbrpf32le": "gbrp16le",
    "gbrapf32le": "gbrap16le",
}
#: Threads of conversions (`VideoFrame.reformat`): in several, libswscale 9.5 writes beyond the end
#: of a thread's last row, into the first one of the next, for most formats and some widths.
CONVERTING = 1
_STILLS = PICTURE_CODECS | {"gif", "apng"}


def planar_format(name: str) -> str:
    """Return the pixel format in which frames of format `name` are restored.

    It holds all values of the format. Byte-aligned formats are their own, read through strided
    views; bit-packed, big-endian, palette, floating-point and hardware formats are converted.

    Args:
        name: libav's name of a pixel format.
    """
    if name in _PLANAR:
        return _PLANAR[name]
    if name.endswith("be"):
        little = name[:-2] + "le"
        return _PLANAR.get(little, little)
    pixel = VideoFormat(name)
    if pixel.is_bit_stream or pixel.has_palette or pixel.is_bayer:
        return "rgb24"
    if pixel.is_rgb and not pixel.is_planar and pixel.components[0].bits < 8:
        return "rgb24"
    return name


def software_format(stream: Any) -> str | None:
    """Return the pixel format in which a video stream of an input is coded.

    The codec context of a hardware decoder has the device's format ("cuda"), without components,
    and once a picture is decoded also the format of its memory ("nv12"). The parameters of the
    stream have the coded one; PyAV shows them through a stream that is made from them.

    Returns:
        libav's name; yuv420p where the stream does not say; None for a hardware format that hides
        the coded one.
    """
    context = stream.codec_context
    if context.pix_fmt is None:
        return "yuv420p"
    if context.format is not None and context.format.components:
        return str(context.format.name)
    try:
        # Nothing is written: an output begins with its first packet.
        with av.open(os.devnull, "w", format="null") as scratch:
            template = cast(Any, scratch.add_stream_from_template(stream, opaque=True))
            pixel = template.codec_context.format
    except (av.error.FFmpegError, OSError, ValueError):
        return None
    return str(pixel.name) if pixel is not None and pixel.components else None


def layout_of(
    pix_fmt: str,
    width: int,
    height: int,
    *,
    color_range: int,
    colorspace: int,
    interlaced: bool,
    codec: str = "",
) -> PlaneLayout:
    """Return the layout of frames of a format that `planar_format` returns.

    Tags that a stream lacks are assumed as players assume them: BT.601 below 720 lines, BT.709
    from there; still images have full range.

    Args:
        pix_fmt: The pixel format.
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        color_range: AVColorRange of the frame.
        colorspace: AVColorSpace of the frame.
        interlaced: True if the rows of two moments alternate.
        codec: libav's canonical name of the codec, from which the defaults follow.
    """
    pixel = VideoFormat(pix_fmt, width, height)
    parts = [c for c in pixel.components if not c.is_alpha]
    depth = parts[0].bits
    still = codec in _STILLS
    unsaid = color_range == ColorRange.UNSPECIFIED
    full = color_range == ColorRange.JPEG or pix_fmt.startswith("yuvj") or (unsaid and still)
    if pixel.is_rgb:
        return PlaneLayout(width, height, depth, "rgb", (0, 0), True, interlaced=interlaced)
    if len(parts) == 1:
        return PlaneLayout(
            width, height, depth, "gray", (0, 0), full or unsaid, interlaced=interlaced
        )
    # Rounding up hides the ratio of odd and tiny sizes: ask for a size that divides.
    wide = VideoFormat(pix_fmt, 64, 64)
    shift = (
        (64 // wide.chroma_width()).bit_length() - 1,
        (64 // wide.chroma_height()).bit_length() - 1,
    )
    default: Matrix = "bt601" if still else default_matrix(width, height)
    siting: ChromaSiting = "center" if still or codec == "mpeg1video" else "left"
    matrix = _MATRICES.get(colorspace, default)
    return PlaneLayout(width, height, depth, "yuv", shift, full, matrix, siting, interlaced)


def default_matrix(width: int, height: int) -> Matrix:
    """Return the matrix of a video of this size (in pixels) that states none."""
    return "bt601" if height < 720 and width < 1280 else "bt709"


def color_arguments(
    side: Literal["src", "dst"], matrix: Matrix, *, full_range: bool
) -> dict[str, int]:
    """Return arguments of `VideoFrame.reformat`: the colors of its source or of its result."""
    color_range = ColorRange.JPEG if full_range else ColorRange.MPEG
    return {f"{side}_colorspace": _COLORSPACES[matrix], f"{side}_color_range": int(color_range)}


def planes_of(picture: av.VideoFrame) -> tuple[Plane, ...]:
    """Return writable views (rows, columns) of the color components, in the order of `PlaneLayout`.

    Those of packed formats are strided; the alpha component has none.
    """
    pixel = picture.format
    parts = [c for c in pixel.components if not c.is_alpha]
    order = [1, 2, 0] if pixel.is_rgb else range(len(parts))  # components come R, G, B: G, B, R
    views: list[Plane] = []
    for number in order:
        part = parts[number]
        plane = picture.planes[part.plane]
        dtype = np.dtype(np.uint8 if part.bits == 8 else "<u2")
        rows = np.frombuffer(cast(Any, plane), dtype).reshape(-1, plane.line_size // dtype.itemsize)
        sharing, first = _packing(pixel.name, number)
        view = rows[: part.height, first : first + sharing * part.width : sharing]
        views.append(cast(Plane, view))
    return tuple(views)


# Byte-aligned formats with several components a plane: samples from one value of a component to the
# next, and the place of each component (FFmpeg's AVPixFmtDescriptor step and offset).
_PACKED: dict[str, tuple[tuple[int, int], ...]] = {
    "nv12": ((1, 0), (2, 0), (2, 1)),
    "nv21": ((1, 0), (2, 1), (2, 0)),
    "nv16": ((1, 0), (2, 0), (2, 1)),
    "nv24": ((1, 0), (2, 0), (2, 1)),
    "nv42": ((1, 0), (2, 1), (2, 0)),
    "nv20le": ((1, 0), (2, 0), (2, 1)),
    "yuyv422": ((2, 0), (4, 1), (4, 3)),
    "yvyu422": ((2, 0), (4, 3), (4, 1)),
    "uyvy422": ((2, 1), (4, 0), (4, 2)),
    "rgb24": ((3, 0), (3, 1), (3, 2)),
    "bgr24": ((3, 2), (3, 1), (3, 0)),
    "rgba": ((4, 0), (4, 1), (4, 2)),
    "rgb0": ((4, 0), (4, 1), (4, 2)),
    "bgra": ((4, 2), (4, 1), (4, 0)),
    "bgr0": ((4, 2), (4, 1), (4, 0)),
    "argb": ((4, 1), (4, 2), (4, 3)),
    "0rgb": ((4, 1), (4, 2), (4, 3)),
    "abgr": ((4, 3), (4, 2), (4, 1)),
    "0bgr": ((4, 3), (4, 2), (4, 1)),
    "rgb48le": ((3, 0), (3, 1), (3, 2)),
    "bgr48le": ((3, 2), (3, 1), (3, 0)),
    "rgba64le": ((4, 0), (4, 1), (4, 2)),
    "bgra64le": ((4, 2), (4, 1), (4, 0)),
    "ya8": ((2, 0),),
    "ya16le": ((2, 0),),
}


def _packing(name: str, component: int) -> tuple[int, int]:
    return _PACKED[name][component] if name in _PACKED else (1, 0)
