"""RGB pictures in and out of files.

Reads through `vdeblur.media.reader`, so that pictures and frames of videos become RGB by the same
code, and no picture library is needed. Training reads with Pillow alone, and runs on machines
without PyAV, which is therefore imported late. Knows nothing of networks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vdeblur.color import planes_to_rgb, split_fields
from vdeblur.errors import InputError, OutputError
from vdeblur.frames import Frame, PlaneLayout
from vdeblur.system.files import replacing
from vdeblur.system.optional import optional

RGBImage = NDArray[np.uint8]  # (H, W, 3) RGB


def frame_to_rgb(frame: Frame) -> Tensor:
    """Convert a frame to (1, 3, H, W) float32 R'G'B' in [0, 1], by its matrix, range and depth."""
    return planes_rgb([torch.from_numpy(np.array(p))[None] for p in frame.planes], frame.layout)


def planes_rgb(planes: list[Tensor], layout: PlaneLayout) -> Tensor:
    """Convert planes (1, rows, columns) to (1, 3, H, W) in [0, 1], field by field if interlaced."""
    if not layout.interlaced:
        return planes_to_rgb(planes, layout).clamp_(0, 1)
    fields, field = split_fields(planes, layout)
    rgb = planes_to_rgb(fields, field)
    woven = torch.stack([rgb[0], rgb[1]], 2).flatten(1, 2)  # rows of the two alternate
    return woven[None, :, : layout.height].clamp_(0, 1)


def read_rgb(path: Path) -> Tensor:
    """Read the first picture of a file as (1, 3, H, W) float32 RGB in [0, 1], without alpha.

    Raises:
        InputError: The file cannot be read.
    """
    from vdeblur.media.reader import VideoReader

    with VideoReader(path) as reader:
        for frame in reader:
            return frame_to_rgb(frame)
    raise InputError(f"no picture of {path} could be decoded: the file is damaged")


def load_picture(path: Path) -> RGBImage:
    """Read a picture with Pillow, which reads the formats of data sets that libav does not.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        InputError: The file cannot be read.
    """
    pillow = optional("PIL.Image", extra="train", purpose="reading pictures")
    try:
        with pillow.open(path) as image:
            return np.array(image.convert("RGB"))
    except OSError as error:
        reason = error.strerror or "it is none, or damaged"
        raise InputError(f"{path} cannot be read as a picture ({reason}): remove it") from error


def to_picture(image: Tensor) -> RGBImage:
    """Convert (1, 3, H, W) float in [0, 1] to (H, W, 3) uint8, clamped and rounded."""
    array: RGBImage = image[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    return array


def png_bytes(picture: RGBImage) -> bytes:
    """Encode a picture as a PNG file."""
    import av

    codec = av.CodecContext.create("png", "w")
    codec.width, codec.height = picture.shape[1], picture.shape[0]
    codec.pix_fmt = "rgb24"
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
    packets = codec.encode(frame) + codec.encode(None)
    return b"".join(bytes(packet) for packet in packets)


def write_png(path: Path, picture: RGBImage, *, only_new: bool = False) -> None:
    """Write a picture as a PNG file; see `write_bytes`."""
    write_bytes(path, png_bytes(picture), only_new=only_new)


def write_bytes(path: Path, data: bytes, *, only_new: bool = False) -> None:
    """Write a whole file under a temporary name, then rename it.

    Args:
        path: The file.
        data: Its content.
        only_new: Replace nothing, not even a file that has appeared since it was looked for.

    Raises:
        OutputError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, only_new=only_new) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror}): choose another place"
        ) from error
