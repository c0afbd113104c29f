"""Networks under a time limit: the requested one, and cheaper ways to run it when time is short.

With `stream`, the only part of `vdeblur.live` that knows torch. Knows no files and no libav.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vdeblur.errors import UsageError
from vdeblur.frames import Frame, FrameBatch, PlaneLayout
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.inference.transfers import Overlap
from vdeblur.motion.exposure import AUTO, Exposure, exposure_of
from vdeblur.motion.guide import MOTION_GAIN
from vdeblur.motion.meter import ExposureMeter
from vdeblur.motion.movement import LiveTracker, Movement
from vdeblur.motion.neighbours import Around, Link, View, link, view_of
from vdeblur.motion.windows import USUAL_SHARE, FrameSample
from vdeblur.system.thread_shares import use_torch_threads

_SIZES = {"half": 2, "third": 3, "quarter": 4}


class LiveDeblurrer:
    """`Deblurrer`s at several levels of cost; implements `vdeblur.live.protocols.Restorer`.

    Args:
        deblurrer: The requested network.
        degrade: The cheaper levels, in order. `half`, `third` and `quarter` run the network on a
            picture of that size and enlarge its correction, so that the picture itself keeps its
            size and detail. Other names are those of networks, which also apply to the sizes that
            follow them.
        exposure: How long the shutter is open, as for `vdeblur.motion.exposure.exposure_of`.
        **options: Of `Deblurrer`, for the networks in `degrade`.

    Raises:
        UsageError: If the exposure or the name of a network is invalid.
    """

    def __init__(
        self,
        deblurrer: Deblurrer,
        degrade: Sequence[str] = (),
        *,
        exposure: str | float | Fraction | Exposure = AUTO,
        **options: Any,
    ) -> None:
        self._exposure = exposure_of(exposure)
        self._guided = deblurrer.guided
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
                self._guided = self._guided or smaller.guided
                overlap = Overlap(smaller, depth=1)
                self._steps.append((smaller.name, overlap, 1))

    @property
    def levels(self) -> Sequence[str]:
        """Names of the levels; see `Restorer.levels`."""
        return [name for name, _, _ in self._steps]

    def guide(self) -> LiveGuide | None:
        """Create a motion guide for one camera; None if no level is guided by motion."""
        if not self._guided:
            return None
        # One torch thread in there: the others belong to the network.
        meters = ThreadPoolExecutor(1, "exposure", use_torch_threads, (1, torch.get_num_threads()))
        # Start the thread now, not beside the first frames.
        meters.submit(torch.get_num_threads).result()
        return LiveGuide(self._exposure, meters)

    @torch.inference_mode()
    def restore(self, frames: Sequence[Frame], level: int) -> list[bool]:
        """Restore frames in place; see `Restorer.restore`."""
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


class LiveGuide:
    """Sets the motion of one camera's frames; implements `vdeblur.live.protocols.Guide`.

    Each frame is compared with the one before it, within milliseconds. A second thread measures
    how long the shutter is open on some of the frames. It takes a twentieth of a core at most, and
    nothing waits for it: its results apply to later frames.

    Args:
        exposure: How long the shutter is open, or `AUTO` to measure it.
        meters: The thread that measures; ended by `close`.
    """

    def __init__(self, exposure: Exposure, meters: Executor) -> None:
        self._asked, self._meters = exposure, meters
        self.exposure_seconds: float | None = exposure.seconds
        self._under_way: Future[None] | None = None
        self._rest_until = 0.0
        self.forget()

    def forget(self) -> None:
        """See `Guide.forget`. The exposure stays until a better one is known."""
        self._watch, self._meter = LiveTracker(), ExposureMeter()
        # Of the frame before, if the exposure is measured on a pair of frames.
        self._before: FrameSample | None = None
        self._last: tuple[Movement | None, View | None, Link | None] = None, None, None

    def see(self, frame: Frame) -> None:
        """See `Guide.see`."""
        movement = self._watch.see(frame)
        frame.motion = frame.around = None
        before, self._before = self._before, None
        if movement is None:
            self._last = None, None, None
            return
        interval = movement.interval_seconds
        if self._asked.share is not None:
            self.exposure_seconds = self._asked.share * interval
        seconds = self.exposure_seconds
        seconds = USUAL_SHARE * interval if seconds is None else seconds
        frame.motion = movement.during(MOTION_GAIN * seconds)
        idle = self._under_way is None or self._under_way.done()
        if self._asked != AUTO or not idle or time.monotonic() < self._rest_until:
            pass
        elif before is None and self._meter.wants_before:
            self._before = FrameSample.at(frame, movement)
        else:
            # A copy: the frame may be restored before it is measured.
            seen = 3 if frame.layout.kind == "rgb" else 1
            planes = (*(p.copy() for p in frame.planes[:seen]), *frame.planes[seen:])
            still = replace(frame, planes=planes, source_frame=None, on_device=None)
            self._under_way = self._meters.submit(
                self._measure, self._meter, still, movement, before
            )
        self._look_back(frame, movement)

    def _look_back(self, frame: Frame, movement: Movement) -> None:
        """Set what is `around` the frame: the frame before it.

        If that one went through the network, what was made of it there is used: there is no time
        to sample it again.
        """
        last, there, before = self._last
        view = view_of(frame, movement)
        if movement is not last:  # else the picture is repeated
            before = link(view, there, movement.back)
        self._last = movement, view, before
        if view is not None:
            # Even without a neighbor: the next frame's neighbor is made of it.
            frame.around = Around(view, before, at_hand=True)

    def close(self) -> None:
        """See `Guide.close`."""
        self._meters.shutdown(wait=False)

    def _measure(
        self, meter: ExposureMeter, frame: Frame, movement: Movement, before: FrameSample | None
    ) -> None:
        began = time.monotonic()
        meter.see(frame, movement, before)
        if meter.measured:
            self.exposure_seconds = meter.seconds(movement.interval_seconds)
        now = time.monotonic()
        self._rest_until = now + (19 * (now - began) if meter.settled else 0)


def degrade_steps(text: str) -> list[str]:
    """Parse `half,quarter` or `mimo-unet-lite,half` into a list; UsageError for unknown names."""
    from vdeblur.networks import names

    steps = [step.strip() for step in text.split(",") if step.strip()]
    for step in steps:
        if step not in _SIZES and step not in names():
            raise UsageError(
                f"{step!r} is no step of `degrade`: choose {', '.join(_SIZES)}, or a network: "
                f"{', '.join(names())}"
            )
    if not steps:
        raise UsageError("`degrade` names no step: write half,quarter, or a smaller network")
    return steps


def _tensor(plane: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(plane).astype(np.float32))[None, None]


def _reduced(frame: Frame, size: int) -> Frame:
    """Return the frame at 1/size of its width and height, by averaging."""
    layout = frame.layout
    width, height = -(-layout.width // size), -(-layout.height // size)
    # Even sides, so that chroma can be half of them.
    width, height = width + width % 2, height + height % 2
    smaller: PlaneLayout = replace(layout, width=width, height=height)
    planes: tuple[Any, ...] = tuple(
        F.interpolate(_tensor(plane), shape, mode="area")[0, 0]
        .round_()
        .numpy()
        .astype(layout.dtype)
        for plane, shape in zip(frame.planes, smaller.shapes, strict=True)
    )
    motion = None if frame.motion is None else frame.motion / np.float32(size)
    return replace(
        frame, planes=planes, layout=smaller, source_frame=None, motion=motion, around=None
    )


def _add_enlarged(frame: Frame, small: Frame, before: Sequence[Any], size: int) -> None:
    """Enlarge the correction of the reduced copy, and add it to the frame."""
    top = (1 << frame.layout.depth) - 1
    for plane, after, was in zip(frame.planes, small.planes, before, strict=True):
        change = _tensor(after) - _tensor(was)
        if not bool(change.any()):
            continue
        shape = (int(plane.shape[0]), int(plane.shape[1]))
        grown = F.interpolate(change, shape, mode="bilinear", align_corners=False)
        whole = _tensor(plane).add_(grown).round_().clamp_(0, top)[0, 0].numpy()
        np.copyto(plane, whole, casting="unsafe")
