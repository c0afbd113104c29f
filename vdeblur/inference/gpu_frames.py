"""Frames that were decoded in a GPU's memory → tensors there, without a way through the host.

What NVDEC gives is NV12, or P010 and P016: luma, and Cb and Cr interleaved. Knows neither files nor
networks; frames that cannot be taken so go the usual way, from host memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from vdeblur.frames import Frame, PlaneLayout


def adopt(
    items: Iterable[Any], device: torch.device, *, note: Callable[[str], object]
) -> Iterator[Any]:
    """The items; frames with `on_device` planes get a tuple of tensors on `device` in their place.

    The tensors are copies, complete when the frame is given out, on which no stream needs to wait:
    a decoder has few surfaces, and gets its own back at once. Where that fails, `note` is told so,
    once, and frames keep to their planes in host memory.
    """
    stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
    possible = True
    for item in items:
        if isinstance(item, Frame) and item.on_device is not None:
            held, item.on_device = item.on_device, None
            if possible:
                try:
                    if stream is None:
                        item.on_device = tensors_of(held.planes, item.layout, device)
                    else:
                        with torch.cuda.stream(stream):
                            item.on_device = tensors_of(held.planes, item.layout, device)
                        stream.synchronize()
                except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
                    possible = False
                    note(f"decoded frames go through host memory ({error})")
            del held
        yield item


def tensors_of(
    planes: tuple[Any, ...], layout: PlaneLayout, device: torch.device
) -> tuple[Tensor, ...]:
    """Copies of NV12, P010 or P016 planes (objects with `__dlpack__`) as those of `layout`.

    Tensors (rows, columns) of uint8, or uint16 with the sample in the low bits. ValueError for
    planes of another kind.
    """
    # Not torch.from_dlpack(plane): it would name a stream, which PyAV does not take.
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
    """A contiguous copy; P010 and P016 keep a sample in the high bits of their 16."""
    if plane.dtype == torch.uint8 or depth == 16:
        return plane.contiguous().clone() if plane.is_contiguous() else plane.contiguous()
    # torch moves uint16 about, but hardly calculates with it.
    values = plane.contiguous().view(torch.int16).to(torch.int32).bitwise_and_(0xFFFF)
    return values.bitwise_right_shift_(16 - depth).to(torch.int16).view(torch.uint16)
