"""Turn frames decoded on the GPU into tensors on the same GPU, with no copy through host memory.

NVDEC decodes to NV12, or P010 and P016: luma, and Cb and Cr interleaved. Frames that cannot be
converted are uploaded from host memory as usual. Knows neither files nor networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from vdeblur.frames import Frame, PlaneLayout


@contextmanager
def current_context(device: torch.device) -> Iterator[int | None]:
    """Make torch's CUDA context of a device current on this thread, for a decoder opened within.

    Yields:
        The index of the GPU, as `vdeblur.media.reader.VideoReader` takes it; None for a device that
        NVDEC shares no memory with.
    """
    if device.type != "cuda" or torch.version.hip is not None:
        yield None
        return
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        yield torch.cuda.current_device()


@cache
def _stream(device: torch.device) -> Any:
    """The stream of copies, the same for all films: torch has 32, and then gives them out again.

    None for another device than CUDA.
    """
    cuda: Any = torch.cuda  # has no types
    return cuda.Stream(device) if device.type == "cuda" else None


def adopt(
    items: Iterable[Any], device: torch.device, *, note: Callable[[str], object]
) -> Iterator[Any]:
    """Replace the `on_device` planes of frames by tensors on a device.

    The tensors are copies, complete when the frame is yielded, so that no stream needs to wait for
    them. The first frame's are compared with those in host memory. If they differ, or a copy fails,
    frames keep to their planes in host memory from then on.

    Args:
        items: Frames and other objects.
        device: Where the frames were decoded, and are restored.
        note: Called once if that is given up.

    Yields:
        The items; `on_device` of frames is a tuple of tensors, or None.
    """
    stream = _stream(device)
    possible, checked = True, False
    for item in items:
        if isinstance(item, Frame) and item.on_device is not None:
            held, item.on_device = item.on_device, None
            if possible:
                try:
                    with torch.cuda.stream(stream):  # none is the current one
                        tensors = tensors_of(held.planes, item.layout, device)
                        if not checked:
                            _check(tensors, item)
                    if stream is not None:
                        stream.synchronize()
                    item.on_device, checked = tensors, True
                except (RuntimeError, TypeError, ValueError, BufferError) as error:
                    possible = False
                    note(f"decoded frames go through host memory ({error})")
            del held
        yield item


def _check(tensors: tuple[Tensor, ...], frame: Frame) -> None:
    for tensor, plane in zip(tensors, frame.planes, strict=True):
        if not np.array_equal(tensor.cpu().numpy(), plane):
            raise ValueError("their planes in the GPU's memory are others")


def tensors_of(
    planes: tuple[Any, ...], layout: PlaneLayout, device: torch.device
) -> tuple[Tensor, ...]:
    """Copy NV12, P010 or P016 planes as those of a layout.

    Args:
        planes: Objects with `__dlpack__`.
        layout: Of the frame.
        device: Where the copies are made.

    Returns:
        Tensors (rows, columns) of uint8, or uint16 with the sample in the low bits.

    Raises:
        ValueError: The planes are of another kind.
    """
    # Not torch.from_dlpack(plane): it would name a stream, which PyAV does not accept.
    luma, *rest = (from_dlpack(plane.__dlpack__()) for plane in planes)
    wanted = torch.uint8 if layout.depth == 8 else torch.uint16
    interleaved = len(rest) == 1 and rest[0].ndim == 3 and rest[0].shape[2] == 2
    if layout.kind != "yuv" or not interleaved or luma.dtype != wanted:
        raise ValueError(f"{len(planes)} planes of {luma.dtype} are not those of NV12 or P010")
    parts = (luma, rest[0][..., 0], rest[0][..., 1])
    shapes = tuple(tuple(part.shape) for part in parts)
    if shapes != layout.shapes:
        raise ValueError(f"planes of {shapes} are not those of {layout.shapes}")
    return tuple(_low_bits(part, layout.depth).to(device) for part in parts)


def _low_bits(plane: Tensor, depth: int) -> Tensor:
    """A contiguous copy, shifted: P010 and P016 keep a sample in the high bits of 16."""
    if plane.dtype == torch.uint8 or depth == 16:
        return plane.contiguous().clone() if plane.is_contiguous() else plane.contiguous()
    # torch can move uint16, but has hardly any arithmetic for it.
    values = plane.contiguous().view(torch.int16).to(torch.int32).bitwise_and_(0xFFFF)
    return values.bitwise_right_shift_(16 - depth).to(torch.int16).view(torch.uint16)
