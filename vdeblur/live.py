"""A network for live pictures: the asked-for one, and smaller ways to run it when time is short.

Made for `vdeblur.camera`, which knows no torch. Knows no files, no threads and no libav.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vdeblur.deblurrer import Deblurrer
from vdeblur.errors import UsageError
from vdeblur.frames import Frame, FrameBatch, PlaneLayout
from vdeblur.overlap import Overlap

_SIZES = {"half": 2, "third": 3, "quarter": 4}


class LiveDeblurrer:
    """`Deblurrer`s in steps (`vdeblur.camera.scheduling.Restorer`).

    degrade: what may follow the asked-for network, in order: `half`, `third` or `quarter` (the
    network sees the picture at that size, and its correction is enlarged: the picture itself keeps
    its size and its detail), or the name of another network. Names of networks hold for the sizes
    after them. options: of `Deblurrer`, for those other networks.
    """

    def __init__(self, deblurrer: Deblurrer, degrade: Sequence[str] = (), **options: Any) -> None:
        self._steps: list[tuple[str, Overlap, int]] = []
        overlap = Overlap(deblurrer, depth=1)
        self.deblurrer = deblurrer
        self._steps.append((deblurrer.name, overlap, 1))
        for step in degrade:
            if step in _SIZES:
                self._steps.append((f"{self._steps[-1][0].partition(' ')[0]} at {step} size",
                                    overlap, _SIZES[step]))  # fmt: skip
            else:
                smaller = Deblurrer(step, device=deblurrer.device, **options)
                overlap = Overlap(smaller, depth=1)
                self._steps.append((smaller.name, overlap, 1))

    @property
    def levels(self) -> Sequence[str]:
        """What each step is called."""
        return [name for name, _, _ in self._steps]

    @torch.inference_mode()
    def restore(self, frames: Sequence[Frame], level: int) -> list[bool]:
        """Restore frames of one layout in place, by step `level`; True for each left as it was."""
        _, overlap, size = self._steps[level]
        if size == 1 or min(frames[0].layout.height, frames[0].layout.width) < 32 * size:
            ((_, replaced),) = overlap.run([FrameBatch(frames)])
            return replaced
        small = [_reduced(frame, size) for frame in frames]
        before = [tuple(plane.copy() for plane in frame.planes) for frame in small]
        ((_, replaced),) = overlap.run([FrameBatch(small)])
        for frame, least, was in zip(frames, small, before, strict=True):
            _add_enlarged(frame, least, was, size)
        return replaced


def degrade_steps(text: str) -> list[str]:
    """`half,quarter` or `mimo-unet-lite,half` as a list; UsageError for an unknown name."""
    from vdeblur.models import names

    steps = [step.strip() for step in text.split(",") if step.strip()]
    for step in steps:
        if step not in _SIZES and step not in names():
            raise UsageError(
                f"{step!r} is no step of --degrade: choose {', '.join(_SIZES)}, or a network: "
                f"{', '.join(names())}"
            )
    if not steps:
        raise UsageError("--degrade names no step: write half,quarter, or a smaller network")
    return steps


def _tensor(plane: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(plane).astype(np.float32))[None, None]


def _reduced(frame: Frame, size: int) -> Frame:
    """The frame at 1/size of its sides, its planes averaged."""
    layout = frame.layout
    width, height = -(-layout.width // size), -(-layout.height // size)
    # Even sides, so that chroma halves again.
    width, height = width + width % 2, height + height % 2
    smaller: PlaneLayout = replace(layout, width=width, height=height)
    planes: tuple[Any, ...] = tuple(
        F.interpolate(_tensor(plane), shape, mode="area")[0, 0]
        .round_()
        .numpy()
        .astype(layout.dtype)
        for plane, shape in zip(frame.planes, smaller.shapes, strict=True)
    )
    motion = None if frame.motion is None else frame.motion / size
    return replace(frame, planes=planes, layout=smaller, carrier=None, motion=motion)


def _add_enlarged(frame: Frame, small: Frame, before: Sequence[Any], size: int) -> None:
    """Add to the frame what changed in its reduced copy, enlarged."""
    top = (1 << frame.layout.depth) - 1
    for plane, after, was in zip(frame.planes, small.planes, before, strict=True):
        change = _tensor(after) - _tensor(was)
        if not bool(change.any()):
            continue
        shape = (int(plane.shape[0]), int(plane.shape[1]))
        grown = F.interpolate(change, shape, mode="bilinear", align_corners=False)
        whole = _tensor(plane).add_(grown).round_().clamp_(0, top)[0, 0].numpy()
        np.copyto(plane, whole, casting="unsafe")
